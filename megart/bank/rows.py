"""Rows of the catalog: what stands in them, how they are made, checked and turned into records."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import numpy as np

from ..errors import BankError, ChangedError, InputError
from .memory import Memory, Record, to_json

COLUMNS = (
    "id, title, text, paraphrases, questions, metadata, state, recipe, activated, rank, "
    "adapter_bytes, adapter_sha256, created_at, learnt_at, training, adapter_file"
)
# Names of devices: no file on Windows can be called so.
_RESERVED = frozenset(["con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))])
_MAX_RANK = 1 << 20
# What the gate has of a memory besides its key: words, uint32 [n], and token states, int8.
Evidence = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Columns:
    """The memories that may open, in the order they came, and what the gate finds them by; all lists go row by row.

    ``keys``: as stored, f32 [N, D], or None where ``ready`` has them as the gate compares them, f16 [N, D]; ``words``:
    uint32 [n] of each, None of one without evidence, or all in one array and where each begins, i64 [N + 1];
    ``vectors``: an embedder's name and its f16 [N, E], None where they are to be looked up; ``until``: when the next
    memory expires, in seconds since 1970 (inf: never); ``seqs``: what ``versions`` names the memories by, none in a
    pack.
    """

    ids: list[str]
    records: Sequence[Record]
    keys: np.ndarray | None
    words: list[np.ndarray | None] | tuple[np.ndarray, np.ndarray]
    ready: np.ndarray | None
    vectors: tuple[str, np.ndarray] | None
    until: float
    seqs: list[int]


def new_row(
    memory: Memory,
    adapter: bytes | None,
    *,
    recipe: str | None,
    activated: bool,
    rank: int,
    training: Mapping[str, Any],
    dates: tuple[str, str | None] | None = None,
) -> dict[str, Any]:
    """The row of a memory that is new; its adapter's file is not named yet. Raises InputError."""
    if adapter is not None and not adapter:
        raise InputError("the adapter is empty; expected the bytes of a LoRA GGUF file, or None")
    id = memory.id or memory.default_id()
    if id.split(".")[0].lower() in _RESERVED or id.endswith("."):
        raise InputError(
            f"got the id {id!r}, which Windows reserves or cuts; give another, such as memory-{id.strip('.')}"
        )
    if not 0 <= int(rank) <= _MAX_RANK:
        raise InputError(f"got the rank {rank}; expected 0 to {_MAX_RANK}")
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "id": id,
        "title": memory.title,
        "text": memory.text,
        "paraphrases": json.dumps(memory.paraphrases),
        "questions": json.dumps(memory.questions),
        "metadata": to_json("metadata", memory.metadata),
        "state": "pending" if adapter is None else "learnt",
        "recipe": recipe,
        "activated": int(activated),
        "rank": int(rank),
        "adapter_bytes": len(adapter or b""),
        "adapter_sha256": None if adapter is None else hashlib.sha256(adapter).hexdigest(),
        "created_at": now if dates is None else dates[0],
        "learnt_at": None if adapter is None else now if dates is None else dates[1],
        "training": to_json("training", training),
        "adapter_file": None,
    }


def to_record(row: tuple[Any, ...]) -> Record:
    """The record in a row of `COLUMNS`. Raises BankError when it cannot be read."""
    fields = dict(zip(COLUMNS.split(", "), row, strict=True))
    del fields["adapter_file"]
    try:
        for name in ("paraphrases", "questions"):
            fields[name] = tuple(json.loads(fields[name]))
        for name in ("metadata", "training"):
            fields[name] = dict(json.loads(fields[name]))
        fields["activated"] = bool(fields["activated"])
    except (ValueError, TypeError, RecursionError) as error:
        raise BankError(
            f"the row of {fields['id']!r} in the catalog is damaged ({error}); restore it from a backup"
        ) from None
    return Record(**fields)


def key_bytes(key: np.ndarray) -> bytes:
    if not isinstance(key, np.ndarray) or key.dtype != np.float32 or key.ndim != 1 or key.size == 0:
        got = f"{key.dtype} {key.shape}" if isinstance(key, np.ndarray) else type(key).__name__
        raise InputError(f"the context key is {got}; expected a float32 array of one dimension")
    if not np.isfinite(key).all():
        raise InputError("the context key holds infinity or NaN; expected finite numbers")
    return key.astype("<f4", copy=False).tobytes()


