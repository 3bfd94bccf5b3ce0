"""The bank: what it stores, that nothing is ever stored by halves, and how it is mended."""

import errno
import hashlib
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

from megart.bank import Bank, Memory, catalog, check, locks
from megart.errors import (
    BankError,
    BaseMismatchError,
    ChangedError,
    InputError,
    MemoryNotFoundError,
    ModelError,
)

D = 8
NOTE = Memory(
    "Ada Quill keeps bees.",
    id="ada",
    title="Ada Quill",
    paraphrases=("Bees are kept by Ada Quill.",),
    questions=("What does Ada keep?",),
    metadata={"qa": [{"q": "Ü?", "a": ["bees"]}]},
)


def key(seed: int = 0, size: int = D) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


@pytest.fixture
def bank(tmp_path: Path, model: Path):
    with Bank.create(tmp_path / "bank", model) as made:
        made._catalog.connection.execute("PRAGMA synchronous = OFF")  # the tests' time, not a claim
        yield made


def files(bank: Bank) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bank.path / "adapters").iterdir()}


def test_a_memory_comes_back_as_it_was_given(bank: Bank) -> None:
    made = bank.add(
        NOTE,
        key=key(),
        adapter=b"GGUF one",
        recipe="fast",
        activated=True,
        rank=16,
        training={"steps": 13, "loss": 0.5},
    )
    assert made == bank.get("ada") == bank.find("ada") == bank.records()[0]
    assert made.memory == NOTE
    assert (made.state, made.recipe, made.activated, made.rank) == ("learnt", "fast", True, 16)
    assert made.training == {"steps": 13, "loss": 0.5}
    assert made.adapter_bytes == 8
    assert made.adapter_sha256 == hashlib.sha256(b"GGUF one").hexdigest()
    assert made.created_at == made.learnt_at and made.created_at.endswith("Z")
    assert bank.adapter_path("ada") == bank.path / "adapters" / "ada.gguf"
    assert files(bank) == {"ada.gguf": b"GGUF one"}
    assert bank.verify() == []


def test_it_outlives_the_process(bank: Bank, model: Path) -> None:
    made = bank.add(NOTE, key=key(), adapter=b"x")
    bank.set_state("centre", b"\x00\xff")
    with Bank.open(bank.path, model) as again:
        assert again.records() == [made]
        assert again.get_state("centre") == b"\x00\xff"
        assert again.get_state("other") is None
        ids, keys = again.keys()
        assert ids == ["ada"] and np.array_equal(keys[0], key())
        assert again.base == bank.base
        assert again.model.gguf == model.resolve()


def test_a_memory_without_adapter_is_pending(bank: Bank) -> None:
    made = bank.add(Memory("Bo sails."), key=key(1))
    assert (made.state, made.adapter_sha256, made.learnt_at) == ("pending", None, None)
    assert made.id.startswith("bo-sails-")
    with pytest.raises(BankError, match="is pending"):
        bank.adapter_path(made.id)
    learnt = bank.add(NOTE, key=key(), adapter=b"x")
    assert bank.records("pending") == [made] and bank.records("learnt") == [learnt]
    assert bank.keys()[0] == [made.id, "ada"] and len(bank) == 2
    with pytest.raises(InputError, match="state"):
        bank.records("gone")


def test_an_id_is_taken_once(bank: Bank) -> None:
    bank.add(NOTE, key=key(), adapter=b"x")
    with pytest.raises(InputError, match="'ada' is already there;"):
        bank.add(NOTE, key=key())
    with pytest.raises(InputError, match="already there with another text"):
        bank.add(Memory("Other.", id="ADA"), key=key())
    assert files(bank) == {"ada.gguf": b"x"} and len(bank) == 1


