"""Catalogs that are wrong: BankError in one line with a remedy, and nothing outside the bank is touched."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from megart.bank import Bank, Memory
from megart.errors import BankError


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sample")
    (home / "base.gguf").write_bytes(b"GGUF")
    with Bank.create(home / "bank", home / "base.gguf") as bank:
        for number in range(12):
            memory = Memory(f"text {number} " * 200, id=f"m{number}")
            bank.add(memory, key=np.ones(64, np.float32), adapter=b"x")
    return home


@pytest.fixture
def folder(sample: Path, tmp_path: Path) -> Path:
    shutil.copytree(sample, tmp_path, dirs_exist_ok=True)
    return tmp_path / "bank"


def sql(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BankError, match=message) as caught:
        Bank.open(folder).close()
    assert "\n" not in str(caught.value)


def test_no_bank(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no"):
        refused(path, f"no bank at {path}; run: megart init --bank {path}")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file, not a bank; if it is a pack: megart unpack")
    (tmp_path / "catalog.sqlite").touch()
    refused(tmp_path, "catalog is empty; run: megart init --bank")
    (tmp_path / "catalog.sqlite").unlink()
    (tmp_path / "catalog.sqlite").mkdir()
    refused(tmp_path, "cannot read the bank")


@pytest.mark.parametrize("content", [b"garbage", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5000])
def test_garbage(folder: Path, content: bytes) -> None:
    (folder / "catalog.sqlite").write_bytes(content)
    refused(folder, "(is damaged .*; restore it from a backup|run: megart init)")


def test_the_database_of_another_program(folder: Path) -> None:
    sql(folder, "PRAGMA application_id = 7")
    refused(folder, "another program")


def test_a_plain_database(folder: Path) -> None:
    (folder / "catalog.sqlite").unlink()
    sql(folder, "CREATE TABLE t (x)")
    refused(folder, "another program")
    with pytest.raises(BankError, match="another program"):
        Bank.create(folder, folder.parent / "base.gguf", exist_ok=True)


def test_a_newer_format(folder: Path) -> None:
    sql(folder, "PRAGMA user_version = 99")
    refused(folder, "made by a newer megart .*; upgrade megart")


def test_a_missing_table(folder: Path) -> None:
    sql(folder, "DROP TABLE base")
    refused(folder, "damaged")


def test_no_base(folder: Path) -> None:
    sql(folder, "DELETE FROM base")
    refused(folder, "names 0 base models")


def test_a_row_that_is_no_json(folder: Path) -> None:
    sql(
        folder,
        "UPDATE memory SET metadata = '{' WHERE id = 'm3'",
        "UPDATE memory SET training = 3 WHERE id = 'm4'",
    )
    with Bank.open(folder) as bank:
        assert bank.get("m5").text
        for id in ("m3", "m4"):
            with pytest.raises(BankError, match=f"row of '{id}' .* damaged"):
                bank.get(id)


@pytest.mark.parametrize("name", ["../../victim.gguf", "/VICTIM", "..", "", "m3.gguf/../../../victim.gguf"])
def test_a_file_name_that_leaves_the_folder(folder: Path, name: str) -> None:
    victim = folder.parent / "victim.gguf"
    victim.write_bytes(b"precious")
    name = name.replace("/VICTIM", str(victim))
    sql(folder, f"UPDATE memory SET adapter_file = '{name}' WHERE id = 'm3'")
    with Bank.open(folder) as bank:
        with pytest.raises(BankError, match="names the adapter file"):
            bank.adapter_path("m3")
        assert {problem.kind for problem in bank.verify()} == {"missing", "orphan"}
        bank.repair()
        assert bank.verify() == [] and bank.get("m3").state == "pending"
    sql(folder, f"UPDATE memory SET adapter_file = '{name}' WHERE id = 'm4'")
    with Bank.open(folder) as bank:
        bank.remove("m4")
        bank.add(Memory("new", id="m3"), key=np.ones(64, np.float32), adapter=b"y", replace=True)
    assert victim.read_bytes() == b"precious" and folder.is_dir()


def test_cuts_and_damage_are_never_anything_but_a_bank_error(folder: Path) -> None:
    path = folder / "catalog.sqlite"
    data = path.read_bytes()
    chance = random.Random(5)
    for trial in range(60):
        broken = bytearray(data)
        if trial % 3 == 0:
            del broken[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.choice((1, 20, 400))):
                broken[chance.randrange(100 if trial % 3 == 1 else len(data))] = chance.randrange(256)
        path.write_bytes(broken)
        (folder / "catalog.sqlite-journal").unlink(missing_ok=True)
        try:
            with Bank.open(folder) as bank:
                bank.verify()
                bank.records()
                bank.keys()
                bank.add(Memory("new", id="new"), key=np.ones(64, np.float32), adapter=b"y", replace=True)
                bank.remove("new")
        except BankError as error:
            assert "\n" not in str(error), trial
