"""How often the gate ranks the right memory first with each embedder, and how many general questions get an answer.

    python tools/bench_find.py DATA_DIR WORK [--embedders NAME,...] [--parts NAME,...] [--out tools/results/find.json]

Through the public API, on banks of pending memories made in WORK. DATA_DIR holds the files that its README lists. Parts:
wiki2024 (partitions 5 to 9, a bank each), squad and tofu (all memories in one bank, the questions of those at odd places,
which chose nothing), mmlu and facts_mcq (all their questions to the memories of partition 5). What an earlier run
measured is kept in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from bench_gate import share
from gate_reading import rows

import megart

PARTS = ("wiki2024", "squad", "tofu", "mmlu", "facts_mcq")
EMBEDDERS = "words,states,e5,e5+states"
PARTITIONS = range(5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--embedders", default=EMBEDDERS)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "find.json")
    args = parser.parse_args()
    result = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    result |= {
        "command": "python tools/bench_find.py DATA_DIR WORK",
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    for embedder in args.embedders.split(","):
        os.environ["MEGART_EMBEDDER"] = embedder
        for part in args.parts.split(","):
            started = time.perf_counter()
            work = args.work / embedder
            work.mkdir(parents=True, exist_ok=True)
            hits = list(answered(part, args.data, work) if part in ("mmlu", "facts_mcq") else first(part, args.data, work))
            result.setdefault(embedder, {})[part] = share(hits)
            print(embedder, part, result[embedder][part], f"{time.perf_counter() - started:.0f} s", flush=True)
            args.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def first(part: str, data: Path, work: Path) -> Iterator[bool]:
    """Of each question, whether its memory is ranked first."""
    texts = rows(data / f"{part}.jsonl")
    if part == "wiki2024":
        banks = [([row for row in texts if row["partition"] == number], f"{part}-{number}") for number in PARTITIONS]
        asked = [range(len(members)) for members, _ in banks]
    else:
        banks, asked = [(texts, part)], [range(1, len(texts), 2)]
    for (members, name), places in zip(banks, asked):
        with bank_of(members, work / name) as bank, megart.Assistant(bank, threads=1) as assistant:
            for i in places:
                for qa in members[i]["qa"]:
                    yield assistant.gate(qa["q"]).ids[:1] == [f"text{i}"]


def answered(part: str, data: Path, work: Path) -> Iterator[bool]:
    """Of each general question, whether a memory of partition 5 answers it."""
    members = [row for row in rows(data / "wiki2024.jsonl") if row["partition"] == PARTITIONS[0]]
    with bank_of(members, work / f"wiki2024-{PARTITIONS[0]}") as bank, megart.Assistant(bank, threads=1) as assistant:
        for row in rows(data / f"{part}.jsonl"):
            yield assistant.ask(row["q"], strict=True).known is True


def bank_of(members: list[dict], path: Path) -> megart.Bank:
    bank = megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2")
    titles = [row["title"].replace("_", " ") if row.get("title") else None for row in members]
    memories = [megart.Memory(row["text"], id=f"text{i}", title=title) for i, (row, title) in enumerate(zip(members, titles))]
    megart.memorize(bank, memories, later=True)
    return bank


if __name__ == "__main__":
    main()