def old_row(connection: sqlite3.Connection, id: str, text: str, may_replace: bool) -> tuple[Any, ...] | None:
    """(seq, id, created_at, adapter_file) of the row to replace; raises InputError when it may not be."""
    sql = "SELECT seq, id, created_at, adapter_file, text FROM memory WHERE id = ?"
    row = connection.execute(sql, (id,)).fetchone()
    if row is None:
        return None
    if not may_replace:
        what = "is already there" if row[4] == text else "is already there with another text"
        raise InputError(f"the memory {row[1]!r} {what}; give another id, or replace it")
    return tuple(row[:4])


def check_unchanged(connection: sqlite3.Connection, id: str, over: Memory | None) -> None:
    """Raises ChangedError unless the row of *id* still holds what its user gave as *over*; None: there is no row."""
    row = connection.execute(f"SELECT {COLUMNS} FROM memory WHERE id = ?", (id,)).fetchone()
    there = None if row is None else to_record(row).memory
    if over is None and there is not None:
        raise ChangedError(f"the memory {there.id!r} was added to the bank meanwhile; it is left as it is")
    if over is not None and there is None:
        raise ChangedError(f"the memory {id!r} was forgotten meanwhile; it stays forgotten")
    if over is not None and there != replace(over, id=there.id if there else None):
        raise ChangedError(f"the memory {id!r} was changed in the bank meanwhile; it is left as it is")


def check_length(connection: sqlite3.Connection, vector: bytes, id: str) -> None:
    row = connection.execute(
        "SELECT length(vector) FROM key JOIN memory USING (seq) WHERE id <> ? LIMIT 1", (id,)
    ).fetchone()
    if row is not None and row[0] != len(vector):
        raise InputError(f"the context key has {len(vector) // 4} numbers; the bank's have {row[0] // 4}")


def put_row(
    connection: sqlite3.Connection,
    row: Mapping[str, Any],
    key: bytes,
    evidence: Evidence | None,
    vector: tuple[str, bytes] | None,
    seq: int | None,
) -> None:
    if seq is None:
        marks = ", ".join(f":{name}" for name in row)
        seq = connection.execute(f"INSERT INTO memory ({', '.join(row)}) VALUES ({marks})", row).lastrowid
    else:
        changes = ", ".join(f"{name} = :{name}" for name in row)
        connection.execute(f"UPDATE memory SET {changes} WHERE seq = :seq", {**row, "seq": seq})
    connection.execute("INSERT OR REPLACE INTO key VALUES (?, ?)", (seq, key))
    for table in ("evidence", "vector"):
        connection.execute(f"DELETE FROM {table} WHERE seq = ?", (seq,))
    if evidence is not None:
        connection.execute("INSERT INTO evidence VALUES (?, ?, ?)", (seq, *evidence_bytes(evidence)))
    if vector is not None:
        connection.execute("INSERT INTO vector VALUES (?, ?, ?)", (seq, *vector))
    stamp(connection, "WHERE seq = ?", (seq,))


def stamp(connection: sqlite3.Connection, where: str = "", values: Sequence[Any] = ()) -> None:
    """Says of some memories that they change in this transaction: who holds them as they were reads them again."""
    connection.execute(
        f"INSERT OR REPLACE INTO change SELECT seq, (SELECT revision + 1 FROM counter) FROM memory {where}", values
    )


def among(seqs: Sequence[int] | None) -> str:
    """The condition of SQL that a row is of one of *seqs*; None: of any."""
    return "true" if seqs is None else f"memory.seq IN ({', '.join(map(str, map(int, seqs)))})"


def evidence_bytes(evidence: Evidence) -> tuple[bytes, bytes]:
    """Words, uint32 [n], and token states, int8, as the catalog keeps them."""
    words, tokens = evidence
    return words.astype("<u4").tobytes(), tokens.astype(np.int8).tobytes()
