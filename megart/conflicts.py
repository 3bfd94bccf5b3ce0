"""A new note that says something like an old one: an update of it, a correction, or only a neighbour.

Found when the new one is memorized, by how alike the two are; what becomes of the old one is the user's choice. Nothing
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
    """*memory* is like *old*; ``alike``: the cosine of what the two say."""

    memory: Memory
    old: Record
    alike: float


def conflicts(assistant: Assistant, memories: Sequence[Memory]) -> list[Conflict]:
    """For each of *memories* that is like another text of the bank, the one it is most like."""
    conflicting = []
    for memory in memories:
        near = assistant.alike(memory.text, memory.title)
        if near is not None and near[0].text != memory.text:
            conflicting.append(Conflict(memory, *near))
    return conflicting


def supersede(bank: Bank, old: Record, new: Record) -> None:
    """Let *new* take the place of *old*, which stays in the bank."""
    bank.annotate(old.id, {SUPERSEDED_BY: new.id})
