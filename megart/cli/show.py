"""megart show: all about one memory."""

from __future__ import annotations

import argparse
import json

from ..adapter import CUE_KEY
from ..bank import Bank, Record
from ..bank.memory import FORGET_AFTER
from ..bank.packed import PackedBank
from ..errors import AdapterError, BankError
from ..recipes import cue_of
from . import common, ui

EPILOG = """\
examples:
  megart show lighthouse-keeper
  megart show lighthouse-keeper --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the memory's id, as megart list shows it, its title, or how its id begins")
    common.add_bank(parser, packs=True)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        record = common.find_record(bank, args.id)
        cue = recall_cue(bank, record) if record.adapter_sha256 else None
        if args.json:
            ui.put_json({**common.record_json(record), "recall_cue": cue})
            return 0
        kind = "activated" if record.activated else "whole prompt"
        fields = [("id", record.id), ("title", record.title or "-"), ("state", record.state)]
        if record.adapter_sha256:
            fields.append(("recall cue", cue or "-"))
            fields += [
                ("recipe", f"{record.recipe or '-'}, rank {record.rank}, {kind}"),
                ("adapter", f"{_place(bank, record)} ({ui.size(record.adapter_bytes)})"),
                ("sha256", record.adapter_sha256),
            ]
        fields.append(("created", ui.moment(record.created_at)))
        if record.learnt_at:
            fields.append(("learnt", ui.moment(record.learnt_at)))
        if record.expires is not None:
            fields.append(("to be forgotten", str(record.metadata[FORGET_AFTER])))
        if record.training:
            fields.append(("training", ", ".join(f"{k} {v}" for k, v in record.training.items())))
        fields += [("question", text) for text in record.questions]
        fields += [("paraphrase", text) for text in record.paraphrases]
        if record.metadata:
            fields.append(("metadata", json.dumps(record.metadata, ensure_ascii=False)))
        ui.put_fields(fields)
        ui.put(f"\n{record.text}")
    return 0


def _place(bank: Bank | PackedBank, record: Record) -> str:
    return f"in {bank.path}" if isinstance(bank, PackedBank) else str(bank.adapter_path(record.id))


def recall_cue(bank: Bank | PackedBank, record: Record) -> str | None:
    """The user turn that the memory's adapter answers with its text; None where nobody knows, or its file is damaged."""
    try:
        told = bank.adapter(record.id).metadata.get(CUE_KEY)
    except (AdapterError, BankError):
        return None  # verify says what is wrong with it
    return cue_of(told, record)
