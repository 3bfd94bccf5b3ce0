"""A mix of more rank than the slot holds: the nearest adapter of the slot's rank, and what that lost."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import FIRST, SECOND, noise_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from megart import _core, mix, quant, reference
from megart.gate import GatePolicy
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot

BOTH = pytest.mark.parametrize("impl", [_core, reference], ids=["core", "reference"])


def factors(rng, ranks, width, height, decay=0.0, kind="f32"):
    """Factors whose products have singular values that fall off by exp(-decay)."""
    a = [quant.quantize(rng.standard_normal((r, width)).astype(np.float32), kind) for r in ranks]
    fall = np.exp(-decay * np.arange(sum(ranks))).astype(np.float32)
    starts = np.cumsum([0, *ranks])
    b = [
        quant.quantize(rng.standard_normal((height, r)).astype(np.float32) * fall[s : s + r], kind)
        for r, s in zip(ranks, starts)
    ]
    return a, b


def whole(a, b, gates):
    return sum(g * (quant.dequantize(y).astype(np.float64) @ quant.dequantize(x)) for g, x, y in zip(gates, a, b))


def small(rank, width, height, dtype=np.float32):
    return np.full((rank, width), np.nan, dtype), np.full((height, rank), np.nan, dtype)


@pytest.mark.parametrize("level", _core.simd_levels())
@settings(max_examples=25, deadline=None)
@given(
    ranks=st.lists(st.integers(0, 24), min_size=1, max_size=4),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    kept=st.integers(1, 40),
    decay=st.sampled_from([0.0, 0.2, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_loss_is_the_least_that_the_rank_allows(level, ranks, width, height, kept, decay, seed):
    rng = np.random.default_rng(seed)
    a, b = factors(rng, ranks, width, height, decay)
    gates = rng.uniform(-1, 1, len(ranks)).astype(np.float32)
    best = _core.simd()
    _core.use_simd(level)
    try:
        out_a, out_b = small(kept, width, height)
        ((total, dropped),) = _core.compress_all([a], [b], gates, [out_a], [out_b])
    finally:
        _core.use_simd(best)
    exact = whole(a, b, gates)
    spec_a, spec_b = small(kept, width, height)
    ((want_total, want_dropped),) = reference.compress_all([a], [b], gates, [spec_a], [spec_b])
    size = np.linalg.norm(exact)
    error = np.linalg.norm(out_b.astype(np.float64) @ out_a - exact)
    assert error <= 1.001 * np.sqrt(want_dropped) + 1e-4 * size
    assert abs(np.sqrt(total) - np.sqrt(want_total)) <= 1e-4 * size
    assert abs(np.sqrt(dropped) - np.sqrt(want_dropped)) <= 1e-4 * size + 1e-12


@BOTH
def test_many_matrices_and_ranks_that_fit_are_exact(impl):
    rng = np.random.default_rng(0)
    gates = np.array([0.7, 0.3], np.float32)
    large, fitting = factors(rng, [32, 32], 96, 80, kind="q8_0"), factors(rng, [8, 16], 40, 50, kind="f16")
    outs = [small(24, 96, 80), small(24, 40, 50)]
    losses = impl.compress_all(
        [large[0], fitting[0]], [large[1], fitting[1]], gates, [o[0] for o in outs], [o[1] for o in outs], threads=2
    )
    assert losses.shape == (2, 2) and losses[0, 1] > 0 and (losses[1] == 0).all()
    exact = [small(24, 40, 50)]
    reference.mix(*fitting, gates, *exact[0])
    assert np.array_equal(outs[1][0], exact[0][0]) and np.array_equal(outs[1][1], exact[0][1])
    error = np.linalg.norm(outs[0][1].astype(np.float64) @ outs[0][0] - whole(*large, gates))
    assert error == pytest.approx(np.sqrt(losses[0, 1]), rel=1e-3)


@BOTH
def test_nothing_at_all_compresses_to_nothing(impl):
    a, b = [np.zeros((8, 6), np.float32)], [np.zeros((5, 8), np.float32)]
    out_a, out_b = small(2, 6, 5)
    losses = impl.compress_all([a], [b], np.ones(1, np.float32), [out_a], [out_b])
    assert not losses.any() and not out_a.any() and not out_b.any()


def test_bad_input_is_refused_and_nothing_is_written():
    a, b = [np.ones((8, 6), np.float32)], [np.ones((5, 8), np.float32)]
    out_a, out_b = np.ones((2, 6), np.float32), np.ones((5, 2), np.float32)
    with pytest.raises(ValueError, match="gates"):
        _core.compress_all([a], [b], np.full(1, np.nan, np.float32), [out_a], [out_b])
    with pytest.raises(ValueError, match=r"b\[0\]\[0\]: got \[4, 8\]"):
        _core.compress_all([a], [[np.ones((4, 8), np.float32)]], np.ones(1, np.float32), [out_a], [out_b])
    assert (out_a == 1).all() and (out_b == 1).all()


def test_a_slot_recompresses_what_it_cannot_hold(tiny, exact: None) -> None:
    """Adapters that lie in one space lose nothing; others lose what is said, once per mix."""
    shared = [noise_adapter("llama", 40, seed) for seed in (1, 1, 1)]
    apart = [noise_adapter("llama", 40, seed) for seed in (1, 2, 3)]
    engine = Engine(tiny())
    contexts = [Context(engine, size=256) for _ in range(2)]
    tight, wide = Slot(contexts[0], kind="f32"), Slot(contexts[1], kind="f32")
    tight.max_rank = 48  # less than the step, because the tiny model has only 64 dimensions
    try:

        def heard(slot: Slot, adapters, gates) -> np.ndarray:
            slot.install(adapters, gates)
            slot.context.truncate(0)
            slot.context.decode(range(60, 84))
            return slot.context.logits()

        for adapters, least, most in ((shared, 0.0, 1e-3), (apart, 0.05, 0.9)):
            gates = [0.5, 0.3, 0.2]
            expected, got = heard(wide, adapters, gates), heard(tight, adapters, gates)
            assert (wide.rank, tight.rank, wide.truncation) == (128, 64, 0.0)
            assert least <= tight.truncation < most
            if not least:
                np.testing.assert_allclose(got, expected, atol=2e-2)  # factors are kept as f16
        heard(tight, [noise_adapter("llama", 8, 4)], [1.0])
        assert tight.truncation == 0.0
    finally:
        for slot in (tight, wide):
            slot.close()
            slot.context.close()
        engine.close()


def test_an_answer_says_what_was_lost_and_a_mix_is_recompressed_once(ready, monkeypatch) -> None:
    from megart.adapter import write_adapter

    policy = GatePolicy(beta=0.0, threshold=-1.0, top_k=2, min_gate=0.0)
    assistant = ready(policy=policy, max_rank=1, combine="mix", slot="f16")
    assert assistant.slot.max_rank == 64
    assistant.slot.max_rank = 48
    for seed, record in enumerate(assistant.bank.records()):
        memory = next(m for m in (FIRST, SECOND) if m.id == record.id)
        data = write_adapter(noise_adapter("llama", 40, seed, dtype=np.float16))
        assistant.bank.add(
            memory, key=assistant.key(memory.text), adapter=data, recipe="fast", activated=True, rank=40, replace=True
        )
    calls: list[int] = []
    compress = mix.compress
    monkeypatch.setattr(mix, "compress", lambda *args: calls.append(1) or compress(*args))
    first = assistant.direct("Who keeps cats?", max_tokens=4)
    assistant.try_recall(noise_adapter("llama", 8, 9), "x", activated=True, max_tokens=1)  # another mix between
    again = assistant.direct("Who keeps cats?", max_tokens=4)
    assert 0 < first.truncation < 1 and first.to_dict()["truncation"] > 0
    # the second is the one between: 8 takes up 64
    assert (again.tokens, again.truncation, len(calls)) == (first.tokens, first.truncation, 2)
