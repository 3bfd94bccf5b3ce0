"""The command line as a whole: help, and one line for whatever goes wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from screen import Run

from megart.bank import Bank
from megart.cli import VERBS


def test_version_and_module() -> None:
    done = subprocess.run([sys.executable, "-m", "megart", "--version"], capture_output=True, text=True, check=False)
    import megart as package

    assert (done.returncode, done.stdout, done.stderr) == (0, f"megart {package.__version__}\n", "")


def test_help_of_every_verb(run: Run) -> None:
    assert run() == run("--help") == run("-h")
    out = run("--help")[1]
    for verb, line in VERBS.items():
        assert f"  {verb:<8}  {line}\n" in out
        shown = run(verb, "--help")[1]
        assert shown.startswith(f"usage: megart {verb} [-h]") and line.capitalize() in shown
        assert f"  megart {verb}" in shown.split("example")[1]


# Each bad input, and its one line. {dir} is a scratch folder with a bank and broken files in it.
ERRORS = {
    "verb": (
        ["recal", "x"],
        ("got the verb 'recal'; expected one of init, memorize, learn, ask, chat, recall, gate, list, show, "
        "forget, stats, export, import, rekey, reader, pack, unpack, merge, diff, serve, mcp, verify, doctor, eval, demo; did you mean recall?"),
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
        ("{dir}/base.gguf: the header is damaged or no model's (GGUF version 0, expected 2 or 3); get the file again"),
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
        "got recipe 'slow'; expected one of fast, direct, paper",
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

    with Bank.open(empty) as there:
        there.set_state("reading", b"{}")  # the last thing that init stores

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
