"""The slot: a mix of adapters equals llama.cpp's own adapters set by scales."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import PAPER_ROLES, Stock, noise_adapter, save

from megart import mix, quant
from megart.adapter import Adapter
from megart.errors import AdapterError, InputError
from megart.models import Model
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot

TOKENS = tuple(range(60, 84))
CLOSE = 1e-4  # of logits whose standard deviation is 2


@contextmanager
def slot(model: Model, **options: object) -> Iterator[Slot]:
    engine = Engine(model)
    context = Context(engine, size=256)
    made = Slot(context, **options)
    try:
        yield made
    finally:
        made.close()
        context.close()
        engine.close()


def under(made: Slot, adapters: Sequence[Adapter], gates: Sequence[float]) -> np.ndarray:
    """Logits [2, vocabulary] under a mix: after a batch of prompt, and after one token more."""
    made.install(adapters, gates)
    made.context.truncate(0)
    made.context.decode(TOKENS)
    first = made.context.logits()
    made.context.decode([70])
    return np.stack([first, made.context.logits()])


def by_scales(stock: Stock, scales: Sequence[float]) -> np.ndarray:
    stock.set_scales(scales)
    stock.clear()
    return np.stack([stock.decode(TOKENS), stock.decode([70])])


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_the_mix_equals_adapters_set_by_scales(tiny, exact: None, tmp_path: Path, arch: str) -> None:
    adapters = [
        noise_adapter(arch, 8, 1),
        noise_adapter(arch, 16, 2, roles=PAPER_ROLES, alpha=64.0, size=0.3),  # rsLoRA's scale
        noise_adapter(arch, 5, 3, alpha=0.0),
    ]
    gates = [0.6, 0.3, 0.1]
    files = [(save(a, tmp_path / f"{i}.gguf"), g) for i, (a, g) in enumerate(zip(adapters, gates, strict=True))]
    with slot(tiny(arch), kind="f32") as made, Stock(tiny(arch), files, size=256) as stock:
        expected = by_scales(stock, gates)
        np.testing.assert_allclose(under(made, adapters, gates), expected, atol=CLOSE)
        assert made.in_place
        # Each of the three is felt, so a lost one would be seen.
        for excluded in range(3):
            scales = [0.0 if j == excluded else g for j, g in enumerate(gates)]
            assert abs(by_scales(stock, scales) - expected).max() > 100 * CLOSE


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("gate", [1.0, 0.5])
def test_one_adapter_of_the_slots_rank_is_bit_identical(tiny, tmp_path: Path, kind: str, gate: float) -> None:
    adapter = noise_adapter("llama", 64, 4)
    # Away from f16's subnormals, where halving would round.
    adapter.tensors = {n: (a, np.round(b * 512) / np.float32(512)) for n, (a, b) in adapter.tensors.items()}
    adapter = adapter.as_type(kind)
    path = save(adapter, tmp_path / "a.gguf")
    with slot(tiny(), kind=kind) as made, Stock(tiny(), [(path, gate)], size=256) as stock:
        made.context.close()
        made.context = _plain_attention(made.context.engine)
        assert (under(made, [adapter], [gate]) == by_scales(stock, [gate])).all()


def _plain_attention(engine: Engine) -> Context:
    """A context of the runtime with the attention that ``Stock`` uses, whatever its default is."""
    import llama_cpp

    default = llama_cpp.llama_context_default_params
    with pytest.MonkeyPatch.context() as patch:

        def params() -> object:
            chosen = default()
            chosen.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            return chosen

        patch.setattr(llama_cpp, "llama_context_default_params", params)
        return Context(engine, size=256)


def _sequence(dtype: type = np.float16) -> list[tuple[list[Adapter], list[float]]]:
    """Mixes that make a slot grow, take up other targets, and shrink again."""
    small = noise_adapter("qwen3", 8, 1, dtype=dtype)
    narrow = noise_adapter("qwen3", 24, 2, roles=PAPER_ROLES, dtype=dtype)
    large = noise_adapter("qwen3", 100, 3, dtype=dtype, size=0.5)
    return [
        ([narrow], [1.0]),
        ([small, narrow], [0.7, 0.3]),
        ([large, small], [0.5, 0.5]),
        ([small], [1.0]),
        ([narrow], [0.25]),
        ([small, narrow], [0.7, 0.3]),
    ]


@pytest.mark.parametrize("kind, ranks", [("f16", [64, 64, 128, 64, 64, 64]), ("q8_0", [32, 32, 128, 32, 32, 32])])
def test_both_routes_and_a_fresh_slot_agree_bit_for_bit(tiny, kind: str, ranks: list[int]) -> None:
    """Growing, new targets, shrinking: nothing of a larger mix is left in a smaller one."""
    with slot(tiny("qwen3"), kind=kind) as written, slot(tiny("qwen3"), kind=kind) as loaded:
        loaded.in_place = False
        for (adapters, gates), rank in zip(_sequence(), ranks, strict=True):
            got = under(written, adapters, gates)
            assert written.in_place and not loaded.in_place
            assert (got == under(loaded, adapters, gates)).all()
            with slot(tiny("qwen3"), kind=kind) as fresh:
                assert (got == under(fresh, adapters, gates)).all()
            assert written.layout.rank == rank  # the smallest that fits


def test_a_slot_of_blocks_is_near_the_exact_one(tiny, exact: None) -> None:
    with slot(tiny("qwen3"), kind="q8_0") as made, slot(tiny("qwen3"), kind="f32") as exactly:
        for adapters, gates in _sequence(np.float32):
            expected = under(exactly, adapters, gates)
            effect = expected - under(exactly, adapters, [0.0] * len(gates))
            error = under(made, adapters, gates) - expected
            assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(effect**2))


def test_a_type_that_no_slot_has_is_refused(tiny) -> None:
    with (
        pytest.raises(InputError, match="got a slot of 'q4_0'; expected one of f32, f16, q8_0"),
        slot(tiny(), kind="q4_0"),
    ):
        pass


def test_where_rows_are_no_whole_blocks_a_is_f16() -> None:
    a, b = mix.blank({"x": (40, 70)}, 64, quant.Q8_0)["x"]
    assert (a.dtype, a.shape, b.dtype, b.shape) == (np.float16, (64, 40), quant.Q8_0, (70, 2))


def upper(adapter: Adapter, first: int) -> Adapter:
    """*adapter* without its pairs below layer *first*."""
    kept = {n: pair for n, pair in adapter.tensors.items() if int(n.split(".")[1]) >= first}
    return replace(adapter, tensors=kept)


def test_adapters_of_some_layers_only_equal_adapters_set_by_scales(tiny, exact: None, tmp_path: Path) -> None:
    """The slot holds the union of what opens and nothing else, whatever opened before."""
    adapters = [
        upper(noise_adapter("qwen3", 8, 1), 2),
        upper(noise_adapter("qwen3", 40, 2, roles=PAPER_ROLES, size=0.3), 3),
        upper(noise_adapter("qwen3", 40, 3), 1),
    ]
    files = [(save(a, tmp_path / f"{i}.gguf"), 0.0) for i, a in enumerate(adapters)]
    model = tiny("qwen3")
    with slot(model, kind="f32") as made, Stock(model, files, size=256) as stock:
        for opened in ([0], [1], [0, 1], [2], [0, 2], [1], [0], [0, 1, 2]):
            gates = [0.9 / (place + 1) for place in range(len(opened))]
            scales = [gates[opened.index(i)] if i in opened else 0.0 for i in range(3)]
            got = under(made, [adapters[i] for i in opened], gates)
            np.testing.assert_allclose(got, by_scales(stock, scales), atol=CLOSE)
            assert set(made.layout.shapes) == {n for i in opened for n in adapters[i].tensors}
            assert made.in_place
        assert made.layout.rank == 128  # of the largest sum over one tensor, 8 + 40 + 40


def test_a_layout_is_made_once_and_few_are_kept(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[int] = []
    load = Slot._load
    monkeypatch.setattr(Slot, "_load", lambda self, arrays: made_of.append(len(arrays)) or load(self, arrays))
    whole = noise_adapter("llama", 8, 1, dtype=np.float16)
    by_first = [upper(whole, first) for first in (0, 1, 2, 3)]
    with slot(tiny()) as made:
        first_time = [under(made, [adapter], [1.0]) for adapter in by_first]
        again = [under(made, [adapter], [1.0]) for adapter in reversed(by_first)]
        assert all((x == y).all() for x, y in zip(first_time, reversed(again), strict=True))
        assert made_of == [12, 9, 6, 3]
        narrow = noise_adapter("llama", 8, 2, dtype=np.float16, roles=("ffn_up",))
        under(made, [narrow], [1.0])  # a fifth: the least recently used goes
        assert (under(made, [by_first[0]], [1.0]) == first_time[0]).all()
        assert made_of == [12, 9, 6, 3, 4]
        assert (under(made, [by_first[3]], [1.0]) == first_time[3]).all()
        assert made_of == [12, 9, 6, 3, 4, 3]


def test_a_build_whose_tensors_look_otherwise_is_served_by_reloading(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check fails: same answers, other route."""
    adapters, gates = _sequence()[1]
    with slot(tiny("qwen3")) as made:
        expected = under(made, adapters, gates)
    monkeypatch.setattr(Slot, "_bind", lambda *_: False)
    with slot(tiny("qwen3")) as made:
        assert (under(made, adapters, gates) == expected).all()
        assert not made.in_place


