"""ggml called as the hooks call it: by addresses, and on tensors made by hand."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import numpy as np


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


def call_hook(hook, tensor: int, ask: bool) -> bool:
    signature = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
    return signature(hook.callback)(tensor, ask, hook.user_data)


def content(fns, address: int, like: np.ndarray) -> np.ndarray:
    """What llama.cpp itself reads out of the tensor at *address*, of the shape and type of *like*."""
    read = np.zeros_like(like)
    get = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
    get(fns["ggml_backend_tensor_get"])(address, read.ctypes.data, 0, read.nbytes)
    return read
