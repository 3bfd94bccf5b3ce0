"""Nothing is ever stored by halves, and a bank is mended."""

import errno
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from notes import NOTE, files, key

from megart.bank import Bank, Memory, catalog
from megart.errors import (
    BankError,
)


class Boom(Exception):
    pass


def fail_at(patch: pytest.MonkeyPatch, owner: object, name: str, call: int, error: Exception) -> None:
    real = getattr(owner, name)
    calls = iter(range(call))

    def wrapped(*args: object, **kwargs: object) -> object:
        if next(calls, None) is None:
            raise error
        return real(*args, **kwargs)

    patch.setattr(owner, name, wrapped)


STEPS = [
    pytest.param(os, "fsync", 0, id="fsync of the file"),
    pytest.param(os, "replace", 0, id="rename"),
    pytest.param(os, "fsync", 1, id="fsync of the folder"),
    pytest.param(catalog.Catalog, "commit", 0, id="commit"),
]
ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EROFS, "Read-only file system"),
    sqlite3.OperationalError("database or disk is full"),
    Boom(),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: repr(error)[:30])
@pytest.mark.parametrize(("owner", "name", "call"), STEPS)
@pytest.mark.parametrize("replace", [False, True], ids=["new", "replacing"])
def test_a_failed_add_leaves_nothing(bank, monkeypatch, owner, name, call, error, replace) -> None:
    if replace:
        bank.add(NOTE, key=key(), adapter=b"old")
    before = (bank.records(), files(bank), bank.revision, bank.keys()[0])
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, call, error)
        foreseen = isinstance(error, (OSError, sqlite3.Error))
        with pytest.raises(BankError if foreseen else type(error)) as caught:
            bank.add(NOTE, key=key(5), adapter=b"new" * 1000, replace=replace)
    if foreseen:
        assert "\n" not in str(caught.value) and str(bank.path) in str(caught.value)
    assert (bank.records(), files(bank), bank.revision, bank.keys()[0]) == before
    assert bank.verify() == []
    bank.add(NOTE, key=key(5), adapter=b"new", replace=replace)
    assert files(bank) == {"ada.gguf": b"new"}


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(os, "replace", 1), (os, "fsync", 2), (catalog.Catalog, "commit", 1), (os, "link", 0), (os, "link", 1)],
)
def test_a_replacement_holds_though_its_tidying_fails(bank, monkeypatch, owner, name, call) -> None:
    bank.add(NOTE, key=key(), adapter=b"old")
    with monkeypatch.context() as patch:
        fail_at(patch, owner, name, call, OSError(errno.EIO, "broken"))
        bank.add(NOTE, key=key(), adapter=b"new", replace=True)
    assert bank.adapter_path("ada").read_bytes() == b"new"
    assert list(files(bank).values()) == [b"new"] and bank.verify() == []


def test_a_commit_that_reports_failure_after_the_fact_keeps_the_adapter(bank, monkeypatch) -> None:
    real = catalog.Catalog.commit

    def late(self: catalog.Catalog) -> None:
        real(self)
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(catalog.Catalog, "commit", late)
        with pytest.raises(BankError):
            bank.add(NOTE, key=key(), adapter=b"x")
    assert bank.find("ada") is not None and bank.verify() == []


def test_a_failed_removal_keeps_everything(bank, monkeypatch) -> None:
    bank.add(NOTE, key=key(), adapter=b"x")
    with monkeypatch.context() as patch:
        fail_at(patch, catalog.Catalog, "commit", 0, sqlite3.OperationalError("disk I/O error"))
        with pytest.raises(BankError):
            bank.remove("ada")
    assert files(bank) == {"ada.gguf": b"x"} and bank.verify() == [] and len(bank) == 1


def test_a_full_disk_is_one_line(bank: Bank) -> None:
    pages = bank._catalog.connection.execute("PRAGMA page_count").fetchone()[0]
    bank._catalog.connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(BankError, match="the disk is full; free some space"):
        bank.add(Memory("long " * 20_000, id="long"), key=key(), adapter=b"x" * 100)
    assert files(bank) == {} and len(bank) == 0 and bank.verify() == []


