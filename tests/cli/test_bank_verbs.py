"""init, list, show, forget, verify: their whole output and their exit codes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from screen import Run, Terminal, adapter, needs_model

from megart.bank import Bank, Memory


def test_init_with_a_broken_model_leaves_no_bank(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    code, out, error = run("init", "--bank", tmp_path / "b", "--model", broken, code=1)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "the header is damaged or cut short (GGUF version 0, expected 2 or 3)" in error
    assert not (tmp_path / "b").exists()


def test_init(run: Run, loadable: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "new", loadable
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    _, text, err = run("init", "--bank", path, "--model", model)
    assert text == f"made the bank {path} for base ({digest})\n"
    assert re.fullmatch(r"base reads \d of 12 test questions right by itself; a reader helps: .*--data FILE\n", err)
    _, text, err = run("init", "--bank", tmp_path / "two", "--model", model, "--json")
    shown = json.loads(text)
    assert shown.pop("bank") == str(tmp_path / "two") and err == ""
    assert shown["base"].pop("sha256").startswith(digest)
    reading = shown.pop("reading")
    assert reading["right"] < 9 and reading["asked"] == 12 and reading["trained"] is False
    assert shown.pop("embedder") == "words"
    assert shown == {"base": {"name": "base", "spec": str(model), "gguf": str(model), "hf": None}}


def test_init_keeps_the_hugging_face_folder(run: Run, loadable: Path, tmp_path: Path) -> None:
    model = loadable
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    run("init", "--bank", tmp_path / "b", "--model", model, "--hf", tmp_path / "hf")
    with Bank.open(tmp_path / "b") as made:
        assert made.base.hf == str(tmp_path / "hf")


@needs_model
def test_init_default_model_and_bank(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("megart.runtime.aptitude.SECONDS", 600.0)  # all are asked, however busy the machine is
    path = tmp_path / "XDG_DATA_HOME" / "megart" / "bank"
    _, text, err = run("init")
    assert text == f"made the bank {path} for smollm2 (b179c9523d0e)\n"
    assert re.fullmatch(r"smollm2 reads (9|1[012]) of 12 test questions right with its reader\n", err)
    monkeypatch.setenv("MEGART_BANK", str(tmp_path / "other"))
    assert run("init", "--model", "smollm2")[1].startswith(f"made the bank {tmp_path / 'other'} for smollm2")


def test_list(run: Run, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (
        "id    title      state    recipe  rank   size  created\n"
        "ada   Ada Quill  learnt   fast       2  448 B  2026-01-02 03:04 UTC\n"
        "mill  -          pending  -          -      -  2026-01-02 03:04 UTC\n"
    ).replace("448 B", f"{len(adapter())} B")
    assert run("list", "--bank", bank)[1:] == (expected, "")
    monkeypatch.setenv("MEGART_BANK", str(bank))
    assert run("list")[1:] == (expected, "")


def test_list_by_tag(run: Run, bank: Path) -> None:
    with Bank.open(bank) as there:
        there.add(Memory("The ferry sails at dusk.", id="ferry", metadata={"tags": "Sea, boats"}), key=np.ones(4, "f4"))
    rows = json.loads(run("list", "--bank", bank, "--tag", "sea", "--tag", "boats", "--json")[1])
    assert [row["id"] for row in rows] == ["ferry"]
    said = run("list", "--bank", bank, "--tag", "boat", code=1)[2]
    assert said == "megart: error: got the tag 'boat', which no memory carries; there are: boats, Sea\n"
    said = run("list", "--bank", bank, "--tag", "sea", "--state", "learnt")[1:]
    assert said == ("", f"no memory of 3 in the bank {bank} is learnt and carries that tag\n")


def test_list_of_nothing(run: Run, empty: Path) -> None:
    assert run("list", "--bank", empty)[1:] == (
        "",
        f"the bank {empty} is empty; megart memorize fills it\n",
    )
    assert run("list", "--bank", empty, "--json")[1:] == ("[]\n", "")


def test_list_by_state(run: Run, bank: Path, empty: Path) -> None:
    for state, id in (("learnt", "ada"), ("pending", "mill")):
        rows = json.loads(run("list", "--bank", bank, "--state", state, "--json")[1])
        assert [(row["id"], row["state"]) for row in rows] == [(id, state)]
    run("forget", "--bank", bank, "--yes", "mill")
    assert run("list", "--bank", bank, "--state", "pending")[1:] == (
        "",
        f"no memory of 1 in the bank {bank} is pending\n",
    )


def test_list_and_show_json(run: Run, bank: Path) -> None:
    ada, mill = json.loads(run("list", "--bank", bank, "--json")[1])
    assert len(ada.pop("adapter_sha256")) == 64
    assert ada == {
        "id": "ada",
        "title": "Ada Quill",
        "text": "Ada Quill keeps bees.\nShe sells no honey.",
        "paraphrases": ["Bees are kept by Ada Quill."],
        "questions": ["What does Ada keep?"],
        "metadata": {"source": "Zoë"},
        "state": "learnt",
        "recipe": "fast",
        "activated": True,
        "rank": 2,
        "adapter_bytes": len(adapter()),
        "created_at": "2026-01-02T03:04:05Z",
        "learnt_at": "2026-01-02T03:05:00Z",
        "training": {"steps": 11, "seconds": 2.5},
    }
    assert mill["state"] == "pending" and mill["adapter_sha256"] is None
    assert json.loads(run("show", "--bank", bank, "mill", "--json")[1]) == {**mill, "recall_cue": None}


def test_show(run: Run, bank: Path) -> None:
    with Bank.open(bank) as open_bank:
        sha = open_bank.get("ada").adapter_sha256
    assert run("show", "--bank", bank, "ADA")[1:] == (
        f"""\
