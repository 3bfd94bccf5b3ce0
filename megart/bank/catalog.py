"""The SQLite catalog of a bank: schema, migrations, transactions. Every failure is a BankError."""

from __future__ import annotations

import math
import os
import re
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from ..errors import BankError
from .locks import check_locks, pause, turn, writer

T = TypeVar("T")
FILE_NAME = "catalog.sqlite"
SQLITE = sqlite3.sqlite_version
APPLICATION_ID = 0x4D454741
BUSY_SECONDS = 10.0
_BY_CHARACTERS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
# A statement that takes longer is not one of ours over a bank of ours.
_MOST_SECONDS = 120.0


@dataclass(frozen=True)
class BaseInfo:
    """The base model of a bank.

    sha256: of its GGUF, the identity; spec: what resolves it again, "smollm2" or an absolute path;
    gguf, hf: where its files lay when the bank was made.
    """

    sha256: str
    name: str
    spec: str
    gguf: str
    hf: str | None = None


def _first_schema(connection: sqlite3.Connection) -> None:
    for statement in (
        "CREATE TABLE base (sha256 TEXT NOT NULL, name TEXT NOT NULL, spec TEXT NOT NULL, gguf TEXT NOT NULL, hf TEXT)",
        "CREATE TABLE counter (revision INTEGER NOT NULL)",
        "INSERT INTO counter VALUES (0)",
        "CREATE TABLE state (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
        """CREATE TABLE memory (
            seq INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE COLLATE NOCASE,
            title TEXT, text TEXT NOT NULL,
            paraphrases TEXT NOT NULL, questions TEXT NOT NULL, metadata TEXT NOT NULL,
            state TEXT NOT NULL, recipe TEXT, activated INTEGER NOT NULL, rank INTEGER NOT NULL,
            adapter_bytes INTEGER NOT NULL, adapter_sha256 TEXT,
            created_at TEXT NOT NULL, learnt_at TEXT, training TEXT NOT NULL,
            adapter_file TEXT
        )""",
        "CREATE TABLE key (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, vector BLOB NOT NULL)",
    ):
        connection.execute(statement)


def _evidence(connection: sqlite3.Connection) -> None:
    """What the gate weighs beside the key; a memory without a row gets it when the bank is next asked."""
    connection.execute(
        "CREATE TABLE evidence (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, "
        "words BLOB NOT NULL, tokens BLOB NOT NULL)"
    )


def _evidence_with_sentences(connection: sqlite3.Connection) -> None:
    """Words carry their roots and token states the ends of sentences now: made anew when the bank is next asked."""
    connection.execute("DELETE FROM evidence")


def _evidence_of_wider_hashes(connection: sqlite3.Connection) -> None:
    """The two halves of a word's number are no longer the same bits: made anew when the bank is next asked."""
    connection.execute("DELETE FROM evidence")


def _vectors(connection: sqlite3.Connection) -> None:
    """A vector by a text embedder beside the key; a memory without a row gets it when the bank is next asked."""
    connection.execute(
        "CREATE TABLE vector (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, "
        "embedder TEXT NOT NULL, vector BLOB NOT NULL)"
    )


def _evidence_by_characters(connection: sqlite3.Connection) -> None:
    """Chinese, Japanese and Korean are read character by character now: made anew when the bank is next asked."""
    rows = connection.execute("SELECT seq, text, title FROM memory").fetchall()
    changed = [(seq,) for seq, text, title in rows if _BY_CHARACTERS.search(f"{title or ''} {text}")]
    connection.executemany("DELETE FROM evidence WHERE seq = ?", changed)


def _usage(connection: sqlite3.Connection) -> None:
    """How often a memory answered, and when it last did."""
    connection.execute(
        "CREATE TABLE usage (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, "
        "opened INTEGER NOT NULL, last TEXT NOT NULL)"
    )


def _changes(connection: sqlite3.Connection) -> None:
    """At which revision a memory last changed: a bank that is open reads again what did, and nothing else."""
    connection.execute(
        "CREATE TABLE change (seq INTEGER PRIMARY KEY REFERENCES memory (seq) ON DELETE CASCADE, "
        "revision INTEGER NOT NULL)"
    )
    connection.execute("INSERT INTO change SELECT seq, revision FROM memory, counter")


MIGRATIONS: list[Callable[[sqlite3.Connection], None]] = [
    _first_schema,
    _evidence,
    _evidence_with_sentences,
    _evidence_of_wider_hashes,
    _vectors,
    _evidence_by_characters,
    _usage,
    _changes,
]
_SCHEMA = "SELECT type, name, sql, user_version FROM sqlite_master, pragma_user_version"


