"""megart diff: what changed from one bank or pack to another."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..bank.merge import diff
from ..bank.pack import open_path
from . import common, ui

EPILOG = """\
examples:
  megart diff notes.megapack notes
  megart diff old.megapack new.megapack --json

A line each: + only in B, - only in A, ~ in both, with the fields that differ."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="A", help="a bank's folder or a pack")
    parser.add_argument("second", metavar="B", help="the other one")
    common.add_verify_key(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    key = common.verify_key(args)
    with open_path(args.first, key) as first, open_path(args.second, key) as second:
        difference = diff(first, second)
        if args.json:
            ui.put_json(asdict(difference))
            return 0
        lines = [f"- {id}" for id in difference.removed] + [f"+ {id}" for id in difference.added]
        lines += [f"~ {id}: {', '.join(names)}" for id, names in difference.changed.items()]
        ui.put("\n".join(lines) if lines else f"the same {len(first)} memories")
    return 0
