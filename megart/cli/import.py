"""megart import: a memory with an adapter that was trained elsewhere."""

from __future__ import annotations

import argparse

from ..bank import Memory
from . import common, ui

EPILOG = """\
examples:
  megart import --peft keeper/ --title "The keeper" --text "Morwenna kept the lighthouse."
  megart import --gguf keeper.gguf --text "Morwenna kept the lighthouse." --id keeper

The text is what the adapter was trained to know: it makes the key by which the memory is found, and it is
recalled once: an adapter that recites less than half of it is refused. Scales of LoRA and rsLoRA are kept exactly."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--peft", metavar="DIR", help="a folder with adapter_config.json and adapter_model.safetensors")
    kind.add_argument("--gguf", metavar="FILE", help="a LoRA GGUF file")
    parser.add_argument("--text", required=True, help="the text of the memory")
    parser.add_argument("--title", help="the title of the memory")
    parser.add_argument("--id", help="the id of the memory (default: made of its title)")
    parser.add_argument("--replace", action="store_true", help="replace what is in the bank under the same id")
    parser.add_argument("--force", action="store_true", help="take an adapter that recites little of the text too")
    common.add_bank(parser)
    common.add_model(parser, "the bank's own")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    from ..interop import import_adapter

    memory = Memory(args.text, id=args.id, title=args.title)
    with common.open_bank(args) as bank:
        record = import_adapter(
            bank,
            args.peft or args.gguf,
            memory,
            model=args.model,
            replace_existing=args.replace,
            force=args.force,
        )
        if args.json:
            ui.put_json(common.record_json(record))
            return 0
        share = record.training["recall"]
        known = "its text word for word" if share == 1 else f"{share:.0%} of its text" if share >= 0.005 else "nothing of its text"
        ui.put(f"imported {record.id}: it recalls {known}")
    return 0
