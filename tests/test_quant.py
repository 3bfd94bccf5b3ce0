"""Factors of q8_0 and q4_0: the same blocks as the gguf package, and as llama.cpp reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reference
from gguf import GGMLQuantizationType, GGUFReader, quants
from helpers import Stock, noise_adapter, save
from hypothesis import given, settings
from hypothesis import strategies as st

from megart import _core, quant
from megart.adapter import Adapter, read_adapter, write_adapter
from megart.errors import AdapterError
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot

KINDS = ("q8_0", "q4_0")


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 5),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1.0, 1e-5, 300.0]),
)
def test_blocks_are_the_gguf_packages(kind: str, rows: int, blocks: int, seed: int, size: float) -> None:
    values = (np.random.default_rng(seed).standard_normal((rows, 32 * blocks)) * size).astype(np.float32)
    made = quant.quantize(values, kind)
    expected = quants.quantize(values, GGMLQuantizationType[kind.upper()])
    assert made.shape == (rows, blocks) and quant.shape(made) == values.shape and quant.kind(made) == kind
    assert np.array_equal(made.view(np.uint8), expected)
    back = quants.dequantize(expected, GGMLQuantizationType[kind.upper()])
    assert np.array_equal(quant.dequantize(made), back)
    # The extension and its specification read the same values.
    a = [np.zeros((values.shape[1], 3), np.float16)]
    for impl in (_core, reference):
        out = np.empty(values.shape, np.float32)
        impl.mix_all([a], [[made]], np.ones(1, np.float32), [np.empty((values.shape[1], 3), np.float16)], [out])
        assert np.array_equal(out, back)


def test_a_row_without_whole_blocks_stays_f16() -> None:
    values = np.ones((4, 40), np.float32)
    assert quant.quantize(values, "q8_0").dtype == np.float16
    with pytest.raises(AdapterError, match="q5_1"):
        quant.quantize(values, "q5_1")
    with pytest.raises(AdapterError, match="float64"):
        quant.kind(np.ones((1, 1)))


def test_what_is_not_finite_is_not_written() -> None:
    a, b = np.full((32, 64), 1e9, np.float32), np.zeros((64, 32), np.float32)
    with pytest.raises(AdapterError, match="infinity"):
        write_adapter(Adapter("llama", 0.0, {"x": (a, b)}).as_type("q8_0"))


@pytest.mark.parametrize("kind", [*KINDS, "f16", "f32"])
@pytest.mark.parametrize("rank", [8, 64])
def test_a_file_of_each_type_is_read_as_written(tmp_path: Path, kind: str, rank: int) -> None:
    adapter = noise_adapter("llama", rank, 1, alpha=3.0).as_type(kind)
    path = save(adapter, tmp_path / "a.gguf")
    read = read_adapter(path)
    assert read.rank == rank and read.scale("blk.0.ffn_up.weight") == 3.0 / rank
    for name, pair in adapter.tensors.items():
        for got, expected in zip(read.tensors[name], pair, strict=True):
            assert got.dtype == expected.dtype and np.array_equal(got, expected) and not got.flags.owndata
    types = {t.name.rpartition(".")[2]: t.tensor_type.name for t in GGUFReader(path).tensors}
    whole = kind.upper()
    assert types == {"lora_a": whole, "lora_b": whole if rank == 64 or kind[0] == "f" else "F16"}
    if kind == "q4_0" and rank == 64:
        assert path.stat().st_size < 0.35 * len(write_adapter(adapter.as_type("f16")))


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_with_half_a_block_is_refused(tmp_path: Path, kind: str) -> None:
    path = save(noise_adapter("llama", 64, 1).as_type(kind), tmp_path / "a.gguf")
    data = bytearray(path.read_bytes())
    name = b"blk.0.ffn_gate.weight.lora_a"
    at = data.index(name) + len(name) + 4  # after the number of dimensions
    data[at : at + 8] = (63).to_bytes(8, "little")
    path.write_bytes(data)
    with pytest.raises(AdapterError, match="whole blocks of 32"):
        read_adapter(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [8, 64])
def test_the_mix_of_blocks_is_what_llama_cpp_computes_with_them(
    tiny, exact: None, tmp_path: Path, kind: str, rank: int
) -> None:
    """Against llama.cpp's own use of the file, which rounds activations to 8 bits as well."""
    adapter = noise_adapter("llama", rank, 3, size=0.5).as_type(kind)
    plain = Adapter("llama", adapter.alpha, {n: tuple(map(quant.dequantize, p)) for n, p in adapter.tensors.items()})
    with Stock(tiny(), [(save(plain, tmp_path / "plain.gguf"), 0.7)], size=256) as stock:
        expected = stock.decode(range(60, 84))
        stock.set_scales([0.0])
        stock.clear()
        effect = abs(stock.decode(range(60, 84)) - expected).max()
    with Stock(tiny(), [(save(adapter, tmp_path / "blocks.gguf"), 0.7)], size=256) as stock:
        assert abs(stock.decode(range(60, 84)) - expected).max() < 0.1 * effect
    engine = Engine(tiny())
    context = Context(engine, size=256)
    slot = Slot(context, kind="f32")
    try:
        slot.install([adapter], [0.7])
        context.decode(range(60, 84))
        np.testing.assert_allclose(context.logits(), expected, atol=1e-4)
    finally:
        slot.close()
        context.close()
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_python_takes_the_file(smollm2, tmp_path: Path, kind: str) -> None:
    import llama_cpp

    random = np.random.default_rng(0)
    shapes = {"gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}
    tensors = {
        f"blk.{layer}.ffn_{part}.weight": (
            random.normal(0, 0.02, (32, n_in)).astype(np.float32),
            random.normal(0, 0.02, (n_out, 32)).astype(np.float32),
        )
        for layer in range(20, 30)
        for part, (n_in, n_out) in shapes.items()
    }
    path = save(Adapter("llama", 0.0, tensors).as_type(kind), tmp_path / "a.gguf")
    said = []
    for lora in ({}, {"lora_path": str(path)}):
        stock = llama_cpp.Llama(str(smollm2.gguf), n_ctx=64, verbose=False, logits_all=True, **lora)
        try:
            stock.eval([1, 504, 2365, 6354])
            said.append(np.array(stock.scores[3]))
        finally:
            stock.close()
    assert np.isfinite(said[1]).all() and abs(said[0] - said[1]).max() > 1e-3
