"""doctor: what a bug report needs, and nothing that a memory says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from screen import Run

from megart.bank import Bank
from megart.bank.catalog import MIGRATIONS
from megart.bank.pack import write_pack

SECRETS = ("Quill", "bees", "honey", "mill", "ada", "Zoë")


@pytest.fixture
def made(bank: Path) -> Path:
    for path in (bank, *bank.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return bank


def checks(shown: dict) -> dict[str, bool]:
    return {check["name"]: check["good"] for check in shown["checks"]}


def test_a_sound_bank_in_numbers(run: Run, made: Path) -> None:
    _, out, err = run("doctor", "--bank", made, "--json", code=0)
    shown = json.loads(out)
    assert err == "" and shown["good"] and set(checks(shown).values()) == {True}
    assert {"bank", "model", "llama.cpp", "locks", "private", "bank is whole"} <= set(checks(shown))
    told = {name: shown["bank"][name] for name in ("kind", "format", "newest_format", "memories", "learnt", "pending")}
    newest = len(MIGRATIONS)
    assert told == {
        "kind": "folder", "format": newest, "newest_format": newest, "memories": 2, "learnt": 1, "pending": 1
    }  # fmt: skip
    assert shown["bank"]["recipes"] == {"fast": 1} and shown["bank"]["key_dimensions"] == 4
    assert len(shown["model"]["sha256"]) == 64 and shown["versions"]["llama-cpp-python"] and shown["versions"]["sqlite"]
    assert "CPU" in shown["machine"]["llama.cpp"]


def test_no_word_of_a_memory_is_told(run: Run, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: made.parent)
    with Bank.open(made) as bank, bank._catalog.write() as connection:
        connection.execute("UPDATE memory SET metadata = '{' WHERE id = 'ada'")  # its error would name it
    for form in ([], ["--json"]):
        out = run("doctor", "--bank", made, *form, code=1)[1]
        assert not [secret for secret in SECRETS if secret in out.split() or f'"{secret}"' in out]
        assert str(made.parent) not in out and "~/bank" in out and "a row of the catalog cannot be read" in out


def test_what_is_wrong_is_told_and_the_rest_is_there_all_the_same(run: Run, made: Path, tmp_path: Path) -> None:
    (made / "adapters" / "ada.gguf").write_bytes(b"other")
    (made / "adapters").chmod(0o755)
    (tmp_path / "base.gguf").write_bytes(b"GGUF another")
    shown = json.loads(run("doctor", "--bank", made, "--json", code=1)[1])
    wrong = {check["name"]: check["said"] for check in shown["checks"] if not check["good"]}
    assert set(wrong) == {"bank is whole", "model", "private"}
    assert wrong["bank is whole"] == "1 size; run: megart verify" and "is another file" in wrong["model"]
    assert shown["bank"]["memories"] == 2
    text = run("doctor", "--bank", tmp_path / "nowhere", code=1)[1]
    assert "no bank at" in text and "llama-cpp-python" in text


def test_a_pack(run: Run, made: Path, tmp_path: Path) -> None:
    with Bank.open(made) as bank:
        bank.set_evidence([(r, (np.ones(1, np.uint32), np.ones(4, np.int8))) for r in bank.records()])
        write_pack(bank, tmp_path / "p.megapack")
    shown = json.loads(run("doctor", "--bank", tmp_path / "p.megapack", "--json")[1])
    assert shown["bank"]["kind"] == "pack" and shown["bank"]["learnt"] == 1
