"""memorize and learn on the command line: what they pass on, and the progress they show."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from screen import Run, Terminal, adapter

from megart.bank import Bank, Memory
from megart.cli import progress
from megart.memorize import Progress


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
    # No model is there to compare new notes with old ones by.
    monkeypatch.setattr("megart.cli.memorize.MOST_COMPARED", 0)
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
    assert re.fullmatch(rf"2 learnt in 2\.[5-9] s \([\d.]+ a minute\); bank {empty}", lines[3])
    assert len(lines) == 4
    assert teach[0]["recipe"] == "fast" and teach[0]["device"] is None
    assert teach[0]["model"] is None and teach[0]["replace_existing"] is False
    _, out, err = run("memorize", "--bank", empty, tmp_path / "mill.jsonl")
    assert (out, err) == ("", f"loading the model\n1 known already; bank {empty}\n")


def test_memorize_gives_tags(run: Run, empty: Path, teach: list[dict[str, object]], tmp_path: Path) -> None:
    (tmp_path / "two.jsonl").write_text('{"text": "Bees.", "tags": ["home"]}\n{"text": "Mills."}\n')
    run("memorize", "--bank", empty, "--tag", "town", "--tag", "home", tmp_path / "two.jsonl")
    with Bank.open(empty) as bank:
        assert [record.tags for record in bank.records()] == [("home", "town"), ("town", "home")]
    said = run("memorize", "--bank", empty, "--tag", " ", tmp_path / "two.jsonl", code=1)[2]
    assert "tags[0] is empty; expected at least one word" in said


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


def test_several_texts_are_several_memories(run: Run, empty: Path, teach: list[dict[str, object]]) -> None:
    run("memorize", "--bank", empty, "--text", "Bus 12 leaves at 8.", "--text", "Ida has the key.")
    assert [memory.text for memory in teach[0]["memories"]] == ["Bus 12 leaves at 8.", "Ida has the key."]
    assert "--title" in run("memorize", "--bank", empty, "--text", "a", "--text", "b", "--title", "T", code=1)[2]


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


def test_memorize_replace_interrupted_counts_what_is_new(
    run: Run, bank: Path, teach: list[dict[str, object]], tmp_path: Path
) -> None:
    """The memory to be replaced is in the bank already, learnt, with its old text."""
    (tmp_path / "two.jsonl").write_text('{"text": "Newer.", "id": "ada"}\n{"text": "stop"}\n')
    said = run("memorize", "--bank", bank, "--replace", tmp_path / "two.jsonl", code=130)[2]
    assert said.splitlines()[-1] == "megart: interrupted; nothing was learnt"
    (tmp_path / "two.jsonl").write_text('{"text": "Quite new."}\n{"text": "stop"}\n')
    said = run("memorize", "--bank", bank, "--replace", tmp_path / "two.jsonl", code=130)[2]
    assert said.splitlines()[-1] == (
        f"megart: interrupted; 1 of 2 memories are learnt in {bank}; --replace begins anew"
    )


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


def study(display: progress.StudyDisplay, clock: list[float]) -> None:
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
    display = progress.StudyDisplay(terminal, clock=lambda: clock[0])
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


def test_the_cursor_stays_while_progress_is_redrawn() -> None:
    """A program that is ended by a signal has no time to bring it back."""
    clock, terminal = [100.0], Terminal()
    study(progress.StudyDisplay(terminal, clock=lambda: clock[0]), clock)
    shown, hidden = terminal.getvalue().rfind("\x1b[?25h"), terminal.getvalue().rfind("\x1b[?25l")
    assert shown >= hidden


def test_learning_took_no_less_than_each_memory() -> None:
    clock, stream = [100.0], io.StringIO()
    display = progress.StudyDisplay(stream, clock=lambda: clock[0])
    display.show(Progress("studying", 0, 1, "ada", "", 1, 4.0))  # told when its first step was over
    clock[0] += 4.0
    display.show(Progress("learnt", 1, 1, "ada", "", 9, 0.01, 5.0))
    display.finish(learnt=1, known=0, where="/b")
    assert stream.getvalue() == "learnt 1/1 ada (9 steps, 5.0 s)\n1 learnt in 5.0 s (12.0 a minute); bank /b\n"


def test_progress_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    clock, terminal = [0.0], Terminal()
    study(progress.StudyDisplay(terminal, clock=lambda: clock[0]), clock)
    assert terminal.screen()[-2:] == [
        "████████░░░░░░░░░░░░░░░░ 1/3 …",
        "  mill  step  12  loss 0.125",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_plain_elsewhere(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    stream, clock = (Terminal() if terminal else io.StringIO()), [0.0]
    with progress.StudyDisplay(stream, clock=lambda: clock[0]) as display:
        study(display, clock)
    assert stream.getvalue() == "loading the model\nlearnt 1/3 Ada Quill [ada] (9 steps, 5.0 s)\n"
