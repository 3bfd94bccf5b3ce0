"""Gate and mix in plain NumPy: what `megart._core` must compute, the oracle of the tests.

Same signatures, results and error types as the extension (see `_core.pyi`); no speed, and
`threads` is checked but not used. Knows nothing of banks, files or llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

_F32 = (np.dtype(np.float32),)
_ANY = (np.dtype(np.float32), np.dtype(np.float16))
# ggml's blocks of 32 values of a row: an f16 scale and values of 8 or 4 bits (megart/quant.py).
_BLOCK = 32
_Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", (32,))])
_Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", (16,))])
_FACTOR = (*_ANY, _Q8_0, _Q4_0)
_SLOT = (*_ANY, _Q8_0)


def scores(query: np.ndarray, keys: np.ndarray, threads: int = 1) -> np.ndarray:
    """Inner products: query f32 [D], keys f32|f16 [N, D] -> f32 [N]."""
    _check(query, "query", _F32, 1)
    _check(keys, "keys", _ANY, 2)
    _check_threads(threads)
    if query.shape[0] == 0:
        _refuse("query", "0 values", "at least 1", "pass the embedding of the question")
    if keys.shape[1] != query.shape[0]:
        _refuse(
            "keys",
            f"{keys.shape[1]} columns",
            f"{query.shape[0]} as in query",
            "take query and keys from the same base model",
        )
    bad = np.flatnonzero(~np.isfinite(query))
    if bad.size:
        _refuse(
            "query",
            f"a value that is not finite at {bad[0]}",
            "finite numbers",
            "check the embedding of the question",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        result = (keys.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(result))
    if bad.size:
        _refuse(
            "keys",
            f"a score that is not finite for row {bad[0]}",
            "finite keys",
            "compute the key of this memory again",
        )
    return result


class Lexicon:
    """Word index of memories: `terms` u32 [T] with 0 after each sentence, memory i has [starts[i], starts[i + 1])."""

    def __init__(self, terms: np.ndarray, starts: np.ndarray):
        self._memories = [terms[a:b].tolist() for a, b in zip(starts[:-1], starts[1:])]
        self._lengths = [sum(t != 0 for t in memory) for memory in self._memories]

    def __len__(self) -> int:
        return len(self._memories)

    def df(self, terms: np.ndarray) -> np.ndarray:
        """In how many memories each term stands: i64 [Q]."""
        return np.array([sum(t in memory for memory in self._memories) for t in terms.tolist()], np.int64)

    def bm25(self, terms: np.ndarray, idf: np.ndarray, k1: float = 1.2, b: float = 0.5) -> np.ndarray:
        """BM25 (Robertson and Zaragoza 2009) with the weights given: f32 [N]."""
        mean = np.mean(self._lengths) if self._lengths else 0.0
        found = np.zeros(len(self))
        for i, memory in enumerate(self._memories):
            for t, weight in zip(terms.tolist(), idf.tolist()):
                count = memory.count(t)
                if count:
                    found[i] += weight * count * (k1 + 1) / (count + k1 * (1 - b + b * self._lengths[i] / mean))
        return found.astype(np.float32)

    def match(
        self, terms: np.ndarray, idf: np.ndarray, pairs: np.ndarray, rows: np.ndarray, kin: float = 0.8
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which terms stand in each row, u8 [C, Q] (2 itself, 1 a relative), and idf sums, f32 [C, 3].

        The sums: best sentence; pairs side by side; best sentence with the first, relatives counting `kin`.
        """
        wanted, weights = terms.tolist(), idf.astype(np.float64)
        present, shares = np.zeros((len(rows), len(wanted)), np.uint8), np.zeros((len(rows), 3), np.float32)
        for r, row in enumerate(rows.tolist()):
            parts: list[list[int]] = [[]]
            for t in self._memories[row]:
                parts.append([]) if t == 0 else parts[-1].append(t)
            found = np.array([[_likeness(t, part) for t in wanted] for part in parts], np.uint8)
            with_first = np.maximum(found, found[0])
            present[r] = found.max(axis=0)
            side_by_side = {pair for part in parts for pair in zip(part, part[1:])}
            shares[r] = [
                ((found == 2) @ weights).max(),
                sum(weights[a] + weights[b] for a, b in pairs.tolist() if (wanted[a], wanted[b]) in side_by_side),
                ((with_first == 2) @ weights + kin * ((with_first == 1) @ weights)).max(),
            ]
        return present, shares


