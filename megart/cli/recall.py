"""megart recall: a whole memory from a cue."""

from __future__ import annotations

import argparse

from . import common
from .ask import add_answering, answer

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
    return answer(args, "recall", common.question(args.words, "cue"))
