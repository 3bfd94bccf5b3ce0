"""megart chat: a conversation in the terminal, a line a turn; what begins with a slash is a command."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..bank import Bank, Memory
from ..errors import InputError, MegartError
from . import common, ui

if TYPE_CHECKING:
    from ..runtime.answer import Answer
    from ..runtime.assistant import Assistant

HELP = """\
  /remember TEXT    keep a note ("Remember that ..." does it too)
  /forget [ID]      forget a note: the one that the last answer is from, or ID
  /recall WORDS     say the whole note that the words are about
  /sources          the notes that the last answer is from, its words marked
  /why              what opened for the last answer, and the time of each step
  /style NAME       sentence, short or passage
  /new              begin a new conversation
  /help             this list
A line that ends with \\ goes on in the next. Ctrl-C stops an answer, Ctrl-D ends the talk."""
EPILOG = f"""\
in the conversation:
{HELP}

examples:
  megart chat
  megart chat --bank notes --style short
  megart chat --history ~/.local/state/megart-lines     the arrow keys find what was typed before"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser, packs=True)
    common.add_model(parser, "the bank's own")
    parser.add_argument(
        "--style",
        default="sentence",
        choices=("short", "sentence", "passage"),
        help="the answers' form (default: sentence)",
    )
    parser.add_argument(
        "--strict", action=argparse.BooleanOptionalAction, default=True,
        help="where the question is one for the notes and none answers, say only that (default), or let the model guess",
    )  # fmt: skip
    parser.add_argument(
        "--history", metavar="FILE", help="keep the lines that you type in FILE (default: nothing is kept)"
    )
    parser.add_argument("--threads", type=common.positive, metavar="N", help="(default: the cores that are free)")


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        from ..runtime.assistant import Assistant

        with Assistant(bank, model=args.model, threads=args.threads) as assistant, _lines(args.history) as read:
            ui.say(f"{bank.path.name}: {len(bank)} notes. Ask, or /help; Ctrl-D ends.")
            talk = ChatSession(bank, assistant, args.style, args.strict)
            while (line := read()) is not None:
                talk.take(line)
    return 0


class ChatSession:
    """One conversation: what was said, and the last answer."""

    def __init__(self, bank: Bank, assistant: Assistant, style: str, strict: bool | None):
        self.bank, self.assistant, self.style, self.strict = bank, assistant, style, strict
        self.conversation = assistant.conversation()
        self.last: Answer | None = None

    def take(self, line: str) -> None:
        """Answer or obey one line; what goes wrong is told, and the talk goes on."""
        words = line.strip()
        try:
            if words.startswith("/"):
                self._obey(*words[1:].partition(" ")[::2])
            elif words:
                self._say(words)
        except MegartError as error:
            ui.say(f"megart: {ui.one_line(str(error))}")
        except KeyboardInterrupt:
            ui.say("\n(stopped)")

    def _say(self, words: str) -> None:
        from ..serve.desk import to_remember

        note = to_remember(words)
        return self.remember(note) if note else self.ask(words)

    def ask(self, question: str) -> None:
        from ..runtime.ask import NOT_KNOWN

        bare = not ui.is_live(sys.stdout)

        def told(known: bool | None, nearest: list[str]) -> None:
            nonlocal bare
            ui.not_known(known, nearest)
            bare = True

        made = self.conversation.ask(
            question, style=self.style, strict=self.strict, on_known=told,
            on_text=lambda text: ui.stream(text) if bare and text != NOT_KNOWN else None,
        )  # fmt: skip
        if made.text != NOT_KNOWN:  # told above, with the nearest notes
            if not bare:
                ui.put_marked(made)
            ui.stream("\n")
        ui.trace(made)
        self.last = made

    # -- commands ------------------------------------------------------------------------------

    def _obey(self, name: str, rest: str) -> None:
        commands: dict[str, Callable[[str], None]] = {
            "remember": self.remember, "forget": self.forget, "recall": self.recall, "sources": self.sources,
            "why": self.why, "style": self.use_style, "new": self.begin, "help": lambda _: ui.say(HELP),
        }  # fmt: skip
        if name not in commands:
            raise InputError(f"got /{name}; expected one of {', '.join('/' + known for known in commands)}")
        commands[name](rest.strip())

    def remember(self, text: str) -> None:
        from ..later import save_one

        record = save_one(self.bank, Memory(text), self.assistant)
        ui.say(f"saved as {record.id}; it answers from now on, megart learn teaches it")

    def forget(self, id: str) -> None:
        if not id and not (self.last and self.last.sources):
            raise InputError("the last answer is from no note; give an id: /forget ID")
        record = self.bank.get(id or self.last.sources[0].id)  # type: ignore[union-attr]
        if ui.confirm(f"Forget {record.id} for good: {record.text[:100]}?"):
            ui.say(f"forgot {self.bank.remove(record.id).id}")

    def recall(self, words: str) -> None:
        if not words:
            raise InputError("got no words; expected /recall WORDS")
        made = self.assistant.recall(words, on_text=ui.stream)
        ui.stream("\n" if made.text else "No note is about that.\n")

    def sources(self, _: str) -> None:
        found = self.last.sources if self.last else []
        if not found:
            raise InputError("the last answer is from no note")
        for source in found:
            ui.say(
                ui.paint(f"{ui.one_line(source.title)} [{source.id}], {ui.moment(source.created)}", "dim", sys.stderr),
                painted=True,
            )
            ui.put_source(source)

    def why(self, _: str) -> None:
        if self.last is None:
            raise InputError("nothing was asked yet")
        ui.explain(self.last)

    def use_style(self, name: str) -> None:
        from ..runtime.request import STYLES

        if name not in STYLES:
            raise InputError(f"got the style {name!r}; expected one of {', '.join(STYLES)}")
        self.style = name

    def begin(self, _: str) -> None:
        self.conversation.forget()
        self.last = None


@contextlib.contextmanager
def _lines(history: str | None):  # type: ignore[no-untyped-def]
    """A function that reads the next line, None at the end; from a terminal with editing and the lines before."""
    if not ui.is_terminal(sys.stdin):
        yield lambda: _joined(lambda _: sys.stdin.readline())
        return
    try:
        import readline
    except ImportError:  # not everywhere; the terminal's own editing then
        yield lambda: _joined(lambda prompt: input(prompt) + "\n")
        return
    path = Path(history).expanduser() if history else None
    if path is not None:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            readline.read_history_file(path)
        except OSError as error:
            raise InputError(f"cannot use {path}: {error.strerror or error}") from error
    readline.set_history_length(1000)
    try:
        yield lambda: _joined(lambda prompt: input(prompt) + "\n")
    finally:
        if path is not None:
            readline.write_history_file(path)


def _joined(read: Callable[[str], str]) -> str | None:
    """A line, with those that a backslash at its end joins to it. Ctrl-C begins it anew."""
    line, prompt = "", "> "
    while True:
        try:
            part = read(prompt)
        except EOFError:
            part = ""
        except KeyboardInterrupt:
            ui.say("")
            line, prompt = "", "> "
            continue
        if not part:
            return line or None
        if not part.endswith("\\\n"):
            return line + part
        line, prompt = line + part[:-2] + "\n", ". "
