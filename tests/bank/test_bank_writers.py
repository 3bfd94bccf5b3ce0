"""Several processes and threads at one bank."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from notes import NOTE, files, key

from megart.bank import Bank, Memory, catalog, check, locks
from megart.errors import (
    BankError,
    ChangedError,
)

WORKER = """
import sys, numpy as np
from pathlib import Path
from megart.bank import Bank, Memory
path, name, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Bank.open(path) as bank:
    print("ready", flush=True)
    for number in range(rounds):
        size = 20_000 + number
        bank.add(Memory(f"text {name} {number}", id=f"{name}-{number % 3}" if rounds > 99 else f"{name}-{number}"),
                 key=np.full(8, number, np.float32), adapter=bytes([number % 256]) * size, replace=True)
        if rounds > 99 and number % 4 == 3:
            bank.remove(f"{name}-{number % 3}")
"""


def worker(bank: Bank, name: str, rounds: int) -> subprocess.Popen[bytes]:
    root = str(Path(catalog.__file__).parents[2])
    env = {**os.environ, "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(bank.path), name, str(rounds)],
        stdout=subprocess.PIPE,
        env=env,
    )
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    return process


def test_two_processes_may_add_at_once(bank: Bank) -> None:
    workers = [worker(bank, name, 12) for name in ("left", "right")]
    for process in workers:
        process.communicate(timeout=60)
        assert process.returncode == 0
    ids = [record.id for record in bank.records()]
    assert sorted(ids) == sorted(f"{name}-{n}" for name in ("left", "right") for n in range(12))
    assert bank.verify() == [] and bank.revision == 24


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_killed_writer_leaves_nothing_once_the_bank_is_opened(bank: Bank) -> None:
    chance = random.Random(7)
    for trial in range(8):
        process = worker(bank, "kill", 100_000)
        time.sleep(chance.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        with Bank.open(bank.path) as again:
            assert again.verify() == [], trial
            for record in again.records():
                data = again.adapter_path(record.id).read_bytes()
                assert record.text == f"text kill {len(data) - 20_000}"


def test_one_bank_serves_many_threads(bank: Bank) -> None:
    failures: list[Exception] = []

    def work(name: str) -> None:
        try:
            for number in range(6):
                bank.add(Memory(f"{name} {number}", id=f"{name}{number}"), key=key(), adapter=b"x")
                bank.records(), bank.keys(), bank.revision
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and len(bank) == 24 and bank.verify() == []


def test_a_locked_bank_gives_up_with_one_line(bank: Bank, monkeypatch) -> None:
    monkeypatch.setattr(catalog, "BUSY_SECONDS", 0.1)
    with Bank.open(bank.path) as impatient, bank._catalog.hold():
        assert impatient.records() == []
        with pytest.raises(BankError, match=rf"locked by the process {os.getpid()} \(.+\) for 0.1 s"):
            impatient.add(NOTE, key=key(), adapter=b"x")
    assert files(bank) == {}


def test_a_writer_that_waits_looks_often(bank: Bank, monkeypatch) -> None:
    """SQLite's own waiting looks every 0.1 s, and a busy writer's gaps are shorter: one got no turn in 10 s."""
    monkeypatch.setattr(catalog, "BUSY_SECONDS", 0.5)
    looks: list[str] = []
    with Bank.open(bank.path) as waiting, bank._catalog.hold():
        waiting._catalog.connection.set_trace_callback(looks.append)
        with pytest.raises(BankError, match="locked by"):
            waiting.set_state("x", b"")
    assert looks.count("BEGIN IMMEDIATE") > 5  # once where SQLite waits


def test_a_reader_that_waits_looks_often(bank: Bank, monkeypatch) -> None:
    monkeypatch.setattr(catalog, "BUSY_SECONDS", 0.5)
    looks: list[str] = []
    with Bank.open(bank.path) as waiting, bank._catalog.hold() as connection:
        connection.execute("COMMIT")
        connection.execute("BEGIN EXCLUSIVE")
        waiting._catalog.connection.set_trace_callback(looks.append)
        with pytest.raises(BankError, match="locked by"):
            waiting.records()
    assert len(looks) > 5  # once where SQLite waits


def test_a_large_change_locks_readers_out_for_its_commit_alone(bank: Bank, monkeypatch) -> None:
    monkeypatch.setattr(catalog, "BUSY_SECONDS", 0.1)
    with Bank.open(bank.path) as reader, bank._catalog.write() as connection:
        connection.execute("PRAGMA cache_size = 10")
        for number in range(40):
            connection.execute("INSERT INTO state VALUES (?, ?)", (f"large {number}", bytes(20_000)))
        assert reader.records() == []


def test_a_bank_opened_twice_in_a_process_keeps_its_locks(bank: Bank, model: Path) -> None:
    """POSIX takes a process's locks on a file away when the process closes any of its descriptors of that file."""
    code = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    with bank._catalog.hold():
        Bank.open(bank.path).close()
        Bank.create(bank.path, model, exist_ok=True).close()
        done = subprocess.run([sys.executable, "-c", code, bank.path / "catalog.sqlite"], capture_output=True, text=True)
    assert "database is locked" in done.stderr


