"""megart learn: teaches what was saved with `memorize --later`; also what `memorize` shares with it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..bank import Bank, Record
from . import common, progress, ui

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
    parser.add_argument(
        "--recipe", metavar="R", default="fast", help='"fast" (default), "direct" or "paper": how to teach'
    )
    parser.add_argument(
        "--device",
        type=common.device,
        metavar="D",
        help="cpu or cuda (default: cuda where there is one)",
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help='teach on the workers of a Ray cluster; "local" starts two workers here (needs megart[ray])',
    )


def run(args: argparse.Namespace) -> int:
    from ..memorize import learn

    with common.open_bank(args) as bank:
        model = common.model_of(args, bank)
        given = [record.id for record in bank.records("pending")][: args.limit]

        def call(on_progress: OnProgress) -> list[Record]:
            how = {"recipe": args.recipe, "device": args.device, "model": model, "progress": on_progress}
            if args.ray is not None:
                from ..cluster import memorize_on

                return memorize_on(args.ray, bank, [bank.get(id).memory for id in given], **how)
            return learn(bank, limit=args.limit, **how)

        watch(args, bank, lambda: given, call)
    return 0


def watch(
    args: argparse.Namespace, bank: Bank, given: Callable[[], list[str]], call: Callable[[OnProgress], list[Record]]
) -> None:
    """Run `call` with its progress drawn; `given()` names the memories that it was to commit."""
    state = "pending" if getattr(args, "later", False) else "learnt"
    count = {"learnt": 0, "saved": 0}
    with progress.StudyDisplay() as display:

        def told(event: Progress) -> None:
            display.show(event)
            if event.state in count:
                count[event.state] += 1
                if args.json:
                    display.clear()
                    ui.put_json_line(common.record_json(bank.get(event.id)))

        try:
            records = call(told)
        except KeyboardInterrupt:
            display.clear()
            # Asked of the bank: the interrupt may fall between a commit and its report.
            ids = given()
            done = "learnt" if state == "learnt" else "saved"
            if getattr(args, "replace", False):  # what is to be replaced is in the bank all the time
                number, rest = count[done], "--replace begins anew"
            else:
                number = sum((record := bank.find(id)) is not None and record.state in ("learnt", state) for id in ids)
                rest = "the same command goes on from there"
            if not number:
                raise KeyboardInterrupt(f"nothing was {done}") from None
            raise KeyboardInterrupt(f"{number} of {len(ids)} memories are {done} in {bank.path}; {rest}") from None
        known = len(records) - sum(count.values())
        pending = len(bank.records("pending"))
        display.finish(**count, known=known, pending=pending, where=str(bank.path))
