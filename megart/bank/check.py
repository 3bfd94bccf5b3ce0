"""Whether a bank is whole, and how it is mended."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..errors import BankError
from .catalog import Catalog
from .files import AdapterFiles, is_adapter_name
from .rows import stamp


@dataclass(frozen=True)
class Problem:
    """Something wrong with a bank.

    id: the memory, "" when none is concerned. kind: "missing", "size" or "sha" of an adapter file,
    "unreadable" of one that is there but cannot be read now, "orphan" of a file without a memory, "key" or "no-key" of
    a context key, "catalog" of the database; "recall" of a memory that does not recite word for word (megart.verbatim,
    not `verify`).
    """

    id: str
    kind: str
    message: str


def verify(catalog: Catalog, files: AdapterFiles) -> list[Problem]:
    return [problem for problem, _, _ in _examine(catalog, files)]


def repair(catalog: Catalog, files: AdapterFiles) -> list[Problem]:
    mended = []
    for problem, file, sha in _examine(catalog, files):
        if problem.kind == "orphan":
            with catalog.hold() as connection:  # no writer is about to name it
                named = connection.execute("SELECT 1 FROM memory WHERE adapter_file = ?", (file,)).fetchone()
                done = named is None and files.set_aside(file)
        elif problem.kind in ("missing", "size", "sha"):
            done = _mark_pending(catalog, problem.id, file, sha)
            if done and problem.kind != "missing":
                files.set_aside(file)
        elif problem.kind == "key":
            with catalog.write() as connection:
                connection.execute(
                    "DELETE FROM key WHERE seq = (SELECT seq FROM memory WHERE id = ?)",
                    (problem.id,),
                )
            done = True
        else:
            done = False
        if done:
            mended.append(problem)
    return mended


_Row = tuple[str, str, "str | None", int, "str | None"]  # id, state, adapter_file, adapter_bytes, adapter_sha256
_ROWS = "SELECT id, state, adapter_file, adapter_bytes, adapter_sha256 FROM memory"


def _examine(catalog: Catalog, files: AdapterFiles) -> list[tuple[Problem, str, str]]:
    """Problems, each with the file it is about and the hash that the file should have ("" when none)."""
    try:
        answers = [str(row[0]) for row in catalog.read("PRAGMA integrity_check(5)")]
        if answers != ["ok"]:
            text = "; ".join(answers).replace("\n", " ")
            return [(Problem("", "catalog", f"the catalog is damaged: {text}"), "", "")]
        rows, present = _snapshot(catalog, files.folder)
    except BankError as error:
        return [(Problem("", "catalog", str(error)), "", "")]
    problems = []
    for row in rows:
        now: _Row | None = row
        while now is not None and (problem := _check_adapter(files.folder, *now)):
            # Reading takes a while, and no lock is held: the row may have got another file meanwhile.
            read, now = now, next(iter(catalog.read(f"{_ROWS} WHERE id = ?", (row[0],))), None)
            if now == read:
                problems.append((problem, now[2] or "", now[4] or ""))
                break
    named = {str(row[2]).lower() for row in rows if row[2] is not None}
    for file in sorted(present):
        if file.lower() not in named and file.endswith((".gguf", ".tmp")):
            problems.append((Problem("", "orphan", f"adapters/{file} belongs to no memory"), file, ""))
    return problems + [(problem, "", "") for problem in _check_keys(catalog)]


def _snapshot(catalog: Catalog, folder: Path) -> tuple[list[_Row], set[str]]:
    # under the lock no writer is halfway: every file without a row is left from the past
    with catalog.hold() as connection:
        return connection.execute(f"{_ROWS} ORDER BY seq").fetchall(), set(os.listdir(folder))


def _check_adapter(folder: Path, id: str, state: str, name: str | None, size: int, sha: str | None) -> Problem | None:
    if state == "pending" and name is None:
        return None
    if name is None or not is_adapter_name(name):
        return Problem(id, "missing", f"{id}: the catalog names no adapter file of it")
    digest = hashlib.sha256()
    length = 0
    try:
        if not stat.S_ISREG(os.lstat(folder / name).st_mode):
            return Problem(id, "unreadable", f"{id}: adapters/{name} is no regular file; put the adapter itself there")
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                length += len(block)
    except FileNotFoundError:
        return Problem(id, "missing", f"{id}: there is no adapters/{name}")
    except OSError as error:  # rights, a busy disk: it may be whole
        why = error.strerror or error
        return Problem(id, "unreadable", f"{id}: cannot read adapters/{name}: {why}; mend that and verify again")
    if length != size:
        return Problem(id, "size", f"{id}: adapters/{name} has {length} bytes, expected {size}")
    if digest.hexdigest() != sha:
        return Problem(id, "sha", f"{id}: adapters/{name} has the right size but another content")
    return None


def _check_keys(catalog: Catalog) -> list[Problem]:
    rows = catalog.read("SELECT id, length(vector) FROM memory LEFT JOIN key USING (seq) ORDER BY seq")
    lengths = Counter(length for _, length in rows if length and length % 4 == 0)
    usual = lengths.most_common(1)[0][0] if lengths else 0
    problems = []
    for id, length in rows:
        if length is None:
            problems.append(Problem(id, "no-key", f"{id}: has no context key; run: megart rekey"))
        elif length != usual or length == 0:
            problems.append(Problem(id, "key", f"{id}: its context key has {length} bytes, expected {usual}"))
    return problems


def _mark_pending(catalog: Catalog, id: str, file: str, sha: str) -> bool:
    """False when the row has changed since it was examined."""
    with catalog.write() as connection:
        changed = connection.execute(
            "UPDATE memory SET state = 'pending', adapter_file = NULL, adapter_bytes = 0, adapter_sha256 = NULL, "
            "learnt_at = NULL WHERE id = ? AND ifnull(adapter_file, '') = ? AND ifnull(adapter_sha256, '') = ?",
            (id, file, sha),
        )
        if changed.rowcount == 1:
            stamp(connection, "WHERE id = ?", (id,))
        return changed.rowcount == 1
