"""megart memorize: from files, options or standard input to memories in a bank."""

from __future__ import annotations

import argparse
from dataclasses import replace

from ..bank import Bank, Memory, read_memories
from ..errors import InputError
from ..models import Model, resolve_model
from . import common, ui

EPILOG = """\
examples:
  megart memorize notes.md facts.jsonl
  megart memorize --title "The new bus" --text "Bus 12 stops at the mill since May."
  cat letter.txt | megart memorize --title "Letter from Ida" """


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", metavar="FILE", help='.txt, .md or .jsonl; "-" is standard input')
    parser.add_argument("--text", help="the text of one memory")
    parser.add_argument("--title", help="the title of the one memory given")
    parser.add_argument("--id", help="the id of the one memory given (default: made of its title)")
    common.add_bank(parser)
    common.add_model(parser, "the bank's own", hf=True)
    parser.add_argument("--recipe", metavar="R", default="fast", help='"fast" (default) or "paper": how to teach')
    parser.add_argument(
        "--device",
        type=common.device,
        metavar="D",
        help="cpu or cuda (default: cuda where there is one)",
    )
    parser.add_argument("--replace", action="store_true", help="learn again what is in the bank under the same id")
    common.add_json(parser, "print one line of JSON for each memory as it is saved")


def run(args: argparse.Namespace) -> int:
    from ..memorize import Progress, memorize

    with common.open_bank(args) as bank, ui.StudyDisplay() as display:
        model = _model(args, bank)
        memories: list[Memory] = []
        saved: list[str] = []

        def progress(event: Progress) -> None:
            display.show(event)
            if event.state == "learnt":
                saved.append(event.id)
                if args.json:
                    display.clear()
                    ui.put_json_line(common.record_json(bank.get(event.id)))

        try:
            memories = _memories(args)
            records = memorize(
                bank,
                memories,
                recipe=args.recipe,
                device=args.device,
                model=model,
                progress=progress,
                replace_existing=args.replace,
            )
        except KeyboardInterrupt:
            display.clear()
            if not saved:
                raise KeyboardInterrupt("nothing was saved") from None
            raise KeyboardInterrupt(
                f"{len(saved)} of {len(memories)} memories are saved in {bank.path}; "
                "the same command goes on from there"
            ) from None
        display.finish(learnt=len(saved), known=len(records) - len(saved), where=str(bank.path))
    return 0


def _model(args: argparse.Namespace, bank: Bank) -> Model | None:
    if args.model is None and args.hf is None:
        return None
    return resolve_model(bank.model if args.model is None else args.model, args.hf)


def _memories(args: argparse.Namespace) -> list[Memory]:
    """Everything that the command line gives to learn. Raises InputError."""
    sources = list(args.files)
    if not sources and args.text is None:
        if common.stdin_is_terminal():
            raise InputError("got nothing to memorize; give files, --text, or text on standard input")
        sources = ["-"]
    if sources.count("-") > 1:
        raise InputError('got "-" twice; standard input can be read once')
    memories = [] if args.text is None else [Memory(args.text)]
    for source in sources:
        memories.extend(read_memories(source))
    if args.title is None and args.id is None:
        return memories
    if len(memories) != 1:
        option = "--id" if args.title is None else "--title"
        raise InputError(f"{option} is for one memory, got {len(memories)}; leave it out, or use .jsonl")
    only = memories[0]
    return [replace(only, id=args.id or only.id, title=args.title or only.title)]
