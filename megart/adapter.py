"""The LoRA GGUF file that llama.cpp loads: written through the gguf package, read by memory map.

The reader takes untrusted bytes: every length is checked against the file before it is used.
It knows nothing of any base model; whether the shapes fit one is for its users to check.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from . import quant
from .errors import AdapterError
from .gguf_values import ARRAY, SCALARS, STRING, Cursor

INVOCATION_KEY = "adapter.alora.invocation_tokens"
# The user turn that a memory's adapter answers with its text.
CUE_KEY = "megart.recall_cue"
_ALPHA_KEY = "adapter.lora.alpha"
_RESERVED = (
    "general.type",
    "general.architecture",
    "general.alignment",
    "adapter.type",
    _ALPHA_KEY,
    INVOCATION_KEY,
)
_MAX_NAME = 63
_MAX_STRING = 1 << 20
_MAX_ARRAY = 1 << 16
_MAX_TENSORS = 1 << 16
_UINT32, _FLOAT32 = 4, 6
_ARRAY_OF = 100
# ggml's numbers of the types.
_DTYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 8: quant.Q8_0, 2: quant.Q4_0}
_BLOCKS = (2, 8)


@dataclass
class Adapter:
    """One LoRA adapter.

    arch: `general.architecture` of its base. alpha: llama.cpp applies alpha / rank, or 1 when alpha
    is 0. tensors: base tensor name -> (A [rank, in], B [out, rank]), C-contiguous, each f16, f32, or an
    array of q8_0 or q4_0 blocks (see quant.py).
    invocation_tokens: llama.cpp's server switches the adapter on from these on. metadata: all other
    keys of the file, such as "general.name" and "megart.memory_id".
    """

    arch: str
    alpha: float
    tensors: dict[str, tuple[np.ndarray, np.ndarray]]
    invocation_tokens: list[int] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The rank that all pairs share."""
        for a, _ in self.tensors.values():
            return len(a)
        raise AdapterError("the adapter has no tensors; expected at least one pair")

    def scale(self, name: str) -> float:
        """The factor that llama.cpp puts before B @ A of the base tensor `name`."""
        if name not in self.tensors:
            raise AdapterError(f"the adapter has no pair for {name!r}; it has {len(self.tensors)} others")
        return self.alpha / len(self.tensors[name][0]) if self.alpha else 1.0

    @property
    def nbytes(self) -> int:
        """Bytes of all factors."""
        return sum(a.nbytes + b.nbytes for a, b in self.tensors.values())

    def as_type(self, to: str) -> Adapter:
        """The same adapter with factors of f32, f16, q8_0 or q4_0.

        Blocks lie along rows, and B's rows are the rank: of a rank that is no multiple of 32 only A
        is quantised, and B is f16.
        """
        tensors = {name: (quant.quantize(a, to), quant.quantize(b, to)) for name, (a, b) in self.tensors.items()}
        return replace(self, tensors=tensors)


def write_adapter(adapter: Adapter) -> bytes:
    """`adapter` as the bytes of a LoRA GGUF file.

    The keys of its metadata begin with "general." or "megart.". Raises AdapterError when one does not, when a factor is
    not finite, of a type that quant.py does not name, or its shape does not fit its pair.
    """
    from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

    for key in adapter.metadata:
        if key in _RESERVED or not key.startswith(("general.", "megart.")):
            raise AdapterError(f'got the metadata key {key!r}; expected one that begins with "general." or "megart."')
    _check_pairs(adapter.tensors)
    for base, pair in adapter.tensors.items():
        for array in pair:
            if not quant.is_finite(array):
                raise AdapterError(f"a factor of {base} holds infinity or NaN; the training diverged or f16 overflowed")

    writer = GGUFWriter(None, adapter.arch)
    try:
        with scratch() as path:
            writer.add_type("adapter")
            writer.add_string("adapter.type", "lora")
            writer.add_float32(_ALPHA_KEY, float(adapter.alpha))
            if adapter.invocation_tokens:
                tokens = [int(token) for token in adapter.invocation_tokens]
                writer.add_key_value(INVOCATION_KEY, tokens, GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT32)
            for key, value in adapter.metadata.items():
                writer.add_key_value(key, value, *_value_type(key, value))
            for base, (a, b) in adapter.tensors.items():
                for side, array in (("lora_a", a), ("lora_b", b)):
                    kind = quant.kind(array)
                    blocks = GGMLQuantizationType[kind.upper()] if kind.startswith("q") else None
                    raw = array if blocks is None else np.ascontiguousarray(array).view(np.uint8)
                    writer.add_tensor(f"{base}.{side}", raw, raw_dtype=blocks)
            writer.write_header_to_file(path)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            return path.read_bytes()
    except OSError as error:
        raise AdapterError(f"cannot write an adapter to the temporary folder: {error.strerror or error}") from error
    except (struct.error, ValueError, TypeError) as error:
        raise AdapterError(f"cannot write the adapter: {error}") from error
    finally:
        writer.close()


