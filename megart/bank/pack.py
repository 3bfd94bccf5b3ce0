"""A bank written as one file, which packed.py reads where it lies. The format is docs/pack.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapter import CUE_KEY
from ..errors import InputError
from ..models import DEFAULT_MODEL
from ..whole_file import whole_file
from .catalog import BaseInfo
from .features import embedder_name
from .memory import FORGET_AFTER, Record, record_json
from .pack_file import ALIGNMENT, BLOCK, COLUMN, COUNTS, HEADER, LEARNT, MAGIC, NEVER, ROW, VERSION
from .packed import STATES, PackedBank, content_of
from .store import Bank

# What stays of the metadata where the texts are left out.
_KEPT = ("tags", "tag", "created", FORGET_AFTER)


@dataclass(frozen=True)
class _Index:
    """What the gate finds the memories by, in the order of ``records``."""

    records: list[Record]
    keys: np.ndarray
    words: list[np.ndarray]
    tokens: list[np.ndarray]
    vectors: np.ndarray | None  # f16 [N, E]

    @classmethod
    def of(cls, bank: Bank | PackedBank, records: list[Record]) -> _Index:
        ids, keys = bank.keys()
        places = {id: row for row, id in enumerate(ids)}
        words, vectors = bank.words(), bank.vectors(embedder_name(bank.get_state("embedder")))
        vector_list = [vectors[r.id] for r in records if r.id in vectors]
        return cls(
            records,
            np.ascontiguousarray(keys[[places[r.id] for r in records]], "<f4"),
            [words[r.id].astype("<u4") for r in records],
            bank.tokens([r.id for r in records]) if records else [],
            np.stack(vector_list).astype("<f2") if records and len(vector_list) == len(records) else None,
        )

    def of_row(self, row: int) -> tuple[bytes, ...]:
        parts = [self.keys[row], self.words[row], self.tokens[row]]
        return tuple(part.tobytes() for part in (*parts, *([] if self.vectors is None else [self.vectors[row]])))

    def rows(self, row_numbers: list[int]) -> _Index:
        return _Index(
            [self.records[row] for row in row_numbers],
            self.keys[row_numbers],
            [self.words[row] for row in row_numbers],
            [self.tokens[row] for row in row_numbers],
            None if self.vectors is None else self.vectors[row_numbers],
        )


def write_pack(
    bank: Bank,
    path: str | Path,
    *,
    ids: Sequence[str] | None = None,
    sign: bytes | None = None,
    ready: Any = None,
    text: bool = True,
    since: PackedBank | None = None,
    reader: bytes | None = None,
) -> int:
    """Pack the memories *ids* of *bank* (None: all) into the file *path*; returns its size in bytes.

    The same bank gives the same bytes. ``sign``: an Ed25519 private key, 32 bytes. ``ready``: a function from the keys
    that the bank stores, f32 [N, D], to those that the gate compares, f16 [N, D], which makes the pack faster to open.
    ``text`` off leaves out what the memories say: their titles, tags and dates stay, and their weights. ``since``:
    write only what changed since that pack. ``reader``: the file of a reader that goes with them. Raises InputError
    where the file is there already, or a memory that is not learnt would be lost; BankError for a damaged adapter.
    """
    target = Path(path).expanduser()
    if target.exists():
        raise InputError(f"{target} is there already; give another name")
    if bank.without_evidence():
        raise InputError(f"{bank.path} was never asked since it was last changed; run megart rekey first")
    wanted = None if ids is None else {id.lower() for id in ids}
    records = [r for r in bank.records() if wanted is None or r.id.lower() in wanted]
    index = _Index.of(bank, records)
    columns = {f"s:{name}": value for name in STATES if (value := bank.get_state(name)) is not None}
    if reader is not None:
        columns["s:reader"] = reader
    if since is not None:
        index, delta = _changed(index, since, text)
        columns = {name: value for name, value in columns.items() if _is_news(name, value, since)}
        columns["delta"] = delta
    elif not text:
        index, columns["no-text"] = _without_text(bank, index), b""
    if ready is not None and since is None and len(records):
        columns["ready"] = np.ascontiguousarray(ready(index.keys), "<f2").tobytes()
    try:
        with whole_file(target) as file:
            return _Writer(file).write(bank, index, columns, sign)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error


def _is_news(name: str, value: bytes, since: PackedBank) -> bool:
    """Whether a delta has to carry a state; the embedder always, it says whose the vectors are."""
    return name == "s:embedder" or since.get_state(name.removeprefix("s:")) != value


def _without_text(bank: Bank, index: _Index) -> _Index:
    pending = [r.id for r in index.records if r.state != "learnt"]
    if pending:
        raise InputError(
            f"{len(pending)} memories are pending and have nothing but their text, {pending[0]!r} first; "
            "run: megart learn"
        )
    for record in index.records:
        if not bank.adapter(record.id).metadata.get(CUE_KEY):
            raise InputError(f"the adapter of {record.id!r} does not say what it is recalled by; learn it again")

    def bare(record: Record) -> Record:
        metadata = {name: record.metadata[name] for name in _KEPT if name in record.metadata}
        return replace(record, text="", paraphrases=(), questions=(), metadata=metadata)

    return replace(index, records=[bare(r) for r in index.records])


def _changed(index: _Index, since: PackedBank, text: bool) -> tuple[_Index, bytes]:
    """What of *index* is new or another than in the pack *since*, and the column that says so."""
    if since.delta is not None or not since.has_text or not text:
        raise InputError(f"{since.path} cannot be gone on from; a delta needs a whole pack, with texts")
    before = dict(zip(since.ids, map(since.record_hash, range(len(since))), strict=True))
    now = {r.id: hashlib.sha256(record_json(r)).hexdigest() for r in index.records}
    old, places = _Index.of(since, since.records()), {id: row for row, id in enumerate(since.ids)}
    row_numbers = [
        row
        for row, record in enumerate(index.records)
        if before.get(record.id) != now[record.id] or old.of_row(places[record.id]) != index.of_row(row)
    ]
    forgotten = sorted(id for id in before if id not in now)
    was = {id: before[id] for id in (*(index.records[row].id for row in row_numbers), *forgotten) if id in before}
    fields = {"since": content_of(before), "becomes": content_of(now), "was": was, "forgotten": forgotten}
    return index.rows(row_numbers), json.dumps(fields, sort_keys=True).encode()


class _Writer:
    """Puts the parts of a pack into *file*, one after the other."""

    def __init__(self, file: Any):
        self.file = file

    def write(self, bank: Bank, index: _Index, columns: dict[str, bytes], sign: bytes | None) -> int:
        self.file.write(bytes(HEADER.size))
        rows = self._adapters(bank, index.records)
        rows["expires"] = [NEVER if r.expires is None else max(0, int(r.expires)) for r in index.records]
        columns = {
            **columns,
            "ids": "\n".join(r.id for r in index.records).encode(),
            "keys": index.keys.tobytes(),
            "records": _strung(rows, "record", [record_json(r) for r in index.records]),
            "words": _strung(rows, "words", [words.tobytes() for words in index.words]),
            "tokens": _strung(rows, "tokens", [tokens.tobytes() for tokens in index.tokens]),
            "base": json.dumps(asdict(_elsewhere(bank.base)), sort_keys=True).encode(),
        }
        if index.vectors is not None:
            columns["vectors"] = index.vectors.tobytes()
        columns["rows"] = rows.tobytes()
        entries = [self._column(name, data) for name, data in sorted(columns.items())]
        directory = COUNTS.pack(len(index.records), len(entries)) + b"".join(entries)
        at, digest = self._put(directory), hashlib.sha256(directory).digest()
        size = int(self.file.tell())
        signature = bytes(64) if sign is None else _signer(sign).sign(digest)
        self.file.seek(0)
        self.file.write(HEADER.pack(MAGIC, VERSION, 0, at, len(directory), digest, signature))
        return size

    def _put(self, data: bytes) -> int:
        self.file.write(bytes(-self.file.tell() % ALIGNMENT))
        at = int(self.file.tell())
        self.file.write(data)
        return at

    def _adapters(self, bank: Bank, records: list[Record]) -> np.ndarray:
        rows = np.zeros(len(records), ROW)
        places: dict[str, int] = {}  # by their hash: the same bytes are there once
        for row, record in zip(rows, records, strict=True):
            if record.state == "learnt":
                data, sha256 = bank.adapter_bytes(record.id), record.adapter_sha256 or ""
                if sha256 not in places:
                    places[sha256] = self._put(data)
                row["adapter_at"], row["adapter_size"], row["flags"] = places[sha256], len(data), LEARNT
                row["adapter_sha256"] = bytes.fromhex(sha256)
        return rows

    def _column(self, name: str, data: bytes) -> bytes:
        """The entry of a column, which is written, and the hashes of its blocks behind it."""
        at = self._put(data)
        blocks = (data[start : start + BLOCK] for start in range(0, len(data), BLOCK))
        hashes = b"".join(hashlib.sha256(block).digest() for block in blocks)
        self._put(hashes)
        return COLUMN.pack(name.encode(), at, len(data), hashlib.sha256(hashes).digest())


def _strung(rows: np.ndarray, name: str, parts: list[bytes]) -> bytes:
    """*parts* one after the other; where each begins and how long it is goes into *rows*."""
    sizes = np.array([len(part) for part in parts], np.int64)
    if len(parts):
        rows[f"{name}_at"] = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        rows["record_size" if name == "record" else name] = sizes
    return b"".join(parts)


def _elsewhere(base: BaseInfo) -> BaseInfo:
    """*base* as another machine may look for it: by its name or its file's, without this machine's folders."""
    spec = base.spec if base.spec == DEFAULT_MODEL else Path(base.gguf).name
    return replace(base, spec=spec, gguf=Path(base.gguf).name, hf=None)


def _signer(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise InputError("signing needs the package cryptography; run: pip install cryptography") from error
    return Ed25519PrivateKey.from_private_bytes(key)


def open_path(path: str | Path, verify_key: bytes | None = None) -> Bank | PackedBank:
    """The bank in a folder, or the pack in a file. Raises BankError with the remedy.

    ``verify_key``: as of :class:`PackedBank`; what is no pack has no signature, and is refused (InputError).
    """
    path = Path(path).expanduser()
    if path.is_file():
        return PackedBank(path, verify_key=verify_key)
    if verify_key is not None and path.exists():
        raise InputError(f"{path} is no pack, and has no signature that a key could verify")
    return Bank.open(path)
