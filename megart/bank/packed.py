"""A bank in one file, read where it lies: of ten thousand memories only what a question needs is touched.

The format is docs/pack.md; pack_file.py reads and checks its bytes, pack.py writes it.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from ..adapter import Adapter, read_adapter
from ..errors import AdapterError, BankError, BaseMismatchError, ModelError
from ..models import DEFAULT_MODEL, Model, resolve_model
from .catalog import BaseInfo
from .check import Problem
from .memory import Record, is_id, not_found
from .pack_file import LEARNT, NEVER, PackFile
from .rows import Columns

STATES = ("whitening", "embedder", "strict", "reading", "reader")
_READ_ONLY = "{} is a pack and cannot be changed; run: megart unpack {} FOLDER"
_CHANGES = frozenset(
    ["add", "remove", "annotate", "set_state", "set_evidence", "set_vectors", "set_keys", "repair", "check_writable"]
    + ["remove_expired", "note_use", "count_use"]
)


@dataclass(frozen=True)
class Delta:
    """What a delta pack says beside its memories, which are new or changed since the pack ``since``.

    ``since``, ``becomes``: the content (see :func:`content_of`), before and after; ``was``: of the ids that are changed
    or forgotten, the SHA-256 of the record that is to be there; ``forgotten``: ids.
    """

    since: str
    becomes: str
    was: dict[str, str]
    forgotten: tuple[str, ...]


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
        self._model: Model | None = None
        self.file = PackFile(self.path, verify_key)
        try:
            self.base = self._base()
            if model is not None:
                self._model = resolve_model(model)
                self.check_base(self._model)
        except BaseException:
            self.close()
            raise

    def _base(self) -> BaseInfo:
        try:
            return BaseInfo(**json.loads(self.file.column("base")))
        except (ValueError, TypeError, RecursionError) as error:
            raise self.file.damaged(f"its base: {error}") from None

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> PackedBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- as of a Bank --------------------------------------------------------------------------

    revision = 1

    def __len__(self) -> int:
        return len(self.file)

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
        return "no-text" not in self.file.columns

    @cached_property
    def delta(self) -> Delta | None:
        """What a delta pack stands on; None for a whole pack."""
        if "delta" not in self.file.columns:
            return None
        try:
            fields = json.loads(self.file.column("delta"))
            delta = Delta(str(fields["since"]), str(fields["becomes"]), dict(fields["was"]), tuple(fields["forgotten"]))
            if not all(is_id(id) for id in (*delta.was, *delta.forgotten)):
                raise ValueError("it names what is no id")
            return delta
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise self.file.damaged(f"its delta: {error}") from None

    @cached_property
    def ids(self) -> list[str]:
        ids = self.file.column("ids").decode("ascii", "replace").split("\n") if len(self) else []
        if len(ids) != len(self) or not all(map(is_id, ids)):
            raise self.file.damaged(f"its ids do not fit {len(self)} memories")
        return ids

    @cached_property
    def _places(self) -> dict[str, int]:
        lower = map(str.lower, self.ids)
        return {id if id == low else low: number for number, (id, low) in enumerate(zip(self.ids, lower, strict=True))}

    def record_bytes(self, row: int) -> bytes:
        """The record of memory *row* as it was written: JSON with sorted keys."""
        return self.file.part("records", int(self.file.rows["record_at"][row]), int(self.file.rows["record_size"][row]))

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
            raise self.file.damaged(f"a record: {error}") from None
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
            raise not_found(id, self.ids, f"the pack {self.path}")
        return row

    def versions(self) -> dict[int, int]:
        """A pack never changes."""
        return {}

    def columns(self, seqs: Sequence[int] | None = None) -> Columns:
        """What the gate finds the memories by; see :class:`~megart.bank.rows.Columns`. Mapped where nothing expired."""
        expires, now = self.file.rows["expires"], int(time.time())
        alive = np.flatnonzero(expires > now)
        whole = len(alive) == len(self)
        rows = slice(None) if whole else alive
        ahead = expires[alive]
        until = float(ahead.min()) if len(ahead) and int(ahead.min()) != NEVER else math.inf
        embedder = self._embedder
        return Columns(
            self.ids if whole else [self.ids[row] for row in alive.tolist()],
            Records(self, range(len(self)) if whole else alive.tolist()),
            self.file.matrix("keys", "<f4")[rows] if "ready" not in self.file.columns else None,
            self._flat_words() if whole else self._sequences(alive),
            self.file.matrix("ready", "<f2")[rows] if "ready" in self.file.columns else None,
            (embedder, self.file.matrix("vectors", "<f2")[rows]) if "vectors" in self.file.columns else None,
            until,
            [],
        )

    def _words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All words, and where those of each memory begin and end."""
        flat = np.frombuffer(self.file.column("words"), "u1")
        flat, starts = flat[: len(flat) // 4 * 4].view("<u4"), self.file.rows["words_at"] // 4
        ends = starts + self.file.rows["words"] // 4
        if len(ends) and int(ends.max()) > len(flat):
            raise self.file.damaged("a part of its column words lies beyond the end")
        return flat, starts, ends

    def _sequences(self, rows: np.ndarray) -> list[np.ndarray | None]:
        flat, starts, ends = self._words()
        return [flat[a:b] for a, b in zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)]

    def _flat_words(self) -> tuple[np.ndarray, np.ndarray] | list[np.ndarray | None]:
        flat, starts, ends = self._words()
        if not len(starts) or starts[0] or ends[-1] != len(flat) or (starts[1:] != ends[:-1]).any():
            return self._sequences(np.arange(len(self)))  # a pack that was not written by this program
        return flat, np.append(starts, ends[-1]).astype(np.int64)

    @property
    def _embedder(self) -> str:
        return (self.get_state("embedder") or b"").decode("utf-8", "replace")

    def keys(self) -> tuple[list[str], np.ndarray]:
        return [*self.ids], self.file.matrix("keys", "<f4")

    def vectors(self, embedder: str, seqs: Sequence[int] | None = None) -> dict[str, np.ndarray]:
        if "vectors" not in self.file.columns or self._embedder != embedder:
            return {}
        return dict(zip(self.ids, self.file.matrix("vectors", "<f2").astype(np.float32), strict=True))

    def without_vectors(self, embedder: str, seqs: Sequence[int] | None = None) -> list[Record]:
        return [] if "vectors" in self.file.columns and self._embedder == embedder else self.records()

    def words(self) -> dict[str, np.ndarray]:
        sequences = self._sequences(np.arange(len(self)))
        return {id: words for id, words in zip(self.ids, sequences, strict=True) if words is not None}

    def tokens(self, ids: Sequence[str]) -> list[np.ndarray]:
        rows = [self.file.rows[self._places[id.lower()]] for id in ids]
        return [np.frombuffer(self.file.part("tokens", int(r["tokens_at"]), int(r["tokens"])), np.int8) for r in rows]

    def without_evidence(self, seqs: Sequence[int] | None = None) -> list[Record]:
        return []

    def get_state(self, name: str) -> bytes | None:
        return self.file.column(f"s:{name}") if f"s:{name}" in self.file.columns else None

    def use(self) -> dict[str, tuple[int, str]]:
        """A pack counts nothing."""
        return {}

    counts_use = False

    def adapter_bytes(self, id: str) -> bytes:
        """The adapter file of a learnt memory. Raises BankError when it is pending, or not what was packed."""
        row = self.file.rows[self._row(id)]
        if not int(row["flags"]) & LEARNT:
            raise BankError(f"the memory {id} is pending and has no adapter")
        data = self.file.read(int(row["adapter_at"]), int(row["adapter_size"]))
        if hashlib.sha256(data).digest() != bytes(row["adapter_sha256"]):
            raise BankError(f"the adapter of {id} in {self.path} is damaged; get the pack again")
        return data

    def adapter(self, id: str) -> Adapter:
        """The adapter of a learnt memory. Raises BankError, AdapterError."""
        return read_adapter(self.adapter_bytes(id))

    def verify(self) -> list[Problem]:
        """What is wrong with the pack; reads all of it."""
        wrong = []
        for name in self.file.columns:
            try:
                self.file.column(name)
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
