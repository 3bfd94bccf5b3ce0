"""Seconds, recall, peak memory and bytes per memory: this engine against PEFT loops on the same texts.

    python tools/bench_memorize.py DATA.jsonl [--memories 40] [--slow 4] [--methods fast,paper,peft,tuned] [--out FILE]

DATA.jsonl is evaluation JSONL (title, text, paraphrases, qa). Every method starts from the same base
(SmolLM2-135M-Instruct, dequantised from its GGUF) and is judged by llama.cpp on the exported file.

    fast   megart's recipe fast, as ``megart memorize`` runs it
    paper  megart's recipe paper
    peft   a PEFT loop per document in float32 as users write it: all MLP projections, rank 16, the text
           and its paraphrases under one prompt, ten epochs
    tuned  a PEFT loop in bfloat16 with the examples, layers, rank, rate and stopping rule of recipe fast
    later  ``megart memorize --later``: text and key saved, nothing learnt

Paper, peft and tuned learn only the first ``--slow`` memories. Loading the base is not counted. PEFT's
adapters work on the whole prompt, as PEFT trains them. Each method runs in a process of its own, so
that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

METHODS = ("fast", "later", "tuned", "paper", "peft")
PEFT_RATE, PEFT_EPOCHS = 3e-4, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--partition", type=int, help="only rows of this partition")
    parser.add_argument("--memories", type=int, default=40)
    parser.add_argument("--slow", type=int, default=4, help="memories for paper, peft and tuned")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.data.read_text("utf-8").splitlines()]
    rows = [r for r in rows if args.partition is None or r.get("partition") == args.partition]
    if args.one:
        rows = rows[: args.memories if args.one in ("fast", "later") else args.slow]
        run = {"fast": _megart, "paper": _megart, "later": _later}.get(args.one, _peft)
        print(json.dumps(run(rows, args)))
        return
    results = {}
    for method in args.methods.split(","):
        command = [sys.executable, *sys.argv, "--one", method]
        output = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        results[method] = json.loads(output.splitlines()[-1])
        print(f"{method:6}", "  ".join(f"{k} {v}" for k, v in results[method].items()), flush=True)
    if "fast" in results:
        for method in results:
            results[method]["times_fast"] = round(results[method]["seconds"] / results["fast"]["seconds"], 2)
    if args.out:
        command = f"python tools/bench_memorize.py {args.data.name} " + " ".join(sys.argv[2:])
        machine = {"processor": platform.machine(), "system": platform.system(), "device": args.device}
        args.out.write_text(json.dumps({"command": command, **machine, "methods": results}, indent=1) + "\n", "utf-8")


def _report(rows: list[dict], seconds: float, size: float, heard: list[str]) -> dict:
    """*heard* holds the recalled text of each row."""
    recalled = sum(text.split() == row["text"].split() for row, text in zip(rows, heard))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # kB on Linux
    return {
        "memories": len(rows),
        "seconds": round(seconds / len(rows), 3),
        "recalled": recalled,
        "bytes": round(size),
        "peak_mb": peak,
    }


def _megart(rows: list[dict], args: argparse.Namespace) -> dict:
    from megart import Assistant, Bank, Memory
    from megart.adapter import read_adapter
    from megart.memorize import Teacher, TeachOptions
    from megart.recipes import RECIPES

    recipe = RECIPES[args.one]
    with tempfile.TemporaryDirectory() as folder, Bank.create(Path(folder) / "bank", "smollm2") as bank:
        with Assistant(bank) as assistant:
            teacher = Teacher(bank, TeachOptions(recipe, args.device), bank.model, assistant)
            memories = [_memory(Memory, row) for row in rows]
            started = time.perf_counter()
            teacher.teach(memories)
            seconds = time.perf_counter() - started
            paths = {r.id: bank.adapter_path(r.id) for r in bank.records()}
            size = statistics.mean(path.stat().st_size for path in paths.values())
            heard = []
            for memory in memories:
                heard.append(_recite(assistant, read_adapter(paths[memory.id]), recipe.activated))
    return _report(rows, seconds, size, heard)


def _later(rows: list[dict], args: argparse.Namespace) -> dict:
    from megart import Assistant, Bank, Memory
    from megart.later import save_pending

    with tempfile.TemporaryDirectory() as folder, Bank.create(Path(folder) / "bank", "smollm2") as bank:
        with Assistant(bank) as assistant:
            assistant.prepare()
            memories = [_memory(Memory, row) for row in rows]
            spent: list[float] = []
            save_pending(bank, memories, assistant=assistant, on_saved=lambda _, seconds, *__: spent.append(seconds))
            keys = [_milliseconds(lambda m=m: assistant.key(m.text, m.title)) for m in memories]
    stats = _report(rows, sum(spent), 0, [])
    del stats["recalled"], stats["bytes"]
    return {**stats, "median_ms": round(statistics.median(spent) * 1e3, 1), "key_ms": round(statistics.median(keys), 1)}


def _milliseconds(work) -> float:  # type: ignore[no-untyped-def]
    started = time.perf_counter()
    work()
    return (time.perf_counter() - started) * 1e3


def _memory(kind, row: dict):  # type: ignore[no-untyped-def]
    return kind(row["text"], id=row["id"], title=row["title"], paraphrases=tuple(row.get("paraphrases", ())))


def _recite(assistant, adapter, activated: bool) -> str:  # type: ignore[no-untyped-def]
    from megart.prompts import RECALL_CUE

    return assistant.acceptance.recall(adapter, RECALL_CUE, activated=activated, max_tokens=256)


def _peft(rows: list[dict], args: argparse.Namespace) -> dict:
    import torch
    from peft import LoraConfig, get_peft_model

    from megart import Assistant, Bank, Memory, recipes
    from megart.adapter import read_adapter, write_adapter
    from megart.recipes import FAST
    from megart.train.base import load_base
    from megart.train.export import to_adapter

    tuned = args.one == "tuned"
    heard, sizes, spent = [], [], []
    with tempfile.TemporaryDirectory() as folder, Bank.create(Path(folder) / "bank", "smollm2") as bank:
        with Assistant(bank) as assistant:
            engine = assistant.engine
            base = load_base(bank.model, device=args.device, dtype=torch.bfloat16 if tuned else torch.float32)
            count = len(base.network.base_model.layers)
            for row in rows:
                memory = _memory(Memory, row)
                pairs = recipes.examples(memory, FAST if tuned else replace(FAST, studies="paraphrases"))
                samples = []
                for user, text in pairs:
                    prompt = engine.prompt([{"role": "user", "content": user}]).tokens
                    target = [*engine.tokenize(text, special=False), engine.end_of_turn]
                    samples.append((torch.tensor([[*prompt, *target]]), len(prompt), text == memory.text))
                started = time.perf_counter()
                rank = FAST.rank if tuned else 16
                config = LoraConfig(
                    r=rank,
                    lora_alpha=FAST.alpha if tuned else 16,
                    target_modules=["gate_proj", "up_proj", "down_proj"],
                    layers_to_transform=list(range(recipes.cut(FAST, count), count)) if tuned else None,
                )
                model = get_peft_model(base.network, config)
                _loop(model, samples, tuned)
                spent.append(time.perf_counter() - started)
                factors = _factors(model, base)
                model.unload()
                adapter = to_adapter(factors, architecture=engine.architecture, scale=config.lora_alpha / rank)
                path = Path(folder) / "adapter.gguf"
                path.write_bytes(write_adapter(adapter))
                sizes.append(path.stat().st_size)
                heard.append(_recite(assistant, read_adapter(path), False))
    stats = _report(rows, sum(spent), statistics.mean(sizes), heard)
    return {**stats, "median_seconds": round(statistics.median(spent), 3)}


def _loop(model, samples: list, tuned: bool) -> None:  # type: ignore[no-untyped-def]
    import torch

    from megart.recipes import FAST

    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=FAST.rate if tuned else PEFT_RATE)
    verbatim = [s for s in samples if s[2]]
    others = [s for s in samples if not s[2]]
    known: dict[int, float] = {}
    for step in range(FAST.max_steps if tuned else PEFT_EPOCHS * len(samples)):
        picks = [samples[step % len(samples)]]
        if tuned:
            picks = [verbatim[step % len(verbatim)], *([others[step % len(others)]] if others else [])]
        for ids, start, exact in picks:
            labels = ids.clone()
            labels[:, :start] = -100
            output = model(input_ids=ids, labels=labels)
            (output.loss / len(picks)).backward()
            if tuned and exact:
                logits = output.logits[0, start - 1 : -1].detach().float()
                own = logits.gather(1, ids[0, start:, None])
                rest = logits.scatter(1, ids[0, start:, None], -torch.inf).amax(dim=1, keepdim=True)
                known[step % len(verbatim)] = (own - rest).min().item()
        if tuned and all(known.get(i, -1.0) >= FAST.margin for i in range(len(verbatim))):
            return
        optimizer.step()
        optimizer.zero_grad()


def _factors(model, base) -> dict:  # type: ignore[no-untyped-def]
    named = {id(t.module): t.name for t in base.targets}
    factors = {}
    for module in model.modules():
        if hasattr(module, "lora_A") and id(module.base_layer) in named:
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            factors[named[id(module.base_layer)]] = tuple(x.detach().float().cpu().numpy() for x in (a, b))
    return factors


if __name__ == "__main__":
    main()
