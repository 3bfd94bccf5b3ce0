"""The gate's policy: what opens, how far, and when nothing does."""

from __future__ import annotations

import numpy as np
import pytest

from megart.gate import GatePolicy, choose, unit

AXES = np.eye(4, dtype=np.float32)


def test_the_nearest_memory_opens_alone() -> None:
    (opened,) = choose(unit(np.array([1.0, 0.1, 0, 0])), AXES, GatePolicy())
    assert (opened.index, opened.gate) == (0, 1.0)
    assert opened.score == pytest.approx(0.995, abs=1e-3)


def test_nothing_opens_under_the_threshold() -> None:
    query = unit(np.array([0.3, 0, 0, 1.0]))
    assert choose(query, AXES[:3], GatePolicy(threshold=0.30)) == []
    assert choose(query, AXES[:3], GatePolicy(threshold=0.28))[0].index == 0


def test_two_near_memories_share_the_gate_and_sum_to_one() -> None:
    opened = choose(unit(np.array([1.0, 0.98, 0, 0])), AXES, GatePolicy(beta=10.0))
    assert [o.index for o in opened] == [0, 1]
    assert sum(o.gate for o in opened) == pytest.approx(1.0)
    assert opened[0].gate > opened[1].gate >= 0.2


def test_no_more_than_top_k_open() -> None:
    query = unit(np.ones(4))
    assert len(choose(query, AXES, GatePolicy(top_k=3, min_gate=0.0))) == 3


def test_an_empty_bank_opens_nothing() -> None:
    assert choose(AXES[0], np.empty((0, 4), np.float32), GatePolicy()) == []


def test_unit_keeps_a_zero_row() -> None:
    assert np.array_equal(unit(np.zeros((1, 3))), np.zeros((1, 3), np.float32))
