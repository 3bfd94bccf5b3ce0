"""What a bank promises about the disk: nothing foreign is touched, nothing forgotten stays, nobody else reads it."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from megart.architecture import check_teachable, check_whole_header
from megart.bank import Bank, Memory, catalog
from megart.cli import main, ui
from megart.errors import AdapterError, BankError, InputError, ModelError
from megart.models import Model
from megart.runtime.embedders import GgufEmbedder
from megart.runtime.engine import Engine
from megart.train import peft

SECRET = "The safe behind the painting opens with 4711-0815."


def key() -> np.ndarray:
    return np.ones(8, np.float32)


@pytest.fixture
def bank(tmp_path: Path, model: Path):
    with Bank.create(tmp_path / "bank", model) as made:
        yield made


def test_repair_leaves_a_memory_alone_whose_adapter_cannot_be_read_now(bank: Bank) -> None:
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"whole")
    file = bank.adapter_path("safe")
    kept = file.rename(file.with_suffix(".aside"))
    file.mkdir()  # reading it fails, and not because it is missing
    assert [p.kind for p in bank.verify()] == ["unreadable"]
    assert bank.repair() == [] and bank.get("safe").state == "learnt"
    file.rmdir()
    kept.rename(file)
    assert bank.verify() == [] and bank.adapter_bytes("safe") == b"whole"


def test_repair_moves_what_it_finds_and_never_through_a_link(bank: Bank, tmp_path: Path) -> None:
    (bank.path / "adapters" / "stray.gguf").write_bytes(b"stray")
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"whole")
    bank.adapter_path("safe").write_bytes(b"wrong")
    assert {problem.kind for problem in bank.repair()} == {"orphan", "sha"}
    aside = sorted(path.read_bytes() for path in (bank.path / "quarantine").iterdir())
    assert aside == [b"stray", b"wrong"] and bank.get("safe").state == "pending"
    # The folder of adapters leads elsewhere: what lies there is somebody else's.
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "theirs.gguf").write_bytes(b"theirs")
    (bank.path / "adapters").rename(tmp_path / "old")
    (bank.path / "adapters").symlink_to(foreign)
    bank.repair()
    assert (foreign / "theirs.gguf").read_bytes() == b"theirs"


def test_forget_says_when_the_adapter_stays_and_the_next_opening_deletes_it(bank: Bank, model: Path) -> None:
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"whole")
    file = bank.adapter_path("safe")
    file.unlink()
    (file / "in the way").mkdir(parents=True)  # cannot be unlinked
    with pytest.raises(BankError, match="its adapter stays at"):
        bank.remove("safe")
    assert bank.find("safe") is None
    (file / "in the way").rmdir()
    file.rmdir()
    file.write_bytes(b"whole")
    bank.close()
    with Bank.open(bank.path):
        assert not file.exists()


def test_forget_takes_what_a_repair_set_aside_and_what_was_replaced(bank: Bank) -> None:
    for id in ("safe", "safe2"):
        bank.add(Memory(f"{SECRET} {id}", id=id), key=key(), adapter=SECRET.encode())
        bank.adapter_path(id).write_bytes(f"{SECRET} damaged".encode())
    assert len(bank.repair()) == 2
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"new", replace=True)
    (bank.path / "adapters" / "safe~0123abcd.gguf").write_bytes(SECRET.encode())  # an older megart's, killed
    bank.remove("safe")
    left = [path.name for path in bank.path.rglob("*") if path.is_file() and b"4711" in path.read_bytes()]
    assert sorted(name[:6] for name in left) == ["catalo", "safe2."]
    aside = bank.path / "quarantine" / next(name for name in left if name.startswith("safe2"))
    aside.unlink()
    (aside / "in the way").mkdir(parents=True)
    with pytest.raises(BankError, match=f"its adapter stays at {aside}"):
        bank.remove("safe2")


def test_what_a_killed_writer_left_is_gone_at_the_next_opening(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the commit, after it, and between the commit of a replacement and its tidying up."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def files() -> list[str]:
        return sorted(os.listdir(bank.path / "adapters"))

    for name in ("drop", "settle"):
        monkeypatch.setattr(bank._files, name, lambda *_: None)
    with monkeypatch.context() as at, pytest.raises(KeyboardInterrupt):
        at.setattr("megart.bank.store.put_row", killed)
        bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"one")
    assert len(files()) == 2 and bank.find("safe") is None
    with Bank.open(bank.path):
        assert files() == []
    with monkeypatch.context() as at, pytest.raises(KeyboardInterrupt):
        at.setattr(bank._files, "written", killed)
        bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"one")
    assert len(files()) == 2
    with Bank.open(bank.path) as again:
        assert files() == ["safe.gguf"] and again.adapter_bytes("safe") == b"one"
    with monkeypatch.context() as at, pytest.raises(KeyboardInterrupt):
        at.setattr("megart.bank.store.put_row", killed)
        bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"two", replace=True)
    with bank._catalog.hold(), Bank.open(bank.path):  # somebody writes: what is there may be in use
        assert len(files()) == 3
    with Bank.open(bank.path) as again:
        assert files() == ["safe.gguf"] and again.adapter_bytes("safe") == b"one"
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"two", replace=True)  # not tidied up
    (bank.path / "adapters" / "stray.gguf").write_bytes(b"stray")  # nobody knows whose that is
    with Bank.open(bank.path) as again:
        assert len(files()) == 2 and "safe.gguf" not in files() and again.adapter_bytes("safe") == b"two"


def test_a_folder_of_adapters_that_leads_elsewhere_is_refused(bank: Bank, tmp_path: Path) -> None:
    bank.close()
    (bank.path / "adapters").rename(tmp_path / "theirs")
    (bank.path / "adapters").symlink_to(tmp_path / "theirs")
    with pytest.raises(BankError, match="leads out of the bank"):
        Bank.open(bank.path)


def test_a_memory_that_comes_again_keeps_its_adapter_whatever_was_left_over(bank: Bank) -> None:
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"one")
    bank.set_state("leftover:safe.gguf", b"")
    with Bank.open(bank.path) as again:
        assert again.adapter_bytes("safe") == b"one"


def test_nothing_forgotten_stays_in_free_pages(bank: Bank) -> None:
    assert bank._catalog.read("PRAGMA secure_delete") == [(1,)]
    bank.add(Memory(SECRET, id="safe", title="The painting"), key=key())
    for number in range(40):
        bank.add(Memory(f"{SECRET} {number}" * 20, id=f"m{number}"), key=key())
    for number in range(40):
        bank.remove(f"m{number}")
    bank.remove("safe")
    bank.close()
    left = b"".join(path.read_bytes() for path in bank.path.rglob("*") if path.is_file())
    assert b"4711-0815" not in left and b"The painting" not in left


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TRIGGER t BEFORE DELETE ON memory BEGIN SELECT raise(ignore); END",
        "CREATE VIEW evil AS WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i FROM n) SELECT i FROM n",
        "CREATE INDEX evil ON memory (hex(zeroblob(100000000)))",
        "DROP TABLE evidence; CREATE TABLE evidence (seq INTEGER, words AS (zeroblob(900000000)), tokens BLOB)",
        "DROP TABLE evidence; CREATE VIRTUAL TABLE evidence USING fts5 (seq, words, tokens)",
        "DROP TABLE usage",
    ],
)
def test_a_catalog_of_another_make_is_refused(bank: Bank, sql: str) -> None:
    bank.close()
    with sqlite3.connect(bank.path / "catalog.sqlite") as connection:
        connection.executescript(sql)
    connection.close()
    with pytest.raises(BankError, match="which megart does not make|another than megart makes|it lacks the table 'usage'"):
        Bank.open(bank.path)


def test_what_is_forgotten_stays_in_no_log(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalog that somebody switched to a write-ahead log, which keeps old pages."""
    bank.add(Memory(SECRET, id="safe"), key=key())
    bank.close()
    monkeypatch.setattr(catalog, "BUSY_SECONDS", 0.2)
    with closing(sqlite3.connect(bank.path / "catalog.sqlite")) as other:
        assert other.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        other.execute("SELECT id FROM memory").fetchall()
        with pytest.raises(BankError, match="locked by|without a log"):
            Bank.open(bank.path)
    with Bank.open(bank.path) as again, Bank.open(bank.path) as reader:
        assert len(reader) == 1
        again.remove("safe")
        left = b"".join(path.read_bytes() for path in bank.path.rglob("*") if path.is_file())
        assert b"4711-0815" not in left


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_a_bank_in_a_folder_that_was_there_is_private_too(tmp_path: Path, model: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o755)
    with Bank.create(tmp_path / "mine", model) as made:
        assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
