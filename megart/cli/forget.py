"""megart forget: memories out of a bank."""

from __future__ import annotations

import argparse
import time

from ..bank import Record
from ..errors import InputError
from . import common, ui

EPILOG = """\
examples:
  megart forget lighthouse-keeper
  megart forget --yes --bank notes bus-12 mill
  megart forget --expired --dry-run      what is past its time, and would be forgotten"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ids", nargs="*", metavar="ID", help="the memory's id, or its title")
    parser.add_argument("--expired", action="store_true", help="all memories that are past their time (memorize --ttl)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be forgotten")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask (asked only in a terminal)")
    common.add_bank(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not args.ids and not args.expired:
        raise InputError("got nothing to forget; give ids, or --expired")
    with common.open_bank(args) as bank:
        # all are looked up before any is removed: one wrong id changes nothing
        records = {r.id: r for r in (common.find_record(bank, name, begun=False) for name in args.ids)}
        if args.expired:
            now = time.time()
            records |= {r.id: r for r in bank.records() if r.expires is not None and r.expires <= now}
        if args.dry_run:
            _show(args, list(records.values()))
            return 0
        if records and not args.yes and common.stdin_is_terminal():
            names = ", ".join(record.heading for record in records.values())
            if not ui.confirm(f"forget {names}?"):
                ui.say("nothing was forgotten")
                return 1
        for id in records:
            bank.remove(id)
            if not args.json:
                ui.put(f"forgot {id}")
        if args.json:
            ui.put_json({"forgotten": list(records)})
        elif not records:
            ui.say(f"no memory of the bank {bank.path} is past its time")
    return 0


def _show(args: argparse.Namespace, records: list[Record]) -> None:
    if args.json:
        ui.put_json({"forgotten": [], "would_forget": [record.id for record in records]})
        return
    for record in records:
        title = f" {ui.one_line(record.title)}" if record.title else ""
        what = f"its adapter of {ui.size(record.adapter_bytes)}" if record.adapter_bytes else "no adapter"
        ui.put(f"would forget {record.id}:{title} {len(record.text)} characters, {what}")
    if not records:
        ui.put("nothing would be forgotten")
