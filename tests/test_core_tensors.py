"""The hook, and arrays over tensors, on ggml tensors made by hand."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping

import numpy as np
import pytest

from megart import _core, quant

pytest.importorskip("llama_cpp")

from ggml_calls import Ggml, call_hook, content

from megart.runtime import llama

F16 = 1


@pytest.fixture(scope="module")
def fns() -> Mapping[str, int]:
    return llama.hook_functions()


@pytest.fixture
def ggml(fns) -> Ggml:
    return Ggml(fns)


def test_a_longer_name_is_not_asked_for(fns, ggml):
    hook = _core.EvalHook(fns)
    hook.watch(["l_out-2"])
    with ggml.tensor(0, 8, 4, "l_out-20") as (_, tensor, _start):
        assert call_hook(hook, tensor, True) is False
        assert call_hook(hook, tensor, False) is True
    assert hook.take()[0].shape[0] == 0


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