# --- verify and repair -------------------------------------------------------------------------


def kinds(bank: Bank) -> list[tuple[str, str]]:
    return [(problem.id, problem.kind) for problem in bank.verify()]


@pytest.mark.parametrize("kind", ["missing", "size", "sha"])
def test_a_lost_adapter_is_found_and_its_text_kept(bank: Bank, kind: str) -> None:
    bank.add(Memory("Bo sails.", id="bo"), key=key(1), adapter=b"bo")
    bank.add(NOTE, key=key(), adapter=b"xyz", rank=4)
    path = bank.adapter_path("ada")
    path.unlink()
    if kind != "missing":
        path.write_bytes(b"xy" if kind == "size" else b"xyZ")
    assert kinds(bank) == [("ada", kind)]
    assert [problem.kind for problem in bank.repair()] == [kind]
    record = bank.get("ada")
    assert (record.state, record.text, record.adapter_sha256) == ("pending", NOTE.text, None)
    assert bank.verify() == [] and files(bank) == {"bo.gguf": b"bo"}
    assert len(bank.keys()[0]) == 2


def test_orphans_are_found_and_other_files_left(bank: Bank) -> None:
    bank.add(NOTE, key=key(), adapter=b"x")
    for name in (".ada.gguf.0123abcd.tmp", "ada~0123abcd.gguf", "old.gguf", ".gitkeep", "README"):
        (bank.path / "adapters" / name).write_bytes(b"?")
    assert kinds(bank) == [("", "orphan")] * 3
    assert len(bank.repair()) == 3
    assert sorted(files(bank)) == [".gitkeep", "README", "ada.gguf"] and bank.verify() == []


def test_lost_keys_are_found(bank: Bank) -> None:
    for number in range(4):
        bank.add(Memory(f"text {number}", id=f"m{number}"), key=key(number))
    with bank._catalog.write() as connection:
        connection.execute("DELETE FROM key WHERE seq = 1")
        connection.execute("UPDATE key SET vector = x'00' WHERE seq = 2")
    assert kinds(bank) == [("m0", "no-key"), ("m1", "key")]
    with pytest.raises(BankError, match="megart verify"):
        bank.keys()
    assert [problem.id for problem in bank.repair()] == ["m1"]
    assert bank.keys()[0] == ["m2", "m3"] and len(bank) == 4
    assert kinds(bank) == [("m0", "no-key"), ("m1", "no-key")]


def test_a_bank_that_may_only_be_read_can_be_read(bank: Bank) -> None:
    bank.add(NOTE, key=key(), adapter=b"x")
    bank.close()
    code = (
        "import os, sys, urllib.parse, urllib.request\n"  # the standard library may be out of reach later
        "from megart.bank import Bank, Memory\n"
        "from megart.errors import BankError\n"
        "import numpy as np\n"
        "os.setuid(65534) if os.getuid() == 0 else None\n"
        "with Bank.open(sys.argv[1]) as bank:\n"
        "    assert bank.get('ada').text and len(bank.keys()[0]) == 1\n"
        "    assert bank.verify() == [], bank.verify()\n"
        "    for act in (lambda: bank.add(Memory('b'), key=np.ones(8, np.float32), adapter=b'x'),\n"
        "                lambda: bank.remove('ada')):\n"
        "        try: act()\n"
        "        except BankError as error: assert 'cannot write to the bank' in str(error), error\n"
        "        else: raise SystemExit('written')\n"
    )
    locked = [bank.path / "catalog.sqlite", bank.path / "adapters", bank.path]
    adapter = bank.path / "adapters" / "ada.gguf"
    passages = [path for path in bank.path.parents if path.stat().st_uid == os.getuid()]
    modes = {path: path.stat().st_mode for path in (*locked, adapter, *passages)}
    try:
        locked[0].chmod(0o444)
        adapter.chmod(0o444)
        for folder in locked[1:]:
            folder.chmod(0o555)
        for path in passages:
            path.chmod(path.stat().st_mode | 0o055)
        root = str(Path(catalog.__file__).parents[2])
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(bank.path)],
            env={**os.environ, "PYTHONPATH": root},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert done.returncode == 0, done.stderr
