"""The command line: a table of verbs. Each verb is a module here with `add_arguments` and `run`.

Only the module of the verb in use is imported. Exit codes: 0, 1 for any error (one line on stderr,
a traceback only under --debug or MEGART_DEBUG=1), 130 after Ctrl-C, 141 when the reader went away.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from ..errors import InputError, MegartError
from . import ui

VERBS = {
    "init": "make an empty bank for a model",
    "memorize": "teach the model memories and save them in a bank",
    "learn": "teach the model the memories that were saved for later",
    "ask": "answer a question from the memories that it opens",
    "chat": "talk with a bank in the terminal",
    "recall": "say a whole memory again from a cue",
    "gate": "show which memories a question opens, and why",
    "list": "list the memories of a bank",
    "show": "show all about one memory",
    "forget": "remove memories from a bank",
    "stats": "show how much a bank holds, and what of it is used",
    "export": "write a memory's adapter for llama.cpp or PEFT",
    "import": "take in an adapter that was trained elsewhere",
    "rekey": "make the keys of all memories anew, perhaps by another embedder",
    "reader": "train what answers from recited memories, for another model",
    "pack": "write a bank, or some of it, as one file that is used in place",
    "unpack": "make a bank of a pack",
    "merge": "put the memories of banks or packs into a bank",
    "diff": "show what changed from one bank or pack to another",
    "serve": "answer assistants over HTTP (OpenAI's and Ollama's way), and a page",
    "mcp": "give a bank to assistants as tools (Model Context Protocol)",
    "verify": "check that a bank is whole, and mend it",
    "doctor": "print what a bug report needs, and check it",
    "eval": "measure recall, answers and forgetting, and write a report",
    "demo": "watch a real model learn facts and answer from them",
}
_ENVIRONMENT = """\
environment:
  MEGART_BANK   the bank when --bank is not given
  MEGART_DEBUG  1: show tracebacks
  NO_COLOR      no colours and no redrawn progress"""


class Parser(argparse.ArgumentParser):
    """Wrong usage is an InputError like any other: one line, exit 1."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    words = [*(sys.argv[1:] if argv is None else argv)]  # `list` is a verb's module in here
    ui.prepare_streams()
    try:
        code = _dispatch(words)
        ui.flush()
        return code
    except BrokenPipeError:
        code = 141
    except KeyboardInterrupt as stop:
        ui.say(f"megart: interrupted; {stop}" if str(stop) else "megart: interrupted")
        code = 130
    except Exception as error:
        if "--debug" in words or os.environ.get("MEGART_DEBUG") == "1":
            traceback.print_exc()
        ui.say(f"megart: error: {_line(error)}")
        code = 1
    try:
        ui.flush()
    except OSError:
        ui.abandon_stdout()
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        return _top(words)
    verb = words[0]
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else "see: megart --help"
        raise InputError(f"got the verb {verb!r}; expected one of {', '.join(VERBS)}; {hint}")
    module = importlib.import_module(f"{__name__}.{verb}")
    parser = Parser(
        prog=f"megart {verb}",
        description=f"{VERBS[verb].capitalize()}.",
        epilog=getattr(module, "EPILOG", None),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show a traceback on errors")
    try:
        args = parser.parse_args(words[1:])
    except SystemExit as done:
        return int(done.code or 0)
    return int(module.run(args))


def _top(words: list[str]) -> int:
    """`megart` without a verb: help and version."""
    first = words[0] if words else "--help"
    if first in ("-h", "--help"):
        width = max(map(len, VERBS))
        verbs = "\n".join(f"  {verb:<{width}}  {help}" for verb, help in VERBS.items())
        ui.put(
            "usage: megart VERB [options]\n\nMemories for small language models, on your own machine.\n\n"
            f"verbs:\n{verbs}\n\noptions:\n  -h, --help  this help; megart VERB --help for a verb\n"
            f"  --version   the version\n\n{_ENVIRONMENT}"
        )
    elif first == "--version":
        from megart import __version__

        ui.put(f"megart {__version__}")
    else:
        raise InputError(f"got {first!r} before a verb; options follow the verb, see: megart --help")
    return 0


def _line(error: Exception) -> str:
    """The error as one line."""
    if isinstance(error, MegartError):
        text = str(error)
    elif isinstance(error, OSError):
        reason = error.strerror or str(error) or type(error).__name__
        text = f"{error.filename}: {reason}" if error.filename else reason
    elif isinstance(error, UnicodeError):
        text = f"got text that is not UTF-8: {error}"
    else:
        text = f"unexpected {type(error).__name__}: {error}; --debug shows where"
    return " ".join(text.split())
