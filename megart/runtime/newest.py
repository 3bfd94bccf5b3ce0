"""Of memories that say the same at different times, the newest, and those that it takes the place of."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import gate
from ..bank import Record
from ..bank.memory import SUPERSEDED_BY
from .follow import asks_before
from .found import Candidate, Found
from .open_bank import OpenBank
from .request import Request

if TYPE_CHECKING:
    from .ask import Tried

VERSIONS = 2  # memories that are read for what they say of the same at another time
_CERTAIN = 0.9  # that two memories say the same at another time


def newest(
    bank: OpenBank, request: Request, first: Tried, found: Found, read: Callable[[Candidate], Tried]
) -> tuple[list[Tried], tuple[Tried, ...]]:
    """Of *first*, which answers, and what says the same at another time, the newest and the others.

    The newest of the others comes first where the question is how it was before. ``read``: what becomes of a candidate.
    """
    mine, before = first.candidate.record, asks_before(request.question)
    answer = first.candidate.version(answer=first.source.words)

    def features(version: gate.versions.Version) -> dict[str, float]:
        return gate.versions.features(request.question, answer, version, bank.memories.prior)

    def may_be(other: Record) -> bool:
        return _linked(mine, other) or _are_ordered(mine, other)

    linked, worth = [], []
    for other, version in bank.versions(first.candidate, found, request.scope, may_be):
        if _linked(mine, other.record):
            linked.append(other)
            continue
        p = gate.versions.likely(features(version))
        if gate.versions.is_worth_reading(p, one_day=_of_one_day(mine, other.record)):
            worth.append((p, other, version))
    same = [one for one in map(read, linked[:VERSIONS]) if one.source.words]
    likely = []
    for _, other, version in sorted(worth, key=lambda one: -one[0])[: max(0, VERSIONS - len(linked))]:
        one = read(other)
        values = features(version.read(one.source.words, one.reading.odds))
        p = gate.versions.same_fact(values, before=before, one_day=_of_one_day(mine, other.record))
        if one.source.words and p:
            likely.append((p, one))
    # Of several that may say the same, the likeliest, and what is all but certain.
    best = max((p for p, _ in likely), default=0.0)
    same = [first, *same, *(one for p, one in likely if p == best or p >= _CERTAIN)]
    same.sort(key=lambda one: _age(one.candidate.record), reverse=True)
    if len(same) > 1 and before:
        return [same[1]], (same[0], *same[2:])
    return [same[0]], tuple(same[1:])


def _linked(one: Record, other: Record) -> bool:
    """Whether the user let one of the two take the other's place."""
    return one.metadata.get(SUPERSEDED_BY) == other.id or other.metadata.get(SUPERSEDED_BY) == one.id


def _of_one_day(one: Record, other: Record) -> bool:
    return one.created[:10] == other.created[:10]


def _are_ordered(one: Record, other: Record) -> bool:
    """Whether something says which of the two is newer: their days, or the times of one day where both have one."""
    timed = all(len(record.created) > 10 for record in (one, other))
    return one.created != other.created and (timed or not _of_one_day(one, other))


def _age(record: Record) -> tuple[bool, str]:
    """What puts memories in the order of time: those superseded first."""
    return SUPERSEDED_BY not in record.metadata, record.created
