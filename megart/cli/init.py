"""megart init: an empty bank for a model."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..architecture import check_teachable
from ..bank import Bank
from ..bank.catalog import FILE_NAME
from ..errors import BankError, InputError
from ..models import DEFAULT_MODEL, resolve_model
from . import common, ui

EPILOG = """\
examples:
  megart init
  megart init --bank notes --model ~/models/qwen2.5-0.5b.gguf --hf ~/models/qwen2.5-0.5b"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser)
    common.add_model(parser, DEFAULT_MODEL, hf=True)
    parser.add_argument(
        "--strict", action="store_true", help='where no memory answers, say only "Not in memory." (as ask --strict)'
    )
    parser.add_argument(
        "--embedder", metavar="NAME",
        help="what finds by meaning: states (the default, for smollm2), e5+states or e5+minilm (where these are installed), "
        "gguf:FILE, or default: words and the base's keys alone; more in megart rekey --help",
    )  # fmt: skip
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    model = resolve_model(args.model, args.hf)
    from ..runtime import aptitude, embedders, states
    from ..runtime.ask import STRICT_STATE
    from ..runtime.assistant import Assistant
    from ..runtime.engine import Engine

    embedder = embedders.check(args.embedder or embedders.preferred(model.sha256))
    if states.NAME in embedder.split("+"):
        states.needed(model)
    second = embedders.make_text_embedder(embedder)  # refused before there is a bank
    if second is not None:
        second.close()
    path = common.bank_path(args.bank)
    if not (path / FILE_NAME).exists():
        check_teachable(model)
        Engine(model).close()  # a file that llama.cpp cannot load leaves no bank behind
    with Bank.create(path, model, exist_ok=_unfinished(path)) as bank:
        if args.embedder or (bank.get_state(embedders.STATE) is None and not len(bank)):
            if len(bank):
                raise InputError(f"{bank.path} holds memories already; run: megart rekey --embedder {embedder}")
            bank.set_state(embedders.STATE, embedder.encode())
        if args.strict:
            bank.set_state(STRICT_STATE, b"1")
        with Assistant(bank) as assistant:
            assistant.prepare()
            reads = assistant.on_model(lambda: aptitude.measure(assistant.runtime))
        bank.set_state(aptitude.STATE, reads.to_json())
        if args.json:
            ui.put_json(
                {"bank": str(bank.path), "base": asdict(bank.base), "embedder": embedder, "reading": asdict(reads)}
            )
        else:
            ui.put(f"made the bank {bank.path} for {bank.base.name} ({bank.base.sha256[:12]})")
            how = "with its reader" if reads.trained else "by itself"
            advice = (
                ""
                if reads.enough
                else f"; a reader helps: megart reader train --model {args.model or DEFAULT_MODEL} --data FILE"
            )
            ui.say(f"{bank.base.name} reads {reads.right} of {reads.asked} test questions right {how}{advice}")
    return 0


def _unfinished(path: Path) -> bool:
    """Whether the bank at *path* was begun by an init that was killed: what it stores last is not there."""
    from ..runtime.aptitude import STATE

    try:
        with Bank.open(path) as bank:
            return not len(bank) and bank.get_state(STATE) is None
    except BankError:
        return False