@contextmanager
def scratch() -> Iterator[Path]:
    """A file to write and read that nobody else sees and that a killed process leaves nothing of: in memory where the system can."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("megart-adapter")
        try:
            yield Path(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
    else:  # macOS and Windows have no memfd
        with tempfile.TemporaryDirectory(prefix="megart-") as folder:
            yield Path(folder) / "adapter.gguf"


def read_adapter(source: str | Path | bytes) -> Adapter:
    """The adapter in a LoRA GGUF file, or in the bytes of one; its arrays are read-only views of the mapped file.

    Raises AdapterError when the file is missing or anything in it is not as llama.cpp wants it.
    """
    what = "the adapter" if isinstance(source, bytes) else source
    try:
        return _parse(source if isinstance(source, bytes) else _map(Path(source)))
    except AdapterError as error:
        raise AdapterError(f"{what}: {error}") from None
    except OSError as error:
        raise AdapterError(f"cannot read adapter {what}: {error.strerror or error}") from error
    except (struct.error, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise AdapterError(f"{what} is not a whole LoRA GGUF file: {error}") from error


def _value_type(key: str, value: object) -> tuple[Any, Any]:
    from gguf import GGUFValueType as T

    if isinstance(value, list) and value:
        kinds = {_value_type(key, item)[0] for item in value}
        if len(kinds) == 1 and T.ARRAY not in kinds:
            return T.ARRAY, kinds.pop()
    elif isinstance(value, bool):
        return T.BOOL, None
    elif isinstance(value, int):
        return (T.INT64 if value < 0 else T.UINT64), None
    elif isinstance(value, float):
        return T.FLOAT64, None
    elif isinstance(value, str):
        return T.STRING, None
    raise AdapterError(f"got {value!r} for {key}; expected text, a number, a boolean or a list of one of them")


def _check_pairs(tensors: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    if not tensors:
        raise AdapterError("the adapter has no tensors; expected at least one pair")
    rank = next(iter(tensors.values()))[0].shape[:1]
    for base, (a, b) in tensors.items():
        if len(f"{base}.lora_a".encode()) > _MAX_NAME:
            raise AdapterError(f"the tensor name {base!r} is too long; llama.cpp takes {_MAX_NAME - 7} bytes")
        for array in (a, b):
            if array.dtype not in quant.DTYPES.values():
                raise AdapterError(
                    f"a factor of {base} is {array.dtype}; expected float16 or float32, or blocks of q8_0 or q4_0"
                )
        if a.ndim != 2 or b.ndim != 2 or 0 in (*a.shape, *b.shape):
            raise AdapterError(
                f"the factors of {base} are {a.shape} and {b.shape}; expected [rank, in] and [out, rank]"
            )
        shapes = quant.shape(a), quant.shape(b)
        if shapes[0][0] != shapes[1][1] or shapes[0][:1] != rank:
            raise AdapterError(
                f"the factors of {base} are {shapes[0]} and {shapes[1]}; expected one rank in all pairs, here {rank[0]}"
            )


def _map(path: Path) -> mmap.mmap:
    # stat before open: opening a pipe would wait for its writer
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise AdapterError("not a regular file; expected a LoRA GGUF file")
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise AdapterError("the file is empty; expected a LoRA GGUF file")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class _Cursor(Cursor):
    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text(_MAX_STRING)
        if kind == ARRAY:
            item, count = self.take("IQ")
            if count > min(_MAX_ARRAY, len(self.data) - self.at) or item == ARRAY:
                raise AdapterError(
                    f"an array of {count} items of type {item}; expected at most {_MAX_ARRAY} plain ones"
                )
            return [self.value(item) for _ in range(count)]
        if kind not in SCALARS:
            raise AdapterError(f"a value of type {kind}; expected a GGUF type from 0 to 12")
        return self.take(SCALARS[kind])


def _parse(data: mmap.mmap | bytes) -> Adapter:
    cursor = _Cursor(data)
    magic = data[:4]
    if magic != b"GGUF":
        raise AdapterError(f"starts with {magic!r}, not with b'GGUF'; expected a LoRA GGUF file")
    cursor.at = 4
    version, n_tensors, n_keys = cursor.take("IQQ")
    if version not in (2, 3):
        raise AdapterError(f"GGUF version {version}; expected 2 or 3, little-endian")
    if max(n_tensors, n_keys) > _MAX_TENSORS:
        raise AdapterError(f"{n_tensors} tensors and {n_keys} keys; expected at most {_MAX_TENSORS} of each")

    keys: dict[str, Any] = {}
    kinds: dict[str, int] = {}
    for _ in range(n_keys):
        key = cursor.text(_MAX_STRING)
        if key in keys:
            raise AdapterError(f"the key {key!r} occurs twice")
        kind = cursor.take("I")
        kinds[key] = struct.unpack_from("<I", data, cursor.at)[0] + _ARRAY_OF if kind == ARRAY else kind
        keys[key] = cursor.value(kind)
    _check_keys(keys, kinds)
    pairs = _pair(_tensors(cursor, n_tensors, keys.get("general.alignment", 32)))
    _check_pairs(pairs)
    return Adapter(
        keys["general.architecture"],
        keys.get(_ALPHA_KEY, 0.0),
        pairs,
        keys.get(INVOCATION_KEY, []),
        {key: value for key, value in keys.items() if key not in _RESERVED},
    )


def _check_keys(keys: dict[str, Any], kinds: dict[str, int]) -> None:
    expected = {
        "general.type": STRING,
        "general.architecture": STRING,
        "adapter.type": STRING,
        _ALPHA_KEY: _FLOAT32,
        INVOCATION_KEY: _ARRAY_OF + _UINT32,
        "general.alignment": _UINT32,
    }
    for key, kind in expected.items():
        if kinds.get(key, kind) != kind:
            raise AdapterError(f"{key} has the type {kinds[key]}; expected {kind}")
    for key, value in (("general.type", "adapter"), ("adapter.type", "lora")):
        if keys.get(key) != value:
            raise AdapterError(f"{key} is {keys.get(key)!r}; expected {value!r}: this is not a LoRA adapter")
    if not keys.get("general.architecture"):
        raise AdapterError("no general.architecture; expected the architecture of the base model")
    if not math.isfinite(keys.get(_ALPHA_KEY, 0.0)):
        raise AdapterError(f"{_ALPHA_KEY} is {keys[_ALPHA_KEY]}; expected a finite number")


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, np.ndarray]:
    if alignment < 4 or alignment & (alignment - 1):
        raise AdapterError(f"general.alignment is {alignment}; expected a power of two of at least 4")
    infos = []
    expected = 0
    for _ in range(count):
        name = cursor.text(_MAX_STRING)
        dims = cursor.take("I")
        if dims != 2:
            raise AdapterError(f"the tensor {name!r} has {dims} dimensions; expected 2")
        columns, rows, kind, offset = cursor.take("QQIQ")
        if kind not in _DTYPES:
            raise AdapterError(
                f"the tensor {name!r} has the type {kind}; expected 0 (f32), 1 (f16), 2 (q4_0) or 8 (q8_0)"
            )
        if offset != expected:
            raise AdapterError(f"the tensor {name!r} lies at {offset}; expected {expected}, the end of the one before")
        if kind in _BLOCKS:
            if columns % quant.BLOCK:
                raise AdapterError(f"the tensor {name!r} has rows of {columns} values; expected whole blocks of 32")
            columns //= quant.BLOCK
        size = columns * rows * _DTYPES[kind].itemsize
        if size > len(cursor.data):
            raise AdapterError(f"the tensor {name!r} of {rows} x {columns} is larger than the file")
        expected += -(-size // alignment) * alignment
        infos.append((name, rows, columns, _DTYPES[kind], offset, offset + size))
    start = -(-cursor.at // alignment) * alignment
    arrays = {}
    for name, rows, columns, dtype, offset, end in infos:
        if start + end > len(cursor.data):
            raise AdapterError(f"the tensor {name!r} reaches past the end; the file is cut short")
        if name in arrays:
            raise AdapterError(f"the tensor {name!r} occurs twice")
        flat = np.frombuffer(cursor.data, dtype, rows * columns, start + offset)
        arrays[name] = flat.reshape(rows, columns)
    return arrays


def _pair(arrays: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    pairs = {}
    for name in arrays:
        base, dot, side = name.rpartition(".")
        if not dot or not base or side not in ("lora_a", "lora_b"):
            raise AdapterError(f"the tensor {name!r} is no LoRA factor; expected a name ending in .lora_a or .lora_b")
        if f"{base}.lora_a" not in arrays or f"{base}.lora_b" not in arrays:
            raise AdapterError(f"the tensor {name!r} lacks its other half; expected .lora_a and .lora_b of each")
        pairs[base] = (arrays[f"{base}.lora_a"], arrays[f"{base}.lora_b"])
    return pairs
