"""Factors in ggml's block types q8_0 and q4_0, as NumPy arrays of blocks.

A quantised factor is an array [rows, columns / 32] whose elements are ggml's own blocks: 32 values of
one row that share a float16 scale. So the bytes of a file are the array, and nothing is copied.
"""

from __future__ import annotations

import numpy as np

from .errors import AdapterError

BLOCK = 32
Q8_0 = np.dtype([("d", "<f2"), ("qs", "i1", (BLOCK,))])
Q4_0 = np.dtype([("d", "<f2"), ("qs", "u1", (BLOCK // 2,))])
# By the names that llama.cpp and the gguf package use.
DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "q8_0": Q8_0,
    "q4_0": Q4_0,
}


def kind(array: np.ndarray) -> str:
    """The name in ``DTYPES`` of an array's type. Raises AdapterError for any other."""
    for name, dtype in DTYPES.items():
        if array.dtype == dtype:
            return name
    raise AdapterError(f"got a factor of {array.dtype}; expected float16, float32, q8_0 or q4_0")


def shape(array: np.ndarray) -> tuple[int, int]:
    """(rows, columns) in values, whatever the type."""
    rows, columns = array.shape
    return rows, columns * (BLOCK if array.dtype in (Q8_0, Q4_0) else 1)


def quantize(array: np.ndarray, to: str) -> np.ndarray:
    """A float array [rows, columns] as *to* (a name in ``DTYPES``), rounded as llama.cpp rounds.

    A row that is no multiple of 32 long has no blocks: such an array becomes float16 instead.
    """
    if to not in DTYPES:
        raise AdapterError(f"got the type {to!r}; expected one of {', '.join(DTYPES)}")
    plain = dequantize(array)
    if to in ("f16", "f32") or plain.shape[1] % BLOCK:
        return plain.astype(np.float32 if to == "f32" else np.float16)
    from gguf import GGMLQuantizationType, quants

    with np.errstate(over="ignore"):  # a scale past f16 becomes infinite, and the writer refuses it
        raw = quants.quantize(np.ascontiguousarray(plain), GGMLQuantizationType[to.upper()])
    return np.ascontiguousarray(raw).view(DTYPES[to])


def dequantize(array: np.ndarray) -> np.ndarray:
    """The values of a factor: float32 [rows, columns]."""
    if array.dtype not in (Q8_0, Q4_0):
        return array.astype(np.float32)
    values = array["qs"]
    if array.dtype == Q4_0:  # the low halves of the bytes come first
        values = np.concatenate([values & 15, values >> 4], axis=-1).astype(np.int8) - 8
    return (values.astype(np.float32) * array["d"].astype(np.float32)[..., None]).reshape(shape(array))


def is_finite(array: np.ndarray) -> bool:
    """Whether every value of a factor is a finite number."""
    return bool(np.isfinite(array["d"] if array.dtype in (Q8_0, Q4_0) else array).all())
