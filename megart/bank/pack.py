"""A bank in one file, used in place: written once, mapped read-only, nothing unpacked.

The format is docs/pack.md. What a pack says of itself is checked before it is used: every offset lies inside the file,
the directory has the hash that the header names, every column and adapter has the hash that the directory names.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import mmap
import os
import secrets
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..adapter import Adapter, read_adapter
from ..errors import AdapterError, BankError, BaseMismatchError, InputError, MemoryNotFoundError
from ..models import Model, resolve_model
from .catalog import BaseInfo
from .check import Problem
from .memory import Record, is_id
from .store import Bank

MAGIC, VERSION = b"MEGAPACK", 1
_HEADER = struct.Struct("<8sIIQQ32s64s")  # magic, version, flags, directory's offset and size, its SHA-256, signature
_COUNTS = struct.Struct("<II")  # memories, columns
_COLUMN = struct.Struct("<16sQQ32s")  # name, offset, size, SHA-256
ALIGNMENT = 64
# One row of the directory for each memory.
ROW = np.dtype(
    [
        ("adapter_at", "<u8"), ("adapter_size", "<u8"), ("adapter_sha256", "V32"),
        ("record_at", "<u8"), ("record_size", "<u4"), ("words", "<u4"),
        ("words_at", "<u8"), ("tokens_at", "<u8"), ("tokens", "<u4"), ("flags", "<u4"),
    ]
)  # fmt: skip
_LEARNT = 1
_MOST_COLUMNS, _MOST_MEMORIES = 64, 10_000_000
_STATES = ("whitening", "embedder", "strict", "reading")
_READ_ONLY = "{} is a pack and cannot be changed; run: megart unpack {} FOLDER"


# -- writing ------------------------------------------------------------------------------------


def write_pack(bank: Bank, path: str | Path, *, ids: Sequence[str] | None = None, sign: bytes | None = None) -> int:
    """Pack the memories *ids* of *bank* (None: all) into the file *path*; returns its size in bytes.

    The same bank gives the same bytes. ``sign``: an Ed25519 private key, 32 bytes. Raises InputError where the file is
    there already, BankError for a damaged adapter.
    """
    target = Path(path).expanduser()
    if target.exists():
        raise InputError(f"{target} is there already; give another name")
    if bank.without_evidence():
        raise InputError(f"{bank.path} was never asked since it was last changed; run megart rekey first")
    wanted = None if ids is None else {id.lower() for id in ids}
    records = [r for r in bank.records() if wanted is None or r.id.lower() in wanted]
    new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        with open(descriptor, "wb") as file:
            size = _write(bank, records, file, sign)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, target)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        new.unlink(missing_ok=True)
    return size


def _write(bank: Bank, records: list[Record], file: Any, sign: bytes | None) -> int:
    file.write(bytes(_HEADER.size))

    def put(data: bytes) -> int:
        file.write(bytes(-file.tell() % ALIGNMENT))
        at = int(file.tell())
        file.write(data)
        return at

    rows = np.zeros(len(records), ROW)
    places: dict[str, int] = {}  # of adapters, by their hash: the same bytes are there once
    for row, record in zip(rows, records, strict=True):
        if record.state == "learnt":
            data = bank.adapter_bytes(record.id)
            sha256 = record.adapter_sha256 or ""
            if sha256 not in places:
                places[sha256] = put(data)
            row["adapter_at"], row["adapter_size"], row["flags"] = places[sha256], len(data), _LEARNT
            row["adapter_sha256"] = bytes.fromhex(sha256)
    ids, keys = bank.keys()
    order = {id: n for n, id in enumerate(ids)}
    words, tokens = bank.words(), bank.tokens([r.id for r in records]) if records else []
    embedder = (bank.get_state("embedder") or b"default").decode()
    vectors = bank.vectors(embedder)
    columns: dict[str, bytes] = {
        "keys": np.ascontiguousarray(keys[[order[r.id] for r in records]], "<f4").tobytes() if records else b"",
        "records": _strung(rows, "record", [json.dumps(asdict(r), sort_keys=True).encode() for r in records]),
        "words": _strung(rows, "words", [words[r.id].astype("<u4").tobytes() for r in records]),
        "tokens": _strung(rows, "tokens", [t.tobytes() for t in tokens]),
        "base": json.dumps(asdict(bank.base), sort_keys=True).encode(),
    }
    if records and all(r.id in vectors for r in records):
        columns["vectors"] = np.stack([vectors[r.id] for r in records]).astype("<f4").tobytes()
    columns |= {f"s:{name}": value for name in _STATES if (value := bank.get_state(name)) is not None}
    columns["rows"] = rows.tobytes()
    entries = [
        _COLUMN.pack(name.encode(), put(data), len(data), hashlib.sha256(data).digest())
        for name, data in sorted(columns.items())
    ]
    directory = _COUNTS.pack(len(records), len(entries)) + b"".join(entries)
    at = put(directory)
    size = int(file.tell())
    digest = hashlib.sha256(directory).digest()
    signature = bytes(64) if sign is None else _signer(sign).sign(digest)
    file.seek(0)
    file.write(_HEADER.pack(MAGIC, VERSION, 0, at, len(directory), digest, signature))
    return size


def _strung(rows: np.ndarray, name: str, parts: list[bytes]) -> bytes:
    """*parts* one after the other; where each begins and how long it is goes into *rows*."""
    sizes = np.array([len(part) for part in parts], np.int64)
    if len(parts):
        rows[f"{name}_at"] = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rows["record_size" if name == "record" else name] = sizes
    return b"".join(parts)


def _signer(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise InputError("signing needs the package cryptography; run: pip install cryptography") from error
    return Ed25519PrivateKey.from_private_bytes(key)


# -- reading ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Column:
    at: int
    size: int
    sha256: bytes


class PackedBank:
    """A pack, read in place, as the runtime reads a :class:`Bank`. Safe from several threads.

    ``verify_key``: an Ed25519 public key, 32 bytes; a pack that it does not verify is refused. Raises BankError.
    """

    def __init__(self, path: str | Path, model: str | Path | Model | None = None, *, verify_key: bytes | None = None):
        self.path = Path(path).expanduser().absolute()
        try:
            with open(self.path, "rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise BankError(f"cannot read the pack {self.path}: {getattr(error, 'strerror', None) or error}") from error
        try:
            self._open(verify_key)
            if model is not None:
                self.check_base(resolve_model(model))
        except BaseException:
            self.close()
            raise

    def _open(self, verify_key: bytes | None) -> None:
        data = self._data
        if len(data) < _HEADER.size or data[: len(MAGIC)] != MAGIC:
            raise BankError(f"{self.path} is no pack; expected a file made by megart pack")
        _, version, _, at, size, digest, signature = _HEADER.unpack_from(data)
        if version != VERSION:
            raise BankError(f"{self.path} is a pack of version {version}, this megart reads {VERSION}; upgrade megart")
        directory = self._inside(at, size)
        if hashlib.sha256(directory).digest() != digest:
            raise self._damaged("its directory has another hash than its header says")
        if verify_key is not None:
            _verify(verify_key, signature, digest, self.path)
        count, columns = _COUNTS.unpack_from(directory)
        if columns > _MOST_COLUMNS or count > _MOST_MEMORIES or len(directory) != _COUNTS.size + columns * _COLUMN.size:
            raise self._damaged(f"its directory is of {count} memories and {columns} columns")
        self._columns: dict[str, _Column] = {}
        self._sure: set[str] = set()  # columns that were compared with their hash
        for number in range(columns):
            name, start, length, sha256 = _COLUMN.unpack_from(directory, _COUNTS.size + number * _COLUMN.size)
            self._inside(start, 0, length)
            self._columns[name.rstrip(b"\0").decode("ascii", "replace")] = _Column(start, length, sha256)
        self._rows = np.frombuffer(self._column("rows"), ROW)
        if len(self._rows) != count:
            raise self._damaged(f"it has rows of {len(self._rows)} memories, expected {count}")
        try:
            self.base = BaseInfo(**json.loads(self._column("base")))
        except (ValueError, TypeError) as error:
            raise self._damaged(f"its base: {error}") from None

    def _damaged(self, why: str) -> BankError:
        return BankError(f"the pack {self.path} is damaged ({why}); get it again")

    def _inside(self, at: int, size: int, length: int | None = None) -> bytes:
        """Bytes of the file; only checked to lie in it where *length* is given."""
        if at + (size if length is None else length) > len(self._data):
            raise self._damaged("something in it lies beyond its end")
        return self._data[at : at + size]

    def _column(self, name: str) -> bytes:
        """A column, compared with its hash. Raises BankError."""
        column = self._columns.get(name)
        if column is None:
            raise self._damaged(f"it has no column {name}")
        data = self._data[column.at : column.at + column.size]
        if hashlib.sha256(data).digest() != column.sha256:
            raise self._damaged(f"its column {name} has another hash than its directory says")
        return data

    def _part(self, name: str, at: int, size: int) -> bytes:
        """A part of a column, which is compared with its hash the first time."""
        if name not in self._sure:
            self._column(name)
            self._sure.add(name)
        column = self._columns[name]
        if at + size > column.size:
            raise self._damaged(f"a part of its column {name} lies beyond the end")
        return self._data[column.at + at : column.at + at + size]

    def close(self) -> None:
        self._data.close()

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
        """The base model, found by the name or path it was packed with. Raises ModelError, DependencyError."""
        return resolve_model(self.base.spec)

    def check_base(self, model: Model) -> None:
        """Raises BaseMismatchError unless *model* is the very file that the pack was made for."""
        if model.sha256 != self.base.sha256:
            raise BaseMismatchError(
                f"the pack {self.path} belongs to {self.base.name} (sha256 {self.base.sha256[:12]}), "
                f"got {model.name} (sha256 {model.sha256[:12]}); give that model with --model"
            )

    @cached_property
    def _records(self) -> list[Record]:
        made = []
        for row in self._rows:
            try:
                fields = json.loads(self._part("records", int(row["record_at"]), int(row["record_size"])))
                for name in ("paraphrases", "questions"):
                    fields[name] = tuple(fields[name])
                record = Record(**fields)
                if not is_id(record.id) or not isinstance(record.text, str) or not isinstance(record.metadata, dict):
                    raise ValueError("a record is of the wrong form")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise self._damaged(f"a record: {error}") from None
            made.append(record)
        return made

    @cached_property
    def _places(self) -> dict[str, int]:
        return {record.id.lower(): number for number, record in enumerate(self._records)}

    def records(self, state: str | None = None) -> list[Record]:
        return [record for record in self._records if state in (None, record.state)]

    def find(self, id: str) -> Record | None:
        number = self._places.get(id.lower()) if isinstance(id, str) else None
        return None if number is None else self._records[number]

    def get(self, id: str) -> Record:
        record = self.find(id)
        if record is None:
            near = difflib.get_close_matches(str(id), [r.id for r in self._records], n=1)
            hint = f"did you mean {near[0]}?" if near else "megart list shows what there is"
            raise MemoryNotFoundError(f"no memory {id!r} in the pack {self.path}; {hint}")
        return record

    def keys(self) -> tuple[list[str], np.ndarray]:
        return [r.id for r in self._records], self._matrix("keys")

    def _matrix(self, name: str) -> np.ndarray:
        """Float32 [N, D], mapped."""
        flat = np.frombuffer(self._column(name), "<f4")
        if len(self) == 0 or len(flat) % len(self):
            if len(flat):
                raise self._damaged(f"its column {name} does not fit {len(self)} memories")
            return np.empty((0, 0), np.float32)
        return flat.reshape(len(self), -1)

    def vectors(self, embedder: str) -> dict[str, np.ndarray]:
        if "vectors" not in self._columns or (self.get_state("embedder") or b"").decode("utf-8", "replace") != embedder:
            return {}
        return dict(zip((r.id for r in self._records), self._matrix("vectors"), strict=True))

    def without_vectors(self, embedder: str) -> list[Record]:
        return [] if self.vectors(embedder) else self.records()

    def words(self) -> dict[str, np.ndarray]:
        return {
            record.id: np.frombuffer(self._part("words", int(row["words_at"]), int(row["words"]) // 4 * 4), "<u4")
            for record, row in zip(self._records, self._rows, strict=True)
        }

    def tokens(self, ids: Sequence[str]) -> list[np.ndarray]:
        rows = [self._rows[self._places[id.lower()]] for id in ids]
        return [np.frombuffer(self._part("tokens", int(r["tokens_at"]), int(r["tokens"])), np.int8) for r in rows]

    def without_evidence(self) -> list[Record]:
        return []

    def get_state(self, name: str) -> bytes | None:
        return self._column(f"s:{name}") if f"s:{name}" in self._columns else None

    def adapter_bytes(self, id: str) -> bytes:
        """The adapter file of a learnt memory. Raises BankError when it is pending, or not what was packed."""
        record = self.get(id)
        row = self._rows[self._places[record.id.lower()]]
        if not int(row["flags"]) & _LEARNT:
            raise BankError(f"the memory {id} is pending and has no adapter")
        data = self._inside(int(row["adapter_at"]), int(row["adapter_size"]))
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
        for record in self._records if not wrong else ():
            try:
                if record.state == "learnt":
                    self.adapter(record.id)
            except (BankError, AdapterError) as error:
                wrong.append(Problem(record.id, "sha", str(error)))
        return wrong

    def __getattr__(self, name: str) -> Any:
        if name in (
            "add",
            "remove",
            "annotate",
            "set_state",
            "set_evidence",
            "set_vectors",
            "set_keys",
            "repair",
            "check_writable",
        ):

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


def unpack(pack: PackedBank, folder: str | Path) -> Bank:
    """A new bank in *folder* with all that *pack* holds. Raises BankError, InputError."""
    bank = Bank.create(folder, pack.model)
    try:
        bank.check_base(pack.model)
        words, vectors = pack.words(), {}
        embedder = (pack.get_state("embedder") or b"default").decode()
        vectors = pack.vectors(embedder)
        for name in _STATES:
            if (value := pack.get_state(name)) is not None:
                bank.set_state(name, value)
        ids, keys = pack.keys()
        for id, key in zip(ids, keys, strict=True):
            record = pack.get(id)
            bank.add(
                record.memory,
                key=np.ascontiguousarray(key, np.float32),
                evidence=(words[id], pack.tokens([id])[0]),
                vector=(embedder, np.asarray(vectors[id])) if id in vectors else None,
                adapter=pack.adapter_bytes(id) if record.state == "learnt" else None,
                recipe=record.recipe,
                activated=record.activated,
                rank=record.rank,
                training=record.training,
            )
    except BaseException:
        bank.close()
        raise
    return bank
