"""megart memorize: from files, options or standard input to memories in a bank."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from ..bank import Memory, Record, read_memories
from ..bank.reading import from_text
from ..errors import InputError
from ..split import MOST_WORDS, PIECE_WORDS
from . import common, learn

if TYPE_CHECKING:
    from ..memorize import OnProgress

EPILOG = """\
examples:
  megart memorize notes.md facts.jsonl
  megart memorize handbook.md --max-words 120    many memories, titled by their headings
  megart memorize --title "The new bus" --text "Bus 12 stops at the mill since May." --tag town
  cat letter.txt | megart memorize --title "Letter from Ida"
  megart memorize --later --text "The spare key hangs behind the boiler."; megart learn"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help='.txt, .md or .jsonl; "-" is standard input')
    parser.add_argument("--text", help="the text of one memory")
    parser.add_argument("--title", help="the title of the memory given; of all its pieces when it is cut")
    parser.add_argument("--id", help="the id of the one memory given (default: made of its title and text)")
    parser.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="T",
        help="a tag for all memories given, by which ask --tag finds them; may be given again",
    )
    parser.add_argument(
        "--max-words",
        type=_word_limit,
        default=PIECE_WORDS,
        metavar="N",
        help=f"cut longer texts into memories of at most N words (default: {PIECE_WORDS})",
    )
    parser.add_argument("--no-split", action="store_true", help="each file is one memory (of at most 400 words)")
    parser.add_argument(
        "--later",
        action="store_true",
        help="save only, and answer from the text until megart learn has taught it; needs no PyTorch",
    )
    common.add_bank(parser)
    learn.add_teaching(parser)
    parser.add_argument("--replace", action="store_true", help="learn again what is in the bank under the same id")
    common.add_json(parser, "print one line of JSON for each memory as it is saved")


def run(args: argparse.Namespace) -> int:
    from ..memorize import memorize

    if args.later and args.ray is not None:
        raise InputError("--later saves without teaching and --ray teaches; give one of them")
    memories: list[Memory] = []
    with common.open_bank(args) as bank:
        model = common.model_of(args, bank)

        def call(progress: OnProgress) -> list[Record]:
            memories.extend(memory.tagged(args.tag) for memory in _memories(args))
            how = {
                "recipe": args.recipe,
                "device": args.device,
                "model": model,
                "progress": progress,
                "replace_existing": args.replace,
            }
            if args.ray is not None:
                from ..cluster import memorize_on

                return memorize_on(args.ray, bank, memories, **how)
            return memorize(bank, memories, later=args.later, **how)

        learn.watch(args, bank, lambda: [m.id or m.default_id() for m in memories], call)
    return 0


def _word_limit(text: str) -> int:
    """--max-words."""
    if not text.isascii() or not text.isdigit() or not 20 <= int(text[:9]) <= MOST_WORDS:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 20 to {MOST_WORDS}")
    return int(text)


def _memories(args: argparse.Namespace) -> list[Memory]:
    """Everything that the command line gives to learn. Raises InputError."""
    sources = list(args.files)
    if not sources and args.text is None:
        if common.stdin_is_terminal():
            raise InputError("got nothing to memorize; give files, --text, or text on standard input")
        sources = ["-"]
    if sources.count("-") > 1:
        raise InputError('got "-" twice; standard input can be read once')
    how = {"split": not args.no_split, "max_words": args.max_words}
    # A title of several rows is refused below; one text that is split has it in every piece's title.
    title = args.title if len(sources) + (args.text is not None) == 1 and args.id is None else None
    memories = [] if args.text is None else from_text(args.text, title, "--text", **how)
    for source in sources:
        memories.extend(read_memories(source, title=title, **how))
    if args.title is None and args.id is None:
        return memories
    if len(memories) == 1:
        only = memories[0]
        return [replace(only, id=only.id if args.id is None else args.id, title=args.title or only.title)]
    if args.id is None and all((memory.title or "").startswith(args.title) for memory in memories):
        return memories
    option = "--id" if args.title is None else "--title"
    raise InputError(f"{option} is for one memory, got {len(memories)}; leave it out, or use .jsonl")
