"""The slot: one adapter that stays set in a context, whose factors are rewritten per question.

Two routes give the same logits. In place: the factors are written into the tensors llama.cpp
already computes with (no reload, no graph rebuild). Reload: the mix becomes a file in memory, is
loaded, set, and only then is the old one freed - llama.cpp recognises adapters by address, so
freeing first can make it believe nothing changed.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import llama_cpp
import numpy as np

from .. import _core, mix
from ..adapter import Adapter, write_adapter
from ..errors import AdapterError
from . import llama
from .context import Context

_DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float16)}  # ggml_type F32, F16


@contextlib.contextmanager
def _file_of(data: bytes) -> Iterator[str]:
    """A path that holds *data*: in memory where the system can, else a temporary file."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("megart-adapter")
        try:
            with open(descriptor, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:  # macOS and Windows have no memfd
        with tempfile.TemporaryDirectory(prefix="megart-") as folder:
            path = os.path.join(folder, "mix.gguf")
            with open(path, "wb") as file:
                file.write(data)
            yield path


class Slot:
    """The one adapter of *context*. ``in_place`` says which route is in use."""

    def __init__(self, context: Context, *, in_place: bool = True, dtype: type = np.float16):
        self.context = context
        self.in_place = in_place
        self.dtype = np.dtype(dtype)
        self.rank = 0
        self.shapes: dict[str, tuple[int, int]] = {}
        self._handle: object | None = None
        self._places: dict[str, mix.Pair] = {}
        self._device: dict[str, tuple[int, int]] = {}  # addresses of tensors not in host memory

    def install(self, adapters: Sequence[Adapter], gates: Sequence[float]) -> None:
        """Make the context compute with sum_j gates[j] * adapter_j from the next decode on.

        The caller holds the model's lock from here to the end of the generation and drops whatever
        KV the previous mix produced. Raises AdapterError when an adapter does not fit the base.
        """
        for adapter in adapters:
            if adapter.arch != self.context.engine.architecture:
                raise AdapterError(f"an adapter for {adapter.arch} cannot work on {self.context.engine.architecture}")
        shapes = mix.shapes(adapters)
        rank = mix.slot_rank([a.rank for a in adapters])
        self.context.synchronize()
        if not self.in_place:
            self._reload(shapes, rank, adapters, gates)
            return
        fits = rank <= self.rank and all(self.shapes.get(n) == s for n, s in shapes.items())
        if not fits:
            self._make({**self.shapes, **shapes}, max(rank, self.rank))
        if not self.in_place:  # the self-check failed: this llama.cpp build is not as we know it
            self._reload(shapes, rank, adapters, gates)
            return
        mix.mix_into(self._places, adapters, gates, self.context.engine.threads)
        for name, addresses in self._device.items():
            for address, array in zip(addresses, self._places[name], strict=True):
                _core.tensor_set(llama.hook_functions(), address, array)

    def _reload(
        self,
        shapes: Mapping[str, tuple[int, int]],
        rank: int,
        adapters: Sequence[Adapter],
        gates: Sequence[float],
    ) -> None:
        arrays = self._blank(shapes, rank)
        mix.mix_into(arrays, adapters, gates, self.context.engine.threads)
        self._load(arrays)

    def _blank(self, shapes: Mapping[str, tuple[int, int]], rank: int) -> dict[str, mix.Pair]:
        return {
            name: (np.zeros((rank, n_in), self.dtype), np.zeros((n_out, rank), self.dtype))
            for name, (n_in, n_out) in shapes.items()
        }

    def _load(self, arrays: dict[str, mix.Pair]) -> None:
        """Load *arrays* as the context's adapter: init new, set new, free old."""
        engine = self.context.engine
        with _file_of(write_adapter(Adapter(engine.architecture, 0.0, arrays))) as path:
            new = llama_cpp.llama_adapter_lora_init(engine.handle, os.fsencode(path))
        if not new:
            raise AdapterError("llama.cpp refused the mix: an adapter does not fit this base model")
        self.context.set_adapter(new)
        old, self._handle = self._handle, new
        if old:
            llama_cpp.llama_adapter_lora_free(old)

    def _make(self, shapes: dict[str, tuple[int, int]], rank: int) -> None:
        """Make room: a zero adapter is loaded and its tensors are found in the compute graph."""
        self._load(self._blank(shapes, rank))
        self.shapes, self.rank = shapes, rank
        hook = self.context.hook
        hook.discover(True)
        try:
            self.context.truncate(0)
            self.context.decode([self.context.engine.end_of_turn])
            self.context.synchronize()
        finally:
            hook.discover(False)
            self.context.truncate(0)
        self.in_place = self._bind(hook.found())

    def _bind(self, found: Sequence[_core.FoundTensor]) -> bool:
        """Check every tensor found against what was loaded; False when anything differs."""
        seen = {tensor["name"]: tensor for tensor in found}
        if len(seen) != 2 * len(self.shapes):
            return False
        places: dict[str, mix.Pair] = {}
        device: dict[str, tuple[int, int]] = {}
        for name, (n_in, n_out) in self.shapes.items():
            pair = []
            for suffix, shape in ((".lora_a", (self.rank, n_in)), (".lora_b", (n_out, self.rank))):
                tensor = seen.get(name + suffix)
                if tensor is None or _DTYPES.get(tensor["type"]) != self.dtype:
                    return False
                size = self.dtype.itemsize
                contiguous = tensor["nb"][:2] == (size, size * shape[1])
                if tensor["ne"] != (shape[1], shape[0], 1, 1) or not contiguous:
                    return False
                pair.append(tensor)
            if all(t["is_host"] for t in pair):
                places[name] = (
                    _core.host_array(pair[0]["data"], (self.rank, n_in), self.dtype),
                    _core.host_array(pair[1]["data"], (n_out, self.rank), self.dtype),
                )
            else:
                places.update(self._blank({name: (n_in, n_out)}, self.rank))
                device[name] = (pair[0]["address"], pair[1]["address"])
        self._places, self._device = places, device
        return True

    def close(self) -> None:
        """Take the adapter out of the context, then free it."""
        if self._handle:
            self._places, self._device = {}, {}
            self.context.set_adapter(None)
            llama_cpp.llama_adapter_lora_free(self._handle)
            self._handle = None
