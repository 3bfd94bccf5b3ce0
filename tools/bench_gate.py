"""How often the default gate opens the right memory, and how often it opens for nothing.

    python tools/bench_gate.py DATA_DIR [--partitions 0,1,2,3,4] [--out tools/results/gate.json]

DATA_DIR holds wiki2024.jsonl, facts_mcq.jsonl and mmlu_dev.jsonl. One bank per partition.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from megart.gate import GatePolicy
from megart.models import resolve_model
from megart.runtime import embed
from megart.runtime.context import Context
from megart.runtime.engine import Engine


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--partitions", default="0,1,2,3,4")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    engine = Engine(resolve_model("smollm2"))
    layer = embed.pick_layer(engine.n_layer)
    context = Context(engine, size=2048, watch=embed.tensor_name(layer), stop=True)
    whitening = embed.learn_whitening(context)

    def queries(words: list[str]) -> np.ndarray:
        return np.stack([whitening.query(embed.memory_key(context, w)) for w in words])

    strangers = queries([r["q"] for name in ("facts_mcq", "mmlu_dev") for r in rows(args.data / f"{name}.jsonl")])
    policy = GatePolicy()
    right, opened, false = [], [], []
    for partition in map(int, args.partitions.split(",")):
        memories = [r for r in rows(args.data / "wiki2024.jsonl") if r["partition"] == partition]
        keys = whitening.keys(np.stack([embed.memory_key(context, r["text"], r["title"]) for r in memories]))
        owner = np.array([i for i, r in enumerate(memories) for _ in r["qa"]])
        scores = queries([qa["q"] for r in memories for qa in r["qa"]]) @ keys.T
        right += (scores.argmax(1) == owner).tolist()
        opened += (scores.max(1) >= policy.threshold).tolist()
        false += ((strangers @ keys.T).max(1) >= policy.threshold).tolist()
    result = {
        "command": f"python tools/bench_gate.py DATA_DIR --partitions {args.partitions}",
        "threshold": policy.threshold,
        "top1": round(float(np.mean(right)), 4),
        "opens": round(float(np.mean(opened)), 4),
        "questions": len(right),
        "false_opens": round(float(np.mean(false)), 4),
        "unrelated_questions": len(strangers),
    }
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
