"""A new note that says something otherwise than an old one: an update of it, or a correction.

Found when the new one is memorized, by what the two have in common; what becomes of the old one is the user's choice. Nothing
is lost: a superseded memory stays in the bank, is named with its date, and answers how it was before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .bank import Bank, Memory, Record
from .bank.memory import SUPERSEDED_BY

if TYPE_CHECKING:
    from .runtime.assistant import Assistant

CHOICES = ("ask", "keep", "supersede", "skip")


@dataclass(frozen=True)
class Conflict:
    """*memory* may update *old*; ``p``: how probable that is."""

    memory: Memory
    old: Record
    p: float


def conflicts(assistant: Assistant, memories: Sequence[Memory]) -> list[Conflict]:
    """For each of *memories* that may update a text of the bank, the likeliest one."""
    conflicting = []
    for memory in memories:
        updated = assistant.updated_by(memory.text, memory.title)
        if updated is not None:
            conflicting.append(Conflict(memory, *updated))
    return conflicting


def supersede(bank: Bank, old: Record, new: Record) -> None:
    """Let *new* take the place of *old*, which stays in the bank."""
    bank.annotate(old.id, {SUPERSEDED_BY: new.id})
