"""The thin line to llama.cpp: its logger silenced and its function addresses collected."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import llama_cpp

from .. import _core, cores
from ..errors import ModelError

_logger = None


def quiet() -> None:
    """Keep llama.cpp's log off the terminal (set MEGART_DEBUG=1 to see it). Idempotent.

    The logger is a C function that reads nothing and does nothing: Ctrl-C inside a Python one would be lost.
    """
    global _logger
    if _logger is not None or os.environ.get("MEGART_DEBUG"):
        return
    _logger = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, llama_cpp.llama_log_callback)
    llama_cpp.llama_log_set(_logger, ctypes.c_void_p(0))


def load(path: Path, gpu_layers: int = 0) -> llama_cpp.llama_model_p:
    """The model in the GGUF file *path*, the first of its layers on the GPU. Raises ModelError where llama.cpp cannot load it."""
    quiet()
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    # GCC 12.2 miscompiles ggml's kernels for AMX (ldtilecfg then reads what is not set), and they end the process.
    # Without ggml's own layouts of the weights they are not used; SmolLM2 is as fast without.
    params.use_extra_bufts = not (cores.have_amx() and _built_for_amx())
    handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if not handle:
        raise ModelError(
            f"{path}: llama.cpp cannot load this file as a model; expected a complete GGUF of a supported architecture"
        )
    return handle


def _built_for_amx() -> bool:
    return b"AMX_INT8 = 1" in llama_cpp.llama_print_system_info()


def tokenize(vocab: llama_cpp.llama_vocab_p, text: str, *, special: bool, bos: bool) -> list[int]:
    """Token ids of *text*; ``special`` reads control tokens, ``bos`` adds what the model adds."""
    data = text.encode("utf-8")
    room = len(data) + 16
    tokens = (llama_cpp.llama_token * room)()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, room, bos, special)
    if count < 0:
        room = -count
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), tokens, room, bos, special)
    return list(tokens[:count])


def system_info() -> str:
    """What llama.cpp was built with and found: "CPU : SSE3 = 1 | AVX2 = 1 | ..."."""
    quiet()
    llama_cpp.llama_backend_init()
    return " ".join(llama_cpp.llama_print_system_info().decode("utf-8", "replace").split())


@contextmanager
def overheard() -> Iterator[list[str]]:
    """Collects what C code prints to stderr past the logger; the lines are in the list after the block.

    The whole process's stderr is turned away meanwhile: for short calls only.
    """
    lines: list[str] = []
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        lines += file.read().decode("utf-8", "replace").splitlines()


@cache
def hook_functions() -> dict[str, int]:
    """Addresses of the ggml functions that ``_core.EvalHook`` needs, by name.

    Taken from the libraries llama-cpp-python has loaded already: the same files opened again give
    the same handles. Raises OSError or AttributeError where a build hides them.
    """
    folder = Path(llama_cpp.__file__).parent / "lib"
    ending = {"win32": "*.dll", "darwin": "*.dylib"}.get(sys.platform, "*.so")
    libraries = [ctypes.CDLL(str(path)) for path in sorted(folder.glob(ending)) if "ggml" in path.name]
    addresses = {}
    for name in _core.HOOK_FUNCTIONS:
        function = next((getattr(lib, name) for lib in libraries if hasattr(lib, name)), None)
        if function is None:
            raise AttributeError(f"{name} is not exported by the libraries in {folder.name}/")
        addresses[name] = ctypes.cast(function, ctypes.c_void_p).value or 0
    return addresses
