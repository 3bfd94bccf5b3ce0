"""megart chat: a conversation in the terminal, a line a turn; what begins with a slash is a command."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..bank import Bank, Memory
from ..errors import InputError, MegartError
from . import common, ui

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

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
A line that ends with \\ goes on in the next (in a terminal Alt-Enter, too). Tab completes a command, the arrow keys
bring back what was said. Ctrl-C stops an answer, Ctrl-D ends the talk."""
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
        help="where no note answers, say only that (default), or let the model guess",
    )  # fmt: skip
    parser.add_argument(
        "--history", metavar="FILE", help="keep the lines that you type in FILE (default: nothing is kept)"
    )
    parser.add_argument("--threads", type=common.positive, metavar="N", help="(default: the cores that are free)")


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        from ..runtime.assistant import Assistant

        read = _lines(args.history)
        with Assistant(bank, model=args.model, threads=args.threads) as assistant:
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
            ui.not_known(known, nearest, bool(self.strict))
            bare = True

        answer = self.conversation.ask(
            question, style=self.style, strict=self.strict, on_known=told,
            on_text=lambda text: ui.stream(text) if bare and text != NOT_KNOWN else None,
        )  # fmt: skip
        if answer.text != NOT_KNOWN:  # told above, with the nearest notes
            if not bare:
                ui.put_marked(answer)
            ui.stream("\n")
        ui.trace(answer)
        self.last = answer

    # -- commands ------------------------------------------------------------------------------

    def _obey(self, name: str, rest: str) -> None:
        if name not in COMMANDS:
            raise InputError(f"got /{name}; expected one of {', '.join('/' + known for known in COMMANDS)}")
        COMMANDS[name](self, rest.strip())

    def remember(self, text: str) -> None:
        from ..later import save_one

        record = save_one(self.bank, Memory(text), self.assistant)
        ui.say(f"saved as {record.id}; it answers from now on, megart learn teaches it")

    def forget(self, id: str) -> None:
        if not id and not (self.last and self.last.sources):
            raise InputError("the last answer is from no note; give an id: /forget ID")
        record = common.find_record(self.bank, id or self.last.sources[0].id)  # type: ignore[union-attr]
        if ui.confirm(f"Forget {record.id} for good: {record.text[:100]}?"):
            ui.say(f"forgot {self.bank.remove(record.id).id}")
        else:
            ui.say(f"kept {record.id}")

    def recall(self, words: str) -> None:
        if not words:
            raise InputError("got no words; expected /recall WORDS")
        answer = self.assistant.recall(words, on_text=ui.stream)
        ui.stream("\n" if answer.text else "No note is about that.\n")

    def sources(self, _: str) -> None:
        sources = self.last.sources if self.last else []
        if not sources:
            raise InputError("the last answer is from no note")
        for source in sources:
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

    def help(self, _: str) -> None:
        ui.say(HELP)


COMMANDS = {
    "remember": ChatSession.remember, "forget": ChatSession.forget, "recall": ChatSession.recall,
    "sources": ChatSession.sources, "why": ChatSession.why, "style": ChatSession.use_style, "new": ChatSession.begin,
    "help": ChatSession.help,
}  # fmt: skip

def _lines(history: str | None) -> Callable[[], str | None]:
    """A function that reads what is said next, None at the end; Ctrl-C begins it anew.

    In a terminal with editing, Tab for the commands, and the lines before, which are kept in the file *history*.
    """
    if not ui.is_terminal(sys.stdin):
        return _piped_line
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.output import create_output

    path = Path(history).expanduser() if history else None
    if path is not None:
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise InputError(f"cannot use {path}: {error.strerror or error}") from error
    session: PromptSession[str] = PromptSession(
        history=FileHistory(path) if path else InMemoryHistory(),
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        key_bindings=_keys(),
        output=create_output(always_prefer_tty=True),
    )

    def read() -> str | None:
        while True:
            try:
                return session.prompt("> ", prompt_continuation=". ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None

    return read


def _keys() -> KeyBindings:
    """Enter says it, but after a backslash it goes on in a new line, as Alt-Enter does."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def say(event: KeyPressEvent) -> None:
        if event.current_buffer.document.text_before_cursor.endswith("\\"):
            event.current_buffer.delete_before_cursor()
            event.current_buffer.insert_text("\n")
        else:
            event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def go_on(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _piped_line() -> str | None:
    """A line of stdin, with those that a backslash at its end joins to it."""
    line = ""
    while part := sys.stdin.readline():
        if not part.endswith("\\\n"):
            return line + part
        line += part[:-2] + "\n"
    return line or None
