"""llama.cpp on a GPU: the slot written in place computes what a reloaded adapter computes.

The last line is the result: largest difference of logits, and milliseconds per install.
"""

from __future__ import annotations

import sys
import time

import llama_cpp
import numpy as np

from megart.adapter import Adapter
from megart.models import resolve_model
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot

RANK, INSTALLS = 8, 20


def main() -> None:
    if not llama_cpp.llama_supports_gpu_offload():
        print(f"{llama_cpp.__file__} was built without a GPU backend")
        sys.exit(1)
    engine = Engine(resolve_model("smollm2"), gpu_layers=999)
    random = np.random.default_rng(1)
    width, ffn = engine.n_embd, int(engine.metadata(f"{engine.architecture}.feed_forward_length") or 0)
    tensors = {}
    for layer in range(engine.n_layer):
        for role, (inside, out) in {"ffn_up": (width, ffn), "ffn_down": (ffn, width)}.items():
            a = random.normal(0, inside**-0.5, (RANK, inside)).astype(np.float16)
            b = random.normal(0, 0.1, (out, RANK)).astype(np.float16)
            tensors[f"blk.{layer}.{role}.weight"] = (a, b)
    adapter = Adapter(engine.architecture, float(RANK), tensors)
    prompt = engine.prompt([{"role": "user", "content": "Who tunes the church bells?"}])
    found, took, ways = {}, {}, {}
    for in_place in (True, False):
        context = Context(engine, size=512)
        slot = Slot(context, in_place=in_place)
        slot.install([adapter], [1.0])
        started = time.perf_counter()
        for _ in range(INSTALLS):
            slot.install([adapter], [1.0])
        took[in_place] = (time.perf_counter() - started) / INSTALLS * 1000
        context.truncate(0)
        context.decode(prompt.tokens)
        found[in_place] = context.logits()
        ways[in_place] = slot.in_place
        slot.close()
        context.close()
    engine.close()
    differ = float(np.abs(found[True] - found[False]).max())
    way = "in place" if ways[True] else "FELL BACK to reloading"
    print(f"slot {way}, logits differ by {differ:.2g}, install {took[True]:.1f} ms, reload {took[False]:.1f} ms")
    sys.exit(not (np.isfinite(found[True]).all() and differ < 0.05))


if __name__ == "__main__":
    main()
