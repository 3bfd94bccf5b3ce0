"""megart forget: memories out of a bank."""

from __future__ import annotations

import argparse

from . import common, ui

EPILOG = """\
examples:
  megart forget lighthouse-keeper
  megart forget --yes --bank notes bus-12 mill"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="+", metavar="ID", help="the memory's id")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask (asked only in a terminal)")
    common.add_bank(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        # all are looked up before any is removed: one wrong id changes nothing
        records = {record.id: record for record in map(bank.get, args.ids)}
        if not args.yes and common.stdin_is_terminal():
            names = ", ".join(record.title or record.id for record in records.values())
            if not ui.confirm(f"forget {names}?"):
                ui.say("nothing was forgotten")
                return 1
        for id in records:
            bank.remove(id)
            if not args.json:
                ui.put(f"forgot {id}")
        if args.json:
            ui.put_json({"forgotten": list(records)})
    return 0
