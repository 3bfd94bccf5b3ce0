"""Of two memories, each of which says how much or when, the one that is more: their figures are compared by arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .compare import Comparison
from .job import Job
from .quantities import BARE, Quantity
from .recall import recall

if TYPE_CHECKING:
    from .ask import Tried


def reckon(job: Job, compare: Comparison, sides: Sequence[Tried]) -> tuple[int, list[Tried]] | None:
    """Which of the two *sides* is meant, 0 or 1, and both with the figure compared as their answer.

    None where they have no figures that can be compared.
    """
    there = [compare.quantities(side.recital.text) for side in sides]
    for kind in _kinds_of_both(sides, there):
        told: list[Quantity] = []
        for side, question, quantities in zip(sides, compare.asks, there, strict=True):
            told += _told(job, side, question, [one for one in quantities if one.kind == kind])
        if len(told) < 2:
            continue
        winner = compare.winner(told[0], told[1])
        if winner is not None:
            both = zip(sides, told, strict=True)
            return winner, [replace(side, reading=replace(side.reading, span=one.span)) for side, one in both]
    return None


def _kinds_of_both(sides: Sequence[Tried], there: Sequence[Sequence[Quantity]]) -> list[str]:
    """The kinds of which both have a quantity; first those that the reader's answers are of."""
    read = [{one.kind for one in own if _is_read(side, one)} for side, own in zip(sides, there, strict=True)]
    others = {one.kind for one in there[1]}
    both = dict.fromkeys(one.kind for one in there[0] if one.kind in others)
    return sorted(both, key=lambda kind: -sum(kind in kinds for kinds in read))


def _is_read(side: Tried, one: Quantity) -> bool:
    """Whether the reader's answer holds it."""
    start, end = side.reading.span
    return start < one.span[1] and one.span[0] < end


def _told(job: Job, side: Tried, question: str, those: Sequence[Quantity]) -> list[Quantity]:
    """The one of *those* that answers *question*: what the reader said, else what it would rather say, no bare figure."""
    left = [one for one in those if _is_read(side, one)] or [one for one in those if one.kind != BARE]
    if len(left) < 2:
        return left
    recital = recall(job.runtime, job.bank, side.candidate.record)
    title = side.candidate.record.title
    return [left[job.runtime.reader.choose(recital, question, title, [one.span for one in left])]]
