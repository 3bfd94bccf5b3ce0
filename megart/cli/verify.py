"""megart verify: whether a bank is whole."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..bank import Problem
from . import common, ui

EPILOG = """\
examples:
  megart verify
  megart verify --repair --bank notes

Exit code 1 when a problem is there (with --repair: when one is left). A repair moves files that
belong to no memory into quarantine/ and marks memories whose adapter is lost as pending; no text is lost."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    common.add_bank(parser)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        mended = bank.repair() if args.repair else []
        problems = bank.verify()
        count = len(bank) if not any(p.kind == "catalog" for p in problems) else None
        if args.json:
            ui.put_json(
                {
                    "bank": str(bank.path),
                    "memories": count,
                    "mended": [asdict(problem) for problem in mended],
                    "problems": [asdict(problem) for problem in problems],
                }
            )
            return 1 if problems else 0
        _put("mended", mended)
        _put("problem", problems)
        if not problems:
            ui.put(f"{count} {'memory' if count == 1 else 'memories'}, no problems")
        elif not args.repair:
            ui.say("megart verify --repair mends what can be mended")
    return 1 if problems else 0


def _put(word: str, problems: list[Problem]) -> None:
    for problem in problems:
        ui.put(f"{word}: {ui.one_line(problem.message)}")
