"""Of two memories the one that is more: which of their figures are compared, and when none can be."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from megart.runtime.compare import comparison
from megart.runtime.reader import Reading
from megart.runtime.reckon import reckon

LONGER = "Which is longer, the rope or the chain?"


@dataclass(frozen=True)
class Side:
    """As much of a memory that was read as is reckoned with."""

    recital: Any
    reading: Reading
    source: Any


def side(text: str, read: str, id: str) -> Side:
    start = text.index(read)
    return Side(SimpleNamespace(text=text), Reading((start, start + len(read)), 0.0, 0.0), SimpleNamespace(id=id))


def reckoned(question: str, *sides: Side) -> tuple[int, list[str]] | None:
    compare = comparison(question)
    assert compare is not None
    job: Any = None  # nothing is to be chosen between
    made = reckon(job, compare, sides)  # type: ignore[arg-type]
    return made and (made[0], [one.recital.text[slice(*one.reading.span)] for one in made[1]])


@pytest.mark.parametrize(("read", "winner"), [("30 m", 0), ("5 kg", 1)])
def test_of_what_the_reader_said_is_compared(read: str, winner: int) -> None:
    rope, chain = "rope: 5 kg, 30 m", "chain: 9 kg, 900 cm"
    other = {"30 m": "900 cm", "5 kg": "9 kg"}[read]
    assert reckoned(LONGER, side(rope, read, "a"), side(chain, other, "b")) == (winner, [read, other])


def test_a_measure_is_told_though_the_reader_said_something_else_a_bare_figure_is_not() -> None:
    chain = side("chain of 9 m", "9 m", "b")
    assert reckoned(LONGER, side("the rope, 30 m", "rope", "a"), chain) == (0, ["30 m", "9 m"])
    bare = side("chain, 9", "9", "b")
    assert reckoned(LONGER, side("rope, 30", "30", "a"), bare) == (0, ["30", "9"])
    assert reckoned(LONGER, side("the rope, 30", "rope", "a"), bare) is None


def test_what_differs_in_kind_or_is_one_figure_is_not_compared() -> None:
    assert reckoned(LONGER, side("rope 30 m", "30 m", "a"), side("chain 9 kg", "9 kg", "b")) is None
    two = "rope 30 m, chain 9 m"
    assert reckoned(LONGER, side(two, "30 m", "a"), side(two, "9 m", "a")) == (0, ["30 m", "9 m"])
    assert reckoned(LONGER, side(two, "30 m", "a"), side(two, "30 m", "a")) is None
