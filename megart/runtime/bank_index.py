"""What the memories of a bank are found by, kept up to date with the bank: keys, words, token states, vectors."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

import numpy as np

from .. import _core, gate
from ..bank import Bank, Record
from ..bank.features import embedder_name
from ..bank.rows import Columns
from ..errors import BankError, ChangedError, DependencyError, MegartError, MemoryNotFoundError, ModelError
from ..gate import meaning
from . import embed, embedders, states
from .context import Context
from .engine import Engine

# How many memories get what they lack in one transaction; where more than so many changed, all are read again.
_BATCH, _MOST_NEWS = 64, 500
_UPDATED = 32  # memories that a new one may update: those most like it
_log = logging.getLogger("megart")


class IndexEntry(TypedDict):
    """Key, float32 [D]; words, uint32 [n], and token states, int8 [m]; the embedder's name and its vector, float32 [E]."""

    key: np.ndarray
    evidence: tuple[np.ndarray, np.ndarray]
    vector: tuple[str, np.ndarray] | None


@dataclass(frozen=True)
class _Rows:
    """What an index is made of, row by row. ``seqs``: what the bank names the memories by, none in a pack."""

    seqs: list[int]
    ids: list[str]
    records: Sequence[Record]
    words: Any  # what gate.Index takes; a list in a bank
    keys: np.ndarray  # as the gate compares them, f16 or f32 [N, D]
    vectors: np.ndarray | None  # f16 [N, E]

    def with_news(self, news: _Rows, remaining: list[int]) -> _Rows:
        """The rows *remaining* of these and those of *news*, in the order the memories came."""
        seqs = [self.seqs[row] for row in remaining] + news.seqs
        order = np.argsort(seqs, kind="stable").tolist()

        def rows(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
            both = [old[row] for row in remaining] + list(new)
            return [both[row] for row in order]

        def array(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([old[remaining], new])[order] if len(new) else old[remaining]

        return _Rows(
            sorted(seqs), rows(self.ids, news.ids), rows(self.records, news.records), rows(self.words, news.words),
            array(self.keys, news.keys),
            None if self.vectors is None or news.vectors is None else array(self.vectors, news.vectors),
        )  # fmt: skip


class BankIndex:
    """The memories of *bank* as the gate sees them. Not thread-safe: hold the engine's lock.

    ``records`` and ``index`` are of the last :meth:`refresh`; ``index`` is None for a bank without memories.
    """

    def __init__(
        self, bank: Bank, engine: Engine, encoder: Callable[[], Context], deep_encoder: Callable[[], Context]
    ):
        self.bank, self.engine, self._encoder, self._deep_encoder = bank, engine, encoder, deep_encoder
        self.index: gate.Index | None = None
        self.prior = embed.UnigramPrior(engine)
        self._whitening: embed.Whitening | None = None
        self._forget()
        self.tell: Callable[[Record], str] | None = None  # what a memory recites
        # What could not be stored, and the memory that it is of.
        self._unsaved: dict[str, tuple[Record, tuple[np.ndarray, np.ndarray]]] = {}
        self._unsaved_vectors: dict[str, tuple[Record, np.ndarray]] = {}
        self._embedder: str | None = None  # its name, None until it is looked up
        self._name: str | None = None  # of the embedder that the next two are of
        self._keys: embedders.Keys | None = None
        self._text_embedder: embedders.TextEmbedder | None = None

    def _forget(self) -> None:
        """Whatever was read: the next refresh reads all."""
        self._revision, self._until = -1, math.inf  # until: when a memory expires
        self._rows: _Rows | None = None
        self._versions: dict[int, int] = {}

    @property
    def records(self) -> Sequence[Record]:
        return self._rows.records if self._rows else []

    @property
    def _ids(self) -> list[str]:
        return self._rows.ids if self._rows else []

    def close(self) -> None:
        for holder in (self._keys, self._text_embedder):
            if holder is not None:
                holder.close()
        self._name = self._keys = self._text_embedder = None

    def prepare(self) -> embed.Whitening:
        """The whitening, measured now unless the bank has it: the first question need not wait."""
        if self._whitening is None:
            self._whitening = embed.bank_whitening(self.bank, self._encoder())
        return self._whitening

    # -- the embedder ---------------------------------------------------------------------------

    @property
    def embedder(self) -> str:
        """Its name, as the bank recorded it at the last refresh; a bank without memories gets the preferred one."""
        if self._embedder is not None:
            return self._embedder
        stored = self.bank.get_state(embedders.STATE)
        if stored is None and not len(self.bank):
            stored = embedders.check(embedders.preferred(self.engine.model.sha256)).encode()
            try:
                self.bank.set_state(embedders.STATE, stored)
            except BankError:  # a bank that can only be read still answers
                pass
        self._embedder = embedder_name(stored)
        return self._embedder

    @property
    def keys(self) -> embedders.Keys:
        """What makes the bank's keys."""
        self._load()
        assert self._keys is not None
        return self._keys

    @property
    def text_embedder(self) -> embedders.TextEmbedder | None:
        """What finds by meaning; None where the bank has nothing for it, or none of it is installed here."""
        self._load()
        return self._text_embedder

    @property
    def encoder(self) -> Context:
        """What reads a text for its key, its token states and, where that is by the base's states, its vector: in one pass."""
        deep = self.text_embedder is not None and meaning.STATES in self.text_embedder.family.split("+")
        return self._deep_encoder() if deep else self._encoder()

    def _load(self) -> None:
        name = self.embedder
        if name == self._name:
            return
        self.close()
        try:
            self._text_embedder = self._make(name)
        except (DependencyError, ModelError) as error:
            rest = embedders.make_rest(name, self._threads, self._states) if "+" in name else None
            _log.warning("memories are found %s: %s", f"by {rest.name} alone" if rest else "without it", error)
            self._text_embedder = rest
        encoder = self._encoder if self._text_embedder is None else lambda: self.encoder
        self._keys = embedders.make_keys(name, self.engine, encoder, self.prepare)
        self._name = name

    def _make(self, name: str) -> embedders.TextEmbedder | None:
        return embedders.make_text_embedder(name, self._threads, self._states)

    def _threads(self) -> int:
        return self.engine.threads

    def _states(self) -> embedders.TextEmbedder:
        return states.States(self.engine, self._deep_encoder)

    @property
    def _rest(self) -> embedders.Rest | None:
        """The embedders that are here, where the bank's others are not: the bank's vectors are not made here."""
        return self.text_embedder if isinstance(self.text_embedder, embedders.Rest) else None

    def rekey(self, name: str | None, on_progress: Callable[[int, int], None] | None = None) -> str:
        """All keys, evidence and vectors anew, by the embedder *name* (None: the bank's own); returns its name."""
        chosen = embedders.check(self.embedder if name is None else name)
        text_embedder = self._make(chosen)
        if text_embedder is not None:
            text_embedder.close()
        keys = embedders.make_keys(chosen, self.engine, lambda: self.encoder, self.prepare)  # as the evidence: one pass
        by_id: dict[str, tuple[Record, np.ndarray, tuple[np.ndarray, np.ndarray]]] = {}
        while True:  # what another process changes meanwhile is made once more
            revision, records = self.bank.revision, self.bank.records()
            for done, record in enumerate(records, start=1):
                if record.id not in by_id or _content(by_id[record.id][0]) != _content(record):
                    by_id[record.id] = record, keys.memory(*_content(record)), self._evidence(*_content(record))
                if on_progress:
                    on_progress(done, len(records))
            entries = {record.id: by_id[record.id][1:] for record in records}
            try:
                self.bank.set_keys(entries, {embedders.STATE: chosen.encode()}, revision)
                break
            except ChangedError:
                continue
        keys.close()
        self.refresh()
        return chosen

    # -- the bank's memories ----------------------------------------------------------------------

    def check_ids(self, ids: Sequence[str]) -> None:
        """Raises MemoryNotFoundError for an id that the bank does not have, or whose memory expired."""
        there = set(map(str.lower, self._ids)) if ids else set()
        for id in ids:
            if id.lower() not in there and (self.bank.get(id).expires or math.inf) <= time.time():
                raise MemoryNotFoundError(f"the memory {id!r} expired and is not opened any more")

    def rows(self, ids: Collection[str]) -> list[int]:
        """The rows of those memories that there are."""
        return [row for row, id in enumerate(self._ids) if id in ids]

    def refresh(self) -> bool:
        """Notice what changed in the bank, also from another process; True when something did."""
        if self.bank.revision == self._revision and time.time() < self._until:
            return False
        self._embedder = None
        if time.time() >= self._until or self._name != self.embedder:
            self._forget()
        self._complete(self._news(self.bank.versions()))
        # The number first: what changes while this is read is read the next time.
        revision, versions = self.bank.revision, self.bank.versions()
        news = self._news(versions)
        columns = self.bank.columns(news)
        if columns.keys is not None and self._of_other_keys(columns.keys):
            self._forget()
            self.rekey(None)  # an older megart put the embedder's vectors in the keys' place
            return True
        rows = self._read(columns, news)
        if news is not None and self._rows is not None:
            read = set(news)
            remaining = [row for row, seq in enumerate(self._rows.seqs) if seq in versions and seq not in read]
            rows = self._rows.with_news(rows, remaining)
        vectors = None
        if rows.vectors is not None and self.text_embedder is not None:
            vectors = gate.Vectors(rows.vectors, self.text_embedder.family)
        records = rows.records

        def text(row: int) -> str:
            return records[row].titled_text if records[row].text else ""

        self.index = gate.Index(rows.words, rows.keys, self._tokens, vectors, text) if rows.ids else None
        self._rows = rows if rows.seqs else replace(rows, words=[])
        self._revision, self._versions, self._until = revision, versions, min(self._until, columns.until)
        return True

    def _news(self, versions: Mapping[int, int]) -> list[int] | None:
        """The memories of *versions* that are not held, or not whole; None: all are to be read."""
        held = self._rows
        if held is None or not held.seqs:
            return None
        unsaved = {*self._unsaved, *self._unsaved_vectors}
        lacking = {seq for seq, id in zip(held.seqs, held.ids) if id in unsaved} if unsaved else ()
        news = [seq for seq, version in versions.items() if self._versions.get(seq) != version or seq in lacking]
        return None if len(news) > _MOST_NEWS else news

    def _read(self, columns: Columns, news: list[int] | None) -> _Rows:
        words = columns.words
        if not isinstance(words, tuple):
            words = [self._words(columns, row) if sequence is None else sequence for row, sequence in enumerate(words)]
        keys = columns.ready if columns.keys is None else self._ready(columns.keys)
        assert keys is not None
        return _Rows(columns.seqs, columns.ids, columns.records, words, keys, self._vectors(columns, news))

    def _ready(self, stored: np.ndarray) -> np.ndarray:
        """What the gate compares: float16 [N, D], the paper's as they are stored."""
        if not len(stored):
            return stored
        keys = self.keys.keys(stored)
        return keys if self.embedder == embedders.PAPER else keys.astype(np.float16)

    def told(self, record: Record) -> Record:
        """*record*, with what it recites as its text where the bank holds none (a pack without texts)."""
        return record if record.text or self.tell is None else replace(record, text=self.tell(record))

    def _of_other_keys(self, keys: np.ndarray) -> bool:
        return len(keys) > 0 and self.embedder != embedders.PAPER and keys.shape[1] != self.prepare().text.shape[0]

    @staticmethod
    def _words(columns: Columns, row: int) -> np.ndarray:
        return gate.sequence(columns.records[row].text, columns.records[row].title)

    def index_entry(self, text: str, title: str | None) -> IndexEntry:
        """What the gate finds a memory by, as arguments of ``Bank.add``; one shallow pass over its text."""
        second = self.text_embedder
        vector = None if second is None or self._rest else (second.name, second.memory(text, title))
        return {"key": self.keys.memory(text, title), "evidence": self._evidence(text, title), "vector": vector}

    def meaning(self, text: str) -> np.ndarray | None:
        """The vector of a question by the text embedder, float32 [E]; None without one, or where it has none."""
        second = self.text_embedder
        return None if second is None else second.query(text)

    @property
    def compares(self) -> bool:
        """Whether the text embedder's vectors say how alike two memories are; where not, their keys do."""
        family = "" if self.text_embedder is None else self.text_embedder.family.split("+")[0]  # the first one says it
        return family in gate.versions.SAY_ALIKE

    def alike(self, row: int) -> np.ndarray:
        """How alike what memory *row* says is to what each memory says, float32 [N]: cosines of vectors, or of keys."""
        assert self.index is not None
        vectors, threads = self.index.vectors, self.engine.threads
        if vectors is not None and self.compares:
            return vectors.alike(vectors.own[row], threads)
        return _core.scores(np.asarray(self.index.keys[row], np.float32), self.index.keys, threads)

    def updated_by(self, text: str, title: str | None) -> tuple[Record, float] | None:
        """The memory that *text* may update, and how probable that is; None where none is likely."""
        self.refresh()
        if self.index is None or self.embedder == embedders.PAPER:
            return None
        second, vectors, threads = self.text_embedder, self.index.vectors, self.engine.threads
        by_vectors = False
        if second is not None and vectors is not None and self.compares:
            alike, by_vectors = vectors.alike(second.memory(text, title), threads), True
        else:
            key = self.keys.keys(self.keys.memory(text, title)[None])[0]
            alike = _core.scores(np.ascontiguousarray(key, np.float32), self.index.keys, threads)
        near = [row for row in np.argsort(-alike, kind="stable").tolist()[: _UPDATED + 1] if self.records[row].text != text]
        new = f"{title or ''}\n{text}"

        def likely(row: int) -> float:
            old, cosine = self.told(self.records[row]), float(alike[row]) if by_vectors else None
            values = gate.versions.note_features(
                new, old.titled_text, self.prior, cosine, nearest=row == near[0]
            )
            return gate.versions.updates(values)

        p, row = max(((likely(row), row) for row in near), default=(0.0, -1))
        return (self.records[row], p) if p >= gate.versions.TOLD_FROM else None

    def _complete(self, news: list[int] | None) -> None:
        """Make what the memories *news* lack (an older bank, a new memory, another embedder) and store it."""
        missing = self.bank.without_evidence(news)
        ids = {record.id for record in missing}
        self._unsaved = {id: entry for id, entry in self._unsaved.items() if id in ids}
        for batch in _batches(missing):
            for record in batch:
                if record.id not in self._unsaved or _content(self._unsaved[record.id][0]) != _content(record):
                    self._unsaved[record.id] = record, self._evidence(*_content(record))
            try:
                self.bank.set_evidence([self._unsaved[record.id] for record in batch])
            except BankError:  # a bank that can only be read still answers
                continue
            for record in batch:
                del self._unsaved[record.id]
        self._complete_vectors(news)

    def _complete_vectors(self, news: list[int] | None) -> None:
        second = self.text_embedder
        if second is None:
            return
        missing = self.bank.without_vectors(self.embedder, news)
        unsaved, self._unsaved_vectors = self._unsaved_vectors, {}
        for batch in _batches(missing):
            vectors = []
            for record in batch:
                old = unsaved.get(record.id)
                same = old is not None and _content(old[0]) == _content(record)
                vectors.append((record, old[1] if old and same else second.memory(*_content(record))))
            if self._rest is None:
                try:
                    self.bank.set_vectors(second.name, vectors)
                    continue
                except BankError:
                    pass
            self._unsaved_vectors.update((record.id, (record, vector)) for record, vector in vectors)

    def _vectors(self, columns: Columns, news: list[int] | None) -> np.ndarray | None:
        """By the text embedder, float16 [N, E] in the order of *columns*; None without one."""
        if self.text_embedder is None:
            return None
        if not columns.ids:
            return np.empty((0, 0), np.float16)
        if columns.vectors is not None and columns.vectors[0] == self.embedder:
            return self._own(columns.vectors[1])
        stored = self.bank.vectors(self.embedder, news)
        if self._rest:
            stored = {id: self._own(vector[None])[0] for id, vector in stored.items()}
        unsaved = {id: vector for id, (_, vector) in self._unsaved_vectors.items()}
        vectors = [stored.get(id, unsaved.get(id)) for id in columns.ids]
        self._check_sizes({len(vector) for vector in vectors if vector is not None})
        nothing = np.zeros(self.text_embedder.size, np.float32)  # of a memory that came this moment
        return np.stack([nothing if vector is None else vector for vector in vectors]).astype(np.float16)

    def _own(self, stored: np.ndarray) -> np.ndarray:
        """Of the bank's vectors, [N, E], what the embedders here make of them."""
        own = self._rest.of_stored(stored) if self._rest else stored
        self._check_sizes({own.shape[1]})
        return own

    def _check_sizes(self, sizes: set[int]) -> None:
        """Raise MegartError where stored vectors have other *sizes* than the embedder's, whose file may be another now."""
        assert self.text_embedder is not None
        if other := sizes - {self.text_embedder.size}:
            raise MegartError(
                f"the bank {self.bank.path} holds vectors of {min(other)} numbers, but {self.text_embedder.name} makes "
                f"{self.text_embedder.size}; run: megart rekey"
            )

    def _evidence(self, text: str, title: str | None) -> tuple[np.ndarray, np.ndarray]:
        tokens = embed.memory_tokens(self.encoder, self.prepare(), self.prior, text, title)
        return gate.sequence(text, title), tokens.ravel()

    def _tokens(self, rows: Sequence[int]) -> list[np.ndarray]:
        ids = [self._ids[row] for row in rows]
        states = self.bank.tokens([id for id in ids if id not in self._unsaved])
        stored = iter(states)
        flat = [self._unsaved[id][1][1] if id in self._unsaved else next(stored) for id in ids]
        width = self.prepare().token_width
        return [tokens[: len(tokens) // width * width].reshape(-1, width) for tokens in flat]


def _batches(records: Sequence[Record]) -> list[Sequence[Record]]:
    return [records[start : start + _BATCH] for start in range(0, len(records), _BATCH)]


def _content(record: Record) -> tuple[str, str | None]:
    """What keys, evidence and vectors are made of."""
    return record.text, record.title
