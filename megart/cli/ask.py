"""megart ask: an answer from the memories that the question opens; also what `recall` shares with it."""

from __future__ import annotations

import argparse

from . import common, ui

EPILOG = """\
examples:
  megart ask Where did Morwenna keep the lighthouse?
  megart ask --explain "What was the goat called?"
  echo "What was the goat called?" | megart ask - --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="QUESTION", help='the question; "-" is standard input')
    parser.add_argument("--irag", action="store_true", help="recall the memory first, then answer from its text")
    add_answering(parser)


def add_answering(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that answers."""
    common.add_bank(parser)
    common.add_model(parser, "the bank's own")
    parser.add_argument("--max-tokens", type=common.positive, metavar="N", help="the longest answer, in tokens")
    parser.add_argument(
        "--threads",
        type=common.positive,
        metavar="N",
        help="processor threads (default: all cores)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say which memories opened, and the time of each step",
    )
    common.add_json(parser, "print one JSON object")


def run(args: argparse.Namespace) -> int:
    return answer(args, "irag" if args.irag else "ask", common.question(args.words, "question"))


def answer(args: argparse.Namespace, mode: str, words: str) -> int:
    """Answer *words* with the method of Assistant that *mode* names, streaming to stdout."""
    words.encode()  # half a character from the terminal: say so before the model loads
    with common.open_bank(args) as bank:
        from ..runtime.assistant import Assistant

        with Assistant(bank, model=args.model, threads=args.threads) as assistant:
            limit = {} if args.max_tokens is None else {"max_tokens": args.max_tokens}
            verb = getattr(assistant, mode)
            made = verb(words, on_text=None if args.json else ui.stream, **limit)
    if args.json:
        ui.put_json(made.to_dict())
    else:
        ui.stream("\n")
    if args.explain:
        ui.explain(made)
    elif not args.json:
        ui.trace(made)
    return 0