def _likeness(term: int, part: list[int]) -> int:
    return 2 if term in part else int(any(term >> 12 == t >> 12 for t in part))


def late_interaction(
    query: np.ndarray, weights: np.ndarray, known: np.ndarray, tokens: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Weighted means over the query's tokens of the best cosine with a memory's token: f32 [C, 3].

    Over the best sentence with the first (rows of zeros end one); over all where `known`, u8 [C, T], is 0;
    of the squares, over all.
    """

    def unit(rows: np.ndarray) -> np.ndarray:
        exact = rows.astype(np.float64)
        return exact / np.maximum(np.linalg.norm(exact, axis=1, keepdims=True), 1e-12)

    share = weights.astype(np.float64) / max(weights.sum(dtype=np.float64), 1e-300)
    found = np.zeros((len(starts) - 1, 3), np.float32)
    for c, (first, last) in enumerate(zip(starts[:-1], starts[1:])):
        memory = tokens[first:last]
        ends = np.flatnonzero(~memory.any(axis=1))
        if len(ends) == len(memory) or not share.any():
            continue
        cosines = unit(query) @ unit(memory).T
        parts = np.split(cosines, ends, axis=1)
        # every part but the first begins with the row of zeros that ended the one before
        parts = [parts[0], *(part[:, 1:] for part in parts[1:])]
        bests = np.array([part.max(axis=1, initial=-1.0) for part in parts])
        best = bests.max(axis=0)
        found[c] = [
            (np.maximum(bests, bests[0]) @ share).max(),
            share @ (best * (known[c] == 0)),
            share @ np.maximum(best, 0) ** 2,
        ]
    return found


def mix_all(
    a: Sequence[Sequence[np.ndarray]],
    b: Sequence[Sequence[np.ndarray]],
    gates: np.ndarray,
    out_a: Sequence[np.ndarray],
    out_b: Sequence[np.ndarray],
    threads: int = 1,
) -> None:
    """Each matrix: out_b @ out_a == sum of gates[j] * (b[j] @ a[j]); nothing is written unless all of them are right.

    a[j] [r_j, in], b[j] [out, r_j], gates f32 [k], out_a [R, in], out_b [out, R]; f32 or f16 each,
    or q8_0 in blocks along the rows. A is stacked, B stands side by side with the gate folded in
    (through f32, rounded to nearest even); rows of out_a and columns of out_b that are not used
    become zero. Blocks of A are copied, and those of B where all of B are blocks and all gates 1;
    all else becomes blocks by way of f32.
    """
    _check_gates(gates)
    for what, items in (("a", a), ("b", b), ("out_a", out_a), ("out_b", out_b)):
        _check_list(items, what, "a list", "pass one item per matrix")
    if not len(a) == len(b) == len(out_a) == len(out_b):
        _refuse(
            "a, b, out_a and out_b",
            f"{len(a)}, {len(b)}, {len(out_a)} and {len(out_b)} items",
            "the same number",
            "pass one item per matrix in each",
        )
    tasks = list(zip(a, b, out_a, out_b))
    labels = [f"[{i}]" for i in range(len(tasks))]
    for task, label in zip(tasks, labels):
        _check_matrix(*task, label)
    _check_threads(threads)
    _check_call(tasks, gates, labels)
    for a_i, b_i, out_a_i, out_b_i in tasks:
        _mix(a_i, b_i, gates, out_a_i, out_b_i)


def _mix(a, b, gates, out_a, out_b) -> None:
    if _Q8_0 in (out_a.dtype, out_b.dtype):
        plain = [np.empty(_extent(out), np.float32) if out.dtype == _Q8_0 else out for out in (out_a, out_b)]
        _mix(a, b, gates, *plain)
        for out, values in zip((out_a, out_b), plain):
            if out.dtype == _Q8_0:
                out[:] = _blocks(values)
        start = 0
        for a_j in a:
            if a_j.dtype == out_a.dtype == _Q8_0:
                out_a[start : start + len(a_j)] = a_j
            start += len(a_j)
        if out_b.dtype == _Q8_0 and all(b_j.dtype == _Q8_0 for b_j in b) and np.all(np.asarray(gates) == 1):
            out_b[:, : start // _BLOCK] = np.concatenate(b, axis=1) if len(b) else 0
        return
    start = 0
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for a_j, b_j, weight in zip(a, b, gates):
            end = start + a_j.shape[0]
            out_a[start:end] = _values(a_j)
            if weight == 1 and b_j.dtype == out_b.dtype:
                out_b[:, start:end] = b_j
            else:
                out_b[:, start:end] = _values(b_j).astype(np.float32) * weight
            start = end
    out_a[start:] = 0
    out_b[:, start:] = 0


def _values(factor: np.ndarray) -> np.ndarray:
    """The values of a factor [rows, columns]; blocks become float32, value by value."""
    if factor.dtype not in (_Q8_0, _Q4_0):
        return factor
    rows, columns = _extent(factor)
    values = np.empty((rows, columns), np.float32)
    for i in range(columns):
        block, place = factor[:, i // _BLOCK], i % _BLOCK
        if factor.dtype == _Q8_0:
            number = block["qs"][:, place].astype(np.float32)
        else:
            byte = block["qs"][:, place % 16]
            number = ((byte >> 4 if place >= 16 else byte & 15).astype(np.int16) - 8).astype(np.float32)
        values[:, i] = number * block["d"].astype(np.float32)
    return values


def _blocks(values: np.ndarray) -> np.ndarray:
    """f32 [rows, columns] as q8_0: the largest of a block is 127, rounded to nearest even.

    The f16 scale is rounded after the values; where it is nothing, so are they.
    """
    rows, columns = values.shape
    runs = values.reshape(rows, columns // _BLOCK, _BLOCK)
    blocks = np.empty(runs.shape[:2], _Q8_0)
    step = np.abs(runs).max(axis=2, initial=0) / np.float32(127)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        blocks["d"] = step
        inverse = np.where(blocks["d"] == 0, np.float32(0), np.float32(1) / step)
        blocks["qs"] = np.rint(runs * inverse[..., None])
    return blocks


def _extent(factor: np.ndarray) -> tuple[int, int]:
    return factor.shape[0], factor.shape[1] * (_BLOCK if factor.dtype in (_Q8_0, _Q4_0) else 1)


def _explain(what: str, got: str, expected: str, remedy: str) -> str:
    return f"{what}: got {got}, expected {expected}; {remedy}"


def _refuse(what: str, got: str, expected: str, remedy: str) -> NoReturn:
    raise ValueError(_explain(what, got, expected, remedy))


def _check_threads(threads: int) -> None:
    if threads < 1:
        _refuse("threads", str(threads), "at least 1", "pass threads=1")


def _check_list(value: Any, what: str, expected: str, remedy: str) -> None:
    if not isinstance(value, (list, tuple)):
        raise TypeError(_explain(what, type(value).__name__, expected, remedy))


def _check(array: Any, what: str, dtypes: tuple[np.dtype, ...], dims: int, writable: bool = False) -> None:
    def refuse_type(got: str, expected: str, remedy: str) -> NoReturn:
        raise TypeError(_explain(what, got, expected, remedy))

    if not isinstance(array, np.ndarray):
        refuse_type(type(array).__name__, "a numpy.ndarray", "pass numpy.asarray(...)")
    if array.dtype not in dtypes:
        names = " or ".join(dtype.name for dtype in dtypes if dtype.kind == "f")
        also = {id(_FACTOR): ", or blocks of q8_0 or q4_0", id(_SLOT): ", or blocks of q8_0"}
        names += also.get(id(dtypes), "")
        refuse_type(str(array.dtype), names, "convert it with .astype(numpy.float32)")
    if array.ndim != dims:
        _refuse(what, f"{array.ndim} dimensions", str(dims), "reshape it")
    if not (array.flags.c_contiguous and array.flags.aligned):
        refuse_type(
            "an array that is not C-contiguous and aligned",
            "rows one after the other without gaps",
            "pass numpy.ascontiguousarray(...)",
        )
    if writable and not array.flags.writeable:
        refuse_type("a read-only array", "a writable one", "pass a copy")


def _check_gates(gates: Any) -> None:
    _check(gates, "gates", _F32, 1)


def _check_matrix(a: Any, b: Any, out_a: Any, out_b: Any, at: str) -> None:
    for what, items in ((f"a{at}", a), (f"b{at}", b)):
        _check_list(items, what, "a list of arrays", "pass one array per adapter")
        for j, item in enumerate(items):
            _check(item, f"{what}[{j}]", _FACTOR, 2)
    _check(out_a, f"out_a{at}", _SLOT, 2, writable=True)
    _check(out_b, f"out_b{at}", _SLOT, 2, writable=True)


def _check_call(tasks: Sequence[tuple], gates: np.ndarray, labels: Sequence[str]) -> None:
    bad = np.flatnonzero(~np.isfinite(gates))
    if bad.size:
        _refuse(
            "gates",
            f"a value that is not finite at {bad[0]}",
            "finite numbers",
            "check the weights of the gate",
        )
    for (a, b, out_a, out_b), at in zip(tasks, labels):
        _check_shapes(a, b, out_a, out_b, len(gates), at)
    outs = [out for _, _, out_a, out_b in tasks for out in (out_a, out_b)]
    for i, out in enumerate(outs):
        if any(np.may_share_memory(out, other) for other in outs[:i]):
            _refuse(
                "out_a and out_b",
                "outputs that share memory",
                "separate arrays",
                "allocate each output by itself",
            )
    factors = [factor for a, b, _, _ in tasks for factor in (*a, *b)]
    if any(np.may_share_memory(factor, out) for factor in factors for out in outs):
        _refuse(
            "a and b",
            "a factor that shares memory with an output",
            "separate arrays",
            "pass a copy of the factor",
        )


def _check_shapes(a, b, out_a, out_b, count: int, at: str) -> None:
    if len(a) != count or len(b) != count:
        _refuse(
            f"a{at} and b{at}",
            f"{len(a)} and {len(b)} adapters",
            f"{count}, one per gate",
            "pass one factor of each kind per gate",
        )
    (rank, n_in), (n_out, columns) = _extent(out_a), _extent(out_b)
    if rank != columns:
        _refuse(
            f"out_a{at} and out_b{at}",
            f"{[rank, n_in]} and {[n_out, columns]}",
            "[R, in] and [out, R]",
            "give both the rank of the slot",
        )
    same_base = "use adapters made for this base model"
    for j, (a_j, b_j) in enumerate(zip(map(_extent, a), map(_extent, b))):
        here = f"{at}[{j}]"
        if a_j[1] != n_in:
            _refuse(f"a{here}", str(list(a_j)), f"[rank, {n_in}]", same_base)
        if b_j[0] != n_out:
            _refuse(f"b{here}", str(list(b_j)), f"[{n_out}, rank]", same_base)
        if a_j[0] != b_j[1]:
            _refuse(
                f"a{here} and b{here}",
                f"ranks {a_j[0]} and {b_j[1]}",
                "the same rank",
                "take both factors from one adapter",
            )
    total = sum(a_j.shape[0] for a_j in a)
    if total > rank:
        _refuse(
            f"a{at}",
            f"total rank {total}",
            f"at most {rank}",
            "open fewer memories or make the slot larger",
        )
