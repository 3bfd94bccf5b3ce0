"""The store of memories: one SQLite catalog, their adapters as files, their context keys."""

from .catalog import BaseInfo
from .check import Problem
from .memory import Memory, Record
from .reading import read_memories
from .store import Bank

__all__ = ["Bank", "BaseInfo", "Memory", "Problem", "Record", "read_memories"]