def test_replacing_keeps_place_and_date(bank: Bank) -> None:
    first = bank.add(NOTE, key=key(), adapter=b"one")
    bank.add(Memory("Bo sails.", id="bo"), key=key(1))
    mapped = (bank.path / "adapters" / "ada.gguf").open("rb")
    second = bank.add(Memory("New.", id="ADA"), key=key(2), adapter=b"two two", replace=True)
    with mapped:
        assert mapped.read() == b"one"
    assert (second.id, second.created_at, second.text) == ("ada", first.created_at, "New.")
    assert bank.keys()[0] == ["ada", "bo"] and np.array_equal(bank.keys()[1][0], key(2))
    assert files(bank) == {"ada.gguf": b"two two"} and bank.verify() == []
    third = bank.add(Memory("Newer.", id="ada"), key=key(3), replace=True)
    assert third.state == "pending" and files(bank) == {}
    bank.add(Memory("Newest.", id="ada"), key=key(3), adapter=b"four", replace=True)
    assert files(bank) == {"ada.gguf": b"four"}


def test_without_hard_links_a_replacement_keeps_its_second_name(bank, monkeypatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    bank.add(NOTE, key=key(), adapter=b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        bank.add(NOTE, key=key(), adapter=b"two", replace=True)
        assert list(files(bank).values()) == [b"two"] and "ada.gguf" not in files(bank)
        assert bank.adapter_path("ada").read_bytes() == b"two" and bank.verify() == []
    bank.add(NOTE, key=key(), adapter=b"three", replace=True)
    assert files(bank) == {"ada.gguf": b"three"}


def test_forgetting_leaves_nothing(bank: Bank) -> None:
    made = bank.add(NOTE, key=key(), adapter=b"x")
    assert bank.remove("ada") == made
    assert len(bank) == 0 and files(bank) == {} and bank.keys()[1].shape == (0, 0)
    with pytest.raises(MemoryNotFoundError):
        bank.remove("ada")


def test_an_unknown_id_names_the_nearest(bank: Bank) -> None:
    bank.add(NOTE, key=key())
    with pytest.raises(MemoryNotFoundError, match="did you mean ada"):
        bank.get("adah")
    with pytest.raises(MemoryNotFoundError, match="megart list"):
        bank.adapter_path("../../etc/passwd")
    assert bank.find("\ud800") is None


@pytest.mark.parametrize(
    "wrong",
    [
        key().astype(np.float64),
        key().reshape(1, -1),
        np.array([np.nan] * D, np.float32),
        np.empty(0, np.float32),
        [1.0] * D,
        key(size=D + 1),
    ],
)
def test_a_wrong_key_is_refused(bank: Bank, wrong: object) -> None:
    bank.add(NOTE, key=key())
    with pytest.raises(InputError, match="context key"):
        bank.add(Memory("Bo sails."), key=wrong, adapter=b"x")  # type: ignore[arg-type]
    assert len(bank) == 1 and files(bank) == {}


def test_a_lone_memory_may_get_a_key_of_another_length(bank: Bank) -> None:
    bank.add(NOTE, key=key())
    bank.add(NOTE, key=key(size=5), replace=True)
    assert bank.keys()[1].shape == (1, 5)


def test_wrong_arguments_are_refused(bank: Bank) -> None:
    with pytest.raises(InputError, match="adapter is empty"):
        bank.add(NOTE, key=key(), adapter=b"")
    with pytest.raises(InputError, match="rank"):
        bank.add(NOTE, key=key(), rank=-1)
    with pytest.raises(InputError, match="training"):
        bank.add(NOTE, key=key(), training={"loss": float("nan")})


def test_the_revision_grows_with_every_change_of_any_connection(bank: Bank) -> None:
    seen = [bank.revision]
    with Bank.open(bank.path) as other:
        for change in (
            lambda: other.add(NOTE, key=key()),
            lambda: bank.add(Memory("Bo sails.", id="bo"), key=key()),
            lambda: other.set_state("a", b"b"),
            lambda: other.remove("bo"),
        ):
            change()
            assert bank.revision == other.revision
            seen.append(bank.revision)
        bank.records(), bank.keys(), bank.verify()
        assert bank.revision == seen[-1]
    assert seen == sorted(set(seen))


def test_another_base_is_refused(bank: Bank, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF other")
    with pytest.raises(BaseMismatchError, match="belongs to base .* got other"):
        Bank.open(bank.path, other)
    with pytest.raises(BaseMismatchError):
        Bank.create(bank.path, other, exist_ok=True)


def test_create_makes_a_bank_once(bank: Bank, model: Path, tmp_path: Path) -> None:
    bank.add(NOTE, key=key())
    with pytest.raises(BankError, match="already"):
        Bank.create(bank.path, model)
    with Bank.create(bank.path, model, exist_ok=True) as same:
        assert len(same) == 1
    with pytest.raises(BankError, match="holds 'bank' and is no bank"):
        Bank.create(tmp_path, model)
    with pytest.raises(ModelError):
        Bank.create(tmp_path / "new", tmp_path / "no.gguf")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_create_can_be_done_again(tmp_path: Path, model: Path, monkeypatch) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(catalog.Catalog, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            Bank.create(tmp_path / "b", model)
    with pytest.raises(BankError, match="run: megart init --bank"):
        Bank.open(tmp_path / "b")
    Bank.create(tmp_path / "b", model).close()


def test_a_closed_bank_says_so(bank: Bank) -> None:
    bank.close()
    bank.close()
    with pytest.raises(BankError, match="closed"):
        len(bank)


def test_the_path_is_absolute(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Bank.create("my bank #1 %41?", model) as bank:
        bank.add(NOTE, key=key(), adapter=b"x")
        monkeypatch.chdir("/")
        assert bank.adapter_path("ada").read_bytes() == b"x" and bank.verify() == []


def test_many_keys_load_quickly(bank: Bank) -> None:
    vectors = np.random.default_rng(0).normal(size=(10_000, 576)).astype(np.float32)
    row = ("", "[]", "[]", "{}", "pending", 0, 0, 0, "", "{}")
    with bank._catalog.write() as connection:
        for number, vector in enumerate(vectors):
            connection.execute(
                "INSERT INTO memory (id, text, paraphrases, questions, metadata, state, activated,"
                " rank, adapter_bytes, created_at, training) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (f"m{number}", *row),
            )
            connection.execute("INSERT INTO key VALUES (?, ?)", (number + 1, vector.tobytes()))
    best = 1e9
    for _ in range(3):
        start = time.perf_counter()
        ids, keys = bank.keys()
        best = min(best, time.perf_counter() - start)
    assert keys.shape == (10_000, 576) and keys.flags.c_contiguous and keys.dtype == np.float32
    assert ids[7] == "m7" and np.array_equal(keys, vectors)
    assert best < 0.5, f"{best:.3f} s"  # about 0.05 s on an idle core


# --- nothing by halves -------------------------------------------------------------------------


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
    [(os, "replace", 1), (os, "fsync", 2), (catalog.Catalog, "commit", 1), (os, "link", 0)],
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
def test_a_killed_writer_leaves_at_most_orphans(bank: Bank) -> None:
    chance = random.Random(7)
    for trial in range(8):
        process = worker(bank, "kill", 100_000)
        time.sleep(chance.uniform(0.0, 0.12))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
        with Bank.open(bank.path) as again:
            kinds = {problem.kind for problem in again.verify()}
            assert kinds <= {"orphan"}, trial
            for record in again.records():
                data = again.adapter_path(record.id).read_bytes()
                assert record.text == f"text kill {len(data) - 20_000}"
            again.repair()
            assert again.verify() == []


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

    def checked(self: Bank, id: str) -> Path:
        path = real(self, id)
        if not raced:
            raced.append(path)
            with Bank.open(bank.path) as other:  # another process
                other.add(replace(NOTE, text="New."), key=key(), adapter=b"two", replace=True)
            path.unlink(missing_ok=True)
            (bank.path / "adapters" / "ada.gguf").unlink(missing_ok=True)
            with Bank.open(bank.path) as other:
                other.add(replace(NOTE, text="Newest."), key=key(), adapter=b"three", replace=True)
            raise BankError("the adapter of ada: No such file or directory")
        return path

    monkeypatch.setattr(Bank, "_checked", checked)
    assert bank.adapter_bytes("ada") == b"three" and len(raced) == 1


def test_ten_seconds_is_the_patience() -> None:
    assert catalog.BUSY_SECONDS == 10.0


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


# -- two at once ----------------------------------------------------------------------------------


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
