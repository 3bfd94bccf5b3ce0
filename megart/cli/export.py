"""megart export: a memory's adapter for other programs."""

from __future__ import annotations

import argparse

from . import common, ui
from .show import recall_cue

EPILOG = """\
examples:
  megart export --gguf lighthouse-keeper keeper.gguf    for llama.cpp: --lora keeper.gguf
  megart export --peft lighthouse-keeper keeper/        a PEFT folder

An activated memory ("megart show" says so) works from the generation prompt on: llama.cpp's server
and PEFT read that from what is written (aLoRA)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--gguf", nargs=2, metavar=("ID", "FILE"), help="write a LoRA GGUF file")
    kind.add_argument("--peft", nargs=2, metavar=("ID", "DIR"), help="write a PEFT folder")
    parser.add_argument("--replace", action="store_true", help="overwrite what is there")
    common.add_bank(parser, packs=True)
    common.add_model(parser, "the bank's own", hf=True)
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..interop import export_gguf, export_peft

    with common.open_bank(args) as bank:
        if args.gguf:
            id, where = args.gguf
            path = export_gguf(bank, id, where, replace_existing=args.replace)
        else:
            id, where = args.peft
            model = common.model_of(args, bank)
            path = export_peft(bank, id, where, model=model, replace_existing=args.replace)
        record = common.find_record(bank, id)
        cue = recall_cue(bank, record)
        if args.json:
            ui.put_json({"id": record.id, "path": str(path), "recall_cue": cue})
        else:
            ui.put(f"wrote {path}" + (f"; recited by: {cue}" if cue else ""))
    return 0
