"""megart ask: an answer from what memories recite; also what `recall` shares with it."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from . import common, ui

if TYPE_CHECKING:
    from ..runtime.answer import Answer

EPILOG = """\
examples:
  megart ask Where did Morwenna keep the lighthouse?
  megart ask --style short "What was the goat called?"
  echo "What was the goat called?" | megart ask - --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="QUESTION", help='the question; "-" is standard input')
    form = parser.add_argument_group("the answer")
    form.add_argument(
        "--style",
        choices=("short", "sentence", "passage"),
        help="the fewest words, the sentence they stand in (default), or all that was recited",
    )
    form.add_argument(
        "--strict",
        action="store_true",
        default=None,
        help="where no memory answers, say only that (default: as the bank was made)",
    )
    form.add_argument(
        "--direct",
        action="store_true",
        help="let the memories' adapters answer by themselves, without reading: for the recipes direct and paper",
    )
    form.add_argument(
        "--mix", action="store_true", help="as --direct, all memories that open at once, by their gated sum"
    )
    add_answering(parser)


def add_answering(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that answers."""
    common.add_bank(parser, packs=True)
    common.add_model(parser, "the bank's own")
    add_options(parser)
    common.add_scope(parser)
    parser.add_argument(
        "--threads",
        type=common.positive,
        metavar="N",
        help="processor threads (default: the cores that are free)",
    )
    parser.add_argument(
        "-ngl",
        "--gpu-layers",
        type=common.whole,
        metavar="N",
        help="layers of the model to put on the GPU, where llama.cpp was built for one (default: 0)",
    )
    parser.add_argument(
        "--context",
        type=common.positive,
        metavar="N",
        help="tokens that question and answer may have together, at most what the model was trained for (default: 2048)",
    )
    parser.add_argument(
        "--draft-max",
        type=common.whole,
        metavar="N",
        help="tokens to guess at a time from the text of the memory that answers, 0 for none (default: 15)",
    )
    parser.add_argument(
        "--explain",
        action="store_true",
        help="say which memories opened, and the time of each step",
    )
    common.add_json(parser, "print one JSON object")


def add_options(parser: argparse.ArgumentParser) -> None:
    """How an answer is generated: greedily unless told otherwise."""
    group = parser.add_argument_group("generation")
    group.add_argument(
        "--max-tokens",
        type=common.positive,
        metavar="N",
        help="the longest answer, in tokens (default: 128 a memory; recall: 768)",
    )
    group.add_argument("--temperature", type=common.number, metavar="T", help="0 is greedy (default: 0)")
    group.add_argument(
        "--top-k", type=common.whole, metavar="N", help="of the N likeliest tokens (default: 40; 0: all)"
    )
    group.add_argument("--top-p", type=common.number, metavar="P", help="of those that make up P (default: 0.95)")
    group.add_argument("--min-p", type=common.number, metavar="P", help="at least P of the likeliest (default: 0.05)")
    group.add_argument("--repeat-penalty", type=common.number, metavar="X", help="1 is none (default: 1)")
    group.add_argument(
        "--seed", type=common.whole, metavar="N", help="repeat the same random choices (default: others each time)"
    )
    group.add_argument("--stop", action="append", metavar="TEXT", help="end before TEXT; may be given again")
    form = group.add_mutually_exclusive_group()
    form.add_argument("--grammar", metavar="FILE", help="a GBNF grammar that the answer must follow")
    form.add_argument("--json-schema", metavar="FILE", help="a JSON schema that the answer must follow")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """The options that were given, for the Assistant. Raises InputError for a file that cannot be read."""
    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "stop")
    values = {name: getattr(args, name) for name in names}
    for name in ("grammar", "json_schema"):
        path = getattr(args, name)
        values[name] = None if path is None else common.read_text(path)
    return {name: value for name, value in values.items() if value is not None}


def run(args: argparse.Namespace) -> int:
    words = common.question(args.words, "question")
    if args.direct or args.mix:
        if args.style or args.strict:
            raise InputError("got --style or --strict with --direct or --mix; expected one or the other")
        reply = answer(args, "direct", words, combine="mix" if args.mix else None)
    else:
        given = {"style": args.style, "strict": args.strict}
        reply = answer(args, "ask", words, **{name: value for name, value in given.items() if value is not None})
    show(args, reply)
    return 0


def answer(args: argparse.Namespace, verb: str, words: str, *, combine: str | None = None, **given: Any) -> Answer:
    """What the method *verb* of an Assistant answers to *words*, streamed to stdout unless it is printed as JSON."""
    words.encode()  # half a character from the terminal: say so before the model loads
    given = {**given, **options(args), **common.scope(args)}
    with common.open_bank(args) as bank:
        from ..runtime.assistant import Assistant

        given_how = {
            "gpu_layers": args.gpu_layers,
            "context_size": args.context,
            "draft_max": args.draft_max,
            "combine": combine,
        }
        how = {name: value for name, value in given_how.items() if value is not None}
        with Assistant(bank, model=args.model, threads=args.threads, **how) as assistant:
            if args.json:
                return getattr(assistant, verb)(words, **given)
            if verb != "ask":
                return getattr(assistant, verb)(words, on_text=ui.stream, **given)
            # What was read is marked when it is whole; the bare model's words come as they are decoded.
            live, bare = ui.is_live(sys.stdout), threading.Event()

            def told(known: bool | None, nearest: list[str]) -> None:
                ui.not_known(known, nearest)
                bare.set()

            def heard(text: str) -> None:
                if bare.is_set() or not live:
                    ui.stream(text)

            reply = assistant.ask(words, on_text=heard, on_known=told, **given)
            if live and not bare.is_set():
                ui.put_marked(reply)
            return reply


def show(args: argparse.Namespace, reply: Answer) -> None:
    """What follows an answer's text, or its JSON."""
    if args.json:
        ui.put_json(reply.to_dict())
    else:
        ui.stream("\n")
    if args.explain:
        ui.explain(reply)
    elif not args.json:
        ui.trace(reply)