def test_who_has_just_written_lets_the_next_go_first(bank: Bank, monkeypatch) -> None:
    with locks.turn(bank.path, time.monotonic() + 9):  # somebody waits for the write lock
        started = time.monotonic()
        with locks.turn(bank.path, started + 0.2):
            assert time.monotonic() - started >= 0.2
    monkeypatch.setattr(catalog, "BUSY_SECONDS", 0.2)
    with locks.turn(bank.path, time.monotonic() + 9):
        bank.set_state("x", b"")  # manners, no safety: without its turn it goes on in the end


def test_an_adapter_that_is_replaced_while_it_is_read_is_read_again(bank: Bank, monkeypatch) -> None:
    bank.add(NOTE, key=key(), adapter=b"one")
    real, raced = Bank._checked, []

    def checked(self: Bank, id: str) -> tuple[Path, bytes]:
        path, data = real(self, id)
        if not raced:
            raced.append(path)
            with Bank.open(bank.path) as other:  # another process
                other.add(replace(NOTE, text="New."), key=key(), adapter=b"two", replace=True)
            path.unlink(missing_ok=True)
            (bank.path / "adapters" / "ada.gguf").unlink(missing_ok=True)
            with Bank.open(bank.path) as other:
                other.add(replace(NOTE, text="Newest."), key=key(), adapter=b"three", replace=True)
            raise BankError("the adapter of ada: No such file or directory")
        return path, data

    monkeypatch.setattr(Bank, "_checked", checked)
    assert bank.adapter_bytes("ada") == b"three" and len(raced) == 1


def test_ten_seconds_is_the_patience() -> None:
    assert catalog.BUSY_SECONDS == 10.0


@pytest.mark.parametrize("meanwhile", ["title", "text", "added", "forgotten"])
def test_a_replacement_over_what_stood_there_stores_nothing_when_that_has_changed(bank: Bank, meanwhile: str) -> None:
    over = None if meanwhile == "added" else NOTE
    if meanwhile != "forgotten":
        there = NOTE if meanwhile == "added" else replace(NOTE, **{meanwhile: "Something newer."})
        bank.add(there, key=key())
    before = bank.records()
    with pytest.raises(ChangedError, match="'ada' was .* meanwhile"):
        bank.add(replace(NOTE, text="Ours."), key=key(1), adapter=b"GGUF ours", replace=over)
    assert bank.records() == before and files(bank) == {}
    bank.add(
        replace(NOTE, text="Ours."), key=key(1), adapter=b"GGUF ours", replace=before[0].memory if before else None
    )
    assert bank.get("ada").text == "Ours." and bank.verify() == []


def test_repair_leaves_alone_what_was_replaced_while_it_looked(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The new file has the old one's name, so that the name does not tell."""
    bank.add(NOTE, key=key(), adapter=b"GGUF old")
    snapshot = check._snapshot

    def slow(*given: object) -> object:
        found = snapshot(*given)
        bank.add(NOTE, key=key(), adapter=b"GGUF new", replace=True)
        return found

    monkeypatch.setattr(check, "_snapshot", slow)
    assert bank.verify() == [] and bank.repair() == []
    assert bank.get("ada").state == "learnt" and files(bank) == {"ada.gguf": b"GGUF new"}
    examine = check._examine

    def slower(*given: object) -> object:
        (bank.path / "adapters" / "ada.gguf").write_bytes(b"GGUF bad")
        found = examine(*given)
        bank.add(NOTE, key=key(), adapter=b"GGUF own", replace=True)
        return found

    monkeypatch.setattr(check, "_snapshot", snapshot)
    monkeypatch.setattr(check, "_examine", slower)
    assert bank.repair() == []
    assert bank.get("ada").state == "learnt" and files(bank) == {"ada.gguf": b"GGUF own"}


def test_evidence_of_a_replaced_text_is_not_stored(bank: Bank) -> None:
    old = bank.add(NOTE, key=key())
    made = np.array([7, 0], np.uint32), np.ones(4, np.int8)
    bank.add(replace(NOTE, text="Something newer."), key=key(), replace=True)
    bank.set_evidence([(old, made)])
    assert bank.words() == {} and [r.id for r in bank.without_evidence()] == ["ada"]
    bank.set_evidence([(bank.get("ada"), made)])
    bank.set_evidence([(bank.get("ada"), (np.array([9], np.uint32), made[1]))])  # what is there stays
    assert bank.words()["ada"].tolist() == [7, 0] and bank.without_evidence() == []
    revision = bank.revision
    bank.set_state("x", b"")
    with pytest.raises(ChangedError):
        bank.set_keys({"ada": (key(2), made)}, {}, revision)
    assert (bank.keys()[1][0] == key()).all()


def test_every_statement_of_an_opening_waits_for_a_writer(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the first alone: a writer that never rests may begin again between any two of them."""
    check_identity, waited = catalog.Catalog._check_identity, []

    def meanwhile(self: catalog.Catalog) -> None:
        other = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.2, other.close).start()  # rolls back
        started = time.monotonic()
        check_identity(self)
        waited.append(time.monotonic() - started)

    monkeypatch.setattr(catalog.Catalog, "_check_identity", meanwhile)
    Bank.open(bank.path).close()
    assert waited and waited[0] >= 0.15
