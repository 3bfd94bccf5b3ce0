"""llama.cpp on a GPU: asking with all layers there, half of them, and none.

    python tools/gpu_ask.py         with a llama.cpp that was built for the GPU
    python tools/gpu_ask.py cpu     tries this program itself, nothing offloaded

For each: a mix written into the slot computes what a reloaded adapter computes, the hidden states that
the gate reads are the processor's, and a bank answers the same by either route. The last line is the
result: how many layers, whether the slot is used, where its tensors lie, and milliseconds per install.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import llama_cpp
import numpy as np

from megart.adapter import Adapter, write_adapter
from megart.bank import Bank, Memory
from megart.models import resolve_model
from megart.runtime import embed
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.scope import Scope
from megart.runtime.slot import Slot

RANK, INSTALLS = 8, 20
ALL = 999
# Of logits: an in-place mix and a reloaded one differ by nothing but the order of the same sums.
CLOSE = 0.05
TEXT = "Orrin Vale tunes the church bells of Sankt Imre on the first Monday of the month."


def noise(engine: Engine) -> Adapter:
    random = np.random.default_rng(1)
    width, ffn = engine.n_embd, int(engine.metadata(f"{engine.architecture}.feed_forward_length") or 0)
    tensors = {}
    for layer in range(engine.n_layer):
        for role, (inside, out) in {"ffn_up": (width, ffn), "ffn_down": (ffn, width)}.items():
            a = random.normal(0, inside**-0.5, (RANK, inside)).astype(np.float16)
            b = random.normal(0, 0.1, (out, RANK)).astype(np.float16)
            tensors[f"blk.{layer}.{role}.weight"] = (a, b)
    return Adapter(engine.architecture, float(RANK), tensors)


def slots(layers: int) -> tuple[str, bool]:
    """Both routes with *layers* on the GPU: a line, and whether all is well."""
    engine = Engine(resolve_model("smollm2"), gpu_layers=layers)
    adapter = noise(engine)
    prompt = engine.prompt([{"role": "user", "content": "Who tunes the church bells?"}])
    logits, took, way, there = {}, {}, "", 0
    for in_place in (True, False):
        context = Context(engine, size=512)
        slot = Slot(context)
        slot.in_place = in_place
        slot.install([adapter], [1.0])
        started = time.perf_counter()
        for _ in range(INSTALLS):
            slot.install([adapter], [1.0])
        took[in_place] = (time.perf_counter() - started) / INSTALLS * 1000
        context.truncate(0)
        context.decode(prompt.tokens)
        logits[in_place] = context.logits()
        if in_place:
            way = "in place" if slot.in_place else "FELL BACK to reloading"
            there = len(slot.layout.device) if slot.layout else 0
        slot.close()
        context.close()
    engine.close()
    differ = float(np.abs(logits[True] - logits[False]).max())
    line = (
        f"{layers} layers: slot {way}, {there} of {len(adapter.tensors)} matrices in device memory, logits differ by "
        f"{differ:.2g}, install {took[True]:.1f} ms, reload {took[False]:.1f} ms"
    )
    return line, bool(np.isfinite(logits[True]).all() and differ < CLOSE and way == "in place")


def states(layers: int) -> np.ndarray:
    """The mean state that the gate makes its query of."""
    engine = Engine(resolve_model("smollm2"), gpu_layers=layers)
    context = Context(engine, size=512, watch=[embed.tensor_name(embed.pick_layer(engine.n_layer))])
    prompt = engine.prompt([{"role": "user", "content": TEXT}])
    context.decode(prompt.body)
    mean = embed.token_mean(context, prompt.span)
    context.close()
    engine.close()
    return mean


def answers(layers: int, folder: Path) -> tuple[list[int], list[int]]:
    """A bank of one memory, opened by hand: the tokens of its answer in place and by reloading."""
    tokens = []
    for in_place in (True, False):
        with (
            Bank.create(folder / f"{layers}-{in_place}", resolve_model("smollm2")) as bank,
            Assistant(bank, gpu_layers=layers) as assistant,
        ):
            assistant.slot.in_place = in_place
            adapter = write_adapter(noise(assistant.engine))
            key = assistant.key(TEXT)
            bank.add(Memory(TEXT, id="bells"), key=key, adapter=adapter, recipe="noise", activated=True, rank=RANK)
            scope = Scope(gates={"bells": 1.0})
            tokens.append(assistant.direct("Who tunes the church bells?", max_tokens=16, scope=scope).tokens)
    return tokens[0], tokens[1]


def main() -> None:
    offloads = (ALL, 15, 0)
    if sys.argv[1:] == ["cpu"]:
        offloads = (0,)
    elif not llama_cpp.llama_supports_gpu_offload():
        print(f"{llama_cpp.__file__} was built without a GPU backend")
        sys.exit(1)
    good, lines = True, []
    processor = states(0)
    with tempfile.TemporaryDirectory() as folder:
        for layers in offloads:
            line, right = slots(layers)
            mean = states(layers)
            cosine = float(mean @ processor / np.linalg.norm(mean) / np.linalg.norm(processor))
            written, reloaded = answers(layers, Path(folder))
            same = "the same answer" if written == reloaded else "ANOTHER ANSWER"
            lines.append(f"{line}; states' cosine {cosine:.4f}; {same} by either route")
            good = good and right and cosine > 0.999 and written == reloaded
            print(lines[-1], flush=True)
    print(" | ".join(lines))
    sys.exit(not good)


if __name__ == "__main__":
    main()
