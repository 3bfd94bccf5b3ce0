"""Several programs at one bank: writers add, replace and forget, readers read; nothing may be lost, nobody wait long.

    python tools/many_at_once.py --seconds 300 --writers 2 --readers 8

Every adapter is made of its memory's text, so that a reader sees whether both belong together. Prints one JSON object;
exit code 1 when something was lost, torn, or told wrongly.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from megart.bank import Bank, Memory
from megart.errors import BankError, MemoryNotFoundError

SIZE = 20_000  # bytes of an adapter, as the recipe fast makes them
IDS = 40  # of each writer


def adapter_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest() * (SIZE // 32)


def write(path: str, number: int, until: float, results: Any) -> None:
    """Changes its own ids until *until*; tells the texts that they must have then, and the longest wait."""
    chance, texts, longest, done = random.Random(number), {}, 0.0, 0
    with Bank.open(path) as bank:
        while time.time() < until:
            id = f"w{number}-{chance.randrange(IDS)}"
            started = time.perf_counter()
            if id in texts and chance.random() < 0.3:
                bank.remove(id)
                del texts[id]
            else:
                text = f"text {done} of {id}"
                bank.add(
                    Memory(text, id=id),
                    key=np.full(8, done, np.float32),
                    adapter=adapter_of(text),
                    rank=1,
                    replace=True,
                )
                texts[id] = text
            longest, done = max(longest, time.perf_counter() - started), done + 1
    results.put({"kind": "writer", "texts": texts, "longest": longest, "done": done, "wrong": []})


def read(path: str, number: int, until: float, results: Any) -> None:
    """Reads all and checks some until *until*; tells the longest wait and what was wrong."""
    chance, longest, done, wrong = random.Random(-number), 0.0, 0, []
    with Bank.open(path) as bank:
        while time.time() < until:
            started = time.perf_counter()
            records = bank.records()
            ids, keys = bank.keys()
            longest, done = max(longest, time.perf_counter() - started), done + 1
            if len(ids) != len(keys):
                wrong.append(f"{len(ids)} ids, {len(keys)} keys")
            for record in chance.sample(records, min(5, len(records))):
                started = time.perf_counter()
                try:
                    data = bank.adapter_bytes(record.id)
                    now = bank.find(record.id)
                    if data != adapter_of(record.text) and now is not None and now.text == record.text:
                        wrong.append(f"{record.id}: not its adapter")
                except MemoryNotFoundError:
                    pass  # forgotten meanwhile
                except BankError as error:
                    wrong.append(str(error))
                longest = max(longest, time.perf_counter() - started)
    results.put({"kind": "reader", "longest": longest, "done": done, "wrong": wrong})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--folder", metavar="DIR", help="where the bank is made (default: a temporary folder)")
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with tempfile.TemporaryDirectory(dir=args.folder) as room:
        (Path(room) / "base.gguf").write_bytes(b"GGUF" + bytes(100))
        path = str(Path(room) / "bank")
        Bank.create(path, Path(room) / "base.gguf").close()
        until = time.time() + args.seconds
        kinds = [write] * args.writers + [read] * args.readers
        running = [
            context.Process(target=kind, args=(path, number, until, results)) for number, kind in enumerate(kinds)
        ]
        for process in running:
            process.start()
        told = [results.get(timeout=args.seconds + 120) for _ in running]
        for process in running:
            process.join()
        expected = {id: text for result in told for id, text in result.get("texts", {}).items()}
        with Bank.open(path) as bank:
            lost = sorted(expected.items() ^ {(record.id, record.text) for record in bank.records()})
            problems = [problem.message for problem in bank.verify()]
            torn = [id for id, text in expected.items() if bank.adapter_bytes(id) != adapter_of(text)]
    wrong = [line for result in told for line in result["wrong"]]
    report = {
        "seconds": args.seconds,
        **{
            f"{kind}s": {
                "processes": sum(result["kind"] == kind for result in told),
                "done": sum(result["done"] for result in told if result["kind"] == kind),
                "longest_wait_s": round(max((r["longest"] for r in told if r["kind"] == kind), default=0.0), 3),
            }
            for kind in ("writer", "reader")
        },
        "memories": len(expected),
        "lost": lost,
        "torn": torn,
        "problems": problems,
        "wrong": len(wrong),
        "wrong_examples": wrong[:5],
    }
    print(json.dumps(report, indent=2))
    return 1 if lost or torn or problems or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
