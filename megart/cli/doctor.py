"""megart doctor: what a bug report needs."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from . import common, ui

EPILOG = """\
examples:
  megart doctor
  megart doctor --bank notes --json > report.json

It prints versions, the machine, the model, the bank in numbers, and checks of these: nothing that a memory says, no
title and no id, and "~" for your home folder. Exit code 1 when a check found something wrong."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser, packs=True)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..doctor import examine

    report = examine(common.bank_path(args.bank), common.verify_key(args))
    if args.json:
        ui.put_json({**asdict(report), "good": report.good})
        return 0 if report.good else 1
    for head in ("versions", "machine", "model", "bank"):
        if section := getattr(report, head):
            ui.put(f"{head}:")
            ui.put_fields([(f"  {name.replace('_', ' ')}", _shown(value)) for name, value in section.items()])
    ui.put("checks:")
    for check in report.checks:
        ui.draw(f"  {ui.mark(check.good)} {ui.one_line(f'{check.name}: {check.said}')}")
    return 0 if report.good else 1


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{number} {name}" for name, number in value.items()) or "-"
    return "-" if value in (None, "") else str(value)
