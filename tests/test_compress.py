"""A mix of more rank than the slot holds: the nearest adapter of the slot's rank, and what that lost."""

from __future__ import annotations

import numpy as np
from helpers import FIRST, SECOND, noise_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from megart import mix, quant
from megart.gate import GatePolicy
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot


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
    return np.zeros((rank, width), dtype), np.zeros((height, rank), dtype)


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 24), min_size=1, max_size=4),
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    kept=st.integers(1, 40),
    decay=st.sampled_from([0.0, 0.2, 2.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_loss_is_the_least_that_the_rank_allows(ranks, width, height, kept, decay, seed):
    rng = np.random.default_rng(seed)
    a, b = factors(rng, ranks, width, height, decay)
    gates = rng.uniform(-1, 1, len(ranks)).astype(np.float32)
    place = small(kept, width, height)
    total, dropped = mix._nearest(gates, a, b, place)
    exact = whole(a, b, gates)
    values = np.linalg.svd(exact, compute_uv=False)
    size, least = np.linalg.norm(exact), np.sqrt((values[kept:] ** 2).sum())
    assert np.linalg.norm(place[1].astype(np.float64) @ place[0] - exact) <= 1.001 * least + 1e-4 * size
    assert abs(np.sqrt(total) - size) <= 1e-4 * size and abs(np.sqrt(dropped) - least) <= 1e-4 * size + 1e-12


def test_nothing_at_all_compresses_to_nothing():
    place = small(2, 6, 5)
    lost = mix._nearest(np.ones(1, np.float32), [np.zeros((8, 6), np.float32)], [np.zeros((5, 8), np.float32)], place)
    assert lost == (0.0, 0.0) and not place[0].any() and not place[1].any()


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
            assert (wide.layout.rank, tight.layout.rank, wide.truncation) == (128, 64, 0.0)
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
    assistant = ready(policy=policy, combine="mix")
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
    assistant.acceptance.recall(noise_adapter("llama", 8, 9), "x", activated=True, max_tokens=1)  # another mix between
    again = assistant.direct("Who keeps cats?", max_tokens=4)
    assert 0 < first.truncation < 1 and first.to_dict()["truncation"] > 0
    assert (again.tokens, again.truncation, len(calls)) == (first.tokens, first.truncation, 1)
