"""What the memories of a bank are found by: keys, words, token states, vectors by text embedders."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import BankError, ChangedError
from .catalog import Catalog
from .memory import Record
from .rows import COLUMNS, Columns, Evidence, among, evidence_bytes, key_bytes, stamp, to_record

# The embedder of a bank that compares no vectors: words and the base's shallow states.
WORDS = "words"


def embedder_name(state: bytes | None) -> str:
    """What a bank holds as its embedder, or a user calls it, as it is named today."""
    name = (state or WORDS.encode()).decode("utf-8", "replace")
    return WORDS if name == "default" else name


class Features:
    """That part of a bank. ``seqs`` are memories as :meth:`versions` names them; None: all of them."""

    path: Path
    _catalog: Catalog

    def keys(self) -> tuple[list[str], np.ndarray]:
        """The ids and their context keys, f32 [N, D], in the order the memories came; [0, 0] when empty."""
        rows = self._catalog.read("SELECT id, vector FROM key JOIN memory USING (seq) ORDER BY seq")
        return [id for id, _ in rows], self._matrix([vector for _, vector in rows])

    def _matrix(self, vectors: list[bytes]) -> np.ndarray:
        if not vectors:
            return np.empty((0, 0), np.float32)
        size = len(vectors[0]) if isinstance(vectors[0], bytes) else 0
        if size == 0 or size % 4 or any(type(v) is not bytes or len(v) != size for v in vectors):
            raise BankError(f"the bank {self.path} holds keys of different lengths; run: megart verify --repair")
        flat = np.frombuffer(bytearray().join(vectors), "<f4")
        return flat.reshape(len(vectors), size // 4)

    def versions(self) -> dict[int, int]:
        """Of each memory, by a number that no other ever has, the revision of the bank at which it last changed."""
        return dict(self._catalog.read("SELECT seq, revision FROM change ORDER BY seq"))

    def columns(self, seqs: Sequence[int] | None = None) -> Columns:
        """What the gate finds the memories by, of those that have a key and did not expire."""
        rows = self._catalog.read(
            f"SELECT {COLUMNS}, seq, vector, words FROM memory JOIN key USING (seq) LEFT JOIN evidence USING (seq) "
            f"WHERE {among(seqs)} ORDER BY seq"
        )
        entries, now = [(to_record(row[:-3]), *row[-3:]) for row in rows], time.time()
        entries = [row for row in entries if (row[0].expires or math.inf) > now]
        records = [row[0] for row in entries]
        return Columns(
            [record.id for record in records],
            records,
            self._matrix([row[2] for row in entries]),
            [None if row[3] is None else _words(row[3]) for row in entries],
            None,
            None,
            min((record.expires or math.inf for record in records), default=math.inf),
            [row[1] for row in entries],
        )

    def words(self) -> dict[str, np.ndarray]:
        """Of each memory that has evidence for the gate, its hashed words, uint32 [n], by id."""
        rows = self._catalog.read("SELECT id, words FROM evidence JOIN memory USING (seq)")
        return {id: _words(blob) for id, blob in rows}

    def without_evidence(self, seqs: Sequence[int] | None = None) -> list[Record]:
        """The memories that `set_evidence` has stored nothing of."""
        sql = f"SELECT {COLUMNS} FROM memory LEFT JOIN evidence USING (seq) WHERE evidence.seq IS NULL AND {among(seqs)} ORDER BY seq"
        return [to_record(row) for row in self._catalog.read(sql)]

    def tokens(self, ids: Sequence[str]) -> list[np.ndarray]:
        """Token states of some memories, int8 [bytes], as `set_evidence` got them; empty where there are none."""
        marks = ", ".join("?" * len(ids))
        sql = f"SELECT id, tokens FROM evidence JOIN memory USING (seq) WHERE id IN ({marks})"
        states = {id: np.frombuffer(blob, np.int8) for id, blob in self._catalog.read(sql, list(ids))}
        return [states.get(id, np.empty(0, np.int8)) for id in ids]

    def set_evidence(self, made: Sequence[tuple[Record, Evidence]]) -> None:
        """Stores words, uint32 [n], and token states, int8, of memories that have none and are still as given."""
        with self._catalog.write() as connection:
            for record, evidence in made:
                connection.execute(
                    "INSERT OR IGNORE INTO evidence SELECT seq, ?, ? FROM memory "
                    "WHERE id = ? AND text = ? AND title IS ?",
                    (*evidence_bytes(evidence), record.id, record.text, record.title),
                )
                stamp(connection, "WHERE id = ?", (record.id,))

    def vectors(self, embedder: str, seqs: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        """Of each memory that has one by *embedder*, its vector, float32 [D], by id."""
        sql = f"SELECT id, vector FROM vector JOIN memory USING (seq) WHERE embedder = ? AND {among(seqs)}"
        rows = self._catalog.read(sql, (embedder,))
        return {id: np.frombuffer(blob[: len(blob) // 4 * 4], "<f4") for id, blob in rows}

    def without_vectors(self, embedder: str, seqs: Sequence[int] | None = None) -> list[Record]:
        """The memories that have no vector by *embedder*."""
        sql = (
            f"SELECT {COLUMNS} FROM memory WHERE NOT EXISTS "
            f"(SELECT 1 FROM vector WHERE vector.seq = memory.seq AND embedder = ?) AND {among(seqs)} ORDER BY seq"
        )
        return [to_record(row) for row in self._catalog.read(sql, (embedder,))]

    def set_vectors(self, embedder: str, made: Sequence[tuple[Record, np.ndarray]]) -> None:
        """Stores vectors by *embedder*, float32 [D], of memories that are still as given, in place of those they had."""
        with self._catalog.write() as connection:
            for record, vector in made:
                connection.execute(
                    "INSERT OR REPLACE INTO vector SELECT seq, ?, ? FROM memory "
                    "WHERE id = ? AND text = ? AND title IS ?",
                    (embedder, key_bytes(vector), record.id, record.text, record.title),
                )
                stamp(connection, "WHERE id = ?", (record.id,))

    def set_keys(
        self, index_entry: Mapping[str, tuple[np.ndarray, Evidence]], states: Mapping[str, bytes | None], revision: int
    ) -> None:
        """Replaces every context key and all evidence, by id, and stores or drops blobs of `set_state`, at once.

        Raises ChangedError when the bank is not the one of *revision* any more.
        """
        rows = {id: (key_bytes(key), *evidence_bytes(evidence)) for id, (key, evidence) in index_entry.items()}
        with self._catalog.write() as connection:
            if connection.execute("SELECT revision FROM counter").fetchone()[0] != revision:
                raise ChangedError(f"the bank {self.path} changed meanwhile; try again")
            for table in ("key", "evidence", "vector"):
                connection.execute(f"DELETE FROM {table}")
            for id, (vector, words, tokens) in rows.items():
                connection.execute("INSERT INTO key SELECT seq, ? FROM memory WHERE id = ?", (vector, id))
                connection.execute(
                    "INSERT INTO evidence SELECT seq, ?, ? FROM memory WHERE id = ?", (words, tokens, id)
                )
            stamp(connection)
            for name, value in states.items():
                connection.execute("DELETE FROM state WHERE name = ?", (name,))
                if value is not None:
                    connection.execute("INSERT INTO state VALUES (?, ?)", (name, value))


def _words(blob: bytes) -> np.ndarray:
    return np.frombuffer(blob[: len(blob) // 4 * 4], "<u4")
