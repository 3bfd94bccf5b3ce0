"""megart merge: memories of banks and packs into one bank."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from ..bank import Bank
from ..bank.catalog import FILE_NAME
from ..bank.merge import Applied, apply_delta, merge
from ..bank.pack import open_path
from ..bank.packed import PackedBank
from ..errors import InputError
from . import common, ui

EPILOG = """\
examples:
  megart merge phone.megapack laptop notes     into notes, which is made where it is not there
  megart merge --rename old notes
  megart merge new.megapack notes              what pack --since wrote, onto the bank unpacked before

The same text is one memory. One id with two texts is refused before anything is written, unless --rename is given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", metavar="BANK", help="a bank's folder or a pack")
    parser.add_argument("into", metavar="INTO", help="the bank that gets the memories")
    parser.add_argument("--rename", action="store_true", help="give a memory whose id stands for another text a new id")
    common.add_verify_key(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with ExitStack() as opened:
        sources: list[Bank | PackedBank] = []
        for path in args.sources:
            sources.append(open_path(path, common.verify_key(args)))
            opened.callback(sources[-1].close)
        deltas = [s for s in sources if isinstance(s, PackedBank) and s.delta is not None]
        if deltas and len(sources) > 1:
            raise InputError(f"{deltas[0].path} holds only what changed since another pack; apply it alone")
        if deltas:
            into = opened.enter_context(Bank.open(args.into))
            put_applied(apply_delta(deltas[0], into), into, args.json)
            return 0
        there = (Path(args.into).expanduser() / FILE_NAME).exists()
        into = opened.enter_context(Bank.open(args.into) if there else Bank.create(args.into, sources[0].model))
        done = merge(sources, into, rename=args.rename)
        if args.json:
            ui.put_json({"bank": str(into.path), **asdict(done), "memories": len(into)})
            return 0
        for old, new in done.renamed:
            ui.put(f"{old} came in as {new}")
        learnt = f", {len(done.learnt)} that were pending are learnt" if done.learnt else ""
        memories = "memory" if len(done.added) == 1 else "memories"
        ui.put(f"added {len(done.added)} {memories} to {into.path}; {len(done.same)} were there{learnt}")
    return 0


def put_applied(done: Applied, bank: Bank, as_json: bool) -> None:
    """Say what a delta pack did to *bank*."""
    if as_json:
        ui.put_json({"bank": str(bank.path), **asdict(done), "memories": len(bank)})
        return
    counts = f"added {len(done.added)}, changed {len(done.changed)}, forgot {len(done.forgotten)}"
    ui.put(f"{counts}; {bank.path} has {len(bank)} memories")
