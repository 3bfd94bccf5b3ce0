"""The mix: one adapter equal to the gated sum of several, by exact rank concatenation.

Works on arrays; where they go (a slot inside llama.cpp, or a file) is for its users to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import _core, quant
from .adapter import Adapter
from .errors import AdapterError

Pair = tuple[np.ndarray, np.ndarray]

# Below 64 elements llama.cpp's f16 dot products fall to scalar code: a slot of rank 64 with 16 rows
# in use decodes faster than an exact rank 16 (see the benchmark).
SLOT_STEP = 64


def slot_rank(adapters: Sequence[Adapter]) -> int:
    """The smallest slot rank that holds *adapters* side by side, tensor by tensor."""
    ranks: dict[str, int] = {}
    for adapter in adapters:
        for name in adapter.tensors:
            ranks[name] = ranks.get(name, 0) + adapter.rank
    return max(1, -(-max(ranks.values(), default=0) // SLOT_STEP)) * SLOT_STEP


def shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """Base tensor name -> (in, out) over all *adapters*; AdapterError when they disagree."""
    found: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for name, (a, b) in adapter.tensors.items():
            shape = (quant.shape(a)[1], len(b))
            if found.setdefault(name, shape) != shape:
                raise AdapterError(f"adapters disagree on the shape of {name}: {found[name]} and {shape}")
    return found


def mix_into(
    places: Mapping[str, Pair],
    adapters: Sequence[Adapter],
    gates: Sequence[float],
    threads: int = 1,
) -> None:
    """Write sum_j gates[j] * scale_j * B_j A_j into *places* (name -> (A [R, in], B [out, R])).

    Each adapter's own scale (alpha / rank) is folded in, so the mix must be applied with scale 1,
    that is with alpha 0 in llama.cpp. Raises ValueError when the ranks do not fit into R, and
    AdapterError when an adapter has a tensor that *places* lacks.
    """
    groups: dict[tuple[float, ...], list[str]] = {}
    members: dict[str, list[int]] = {}
    for j, adapter in enumerate(adapters):
        for name in adapter.tensors:
            if name not in places:
                raise AdapterError(f"the slot has no place for {name}")
            members.setdefault(name, []).append(j)
    for name in places:
        inside = members.get(name, [])
        groups.setdefault(tuple(gates[j] * adapters[j].scale(name) for j in inside), []).append(name)
    # Nearly always one group: every adapter touches the same tensors at the same scale.
    for weights, names in groups.items():
        _core.mix_all(
            [[adapters[j].tensors[n][0] for j in members.get(n, [])] for n in names],
            [[adapters[j].tensors[n][1] for j in members.get(n, [])] for n in names],
            np.asarray(weights, np.float32),
            [places[n][0] for n in names],
            [places[n][1] for n in names],
            threads,
        )
