"""megart list: the memories of a bank."""

from __future__ import annotations

import argparse

from ..bank.memory import check_tags
from . import common, ui

EPILOG = """\
examples:
  megart list
  megart list --bank notes --json
  megart list --state pending    what megart learn would teach"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser, packs=True)
    parser.add_argument("--state", choices=("learnt", "pending"), help="only the memories in that state")
    parser.add_argument("--tag", action="append", default=[], metavar="T", help="only those that carry the tag T")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        if args.tag:
            check_tags(args.tag, bank.records())
        records = [record for record in bank.records(args.state) if record.carries(args.tag)]
        if args.json:
            ui.put_json([common.record_json(record) for record in records])
        elif not records and args.state:
            ui.say(
                f"no memory of {len(bank)} in the bank {bank.path} is {args.state}{' and carries that tag' if args.tag else ''}"
            )
        elif not records:
            ui.say(f"the bank {bank.path} is empty; megart memorize fills it")
        else:
            ui.put_table(
                ["id", "title", "state", "recipe", "rank", "size", "created"],
                [
                    [
                        record.id,
                        record.title or "-",
                        record.state,
                        record.recipe or "-",
                        str(record.rank) if record.rank else "-",
                        ui.size(record.adapter_bytes),
                        ui.moment(record.created_at),
                    ]
                    for record in records
                ],
                right=("rank", "size"),
                shrink="title",
            )
    return 0
