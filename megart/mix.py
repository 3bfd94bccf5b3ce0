"""The mix: one adapter equal to the gated sum of several, by rank concatenation; exact but for the rounding of its
type.

Works on arrays; where they go (a slot inside llama.cpp, or a file) is for its users to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from . import _core, quant
from .adapter import Adapter
from .errors import AdapterError

Pair = tuple[np.ndarray, np.ndarray]


def step(dtype: np.dtype) -> int:
    """Slots of *dtype* have ranks in multiples of this.

    A block has 32 values. Below 64 llama.cpp's f16 dot products fall to scalar code: a slot of rank 64
    with 16 rows in use decodes faster than an exact rank 16 (see the benchmark).
    """
    return quant.BLOCK if dtype == quant.Q8_0 else 64


def blank(shapes: Mapping[str, tuple[int, int]], rank: int, dtype: np.dtype) -> dict[str, Pair]:
    """Zeros of *dtype* (f32, f16 or q8_0) for every (in, out) of *shapes*: places for :func:`mix_into`.

    Where ``in`` is no multiple of 32 there are no blocks, and A is f16 beside a B of q8_0.
    """

    def zeros(rows: int, columns: int) -> np.ndarray:
        if dtype != quant.Q8_0:
            return np.zeros((rows, columns), dtype)
        whole = columns % quant.BLOCK == 0
        return np.zeros((rows, columns // quant.BLOCK), dtype) if whole else np.zeros((rows, columns), np.float16)

    return {name: (zeros(rank, n_in), zeros(n_out, rank)) for name, (n_in, n_out) in shapes.items()}


def slot_rank(adapters: Sequence[Adapter], dtype: np.dtype) -> int:
    """The smallest rank of a slot of *dtype* that holds *adapters* side by side, tensor by tensor."""
    ranks: dict[str, int] = {}
    for adapter in adapters:
        for name in adapter.tensors:
            ranks[name] = ranks.get(name, 0) + adapter.rank
    return round_up(max(ranks.values(), default=0), dtype)


def round_up(rank: int, dtype: np.dtype) -> int:
    """The smallest rank of a slot of *dtype* that is not less."""
    return max(1, -(-rank // step(dtype))) * step(dtype)


def shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """Base tensor name -> (in, out) over all *adapters*; AdapterError when they disagree."""
    shape_of: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for name, (a, b) in adapter.tensors.items():
            shape = (quant.shape(a)[1], len(b))
            if shape_of.setdefault(name, shape) != shape:
                raise AdapterError(f"adapters disagree on the shape of {name}: {shape_of[name]} and {shape}")
    return shape_of


def mix_into(
    places: Mapping[str, Pair],
    adapters: Sequence[Adapter],
    gates: Sequence[float],
    threads: int = 1,
) -> None:
    """Write sum_j gates[j] * scale_j * B_j A_j into *places* (name -> (A [R, in], B [out, R]), see :func:`blank`).

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
    places = blank(shapes(adapters), rank, np.dtype(np.float16))
    total = dropped = 0.0
    for weights, names, a, b in _groups(places, adapters, gates):
        for name, a_of_each, b_of_each in zip(names, a, b, strict=True):
            if sum(len(factor) for factor in a_of_each) <= rank:
                _core.mix_all([a_of_each], [b_of_each], weights, [places[name][0]], [places[name][1]], threads)
                continue
            whole, lost = _nearest(weights, a_of_each, b_of_each, places[name])
            total, dropped = total + whole, dropped + lost
    return Adapter(adapters[0].arch, 0.0, places), float(np.sqrt(dropped / total)) if total else 0.0


def _nearest(
    weights: np.ndarray, a: Sequence[np.ndarray], b: Sequence[np.ndarray], place: Pair
) -> tuple[float, float]:
    """Write the nearest matrix of the rank of *place* to the gated sum (Eckart-Young); its squared norm, and what is
    lost.

    By QR of the stacked factors: the singular values of a small matrix are those of the whole.
    """
    rows = np.concatenate([quant.dequantize(factor) for factor in a]).astype(np.float32)
    columns = np.concatenate(
        [w * quant.dequantize(f).astype(np.float32) for w, f in zip(weights, b, strict=True)], axis=1
    )
    left, upper = np.linalg.qr(columns)
    right, lower = np.linalg.qr(rows.T)
    u, values, v = np.linalg.svd(upper @ lower.T)
    rank = min(place[0].shape[0], len(values))
    root = np.sqrt(values[:rank])
    place[0][:rank] = (root[:, None] * v[:rank]) @ right.T
    place[1][:, :rank] = left @ (u[:, :rank] * root)
    return float((values.astype(np.float64) ** 2).sum()), float((values[rank:].astype(np.float64) ** 2).sum())


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
