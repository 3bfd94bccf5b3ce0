"""The bank: memories, their adapters and their context keys in one folder.

An adapter is written, flushed and renamed into place before the row that names it is committed, and
deleted only after the commit that stopped naming it: at every moment each row names a whole file.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..adapter import Adapter, read_adapter
from ..errors import AdapterError, BankError, BaseMismatchError, InputError, MemoryNotFoundError
from ..models import DEFAULT_MODEL, Model, resolve_model
from . import check, usage
from .catalog import FILE_NAME, BaseInfo, Catalog
from .features import Features
from .files import AdapterFiles, is_adapter_name
from .locks import check_locks, check_mount
from .memory import FORGET_AFTER, Memory, Record, is_id, not_found, to_json
from .rows import (
    COLUMNS,
    Evidence,
    check_length,
    check_unchanged,
    key_bytes,
    new_row,
    old_row,
    put_row,
    stamp,
    to_record,
)

T = TypeVar("T")
ADAPTERS = "adapters"
# In the state: a file that is to be deleted, its memory is forgotten.
LEFTOVER = "leftover:"
_LEFTOVERS = f"SELECT name FROM state WHERE name >= '{LEFTOVER}' AND name < 'leftover;'"


class Bank(Features):
    """An open bank. Use `create` or `open`, close it or use it in a `with`; safe from several threads."""

    def __init__(self, path: Path, catalog: Catalog) -> None:
        self.path = path
        self._catalog = catalog
        self._files = AdapterFiles(path / ADAPTERS, catalog)
        self.base = catalog.base()
        self._sweep()

    @classmethod
    def create(cls, path: str | Path, model: str | Path | Model = DEFAULT_MODEL, *, exist_ok: bool = False) -> Bank:
        """A new bank in the folder `path`, which must be missing or empty, for the base `model`.

        With `exist_ok` a bank that is there already is opened. Raises BankError, and BaseMismatchError
        when the bank that is there belongs to another model.
        """
        folder = Path(path).expanduser().absolute()
        base = resolve_model(model)
        row = _base_row(base)
        _make_folder(folder)
        check_locks(folder)
        catalog = Catalog(folder / FILE_NAME, create=row)
        try:
            if not catalog.created and not exist_ok:
                raise BankError(f"there is a bank at {folder} already; open it, or choose another folder")
            bank = cls(folder, catalog)
            bank.check_base(base)
            return bank
        except BaseException:
            catalog.close()
            raise

    @classmethod
    def open(cls, path: str | Path, model: str | Path | Model | None = None) -> Bank:
        """The bank in the folder `path`. Raises BankError, BaseMismatchError when `model` is not its base."""
        folder = Path(path).expanduser().absolute()
        check_mount(folder)
        catalog = Catalog(folder / FILE_NAME)
        try:
            bank = cls(folder, catalog)
            if model is not None:
                bank.check_base(resolve_model(model))
            return bank
        except BaseException:
            catalog.close()
            raise

    def __enter__(self) -> Bank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the catalog; may be called again."""
        self._catalog.close()

    @property
    def model(self) -> Model:
        """The base model, found by the name or path it was made with. Raises ModelError, DependencyError.

        The hash is not compared here: whoever loads the model calls `check_base`.
        """
        hf = self.base.hf
        return resolve_model(self.base.spec, hf if hf and Path(hf).is_dir() else None)

    def check_base(self, model: Model) -> None:
        """Raises BaseMismatchError unless `model` is the very file this bank was made for."""
        if model.sha256 != self.base.sha256:
            raise BaseMismatchError(
                f"the bank {self.path} belongs to {self.base.name} (sha256 {self.base.sha256[:12]}), "
                f"got {model.name} (sha256 {model.sha256[:12]}); give that model with --model, or make another bank"
            )

    def check_writable(self) -> None:
        """Raises BankError when the bank is read-only, locked or has no locks: before hours of teaching, not after."""
        check_locks(self.path)
        with self._catalog.hold():
            pass
        if not os.access(self._files.folder, os.W_OK):
            raise BankError(f"cannot write to {self._files.folder}: it is read-only; change its permissions or copy it")

    @property
    def revision(self) -> int:
        """A number that grows with every change of the bank, by whatever process."""
        return int(self._catalog.read("SELECT revision FROM counter")[0][0])

    @property
    def format(self) -> int:
        """The number of the catalog's schema."""
        return self._catalog.format

    def __len__(self) -> int:
        return int(self._catalog.read("SELECT count(*) FROM memory")[0][0])

    def find(self, id: str) -> Record | None:
        """The memory of that id (upper and lower case are the same), or None."""
        if not is_id(id):
            return None
        rows = self._catalog.read(f"SELECT {COLUMNS} FROM memory WHERE id = ?", (id,))
        return to_record(rows[0]) if rows else None

    def get(self, id: str) -> Record:
        """The memory of that id. Raises MemoryNotFoundError with the nearest id there is."""
        record = self.find(id)
        if record is None:
            raise self._not_found(id)
        return record

    def records(self, state: str | None = None) -> list[Record]:
        """All memories in the order they came, or those that are "learnt" or "pending"."""
        if state not in (None, "learnt", "pending"):
            raise InputError(f'got the state {state!r}; expected "learnt" or "pending"')
        where, values = ("", ()) if state is None else ("WHERE state = ?", (state,))
        rows = self._catalog.read(f"SELECT {COLUMNS} FROM memory {where} ORDER BY seq", values)
        return [to_record(row) for row in rows]

    def use(self) -> dict[str, tuple[int, str]]:
        """Of each memory that ever answered, how often and when it last did (UTC in ISO 8601), the most used first."""
        return usage.counts(self._catalog)

    def note_use(self, opened: Mapping[str, int]) -> None:
        """Counts that memories answered, by id and how often. Does not wait: BankError where another process writes."""
        usage.note(self._catalog, opened)

    @property
    def counts_use(self) -> bool:
        return usage.is_counted(self._catalog)

    def count_use(self, on: bool) -> None:
        """Whether to count from now on; what was counted is forgotten where not."""
        usage.switch(self._catalog, on)

    def adapter_path(self, id: str) -> Path:
        """The adapter file of a learnt memory. Raises MemoryNotFoundError, BankError when it is pending."""
        rows = self._catalog.read("SELECT adapter_file FROM memory WHERE id = ?", (id,)) if is_id(id) else []
        if not rows:
            raise self._not_found(id)
        if rows[0][0] is None:
            raise BankError(f"the memory {id} is pending and has no adapter; run: megart learn")
        return self._files.path(rows[0][0])

    def adapter_bytes(self, id: str) -> bytes:
        """The adapter file of a learnt memory, whole: BankError when it is not what was committed."""
        return self._unless_replaced(id, lambda: self._checked(id)[1])

    def adapter(self, id: str) -> Adapter:
        """The adapter of a learnt memory, mapped. Raises BankError when its file is not what was committed."""

        def read() -> Adapter:
            try:
                return read_adapter(self._checked(id)[0])
            except AdapterError as error:
                raise BankError(f"the adapter of {id}: {error}; run: megart verify --repair") from None

        return self._unless_replaced(id, read)

    def _unless_replaced(self, id: str, read: Callable[[], T]) -> T:
        """What *read* makes of an adapter; once more where it failed because another process replaced it meanwhile."""
        sql = "SELECT adapter_file, adapter_sha256 FROM memory WHERE id = ?"
        while True:
            before = self._catalog.read(sql, (str(id),))
            try:
                return read()
            except BankError:
                if self._catalog.read(sql, (str(id),)) == before:
                    raise

    def _checked(self, id: str) -> tuple[Path, bytes]:
        """Where the adapter lies, and its bytes, compared with the catalog: a flipped bit is garbage without a word."""
        path, record = self.adapter_path(id), self.get(id)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BankError(f"the adapter of {id}: {error.strerror}: {path}; run: megart verify --repair") from None
        if hashlib.sha256(data).hexdigest() != record.adapter_sha256:
            raise BankError(f"the adapter of {id} is damaged: {path}; run: megart verify --repair")
        return path, data

    def get_state(self, name: str) -> bytes | None:
        """The blob stored under `name`, or None."""
        rows = self._catalog.read("SELECT value FROM state WHERE name = ?", (name,))
        return bytes(rows[0][0]) if rows else None

    def set_state(self, name: str, value: bytes) -> None:
        """Stores a blob that belongs to the bank, in place of the one of that name."""
        with self._catalog.write() as connection:
            connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, bytes(value)))

    def add(
        self,
        memory: Memory,
        *,
        key: np.ndarray,
        evidence: Evidence | None = None,
        vector: tuple[str, np.ndarray] | None = None,
        adapter: bytes | None = None,
        recipe: str | None = None,
        activated: bool = False,
        rank: int = 0,
        training: Mapping[str, Any] | None = None,
        replace: bool | Memory | None = False,
        dates: tuple[str, str | None] | None = None,
    ) -> Record:
        """Stores a memory whole or not at all.

        key: f32 [D], finite, D as in the rest of the bank. evidence: as in `set_evidence`; vector: the name of
        an embedder and what it makes of the memory, float32 [D]. Without these the first question that looks at the
        bank makes them. adapter: the bytes of its file; None leaves
        the memory pending. replace: whether it may take the place of a memory of its id; or what stood
        there (None: nothing) when the work on this one began, and then ChangedError is raised, and
        nothing stored, when another process has put something else there or forgotten it. dates: created_at and
        learnt_at of one that comes from another bank; by default now, or what the memory that it replaces had. Raises
        InputError when the id is taken and may not be replaced, or an argument is wrong; BankError when
        the bank cannot be written.
        """
        key_blob, named = key_bytes(key), None if vector is None else (vector[0], key_bytes(vector[1]))
        row = new_row(
            memory, adapter, recipe=recipe, activated=activated, rank=rank, training=training or {}, dates=dates
        )
        touched: list[str] = []
        try:
            with self._catalog.write() as connection:
                if not isinstance(replace, bool):
                    check_unchanged(connection, row["id"], replace)
                old = old_row(connection, row["id"], memory.text, replace is not False)
                check_length(connection, key_blob, row["id"])
                if old is not None:
                    row["id"], row["created_at"] = old[1], row["created_at"] if dates else old[2]
                if adapter is not None:
                    # a new name beside the old file: until the commit the row must find what it names
                    version = f"~{secrets.token_hex(4)}" if old and old[3] else ""
                    row["adapter_file"] = f"{row['id']}{version}.gguf"
                    self._files.write(row["adapter_file"], adapter, touched)
                put_row(connection, row, key_blob, evidence, named, None if old is None else old[0])
        except BaseException:
            self._files.drop(touched)
            raise
        self._files.written(touched)
        if old is not None and old[3]:
            self._files.settle(row["id"], old[3], row["adapter_file"])
        return self.get(row["id"])

    def annotate(self, id: str, values: Mapping[str, Any]) -> Record:
        """Puts *values* into a memory's metadata, beside what is there. Raises MemoryNotFoundError, InputError."""
        with self._catalog.write():
            record = self.get(id)
            merged = to_json("metadata", {**record.metadata, **values})
            self._catalog.connection.execute("UPDATE memory SET metadata = ? WHERE id = ?", (merged, record.id))
            stamp(self._catalog.connection, "WHERE id = ?", (record.id,))
        return self.get(id)

    def remove(self, id: str) -> Record:
        """Forgets a memory and returns what it was: its row, key, evidence, vector and adapter are gone from the disk.

        Raises MemoryNotFoundError, and BankError where anything of it stays. What cannot be deleted now is deleted
        when the bank is next opened.
        """
        with self._catalog.write() as connection:
            sql = f"SELECT {COLUMNS} FROM memory WHERE id = ?"
            rows = connection.execute(sql, (id,)).fetchall() if is_id(id) else []
            if not rows:
                raise self._not_found(id)
            connection.execute("DELETE FROM memory WHERE id = ?", (id,))
            if connection.execute(sql, (id,)).fetchall():
                raise BankError(f"{id} was not forgotten: the catalog keeps it; restore the bank from a backup")
            files = {*self._files.of(rows[0][0])}
            if is_adapter_name(rows[0][-1]):  # a name that leads elsewhere is not ours
                files.add(rows[0][-1])
            for file in sorted(files):  # until it is deleted, the catalog says that it is to be
                connection.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (f"{LEFTOVER}{file}", b""))
        if files and (left := files.intersection(self._sweep())):
            raise BankError(
                f"{rows[0][0]} is out of the catalog, but its adapter stays at {self._files.place(min(left))}; "
                "mend the folder's rights, then any megart command on this bank deletes it"
            )
        return to_record(rows[0])

    def remove_expired(self) -> list[Record]:
        """Forgets the memories that are past their time (``Record.expires``); whoever writes to the bank calls it."""
        dated = self._catalog.read(f"SELECT {COLUMNS} FROM memory WHERE instr(metadata, ?)", (FORGET_AFTER,))
        expired = [r for r in map(to_record, dated) if r.expires is not None and r.expires <= time.time()]
        with suppress(MemoryNotFoundError):  # another process was faster
            for record in expired:
                self.remove(record.id)
        return [record for record in expired if self.find(record.id) is None]

    def _sweep(self) -> list[str]:
        """Deletes the adapters of memories that were forgotten; returns those that stay."""
        names = [str(row[0])[len(LEFTOVER) :] for row in self._catalog.read(_LEFTOVERS)]
        if not names:
            return []
        self._files.drop(names)
        places = {name: self._files.place(name) for name in names}
        left = [name for name, at in places.items() if at and os.path.lexists(at) and not self._files.is_named(name)]
        with suppress(BankError), self._catalog.write() as connection:  # a bank that can only be read
            for name in set(names) - set(left):
                connection.execute("DELETE FROM state WHERE name = ?", (f"{LEFTOVER}{name}",))
        return left

    def verify(self) -> list[check.Problem]:
        """What is wrong with the bank; empty when nothing is. Reads every adapter."""
        return check.verify(self._catalog, self._files)

    def repair(self) -> list[check.Problem]:
        """Moves files that belong to no memory into quarantine/, marks memories whose adapter is lost as pending.

        No text is lost, and no file is deleted or reached through a link. Returns the problems that were mended;
        `verify` shows what is left.
        """
        return check.repair(self._catalog, self._files)

    def _not_found(self, id: str) -> MemoryNotFoundError:
        ids = [row[0] for row in self._catalog.read("SELECT id FROM memory ORDER BY seq")]
        return not_found(id, ids, f"the bank {self.path}")


def _make_folder(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        taken = [
            entry.name
            for entry in folder.iterdir()
            if not entry.name.startswith((".", FILE_NAME)) and not (entry.name == ADAPTERS and not any(entry.iterdir()))
        ]
        if not (folder / FILE_NAME).exists() and not taken:
            folder.chmod(0o700)
    except OSError as error:
        raise BankError(f"cannot make a bank at {folder}: {error.strerror or error}") from error
    if taken and not (folder / FILE_NAME).is_file():
        raise BankError(f"{folder} holds {min(taken)!r} and is no bank; choose an empty or a new folder")


def _base_row(model: Model) -> BaseInfo:
    gguf = str(model.gguf.resolve())
    spec = DEFAULT_MODEL if model.name == DEFAULT_MODEL else gguf
    return BaseInfo(model.sha256, model.name, spec, gguf, None if model.hf is None else str(model.hf.resolve()))