@cache
def _tables(format: int) -> dict[tuple[str, str], str | None]:
    """Tables and indices of a bank of that format: how each is made, by its type and name."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for migrate in MIGRATIONS[:format]:
            migrate(connection)
        return {(kind, name): sql for kind, name, sql, _ in connection.execute(_SCHEMA)}


class Catalog:
    """One connection, used from any thread under one lock. `read` and `write` are the only ways in."""

    def __init__(self, path: Path, *, create: BaseInfo | None = None) -> None:
        self.path = path
        self.created = False
        self._late = math.inf  # when a statement is to be stopped, on the monotonic clock
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        if create is None:
            self._check_file()
        with self.lock, self.translated():
            if create is not None:  # nobody else reads a user's memories; SQLite gives its journal the same rights
                with suppress(FileExistsError):  # one that is there must not be opened here: see _check_file
                    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            self._connection = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'rw' if create is None else 'rwc'}",
                uri=True,
                timeout=0,  # see _patiently
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.set_progress_handler(self._is_late, 1_000_000)
        try:
            self._prepare(create)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with self.lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @property
    def connection(self) -> sqlite3.Connection:
        if self._connection is None:
            raise BankError(f"the bank {self.path.parent} is closed; open it again")
        return self._connection

    def _is_late(self) -> bool:
        return time.monotonic() > self._late

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.lock, self.translated():
            return self._patiently(lambda: self._fetch(sql, values))

    def _fetch(self, sql: str, values: Sequence[Any]) -> list[tuple[Any, ...]]:
        self._late = time.monotonic() + _MOST_SECONDS
        return self.connection.execute(sql, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that owns the bank from its first line on; the commit is its last step."""
        with self.lock, self.translated():
            connection = self.connection
            self._late = math.inf
            self._begin()
            try:
                yield connection
                connection.execute("UPDATE counter SET revision = revision + 1")
                self.commit()
            except BaseException:
                self._roll_back()
                raise

    @contextmanager
    def aside(self) -> Iterator[sqlite3.Connection]:
        """A transaction that changes nothing that is answered from: it waits for nobody, and the revision stays."""
        with self.lock, self.translated():
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    @contextmanager
    def hold(self) -> Iterator[sqlite3.Connection]:
        """The write lock without a write: nobody else can change the bank meanwhile."""
        with self.lock, self.translated():
            self._late = math.inf
            self._begin()
            try:
                yield self.connection
            finally:
                self._roll_back()

    def _begin(self) -> None:
        """Take the write lock, in turn with other processes."""
        until = time.monotonic() + BUSY_SECONDS
        with turn(self.path.parent, until):
            self._patiently(lambda: self.connection.execute("BEGIN IMMEDIATE"), until)

    @staticmethod
    def _patiently(work: Callable[[], T], until: float | None = None) -> T:
        """What *work* gives, tried again while another process has the lock that it needs.

        SQLite's own waiting looks every tenth of a second, and a busy writer leaves gaps of milliseconds: one that
        waited so got no turn in ten seconds.
        """
        until = time.monotonic() + BUSY_SECONDS if until is None else until
        while True:
            try:
                return work()
            except sqlite3.OperationalError as error:
                if _code(error) != _BUSY or time.monotonic() > until:
                    raise
            pause()

    @property
    def format(self) -> int:
        """The number of its schema: how many of `MIGRATIONS` it has had."""
        return int(self.read("PRAGMA user_version")[0][0])

    def base(self) -> BaseInfo:
        rows = self.read("SELECT sha256, name, spec, gguf, hf FROM base")
        if len(rows) != 1:
            raise BankError(_damaged(self.path, f"it names {len(rows)} base models"))
        return BaseInfo(*rows[0])

    def commit(self) -> None:
        self._patiently(lambda: self.connection.execute("COMMIT"))

    def _roll_back(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns errors of SQLite and of the file system into BankError."""
        try:
            yield
        except sqlite3.Error as error:
            raise BankError(_explain(error, self.path)) from error
        except (UnicodeError, OverflowError) as error:
            raise BankError(_damaged(self.path, str(error))) from error
        except OSError as error:
            raise BankError(f"cannot write to the bank {self.path.parent}: {error.strerror or error}") from error

    def _check_file(self) -> None:
        """Never opens the file: whoever closes it takes away the locks that other threads here have on it (POSIX)."""
        folder = self.path.parent
        remedy = f"run: megart init --bank {folder}"
        try:
            about = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            if folder.is_file():
                raise BankError(f"{folder} is a file, not a bank; if it is a pack: megart unpack {folder} FOLDER") from None
            raise BankError(f"no bank at {folder}; {remedy}") from None
        except OSError as error:
            raise BankError(f"cannot read the bank {folder}: {error.strerror or error}") from error
        if not stat.S_ISREG(about.st_mode):
            raise BankError(f"cannot read the bank {folder}: its catalog is no file")
        if not about.st_size:
            raise BankError(f"no bank at {folder}, its catalog is empty; {remedy}")

    def _prepare(self, create: BaseInfo | None) -> None:
        with self.lock, self.translated():
            # EXTRA: a commit must be on the disk before the adapter it replaces is deleted
            for pragma in (
                "synchronous = EXTRA",
                "foreign_keys = ON",
                # what is forgotten is gone from the file's free pages too, whatever SQLite was built to do
                "secure_delete = ON",
                "trusted_schema = OFF",
                "mmap_size = 0",
                "cache_spill = OFF",  # a large change locks readers out for its commit alone
            ):
                self._run(f"PRAGMA {pragma}")
            if create is not None and self._pragma("page_count") == 0:
                self.connection.execute("PRAGMA page_size = 8192")
            fresh = self._pragma("application_id") == 0 and self._pragma("schema_version") == 0
            if not fresh:
                self._check_identity()
            elif create is None:
                raise BankError(f"no bank at {self.path.parent}; run: megart init --bank {self.path.parent}")
            self._check_schema()
            # a log beside the catalog would keep what was forgotten
            if self._run("PRAGMA journal_mode = DELETE") != [("delete",)]:
                raise BankError(f"the catalog {self.path} cannot be had without a log (WAL); close what uses it")
            if self._pragma("user_version") < len(MIGRATIONS):
                self._migrate(create)

    def _check_identity(self) -> None:
        if self._pragma("application_id") != APPLICATION_ID:
            raise BankError(
                f"{self.path} is the database of another program; "
                "choose another folder and run: megart init --bank FOLDER"
            )
        version = self._pragma("user_version")
        if version < 1:
            raise BankError(_damaged(self.path, f"its format is {version}"))
        if version > len(MIGRATIONS):
            raise BankError(
                f"the bank {self.path.parent} was made by a newer megart (format {version}, "
                f"this one knows up to {len(MIGRATIONS)}); upgrade megart"
            )

    def _check_schema(self) -> None:
        """Nothing but our own tables: a view or a column may never end, and a trigger may undo what is asked for."""
        rows = self._run(_SCHEMA)
        known = _tables(rows[0][3]) if rows else {}
        for kind, name, sql, _ in rows:
            if (kind, name) not in known:
                raise BankError(_damaged(self.path, f"it has the {kind} {name!r}, which megart does not make"))
            if sql != known[kind, name]:
                raise BankError(_damaged(self.path, f"its {kind} {name!r} is another than megart makes"))
        if len(rows) < len(known):
            lost = min({name for _, name in known} - {row[1] for row in rows})
            raise BankError(_damaged(self.path, f"it lacks the table {lost!r}"))

    def _migrate(self, create: BaseInfo | None) -> None:
        connection = self.connection
        self._begin()
        try:
            # another process may have migrated while this one waited
            start = self._pragma("user_version")
            for number in range(start, len(MIGRATIONS)):
                MIGRATIONS[number](connection)
                connection.execute(f"PRAGMA user_version = {number + 1}")
            if start == 0 and create is not None:
                connection.execute("INSERT INTO base VALUES (?, ?, ?, ?, ?)", astuple(create))
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self.created = True
            self.commit()
        except BaseException:
            self._roll_back()
            raise

    def _pragma(self, name: str) -> int:
        return int(self._run(f"PRAGMA {name}")[0][0])

    def _run(self, sql: str) -> list[tuple[Any, ...]]:
        return self._patiently(lambda: self.connection.execute(sql).fetchall())


def _damaged(path: Path, reason: str) -> str:
    return (
        f"the catalog {path} is damaged ({reason}); restore it from a backup, "
        "or move the folder away and run: megart init --bank FOLDER"
    )


# SQLite's primary result codes, and how Python 3.10, which hides them, words them
_PERM, _BUSY, _READONLY, _IO, _FULL, _CANNOT_OPEN = 3, 5, 8, 10, 13, 14
_WORDS = {
    "locked": _BUSY,
    "readonly": _READONLY,
    "disk i/o": _IO,
    "is full": _FULL,
    "unable to open": _CANNOT_OPEN,
}


def _code(error: sqlite3.Error) -> int:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        text = str(error).lower()
        code = next((number for words, number in _WORDS.items() if words in text), 0)
    return int(code) & 0xFF


def _explain(error: sqlite3.Error, path: Path) -> str:
    folder, code = path.parent, _code(error)
    if code in (_PERM, _BUSY, _IO):  # so SQLite also calls a file system without locks
        try:
            check_locks(folder)
        except BankError as lockless:
            return str(lockless)
    texts = {
        _BUSY: f"the bank {folder} was locked by {writer(path)} for {BUSY_SECONDS:g} s; try again when it is done",
        _FULL: f"cannot write to the bank {folder}: the disk is full; free some space and try again",
        _READONLY: f"cannot write to the bank {folder}: it is read-only; change its permissions or copy it",
        _CANNOT_OPEN: f"cannot open the catalog {path}; check the permissions of its folder",
        _IO: f"cannot read or write the catalog {path}: {error}; check the disk",
    }
    return texts.get(code) or _damaged(path, " ".join(str(error).split()))
