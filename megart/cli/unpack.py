"""megart unpack: a bank out of a pack."""

from __future__ import annotations

import argparse

from ..bank import Bank
from ..bank.merge import apply_delta, unpack
from ..bank.packed import PackedBank
from . import common, ui
from .merge import put_applied

EPILOG = """\
examples:
  megart unpack notes.megapack notes
  megart unpack notes.megapack notes --verify-key key.bin.pub
  megart unpack new.megapack notes       what pack --since wrote, onto the bank unpacked before"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the pack")
    parser.add_argument(
        "folder", metavar="DIR", help="the bank to make; of a pack since another one, the bank to bring up to date"
    )
    common.add_verify_key(parser)
    common.add_model(parser, "the pack's own")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with PackedBank(args.file, args.model, verify_key=common.verify_key(args)) as pack:
        if pack.delta is not None:
            with Bank.open(args.folder) as bank:
                put_applied(apply_delta(pack, bank), bank, args.json)
            return 0
        with unpack(pack, args.folder) as bank:
            if args.json:
                ui.put_json({"bank": str(bank.path), "memories": len(bank)})
            else:
                ui.put(f"unpacked {len(bank)} memories into {bank.path}")
    return 0
