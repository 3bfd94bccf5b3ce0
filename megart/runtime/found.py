"""What a question finds in a bank: plain data, from the gate to the stages after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .. import gate
from ..bank import Record
from ..errors import InputError
from .answer import OpenedMemory

# Memories whose titles are named when none answers.
NEAREST = 3


@dataclass
class Opened:
    """What the gate let through, with everything needed to answer from it, best first.

    ``excluded``: what it let through besides, but of a kind that cannot share a mix with these.
    """

    shown: list[OpenedMemory]
    records: list[Record]
    excluded: list[OpenedMemory] = field(default_factory=list)

    def of_one_kind(self) -> Opened:
        """Those of the best one's kind, which can share a mix; the others are left out."""
        keep = [j for j, record in enumerate(self.records) if kind_of(record) == kind_of(self.records[0])]
        if len(keep) == len(self.records):
            return self
        total = sum(self.shown[j].gate for j in keep)
        return Opened(
            [replace(self.shown[j], gate=self.shown[j].gate / total) for j in keep],
            [self.records[j] for j in keep],
            [memory for j, memory in enumerate(self.shown) if j not in keep],
        )


@dataclass(frozen=True)
class Candidate:
    """A memory that may answer, and what the gate saw of it; ``row``: its number in the bank, -1: opened by hand."""

    record: Record
    seen: gate.known.Seen
    row: int = -1

    def version(self, rank: int = 0, answer: str = "", odds: float | None = None) -> gate.versions.Version:
        """The same as one of two that may say the same at another time."""
        return gate.versions.Version(self.record.titled_text, self.record.created, self.seen, rank, answer, odds)


@dataclass(frozen=True)
class Found:
    """The memories to read for a question, the likeliest first.

    ``likely``: whether any is worth reading; else they are only the nearest. ``near``: whether the question is one for the
    bank even where none answers. ``opens``: whether the gate alone would open one. ``pair``: the question needs the
    first two; ``leans``: it leans on what was said before.
    """

    candidates: list[Candidate]
    likely: bool
    near: bool = False
    opens: bool = False
    pair: bool = False
    leans: bool = False

    @property
    def titles(self) -> list[str]:
        """Of the candidates, as people know them."""
        return [candidate.record.heading for candidate in self.candidates[:NEAREST]]


@dataclass(frozen=True)
class Talk:
    """A conversation so far: the rows of the memories that the last answer came from, and what was asked."""

    rows: list[int]
    asked: str


@dataclass(frozen=True)
class Judged:
    """What the gate makes of a question: the memories that may apply, and those that open, by id."""

    ids: list[str]
    titles: list[str]
    candidates: gate.Candidates
    opened: list[tuple[str, float]]
    pending: list[bool] = field(default_factory=list)


def kind_of(record: Record) -> str:
    """When a memory's adapter works, which all memories of one answer share."""
    if record.state == "pending":
        return "pending"
    return "activated" if record.activated else "whole prompt"


def check_kinds(records: Sequence[Record]) -> None:
    """Raises InputError unless *records* can share an answer."""
    kinds = sorted({kind_of(record) for record in records})
    if len(kinds) > 1:
        raise InputError(
            f"got memories of different kinds to open ({', '.join(kinds)}); expected one kind; open them one by one"
        )