id          ada
title       Ada Quill
state       learnt
recall cue  Tell me about Ada Quill. Reconstruct the entire story that is related to the above question.
recipe      fast, rank 2, activated
adapter     {bank}/adapters/ada.gguf ({len(adapter())} B)
sha256      {sha}
created     2026-01-02 03:04 UTC
learnt      2026-01-02 03:05 UTC
training    steps 11, seconds 2.5
question    What does Ada keep?
paraphrase  Bees are kept by Ada Quill.
metadata    {{"source": "Zoë"}}

Ada Quill keeps bees.
She sells no honey.
""",
        "",
    )


def test_a_memory_is_meant_by_its_title_or_how_its_id_begins(run: Run, bank: Path) -> None:
    for name in ("Ada Quill", "ada quill", "ad", "ADA"):
        assert run("show", name, "--bank", bank, "--json")[1] == run("show", "ada", "--bank", bank, "--json")[1]
    with Bank.open(bank) as there:
        there.add(Memory("Ada Quill also sails.", id="ada-2", title="Ada Quill"), key=np.ones(4, "f4"))
    assert "'Ada Quill' may be 2 memories; give one of these ids: ada, ada-2" in run("show", "Ada Quill", "--bank", bank, code=1)[2]
    assert run("show", "ada", "--bank", bank, "--json")[1]  # an id is meant before all else
    assert "no memory 'mi'" in run("forget", "mi", "--bank", bank, "--yes", code=1)[2]  # nothing is forgotten by half a name


def test_forget(run: Run, bank: Path) -> None:
    # one wrong id among right ones changes nothing
    assert run("forget", "--bank", bank, "ada", "mil", code=1)[1:] == (
        "", f"megart: error: no memory 'mil' in the bank {bank}; did you mean mill?\n",
    )  # fmt: skip
    assert run("forget", "--bank", bank, "ada", "Ada")[1:] == ("forgot ada\n", "")
    assert run("forget", "--bank", bank, "mill", "--json")[1] == '{\n  "forgotten": [\n    "mill"\n  ]\n}\n'
    assert list((bank / "adapters").iterdir()) == []


@pytest.mark.parametrize("answer, code", [("n\n", 1), ("", 1), ("Y\n", 0)])
def test_forget_asks_a_person(answer: str, code: int, run: Run, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    _, out, err = run("forget", "--bank", bank, "ada", "mill", code=code)
    assert err == "forget Ada Quill, The mill stands still? [y/N] " + ("nothing was forgotten\n" if code else "")
    assert out == ("" if code else "forgot ada\nforgot mill\n")
    monkeypatch.setattr("sys.stdin", Terminal(""))
    if code:
        assert run("forget", "--bank", bank, "ada", "--yes")[1:] == ("forgot ada\n", "")


def test_verify(run: Run, bank: Path) -> None:
    assert run("verify", "--bank", bank)[1:] == ("2 memories, no problems\n", "")
    (bank / "adapters" / "ada.gguf").unlink()
    (bank / "adapters" / "stray.gguf").write_bytes(b"?")
    lost = "ada: there is no adapters/ada.gguf"
    stray = "adapters/stray.gguf belongs to no memory"
    assert run("verify", "--bank", bank, code=1)[1:] == (
        f"problem: {lost}\nproblem: {stray}\n", "megart verify --repair mends what can be mended\n",
    )  # fmt: skip
    assert json.loads(run("verify", "--bank", bank, "--json", code=1)[1]) == {
        "bank": str(bank),
        "memories": 2,
        "mended": [],
        "problems": [
            {"id": "ada", "kind": "missing", "message": lost},
            {"id": "", "kind": "orphan", "message": stray},
        ],
    }
    assert run("verify", "--bank", bank, "--repair")[1:] == (
        f"mended: {lost}\nmended: {stray}\n2 memories, no problems\n", "",
    )  # fmt: skip
    assert run("verify", "--bank", bank)[1:] == ("2 memories, no problems\n", "")


def test_verify_of_a_damaged_catalog(run: Run, bank: Path) -> None:
    data = bytearray((bank / "catalog.sqlite").read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    (bank / "catalog.sqlite").write_bytes(data)
    _, out, err = run("verify", "--bank", bank, code=1)
    assert len((out + err).splitlines()) in (1, 2) and "Traceback" not in err


def test_init_in_an_empty_folder_checks_the_model_too(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    (tmp_path / "b").mkdir()
    run("init", "--bank", tmp_path / "b", "--model", broken, code=1)
    assert not any((tmp_path / "b").iterdir())
