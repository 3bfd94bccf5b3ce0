"""The slot: one adapter that stays set in a context, whose factors are rewritten per question.

A slot has one or more layouts: which tensors of the base it works on, and at which rank. A layout
holds exactly what opens, so a layer without an adapter costs nothing; the last few are kept, and
going from one to another is a change of adapter (some milliseconds), within one nothing is rebuilt.

Two routes give the same logits. In place: the factors are written into the tensors llama.cpp
already computes with (no reload, no graph rebuild). Reload: the mix becomes a file in memory, is
loaded, set, and only then is the old one freed - llama.cpp recognises adapters by address, so
freeing first can make it believe nothing changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import llama_cpp
import numpy as np
from cachetools import LRUCache

from .. import _core, mix, quant
from ..adapter import Adapter, scratch, write_adapter
from ..errors import AdapterError, InputError
from . import llama
from .context import Context
from .fingerprint import Fingerprint

_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}  # of a slot, by ggml_type
TYPE = "q8_0"
# Every adapter that llama.cpp has loaded enlarges its scheduler and takes memory: few are kept.
LAYOUTS = 4
# Past this, more rank costs more per token than the recompression of a mix, once.
MAX_RANK = 256
COMPRESSED = 4  # recompressed mixes that are kept


def _is_like(tensor: _core._FoundTensor, array: np.ndarray) -> bool:
    """Whether llama.cpp's *tensor* has the type and the bytes of *array*."""
    rows, columns = quant.shape(array)
    return (
        tensor["type"] == _TYPES[quant.kind(array)]
        and tensor["ne"] == (columns, rows, 1, 1)
        and tensor["nb"][:2] == (array.itemsize, array.nbytes // rows)
    )


@dataclass
class Layout:
    """An adapter inside llama.cpp: ``shapes`` (name -> (in, out)) at ``rank``, and where it lies."""

    shapes: dict[str, tuple[int, int]]
    rank: int
    handle: object
    places: dict[str, mix.Pair] = field(default_factory=dict)
    # Addresses of the tensors that are not in host memory; their `places` are copies to send over.
    device: dict[str, tuple[int, int]] = field(default_factory=dict)


class Slot:
    """The one adapter of *context*. ``in_place`` says which route is in use, until that fails.

    A mix of more rank than ``max_rank`` is recompressed to it; ``truncation`` is the share of the
    installed mix's norm that this lost. ``kind`` is the type of the factors: "f32", "f16" or "q8_0".
    Raises InputError for any other.
    """

    def __init__(self, context: Context, *, kind: str = TYPE):
        if kind not in _TYPES:
            raise InputError(f"got a slot of {kind!r}; expected one of {', '.join(_TYPES)}")
        self.context = context
        self.dtype = quant.DTYPES[kind]
        self.max_rank = mix.round_up(MAX_RANK, self.dtype)
        self.truncation = 0.0
        self._compressed: LRUCache[Fingerprint, tuple[Adapter, float]] = LRUCache(COMPRESSED)
        self.in_place = True
        self.layout: Layout | None = None  # the one that is set
        self._layouts: list[Layout] = []  # least recently used first

    def install(
        self, adapters: Sequence[Adapter], gates: Sequence[float], fingerprint: Fingerprint | None = None
    ) -> None:
        """Make the context compute with sum_j gates[j] * adapter_j from the next decode on.

        ``fingerprint`` names this mix: the one that is installed already is not written again, and
        tokens cached under it are good. Without it the mix equals no other. The caller holds the
        model's lock from here to the end of the generation. Raises AdapterError when an adapter does
        not fit the base.
        """
        if fingerprint is not None and fingerprint == self.context.computes:
            return
        # Until the new mix is whole the context computes with neither.
        self.context.computes = unnamed = Fingerprint.once(self.context.bare.base)
        self._check(adapters)
        self.truncation = 0.0
        if mix.slot_rank(adapters, self.dtype) > self.max_rank:
            small, self.truncation = self._compress(adapters, gates, fingerprint or unnamed)
            adapters, gates = [small], [1.0]
        self._install(adapters, gates)
        if fingerprint is not None:
            self.context.computes = fingerprint

    def _check(self, adapters: Sequence[Adapter]) -> None:
        architecture = self.context.engine.architecture
        for adapter in adapters:
            if adapter.arch != architecture:
                raise AdapterError(f"an adapter for {adapter.arch} cannot work on {architecture}")

    def _compress(
        self, adapters: Sequence[Adapter], gates: Sequence[float], name: Fingerprint
    ) -> tuple[Adapter, float]:
        if name not in self._compressed:
            self._compressed[name] = mix.compress(adapters, gates, self.max_rank, self.context.engine.threads)
        return self._compressed[name]

    def _install(self, adapters: Sequence[Adapter], gates: Sequence[float]) -> None:
        shapes = mix.shapes(adapters)
        rank = mix.slot_rank(adapters, self.dtype)
        self.context.synchronize()
        layout = self._choose(shapes, rank) if self.in_place else None
        if layout is None:  # the self-check failed: this llama.cpp build is not as we know it
            self._reload(shapes, rank, adapters, gates)
            return
        mix.mix_into(layout.places, adapters, gates, self.context.engine.threads)
        for name, addresses in layout.device.items():
            for address, array in zip(addresses, layout.places[name], strict=True):
                _core.tensor_set(llama.hook_functions(), address, array)

    def _choose(self, shapes: dict[str, tuple[int, int]], rank: int) -> Layout | None:
        """Set the layout of exactly *shapes* and *rank*, made when there is none; None: cannot be."""
        for layout in self._layouts:
            if layout.rank == rank and layout.shapes == shapes:
                break
        else:
            layout = Layout(shapes, rank, self._load(mix.blank(shapes, rank, self.dtype)))
            self._layouts.append(layout)
        if layout is not self.layout:
            self.context.set_adapter(layout.handle)
            self.layout = layout
            self._layouts.remove(layout)
            self._layouts.append(layout)
            self._free(self._layouts[:-LAYOUTS])
        if not layout.places and not self._find(layout):
            self.in_place = False
            return None
        return layout

    def _reload(
        self,
        shapes: dict[str, tuple[int, int]],
        rank: int,
        adapters: Sequence[Adapter],
        gates: Sequence[float],
    ) -> None:
        arrays = mix.blank(shapes, rank, self.dtype)
        mix.mix_into(arrays, adapters, gates, self.context.engine.threads)
        layout = Layout(shapes, rank, self._load(arrays))
        self.context.set_adapter(layout.handle)
        self.layout = layout
        self._free(self._layouts)
        self._layouts = [layout]

    def _load(self, arrays: dict[str, mix.Pair]) -> object:
        """*arrays* as an adapter of llama.cpp, not set yet."""
        engine = self.context.engine
        with scratch() as path:
            path.write_bytes(write_adapter(Adapter(engine.architecture, 0.0, arrays)))
            handle = llama_cpp.llama_adapter_lora_init(engine.handle, os.fsencode(path))
        if not handle:
            raise AdapterError("llama.cpp refused the mix: an adapter does not fit this base model")
        return handle

    def _free(self, layouts: Sequence[Layout]) -> None:
        """Free *layouts*, none of which is set."""
        for layout in list(layouts):
            self._layouts.remove(layout)
            layout.places, layout.device = {}, {}
            llama_cpp.llama_adapter_lora_free(layout.handle)

    def _find(self, layout: Layout) -> bool:
        """Find the tensors of *layout*, which is set, in the compute graph; False: not as expected."""
        hook = self.context.hook
        hook.discover(True)
        try:
            self.context.truncate(0)
            self.context.decode([self.context.engine.end_of_turn])
            self.context.synchronize()
        finally:
            hook.discover(False)
            self.context.truncate(0)
        return self._bind(layout, hook.found())

    def _bind(self, layout: Layout, tensors: Sequence[_core._FoundTensor]) -> bool:
        """Check every tensor found against what was loaded; False when anything differs."""
        seen = {tensor["name"]: tensor for tensor in tensors}
        if len(seen) != 2 * len(layout.shapes):
            return False
        places: dict[str, mix.Pair] = {}
        device: dict[str, tuple[int, int]] = {}
        for name, (a, b) in mix.blank(layout.shapes, layout.rank, self.dtype).items():
            t_a, t_b = seen.get(f"{name}.lora_a"), seen.get(f"{name}.lora_b")
            if t_a is None or t_b is None or not (_is_like(t_a, a) and _is_like(t_b, b)):
                return False
            if t_a["is_host"] and t_b["is_host"]:
                places[name] = (
                    _core.host_array(t_a["data"], a.shape, a.dtype),
                    _core.host_array(t_b["data"], b.shape, b.dtype),
                )
            else:
                places[name] = a, b
                device[name] = t_a["address"], t_b["address"]
        layout.places, layout.device = places, device
        return True

    def close(self) -> None:
        """Take the adapter out of the context, then free what was loaded."""
        if self.layout:
            self.context.set_adapter(None)
            self.layout = None
        self._free(self._layouts)
