"""megart chat: a talk over lines, and in a real terminal with its keys."""

from __future__ import annotations

import io
import os
import re
import select
import stat
import sys
import time
from pathlib import Path

import pytest
from screen import Run, needs_model

from megart import Bank, Memory, memorize
from megart.models import Model

KEY = Memory("The boathouse was built in 1931. Its spare key hangs behind the blue oar.", id="key", title="Boathouse")
PROGRAM = "import sys; from megart.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def notes(smollm2: Model, tmp_path: Path) -> Path:
    with Bank.create(tmp_path / "notes", smollm2) as bank:
        memorize(bank, [KEY], later=True)
    return tmp_path / "notes"


@pytest.fixture
def talk(run: Run, notes: Path, monkeypatch: pytest.MonkeyPatch):
    def call(*lines: str, options: tuple[str, ...] = ()) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        return run("chat", "--bank", notes, "--threads", "1", *options)[1:]

    return call


@needs_model
def test_a_talk_asks_remembers_shows_and_forgets(talk, notes: Path) -> None:
    out, err = talk(
        "Where is the spare key of the boathouse?",
        "/sources",
        "/why",
        "/style short",
        "Where is the spare key of\\",
        "the boathouse?",
        "Remember that the ferry leaves at 7:40.",
        "/remember Ines takes oat milk.",
        "/recall the spare key of the boathouse",
        "",
    )
    assert out.splitlines() == [
        "Its spare key hangs behind the blue oar.",
        KEY.text,
        "behind the blue oar",
        KEY.text,
    ]
    assert "from Boathouse 1.00" in err and "Boathouse [key]" in err and "first token" in err
    with Bank.open(notes) as bank:
        assert [r.text for r in bank.records()][1:] == ["The ferry leaves at 7:40.", "Ines takes oat milk."]


@needs_model
def test_a_note_is_forgotten_after_a_yes(talk, notes: Path) -> None:
    _, err = talk("/forget key", "n", "Where is the spare key of the boathouse?", "/forget", "y")
    assert err.count("Forget key for good") == 2 and "kept key" in err and "forgot key" in err
    with Bank.open(notes) as bank:
        assert len(bank) == 0


@needs_model
def test_what_is_wrong_is_told_and_the_talk_goes_on(talk) -> None:
    out, err = talk(
        "/nothing", "/style loud", "/forget nobody", "/sources", "/why", "/recall", "/remember", "/new", "/help",
        "Where is the spare key of the boathouse?",
    )  # fmt: skip
    told = [line for line in err.splitlines() if line.startswith("megart: ")]
    assert len(told) == 7 and "expected one of /remember" in told[0] and "'loud'" in told[1] and "nobody" in told[2]
    assert "Ctrl-D ends" in err and out == "Its spare key hangs behind the blue oar.\n"


def test_a_turn_is_asked_with_those_before_it_until_a_new_talk(empty: Path) -> None:
    from types import SimpleNamespace

    from megart.cli.chat import ChatSession
    from megart.runtime.answer import Answer
    from megart.runtime.conversation import Conversation

    asked = []

    def chat(messages: list, *, on_text: object, subject: object, **how: object) -> Answer:
        *history, question = (turn["content"] for turn in messages)
        asked.append((question, history, how["style"]))
        if question == "stop":
            raise KeyboardInterrupt
        return Answer(f"to {question}", "ask")

    assistant = SimpleNamespace(chat=chat)
    assistant.conversation = lambda: Conversation(assistant)  # type: ignore[arg-type]
    talk = ChatSession(None, assistant, "short", None)  # type: ignore[arg-type]
    for line in ("one", "stop", "two", "/new", "three"):
        talk.take(line)
    assert asked == [
        ("one", [], "short"),
        ("stop", ["one", "to one"], "short"),
        ("two", ["one", "to one"], "short"),
        ("three", [], "short"),
    ]


@pytest.mark.slow
@needs_model
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_in_a_terminal_keys_stop_and_end_and_lines_are_kept_only_if_asked(notes: Path, tmp_path: Path) -> None:
    import pty

    lines = tmp_path / "lines"
    child, terminal = pty.fork()
    if child == 0:
        os.environ["PROMPT_TOOLKIT_NO_CPR"] = "1"
        os.execv(
            sys.executable,
            [sys.executable, "-c", PROGRAM, "chat", "--bank", str(notes), "--threads", "1", "--history", str(lines)],
        )
    seen = ""

    def until(pattern: str) -> None:
        nonlocal seen
        end = time.monotonic() + 120
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 1 << 16).decode("utf-8", "replace")
        seen = ""

    until(">")
    os.write(terminal, b"half a line")
    until("half a line")
    os.write(terminal, b"\x03")  # Ctrl-C begins the line anew
    until(">")
    os.write(terminal, b"/wh\t")  # Tab completes a command
    until("/why")
    os.write(terminal, b"\r")
    until("nothing was asked yet[^>]*>")
    os.write(terminal, b"Where is the spare key\x1b\rof the boathouse?\r")  # Alt-Enter: a new line
    until(r"hangs \x1b\[1mbehind the blue oar\x1b\[0m[^>]*total[^>]*>")
    os.write(terminal, b"Write a poem of a hundred lines about mountains and rivers and old trains.\r")
    until(r"\?2004l\w")  # its first word
    os.write(terminal, b"\x03")  # Ctrl-C stops an answer
    until(r"\(stopped\)[^>]*>")
    os.write(terminal, b"\x04")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(terminal)
    assert "spare key" in lines.read_text() and "half" not in lines.read_text()
    assert stat.S_IMODE(lines.stat().st_mode) == 0o600


def test_what_is_not_known_is_told_once(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from types import SimpleNamespace

    from megart.cli.chat import ChatSession
    from megart.runtime.answer import Answer
    from megart.runtime.ask import NOT_KNOWN
    from megart.runtime.conversation import Conversation

    def chat(messages: list, *, on_text, on_known, strict: bool, **how: object) -> Answer:
        assert strict
        on_known(False, ["Boathouse"])
        on_text(NOT_KNOWN)
        return Answer(NOT_KNOWN, "ask", known=False)

    assistant = SimpleNamespace(chat=chat)
    assistant.conversation = lambda: Conversation(assistant)  # type: ignore[arg-type]
    ChatSession(None, assistant, "sentence", True).take("Where is my passport?")  # type: ignore[arg-type]
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("Not in memory") == 1
    assistant.chat = lambda messages, **how: (how["on_known"](None, []), Answer(NOT_KNOWN, "ask"))[1]
    ChatSession(None, assistant, "sentence", True).take("hello")  # type: ignore[arg-type]
    told = capsys.readouterr()  # a general question, too, and no model is said to have spoken
    assert told.out == "" and told.err.startswith("Not in memory.\n[nothing is known;")