@pytest.mark.parametrize("field, found", [("type", 1), ("ne", (64, 32, 1, 2)), ("nb", (34, 64))])
def test_a_tensor_of_other_bytes_is_not_written(tiny, monkeypatch: pytest.MonkeyPatch, field: str, found) -> None:
    adapters, gates = _sequence()[1]
    with slot(tiny("qwen3"), kind="q8_0") as made:
        expected = under(made, adapters, gates)
    bind = Slot._bind

    def changed(self: Slot, layout, tensors) -> bool:
        tensors[0][field] = found
        return bind(self, layout, tensors)

    monkeypatch.setattr(Slot, "_bind", changed)
    with slot(tiny("qwen3"), kind="q8_0") as made:
        assert (under(made, adapters, gates) == expected).all()
        assert not made.in_place


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("elsewhere", ["all", "some layers"])
def test_tensors_in_device_memory_are_sent_over(
    tiny, monkeypatch: pytest.MonkeyPatch, elsewhere: str, kind: str
) -> None:
    """As with layers on a GPU, all of them or some: the mix is made here and copied to where the tensor lies."""
    with slot(tiny("qwen3"), kind=kind) as made:
        expected = [under(made, adapters, gates) for adapters, gates in _sequence()]
    bind = Slot._bind

    def on_device(self: Slot, layout, found) -> bool:
        for tensor in found:
            if elsewhere == "all" or tensor["name"].startswith(("blk.0.", "blk.2.")):
                tensor["is_host"], tensor["data"] = False, 0  # what may not be touched
        return bind(self, layout, found)

    monkeypatch.setattr(Slot, "_bind", on_device)
    with slot(tiny("qwen3"), kind=kind) as made:
        for (adapters, gates), wanted in zip(_sequence(), expected, strict=True):
            assert (under(made, adapters, gates) == wanted).all()
            assert made.in_place and made.layout
            sent, names = set(made.layout.device), set(made.layout.shapes)
            assert sent == (names if elsewhere == "all" else {n for n in names if n[4] in "02"})


def test_a_mix_that_does_not_fit_is_refused_and_the_slot_works_on(tiny) -> None:
    good, wide = noise_adapter("llama", 8, 1), noise_adapter("llama", 8, 2)
    wide.tensors = {n: (np.zeros((8, 32), np.float32), b) for n, (_, b) in wide.tensors.items()}
    with slot(tiny()) as made:
        before = under(made, [good], [1.0])
        with pytest.raises(AdapterError, match="qwen2"):
            made.install([noise_adapter("qwen2", 8, 1)], [1.0])
        with pytest.raises(AdapterError):
            made.install([wide], [1.0])
        with pytest.raises(AdapterError, match="shape"):
            made.install([good, wide], [0.5, 0.5])
        assert (under(made, [good], [1.0]) == before).all()
