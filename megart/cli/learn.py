"""megart learn: teaches what was saved with `memorize --later`; also what `memorize` shares with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..bank import Bank, Record
from ..models import Model, resolve_model
from . import common, ui

if TYPE_CHECKING:
    from ..memorize import OnProgress, Progress

EPILOG = """\
examples:
  megart learn
  megart learn --bank notes --limit 20
  megart learn --bank brought/over --model ~/models/base.gguf

The oldest are learnt first, each is saved as soon as it is learnt, and the same command goes on
after an interruption. A bank may be filled on a machine without PyTorch and learnt on another."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser)
    parser.add_argument("--limit", type=common.positive, metavar="N", help="learn at most N memories")
    add_teaching(parser)
    common.add_json(parser, "print one line of JSON for each memory as it is learnt")


def add_teaching(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that teaches."""
    common.add_model(parser, "the bank's own", hf=True)
    parser.add_argument("--recipe", metavar="R", default="fast", help='"fast" (default) or "paper": how to teach')
    parser.add_argument(
        "--device",
        type=common.device,
        metavar="D",
        help="cpu or cuda (default: cuda where there is one)",
    )


def run(args: argparse.Namespace) -> int:
    from ..memorize import learn

    with common.open_bank(args) as bank:
        model = model_of(args, bank)
        count = min(len(bank.records("pending")), args.limit or 1 << 30)

        def call(progress: OnProgress) -> list[Record]:
            return learn(bank, limit=args.limit, recipe=args.recipe, device=args.device, model=model, progress=progress)

        watch(args, bank, lambda: count, call)
    return 0


def watch(
    args: argparse.Namespace, bank: Bank, count: Callable[[], int], call: Callable[[OnProgress], list[Record]]
) -> None:
    """Run `call` with its progress drawn; `count()` memories were given to it."""
    done: dict[str, list[str]] = {"learnt": [], "saved": []}
    with ui.StudyDisplay() as display:

        def progress(event: Progress) -> None:
            display.show(event)
            if event.state in done:
                done[event.state].append(event.id)
                if args.json:
                    display.clear()
                    ui.put_json_line(common.record_json(bank.get(event.id)))

        try:
            records = call(progress)
        except KeyboardInterrupt:
            display.clear()
            kept = len(done["learnt"]) + len(done["saved"])
            if not kept:
                raise KeyboardInterrupt("nothing was saved") from None
            raise KeyboardInterrupt(
                f"{kept} of {count()} memories are saved in {bank.path}; the same command goes on from there"
            ) from None
        learnt, saved = len(done["learnt"]), len(done["saved"])
        known = len(records) - learnt - saved
        pending = len(bank.records("pending"))
        display.finish(learnt=learnt, saved=saved, known=known, pending=pending, where=str(bank.path))


def model_of(args: argparse.Namespace, bank: Bank) -> Model | None:
    """The model that --model and --hf name; None for the bank's own."""
    if args.model is None and args.hf is None:
        return None
    return resolve_model(bank.model if args.model is None else args.model, args.hf)
