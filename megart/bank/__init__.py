"""The store of memories: one SQLite catalog, their adapters as files, their context keys."""

from megart.bank.catalog import BaseInfo
from megart.bank.check import Problem
from megart.bank.memory import Memory, Record
from megart.bank.reading import read_memories
from megart.bank.store import Bank

__all__ = ["Bank", "BaseInfo", "Memory", "Problem", "Record", "read_memories"]
