"""megart memorize: from files, options or standard input to memories in a bank."""

from __future__ import annotations

import argparse
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from ..bank import Bank, Memory, Record
from ..bank.edits import Edit, edited
from ..bank.memory import FORGET_AFTER
from ..bank.reading import from_text
from ..bank.sources import read_sources
from ..conflicts import CHOICES, Conflict, conflicts, supersede
from ..errors import InputError
from ..split import MOST_WORDS, PIECE_WORDS
from . import common, learn, ui

if TYPE_CHECKING:
    from ..memorize import OnProgress

MOST_COMPARED = 200  # memories of one call that are compared with the bank
EPILOG = """\
examples:
  megart memorize notes.md facts.jsonl
  megart memorize ~/notes                        a folder, an Obsidian vault, a chat export (.json)
  megart memorize handbook.md --max-words 120    many memories, titled by their headings
  megart memorize --title "The new bus" --text "Bus 12 stops at the mill since May." --tag town
  cat letter.txt | megart memorize --title "Letter from Ida"
  megart memorize --later --text "The spare key hangs behind the boiler."; megart learn"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILE",
        help='.txt, .md, .jsonl, chats in .json, or a folder of such; "-" is standard input',
    )
    parser.add_argument("--text", action="append", default=[], help="the text of one memory; may be given several times")
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
        "--ttl",
        type=common.duration,
        metavar="TIME",
        help="forget the memories given after TIME: 45m, 12h, 30d, 8w or 2y; given again, counted from now",
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
    parser.add_argument(
        "--keep", action="store_true", help="of a file that was read before, keep also what is no longer in it"
    )
    parser.add_argument(
        "--on-conflict",
        choices=CHOICES,
        default="keep",
        help="what becomes of a note that a new one may update: keep both (the newer answers), supersede it, skip the new "
        "one, or ask (default: keep)",
    )
    common.add_json(parser, "print one line of JSON for each memory as it is saved")


def run(args: argparse.Namespace) -> int:
    from ..memorize import memorize

    if args.later and args.ray is not None:
        raise InputError("--later saves without teaching and --ray teaches; give one of them")
    memories: list[Memory] = []
    edits: list[Edit] = []
    until = None if args.ttl is None else ends_at(args.ttl)
    with common.open_or_make_bank(args) as bank:
        model = common.model_of(args, bank)

        def call(progress: OnProgress) -> list[Record]:
            given, files = _memories(args)
            memories.extend(_lasting(memory.tagged(args.tag), until) for memory in given)
            edits.extend(edit for file in files if (edit := edited(bank, file, memories)))
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
            new = _new(bank, memories) if len(bank) else []
            if not new or len(new) > MOST_COMPARED or args.replace:
                return memorize(bank, memories, later=args.later, **how)
            from ..runtime.assistant import Assistant

            with Assistant(bank, model=model) as assistant:
                left, replaced = _settled(args, conflicts(assistant, new), memories)
                memories[:] = left
                records = memorize(bank, memories, later=args.later, assistant=assistant, **how) if left else []
            for conflict in replaced:
                for record in records:
                    if record.text == conflict.memory.text:
                        supersede(bank, conflict.old, record)
            return records

        def renewed(progress: OnProgress) -> list[Record]:
            records = call(progress)
            old = [record for record in records if until is not None and record.metadata.get(FORGET_AFTER) != until]
            for record in old:  # its text was there already
                bank.annotate(record.id, {FORGET_AFTER: until})
            return records

        learn.watch(args, bank, lambda: [m.id or m.default_id() for m in memories], renewed)
        for edit in edits:  # what took its place is in the bank by now
            if not args.keep:
                for record in edit.gone:
                    bank.remove(record.id)
            if edit.gone:
                ui.say(edit.told(kept=args.keep))
    return 0


def ends_at(seconds: int) -> str:
    """The moment *seconds* from now, UTC in ISO 8601."""
    return (datetime.now(timezone.utc) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _lasting(memory: Memory, until: str | None) -> Memory:
    return memory if until is None else replace(memory, metadata={**memory.metadata, FORGET_AFTER: until})


def _new(bank: Bank, memories: list[Memory]) -> list[Memory]:
    """Those of *memories* whose text the bank does not hold."""
    held = {record.text for record in bank.records()}
    return [memory for memory in memories if memory.text not in held]


def _settled(
    args: argparse.Namespace, conflicting: list[Conflict], memories: list[Memory]
) -> tuple[list[Memory], list[Conflict]]:
    """What is left of *memories*, and the conflicts whose old note is superseded; says what was found."""
    skipped, replaced = set(), []
    for conflict in conflicting:
        old = conflict.old
        ui.say(
            f"{ui.one_line(conflict.memory.text)}\n  may update [{old.id}] of {old.created[:10]} (probability {conflict.p:.2f}): "
            f"{ui.one_line(old.text)}"
        )
        chosen = args.on_conflict
        if chosen == "ask" and not common.stdin_is_terminal():
            raise InputError("--on-conflict ask needs a terminal; give keep, supersede or skip")
        if chosen == "ask":
            chosen = ui.choose("Keep both, supersede the old one, or skip the new one?", CHOICES[1:])
        if chosen == "skip":
            skipped.add(id(conflict.memory))
        elif chosen == "supersede":
            replaced.append(conflict)
    return [memory for memory in memories if id(memory) not in skipped], replaced


def _word_limit(text: str) -> int:
    """--max-words."""
    if not text.isascii() or not text.isdigit() or not 20 <= int(text[:9]) <= MOST_WORDS:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 20 to {MOST_WORDS}")
    return int(text)


def _memories(args: argparse.Namespace) -> tuple[list[Memory], list[Path]]:
    """Everything that the command line gives to learn, and the files it is from. Raises InputError."""
    sources = list(args.files)
    if not sources and not args.text:
        if common.stdin_is_terminal():
            raise InputError("got nothing to memorize; give files, --text, or text on standard input")
        sources = ["-"]
    if sources.count("-") > 1:
        raise InputError('got "-" twice; standard input can be read once')
    how = {"split": not args.no_split, "max_words": args.max_words}
    # A title of several rows is refused below; one text that is split has it in every piece's title.
    title = args.title if len(sources) + len(args.text) == 1 and args.id is None else None
    memories = [memory for text in args.text for memory in from_text(text, title, "--text", **how)]
    files: list[Path] = []
    if sources:
        read = read_sources(sources, title=title, **how)
        memories, files = memories + read.memories, read.files
        for line in read.skipped:
            ui.say(f"passed over: {line}")
    if args.title is None and args.id is None:
        return memories, files
    if len(memories) == 1:
        only = memories[0]
        return [replace(only, id=only.id if args.id is None else args.id, title=args.title or only.title)], files
    if args.id is None and all((memory.title or "").startswith(args.title) for memory in memories):
        return memories, files
    option = "--id" if args.title is None else "--title"
    raise InputError(f"{option} is for one memory, got {len(memories)}; leave it out, or use .jsonl")
