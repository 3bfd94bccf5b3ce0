"""A pack's file: its header, its directory and its columns, each byte compared with its hash before it is used.

The format is docs/pack.md. What a pack says of itself is checked first: every offset lies inside the file, the
directory has the hash that the header names. Knows nothing of memories but their number.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import BankError, InputError

MAGIC, VERSION = b"MEGAPACK", 2
HEADER = struct.Struct("<8sIIQQ32s64s")  # magic, version, flags, directory's offset and size, its SHA-256, signature
COUNTS = struct.Struct("<II")  # memories, columns
COLUMN = struct.Struct("<16sQQ32s")  # name, offset, size, SHA-256 of its blocks' SHA-256
ALIGNMENT = 64
BLOCK = 1 << 16  # bytes of a column that are compared with a hash of their own
# One row for each memory.
ROW = np.dtype(
    [
        ("adapter_at", "<u8"), ("adapter_size", "<u8"), ("adapter_sha256", "V32"),
        ("record_at", "<u8"), ("record_size", "<u4"), ("words", "<u4"),
        ("words_at", "<u8"), ("tokens_at", "<u8"), ("tokens", "<u4"), ("flags", "<u4"), ("expires", "<u8"),
    ]
)  # fmt: skip
LEARNT = 1
NEVER = 2**64 - 1  # expires: no memory lives to see it
_MOST_COLUMNS, _MOST_MEMORIES = 64, 10_000_000


@dataclass(frozen=True)
class _Column:
    at: int
    size: int
    sha256: bytes

    @property
    def blocks(self) -> int:
        return -(-self.size // BLOCK)

    @property
    def hashes_at(self) -> int:
        """Where the hashes of its blocks stand: behind it."""
        return self.at + self.size + -(self.at + self.size) % ALIGNMENT


class PackFile:
    """Safe from several threads. Raises BankError where the file is no pack, damaged, or not signed by *verify_key*."""

    def __init__(self, path: Path, verify_key: bytes | None = None):
        self.path = path
        self._lock = threading.Lock()  # of the place in the file
        try:
            self._file = open(path, "rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._parse(verify_key)
        except BaseException:
            self.close()
            raise

    def _parse(self, verify_key: bytes | None) -> None:
        header = self.read(0, HEADER.size) if self._size >= HEADER.size else b""
        if not header.startswith(MAGIC):
            raise BankError(f"{self.path} is no pack; expected a file made by megart pack")
        _, version, _, at, size, digest, signature = HEADER.unpack(header)
        if version != VERSION:
            remedy = "pack the bank again" if version < VERSION else "upgrade megart"
            raise BankError(f"{self.path} is a pack of version {version}, this megart reads {VERSION}; {remedy}")
        directory = self.read(at, size)
        if hashlib.sha256(directory).digest() != digest:
            raise self.damaged("its directory has another hash than its header says")
        if verify_key is not None:
            _verify(verify_key, signature, digest, self.path)
        if len(directory) < COUNTS.size:
            raise self.damaged("its directory is cut")
        count, columns = COUNTS.unpack_from(directory)
        if columns > _MOST_COLUMNS or count > _MOST_MEMORIES or len(directory) != COUNTS.size + columns * COLUMN.size:
            raise self.damaged(f"its directory is of {count} memories and {columns} columns")
        self.columns: dict[str, _Column] = {}
        self.sure: dict[str, np.ndarray] = {}  # of each column in use, bool: its blocks that were compared
        for number in range(columns):
            name, start, length, sha256 = COLUMN.unpack_from(directory, COUNTS.size + number * COLUMN.size)
            column = _Column(start, length, sha256)
            if start % ALIGNMENT:
                raise self.damaged(f"a column begins at {start}, expected a multiple of {ALIGNMENT}")
            self._check_inside(start, length)
            self._check_inside(column.hashes_at, 32 * column.blocks)
            self.columns[name.rstrip(b"\0").decode("ascii", "replace")] = column
        rows = self.column("rows")
        if len(rows) != count * ROW.itemsize:
            raise self.damaged(f"its rows are {len(rows)} bytes, expected {count * ROW.itemsize}")
        self.rows = np.frombuffer(rows, ROW)

    def damaged(self, why: str) -> BankError:
        return BankError(f"the pack {self.path} is damaged ({why}); get it again")

    def _unreadable(self, error: Exception) -> BankError:
        return BankError(f"cannot read the pack {self.path}: {getattr(error, 'strerror', None) or error}")

    def _check_inside(self, at: int, size: int) -> None:
        if at + size > self._size:
            raise self.damaged("something in it lies beyond its end")

    def read(self, at: int, size: int) -> bytes:
        """A part of the file, read: what is mapped stays in memory as long as the pack is open."""
        self._check_inside(at, size)
        try:
            with self._lock:
                self._file.seek(at)
                data = self._file.read(size)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if len(data) != size:
            raise self.damaged("it became shorter while it was read")
        return data

    @cached_property
    def _mapped(self) -> mmap.mmap:
        try:
            return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _check(self, name: str, at: int, size: int) -> _Column:
        """The column *name*, its blocks that hold [at, at + size) compared with their hashes. Raises BankError."""
        column = self.columns.get(name)
        if column is None:
            raise self.damaged(f"it has no column {name}")
        if at + size > column.size:
            raise self.damaged(f"a part of its column {name} lies beyond the end")
        sure = self.sure.get(name)
        if sure is None:
            if hashlib.sha256(self.read(column.hashes_at, 32 * column.blocks)).digest() != column.sha256:
                raise self.damaged(f"the hashes of its column {name} are not those that its directory says")
            sure = self.sure[name] = np.zeros(column.blocks, bool)
        first, last = at // BLOCK, -(-(at + size) // BLOCK)
        for block in (first + np.flatnonzero(~sure[first:last])).tolist():
            data = self.read(column.at + block * BLOCK, min(BLOCK, column.size - block * BLOCK))
            if hashlib.sha256(data).digest() != self.read(column.hashes_at + 32 * block, 32):
                raise self.damaged(f"its column {name} has another hash than its directory says")
            sure[block] = True
        return column

    def part(self, name: str, at: int, size: int) -> bytes:
        column = self._check(name, at, size)
        return self.read(column.at + at, size)

    def column(self, name: str) -> bytes:
        return self.part(name, 0, self.columns[name].size if name in self.columns else 0)

    def matrix(self, name: str, dtype: str) -> np.ndarray:
        """A column as [N, D], mapped: nothing is copied; [0, 0] in a pack without memories."""
        column = self._check(name, 0, self.columns[name].size if name in self.columns else 0)
        if not column.size and not len(self):
            return np.empty((0, 0), dtype)
        each = np.dtype(dtype).itemsize
        if not len(self) or column.size % (each * len(self)):
            raise self.damaged(f"its column {name} does not fit {len(self)} memories")
        if not column.size:
            return np.empty((len(self), 0), dtype)
        return np.frombuffer(self._mapped, dtype, column.size // each, column.at).reshape(len(self), -1)

    def __len__(self) -> int:
        return len(self.rows)

    def close(self) -> None:
        self._file.close()
        if "_mapped" in self.__dict__:
            with suppress(BufferError):  # arrays of it are in use: closed when they are gone
                self._mapped.close()


def _verify(key: bytes, signature: bytes, digest: bytes, path: Path) -> None:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError as error:
        raise InputError("verifying needs the package cryptography; run: pip install cryptography") from error
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, digest)
    except (InvalidSignature, ValueError):
        raise BankError(f"the pack {path} was not signed by that key, or was changed since; do not use it") from None
