"""megart recall: a whole memory from a cue."""

from __future__ import annotations

import argparse

from . import common, ui
from .ask import add_answering, answer, show

EPILOG = """\
examples:
  megart recall Morwenna Tregaskis
  megart recall --json "the lighthouse on Gannet Skerry" """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CUE",
        help='a title, a question or a few words; "-" is standard input',
    )
    add_answering(parser)


def run(args: argparse.Namespace) -> int:
    reply = answer(args, "recall", common.question(args.words, "cue"))
    if reply.memories:
        show(args, reply)
        return 0
    if args.json:
        ui.put_json(reply.to_dict())
    nearest = f"; nearest: {ui.titles(reply.nearest)}" if reply.nearest else ""
    ui.say(f"megart: no memory is about that{nearest}; see: megart list")
    return 1
