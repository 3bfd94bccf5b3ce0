"""A bank in one file, read where it lies: mapped, and of ten thousand memories only what a question needs is touched.

The format is docs/pack.md; pack.py writes it. What a pack says of itself is checked before it is used: every offset lies
inside the file, the directory has the hash that the header names, every block of a column and every adapter has the hash
that was written down for it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..adapter import Adapter, read_adapter
from ..errors import AdapterError, BankError, BaseMismatchError, InputError, MemoryNotFoundError, ModelError
from ..models import DEFAULT_MODEL, Model, resolve_model
from .catalog import BaseInfo
from .check import Problem
from .memory import Record, is_id
from .rows import Columns

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
STATES = ("whitening", "embedder", "strict", "reading")
_MOST_COLUMNS, _MOST_MEMORIES = 64, 10_000_000
_READ_ONLY = "{} is a pack and cannot be changed; run: megart unpack {} FOLDER"
_CHANGES = frozenset(
    ["add", "remove", "annotate", "set_state", "set_evidence", "set_vectors", "set_keys", "repair", "check_writable"]
    + ["remove_expired", "note_use", "count_use"]
)


@dataclass(frozen=True)
class Delta:
    """What a delta pack says beside its memories, which are new or changed since the pack ``since``.

    ``since``, ``becomes``: the content (see :func:`content_of`), before and after; ``was``: of the ids that are changed or
    forgotten, the SHA-256 of the record that is to be there; ``forgotten``: ids.
    """

    since: str
    becomes: str
    was: dict[str, str]
    forgotten: tuple[str, ...]


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


def content_of(records: Mapping[str, str]) -> str:
    """The name of what a pack holds: a SHA-256 over its ids, each with the SHA-256 of its record; in any order."""
    lines = sorted(f"{id.lower()} {sha256}\n" for id, sha256 in records.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


class Records(Sequence[Record]):
    """Records that are parsed when they are looked at, and not kept: ten thousand of them would take 20 MB."""

    def __init__(self, pack: PackedBank, rows: Sequence[int]):
        self._pack, self._rows = pack, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> Records: ...

    def __getitem__(self, place: int | slice) -> Record | Records:
        if isinstance(place, slice):
            return Records(self._pack, self._rows[place])
        return self._pack.record(int(self._rows[place]))

    def __iter__(self) -> Iterator[Record]:
        return map(self._pack.record, map(int, self._rows))


class PackedBank:
    """A pack, read in place, as the runtime reads a :class:`Bank`. Safe from several threads.

    ``verify_key``: an Ed25519 public key, 32 bytes; a pack that it does not verify is refused. Raises BankError.
    """

    def __init__(self, path: str | Path, model: str | Path | Model | None = None, *, verify_key: bytes | None = None):
        self.path = Path(path).expanduser().absolute()
        self._lock = threading.Lock()  # of the place in the file
        self._model: Model | None = None
        try:
            self._file = open(self.path, "rb", buffering=0)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._open(verify_key)
            if model is not None:
                self._model = resolve_model(model)
                self.check_base(self._model)
        except BaseException:
            self.close()
            raise

    def _open(self, verify_key: bytes | None) -> None:
        header = self._bytes(0, HEADER.size) if self._size >= HEADER.size else b""
        if not header.startswith(MAGIC):
            raise BankError(f"{self.path} is no pack; expected a file made by megart pack")
        _, version, _, at, size, digest, signature = HEADER.unpack(header)
        if version != VERSION:
            remedy = "pack the bank again" if version < VERSION else "upgrade megart"
            raise BankError(f"{self.path} is a pack of version {version}, this megart reads {VERSION}; {remedy}")
        directory = self._bytes(at, size)
        if hashlib.sha256(directory).digest() != digest:
            raise self._damaged("its directory has another hash than its header says")
        if verify_key is not None:
            _verify(verify_key, signature, digest, self.path)
        if len(directory) < COUNTS.size:
            raise self._damaged("its directory is cut")
        count, columns = COUNTS.unpack_from(directory)
        if columns > _MOST_COLUMNS or count > _MOST_MEMORIES or len(directory) != COUNTS.size + columns * COLUMN.size:
            raise self._damaged(f"its directory is of {count} memories and {columns} columns")
        self._columns: dict[str, _Column] = {}
        self._sure: dict[str, np.ndarray] = {}  # of each column in use, bool: its blocks that were compared
        for number in range(columns):
            name, start, length, sha256 = COLUMN.unpack_from(directory, COUNTS.size + number * COLUMN.size)
            column = _Column(start, length, sha256)
            if start % ALIGNMENT:
                raise self._damaged(f"a column begins at {start}, expected a multiple of {ALIGNMENT}")
            self._check_inside(start, length)
            self._check_inside(column.hashes_at, 32 * column.blocks)
            self._columns[name.rstrip(b"\0").decode("ascii", "replace")] = column
        rows = self._column("rows")
        if len(rows) != count * ROW.itemsize:
            raise self._damaged(f"its rows are {len(rows)} bytes, expected {count * ROW.itemsize}")
        self._rows = np.frombuffer(rows, ROW)
        try:
            self.base = BaseInfo(**json.loads(self._column("base")))
        except (ValueError, TypeError, RecursionError) as error:
            raise self._damaged(f"its base: {error}") from None

    # -- bytes, each compared with its hash before it is used ------------------------------------

    def _damaged(self, why: str) -> BankError:
        return BankError(f"the pack {self.path} is damaged ({why}); get it again")

    def _unreadable(self, error: Exception) -> BankError:
        return BankError(f"cannot read the pack {self.path}: {getattr(error, 'strerror', None) or error}")

    def _check_inside(self, at: int, size: int) -> None:
        if at + size > self._size:
            raise self._damaged("something in it lies beyond its end")

    def _bytes(self, at: int, size: int) -> bytes:
        """A part of the file, read: what is mapped stays in memory as long as the pack is open."""
        self._check_inside(at, size)
        try:
            with self._lock:
                self._file.seek(at)
                data = self._file.read(size)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error
        if len(data) != size:
            raise self._damaged("it became shorter while it was read")
        return data

    @cached_property
    def _mapped(self) -> mmap.mmap:
        try:
            return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _check(self, name: str, at: int, size: int) -> _Column:
        """The column *name*, its blocks that hold [at, at + size) compared with their hashes. Raises BankError."""
        column = self._columns.get(name)
        if column is None:
            raise self._damaged(f"it has no column {name}")
        if at + size > column.size:
            raise self._damaged(f"a part of its column {name} lies beyond the end")
        sure = self._sure.get(name)
        if sure is None:
            if hashlib.sha256(self._bytes(column.hashes_at, 32 * column.blocks)).digest() != column.sha256:
                raise self._damaged(f"the hashes of its column {name} are not those that its directory says")
            sure = self._sure[name] = np.zeros(column.blocks, bool)
        first, last = at // BLOCK, -(-(at + size) // BLOCK)
        for block in (first + np.flatnonzero(~sure[first:last])).tolist():
            data = self._bytes(column.at + block * BLOCK, min(BLOCK, column.size - block * BLOCK))
            if hashlib.sha256(data).digest() != self._bytes(column.hashes_at + 32 * block, 32):
                raise self._damaged(f"its column {name} has another hash than its directory says")
            sure[block] = True
        return column

    def _part(self, name: str, at: int, size: int) -> bytes:
        column = self._check(name, at, size)
        return self._bytes(column.at + at, size)

    def _column(self, name: str) -> bytes:
        return self._part(name, 0, self._columns[name].size if name in self._columns else 0)

    def _matrix(self, name: str, dtype: str) -> np.ndarray:
        """A column as [N, D], mapped: nothing is copied; [0, 0] in a pack without memories."""
        column = self._check(name, 0, self._columns[name].size if name in self._columns else 0)
        if not column.size and not len(self):
            return np.empty((0, 0), dtype)
        each = np.dtype(dtype).itemsize
        if not len(self) or column.size % (each * len(self)):
            raise self._damaged(f"its column {name} does not fit {len(self)} memories")
        if not column.size:
            return np.empty((len(self), 0), dtype)
        return np.frombuffer(self._mapped, dtype, column.size // each, column.at).reshape(len(self), -1)

    def close(self) -> None:
        self._file.close()
        if "_mapped" in self.__dict__:
            with suppress(BufferError):  # arrays of it are in use: closed when they are gone
                self._mapped.close()

    def __enter__(self) -> PackedBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- as of a Bank --------------------------------------------------------------------------

    revision = 1

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def model(self) -> Model:
        """The base model: by its name, or its file beside the pack or here. Raises ModelError, DependencyError."""
        if self._model is not None or self.base.spec == DEFAULT_MODEL:
            return self._model or resolve_model(self.base.spec)
        for folder in (self.path.parent, Path.cwd()):
            if (folder / self.base.gguf).is_file():
                return resolve_model(folder / self.base.gguf)
        raise ModelError(
            f"the pack {self.path} needs the model {self.base.gguf} (sha256 {self.base.sha256[:12]}); put it beside the pack, "
            "or name it with --model"
        )

    def check_base(self, model: Model) -> None:
        """Raises BaseMismatchError unless *model* is the very file that the pack was made for."""
        if model.sha256 != self.base.sha256:
            raise BaseMismatchError(
                f"the pack {self.path} belongs to {self.base.name} (sha256 {self.base.sha256[:12]}), "
                f"got {model.name} (sha256 {model.sha256[:12]}); give that model with --model"
            )

    @property
    def has_text(self) -> bool:
        """False where the texts were left out (``pack --no-text``): memories are known by their recital alone."""
        return "no-text" not in self._columns

    @cached_property
    def delta(self) -> Delta | None:
        """What a delta pack stands on; None for a whole pack."""
        if "delta" not in self._columns:
            return None
        try:
            fields = json.loads(self._column("delta"))
            made = Delta(str(fields["since"]), str(fields["becomes"]), dict(fields["was"]), tuple(fields["forgotten"]))
            if not all(is_id(id) for id in (*made.was, *made.forgotten)):
                raise ValueError("it names what is no id")
            return made
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._damaged(f"its delta: {error}") from None

    @cached_property
    def ids(self) -> list[str]:
        ids = self._column("ids").decode("ascii", "replace").split("\n") if len(self) else []
        if len(ids) != len(self) or not all(map(is_id, ids)):
            raise self._damaged(f"its ids do not fit {len(self)} memories")
        return ids

    @cached_property
    def _places(self) -> dict[str, int]:
        lower = map(str.lower, self.ids)
        return {id if id == low else low: number for number, (id, low) in enumerate(zip(self.ids, lower, strict=True))}

    def record_bytes(self, row: int) -> bytes:
        """The record of memory *row* as it was written: JSON with sorted keys."""
        return self._part("records", int(self._rows["record_at"][row]), int(self._rows["record_size"][row]))

    def record_hash(self, row: int) -> str:
        return hashlib.sha256(self.record_bytes(row)).hexdigest()

    @property
    def content(self) -> str:
        """See :func:`content_of`."""
        return content_of(dict(zip(self.ids, map(self.record_hash, range(len(self))), strict=True)))

    def record(self, row: int) -> Record:
        """The record of memory *row*, parsed. Raises BankError."""
        try:
            fields = json.loads(self.record_bytes(row))
            for name in ("paraphrases", "questions"):
                fields[name] = tuple(fields[name])
            record = Record(**fields)
            if record.id != self.ids[row] or not isinstance(record.text, str) or not isinstance(record.metadata, dict):
                raise ValueError("a record is of the wrong form")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self._damaged(f"a record: {error}") from None
        return record

    def records(self, state: str | None = None) -> list[Record]:
        return [record for record in map(self.record, range(len(self))) if state in (None, record.state)]

    def find(self, id: str) -> Record | None:
        row = self._places.get(id.lower()) if isinstance(id, str) else None
        return None if row is None else self.record(row)

    def get(self, id: str) -> Record:
        return self.record(self._row(id))

    def _row(self, id: str) -> int:
        row = self._places.get(str(id).lower())
        if row is None:
            near = difflib.get_close_matches(str(id), self.ids, n=1)
            hint = f"did you mean {near[0]}?" if near else "megart list shows what there is"
            raise MemoryNotFoundError(f"no memory {id!r} in the pack {self.path}; {hint}")
        return row

    def columns(self) -> Columns:
        """What the gate finds the memories by; see :class:`~megart.bank.rows.Columns`. Mapped where nothing expired."""
        expires, now = self._rows["expires"], int(time.time())
        alive = np.flatnonzero(expires > now)
        whole = len(alive) == len(self)
        kept = slice(None) if whole else alive
        ahead = expires[alive]
        until = float(ahead.min()) if len(ahead) and int(ahead.min()) != NEVER else math.inf
        embedder = self._embedder
        return Columns(
            self.ids if whole else [self.ids[row] for row in alive.tolist()],
            Records(self, range(len(self)) if whole else alive.tolist()),
            self._matrix("keys", "<f4")[kept] if "ready" not in self._columns else None,
            self._sequences(alive),
            self._matrix("ready", "<f2")[kept] if "ready" in self._columns else None,
            (embedder, self._matrix("vectors", "<f2")[kept]) if "vectors" in self._columns else None,
            until,
        )

    def _sequences(self, rows: np.ndarray) -> list[np.ndarray | None]:
        flat = np.frombuffer(self._column("words"), "u1")
        flat, starts, sizes = (
            flat[: len(flat) // 4 * 4].view("<u4"),
            self._rows["words_at"] // 4,
            self._rows["words"] // 4,
        )
        ends = starts + sizes
        if len(ends) and int(ends.max()) > len(flat):
            raise self._damaged("a part of its column words lies beyond the end")
        return [flat[a:b] for a, b in zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)]

    @property
    def _embedder(self) -> str:
        return (self.get_state("embedder") or b"").decode("utf-8", "replace")

    def keys(self) -> tuple[list[str], np.ndarray]:
        return [*self.ids], self._matrix("keys", "<f4")

    def vectors(self, embedder: str) -> dict[str, np.ndarray]:
        if "vectors" not in self._columns or self._embedder != embedder:
            return {}
        return dict(zip(self.ids, self._matrix("vectors", "<f2").astype(np.float32), strict=True))

    def without_vectors(self, embedder: str) -> list[Record]:
        return [] if "vectors" in self._columns and self._embedder == embedder else self.records()

    def words(self) -> dict[str, np.ndarray]:
        found = self._sequences(np.arange(len(self)))
        return {id: words for id, words in zip(self.ids, found, strict=True) if words is not None}

    def tokens(self, ids: Sequence[str]) -> list[np.ndarray]:
        rows = [self._rows[self._places[id.lower()]] for id in ids]
        return [np.frombuffer(self._part("tokens", int(r["tokens_at"]), int(r["tokens"])), np.int8) for r in rows]

    def found(self) -> dict[str, tuple[bytes, ...]]:
        """The bytes of key, words, token states and, where there are any, vector of each memory, by id."""
        keys, words, tokens = self._matrix("keys", "<f4"), self._sequences(np.arange(len(self))), self.tokens(self.ids)
        vectors = self._matrix("vectors", "<f2") if "vectors" in self._columns else None
        parts: list[Any] = [keys, words, tokens, *([] if vectors is None else [vectors])]
        return {id: tuple(part[row].tobytes() for part in parts) for row, id in enumerate(self.ids)}

    def without_evidence(self) -> list[Record]:
        return []

    def get_state(self, name: str) -> bytes | None:
        return self._column(f"s:{name}") if f"s:{name}" in self._columns else None

    def use(self) -> dict[str, tuple[int, str]]:
        """A pack counts nothing."""
        return {}

    counts_use = False

    def adapter_bytes(self, id: str) -> bytes:
        """The adapter file of a learnt memory. Raises BankError when it is pending, or not what was packed."""
        row = self._rows[self._row(id)]
        if not int(row["flags"]) & LEARNT:
            raise BankError(f"the memory {id} is pending and has no adapter")
        data = self._bytes(int(row["adapter_at"]), int(row["adapter_size"]))
        if hashlib.sha256(data).digest() != bytes(row["adapter_sha256"]):
            raise BankError(f"the adapter of {id} in {self.path} is damaged; get the pack again")
        return data

    def adapter(self, id: str) -> Adapter:
        """The adapter of a learnt memory. Raises BankError, AdapterError."""
        return read_adapter(self.adapter_bytes(id))

    def verify(self) -> list[Problem]:
        """What is wrong with the pack; reads all of it."""
        wrong = []
        for name in self._columns:
            try:
                self._column(name)
            except BankError as error:
                wrong.append(Problem("", "catalog", str(error)))
        for row in range(len(self)) if not wrong else ():
            try:
                record = self.record(row)
                if record.state == "learnt":
                    self.adapter(record.id)
            except (BankError, AdapterError) as error:
                wrong.append(Problem(self.ids[row], "sha", str(error)))
        return wrong

    def __getattr__(self, name: str) -> Any:
        if name in _CHANGES:

            def refuse(*_: object, **__: object) -> None:
                raise BankError(_READ_ONLY.format(self.path, self.path))

            return refuse
        raise AttributeError(f"a pack has no {name}")


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