def test_nobody_else_can_read_a_bank(bank: Bank) -> None:
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"one")
    bank.add(Memory(SECRET, id="safe"), key=key(), adapter=b"two", replace=True)
    for path in (bank.path, *bank.path.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_names_of_devices_are_no_ids(bank: Bank) -> None:
    for id in ("con", "NUL", "com1.notes", "a."):
        with pytest.raises(InputError, match="Windows"):
            bank.add(Memory("text", id=id), key=key())


def peft_folder(path: Path, config: str | None) -> Path:
    path.mkdir()
    (path / "adapter_model.safetensors").write_bytes(b"")
    if config is not None:
        (path / "adapter_config.json").write_text(config)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha_pattern": {"(a+)+$": 4}}, "expected a module's name"),
        ({"alpha_pattern": [1]}, "no object"),
        ({"alpha_pattern": {"q_proj": "x"}}, "expected a number"),
        ({"lora_alpha": None}, "expected a number"),
        ({"lora_alpha": [2]}, "expected a number"),
        ({"alora_invocation_tokens": "abc"}, "no list of token ids"),
        ({"alora_invocation_tokens": [1.5]}, "no list of token ids"),
    ],
)
def test_odd_values_of_a_peft_folder_are_one_line(tmp_path: Path, change: dict, message: str) -> None:
    folder = peft_folder(tmp_path / "a", json.dumps({"peft_type": "LORA", **change}))
    with pytest.raises(AdapterError, match=message):
        peft._config(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_a_peft_folder_is_not_waited_for(tmp_path: Path) -> None:
    folder = peft_folder(tmp_path / "a", None)
    os.mkfifo(folder / "adapter_config.json")
    with pytest.raises(AdapterError, match="no regular file"):
        peft._config(folder)


def test_a_header_of_millions_of_items_is_refused_before_a_library_reads_it(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    items = 1_700_000
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a.b") + struct.pack("<IIQ", 9, 0, items) + bytes(items)
    path = tmp_path / "big.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=f"an array of {items} items"):
        check_whole_header(path)


def test_a_tensor_larger_than_the_file_is_refused_before_llama_cpp_reads_it(tmp_path: Path) -> None:
    def tensor(*shape: int, at: int = 0) -> bytes:
        name = b"token_embd.weight"
        fields = struct.pack(f"<Q{len(name)}sI", len(name), name, len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        return b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + fields + struct.pack("<IQ", 0, at) + bytes(1000)

    path = tmp_path / "model.gguf"
    for data, said in (
        (tensor(1 << 20, 1 << 40), "larger than the file"),
        (tensor(8, 8, at=1 << 60), "larger than the file"),
        (tensor(1, 1, 1, 1, 1), "has 5 dimensions"),
        (tensor(8)[:30], "the header is damaged"),
    ):
        path.write_bytes(data)
        with pytest.raises(ModelError, match=said):
            Engine(Model("stranger's", path))
        with pytest.raises(ModelError, match=said):
            GgufEmbedder(str(path))
    path.write_bytes(tensor(8, 8))
    check_whole_header(path)


def test_a_model_of_billions_of_layers_is_refused(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    for key, value in (("block_count", 4_000_000_000), ("attention.head_count", 5000)):
        keys = text("general.architecture") + struct.pack("<I", 8) + text("llama")
        keys += text(f"llama.{key}") + struct.pack("<II", 4, value)
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + keys)
        with pytest.raises(ModelError, match=f"llama.{key} is '{value}'; expected a number up to 4096"):
            check_teachable(Model("m", tmp_path / "m.gguf"))


def test_json_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"title": "a\x9b31m\u202eb\x1b[0m é"}
    ui.put_json_line(value)
    out = capsys.readouterr().out
    assert json.loads(out) == value and not set(out) & {"\x9b", "\u202e", "\x1b"}


def test_talk_steers_no_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An error's text may hold what a stranger wrote: names of tensors, of files."""
    ui.say("a\x1b[31mb\x9bc\u202ed")
    assert main(["unpack", str(tmp_path / "no\x1b[2Jpack"), str(tmp_path / "x")]) == 1
    err = capsys.readouterr().err
    assert "no [2Jpack" in err and not set(err) & {"\x9b", "\u202e", "\x1b"}


def test_a_small_peft_folder_fills_no_memory(tmp_path: Path) -> None:
    """One pair of a high rank, and others of wide factors: padded to one rank they would be a thousand times the file."""
    from safetensors.numpy import save_file

    folder = peft_folder(tmp_path / "a", json.dumps({"peft_type": "LORA"}))
    pair = "base_model.model.model.layers.0.mlp.{}_proj.lora_{}.weight"
    sizes = {"gate": (20_000, 1, 1), "up": (1, 20_000, 20_000)}
    arrays = {}
    for name, (rank, wide, out) in sizes.items():
        arrays[pair.format(name, "A")] = np.ones((rank, wide), np.float16)
        arrays[pair.format(name, "B")] = np.ones((out, rank), np.float16)
    save_file(arrays, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="padded to one rank, 20000"):
        peft.read_peft(folder, {"general.architecture": "llama", "llama.block_count": 2})
