"""megart verify: whether a bank is whole, and whether its memories still recite their texts."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..bank import Bank, Problem
from . import common, progress, ui

if TYPE_CHECKING:
    from ..verbatim import Recited

EPILOG = """\
examples:
  megart verify
  megart verify --repair --bank notes
  megart verify --recall            lets every memory recite its text, which takes a while

Exit code 1 when a problem is there (with --repair: when one is left), or with --recall a memory that does not
recite word for word. A repair moves files that belong to no memory into quarantine/ and marks memories whose
adapter is lost as pending; no text is lost."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repair", action="store_true", help="mend what can be mended")
    parser.add_argument("--recall", action="store_true", help="recall every memory and say which are not word for word")
    common.add_bank(parser, packs=True)
    common.add_model(parser, "the bank's own")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        mended = bank.repair() if args.repair else []
        problems = bank.verify()
        count = len(bank) if not any(p.kind == "catalog" for p in problems) else None
        recited = _recite(bank, args.model) if args.recall and count is not None else []
        told = {problem.id for problem in problems}
        problems += [Problem(r.id, "recall", r.told()) for r in recited if r.share < 1 and r.id not in told]
        if args.json:
            ui.put_json(
                {
                    "bank": str(bank.path),
                    "memories": count,
                    "mended": [asdict(problem) for problem in mended],
                    "problems": [asdict(problem) for problem in problems],
                    **({"recalled": {r.id: round(r.share, 4) for r in recited}} if args.recall else {}),
                }
            )
            return 1 if problems else 0
        _put("mended", mended)
        _put("problem", problems)
        if not problems:
            word = f"; {len(recited)} recalled word for word" if args.recall else ""
            ui.put(f"{count} {'memory' if count == 1 else 'memories'}, no problems{word}")
        elif not args.repair and any(problem.kind != "recall" for problem in problems):
            ui.say("megart verify --repair mends what can be mended")
    return 1 if problems else 0


def _recite(bank: Bank, model: str | None) -> list[Recited]:
    from ..runtime.assistant import Assistant
    from ..verbatim import recite_all

    if not bank.records("learnt"):
        return []
    started = time.perf_counter()
    with Assistant(bank, model=model) as assistant, progress.Meter() as meter:
        return recite_all(
            bank,
            assistant.acceptance,
            lambda done, of: meter.show(done, of, (time.perf_counter() - started) / done * (of - done), "recalled"),
        )


def _put(word: str, problems: list[Problem]) -> None:
    for problem in problems:
        ui.put(f"{word}: {ui.one_line(problem.message)}")
