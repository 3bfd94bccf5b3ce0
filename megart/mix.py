"""The mix: one adapter equal to the gated sum of several, by exact rank concatenation.

Works on arrays; where they go (a slot inside llama.cpp, or a file) is for its users to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
    return round_up(max(ranks.values(), default=0))


def round_up(rank: int) -> int:
    """The smallest slot rank that is not less."""
    return max(1, -(-rank // SLOT_STEP)) * SLOT_STEP


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
    for weights, names, a, b in _groups(places, adapters, gates):
        out_a, out_b = ([places[n][side] for n in names] for side in (0, 1))
        _core.mix_all(a, b, weights, out_a, out_b, threads)


def compress(adapters: Sequence[Adapter], gates: Sequence[float], rank: int, threads: int = 1) -> tuple[Adapter, float]:
    """The gated sum as one f16 adapter of *rank*, the nearest there is, and what that lost.

    The loss is the share of the Frobenius norm that was dropped, 0 to 1, over the matrices whose
    ranks add up to more than *rank*; the others stay exact.
    """
    places = {
        name: (np.empty((rank, n_in), np.float16), np.empty((n_out, rank), np.float16))
        for name, (n_in, n_out) in shapes(adapters).items()
    }
    losses = [
        _core.compress_all(a, b, weights, [places[n][0] for n in names], [places[n][1] for n in names], threads)
        for weights, names, a, b in _groups(places, adapters, gates)
    ]
    total, dropped = np.concatenate(losses).sum(axis=0)
    return Adapter(adapters[0].arch, 0.0, places), float(np.sqrt(dropped / total)) if total else 0.0


def _groups(
    places: Mapping[str, Pair], adapters: Sequence[Adapter], gates: Sequence[float]
) -> Iterator[tuple[np.ndarray, list[str], list[list[np.ndarray]], list[list[np.ndarray]]]]:
    """(weights, names, A factors, B factors) for each set of tensors that has the same weights."""
    members: dict[str, list[int]] = {}
    for j, adapter in enumerate(adapters):
        for name in adapter.tensors:
            if name not in places:
                raise AdapterError(f"the slot has no place for {name}")
            members.setdefault(name, []).append(j)
    groups: dict[tuple[float, ...], list[str]] = {}
    for name in places:
        inside = members.get(name, [])
        groups.setdefault(tuple(gates[j] * adapters[j].scale(name) for j in inside), []).append(name)
    # Nearly always one group: every adapter touches the same tensors at the same scale.
    for weights, names in groups.items():
        a, b = ([[adapters[j].tensors[n][side] for j in members.get(n, [])] for n in names] for side in (0, 1))
        yield np.asarray(weights, np.float32), names, a, b
