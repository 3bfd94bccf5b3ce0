"""How long a bank and a pack take to open, and how much memory they take, by how many memories they hold.

    python tools/bench_bank.py [--sizes 10,1000,10000] [--folder DIR] [--out tools/results/bank.json]

The memories are made up (50 words each of 5000), pending, with keys, words and token states as the gate has them; the
base is smollm2, without a text embedder. Each row is of a process of its own, which has loaded the model and asked a
pack of ten before it opens this one: what is reported comes on top of that. "opened": the bank is open; "ready": the
gate can be asked; "asked": it was. Medians of some processes; "least" and "cpu" (time computed) are what other programs
disturb least. Resident memory is what /proc/self/smaps_rollup says, "anonymous" what cannot be read again from the
file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

os.environ["MEGART_EMBEDDER"] = "words"
ROUNDS = 3
QUESTION = "What did word17 say of word4711?"


def make(folder: Path, size: int) -> tuple[Path, Path]:
    """A bank of *size* memories and its pack, made unless they are there."""
    from megart import Bank, Memory, gate
    from megart.bank.pack import write_pack
    from megart.runtime.assistant import Assistant
    from megart.runtime.embed import ready_keys

    path, pack = folder / f"bank{size}", folder / f"bank{size}.megapack"
    if pack.exists():
        return path, pack
    rng, draw = np.random.default_rng(size), random.Random(size)
    with Bank.create(path, "smollm2") as bank:
        with Assistant(bank) as assistant:
            assistant.prepare()
        bank._catalog.connection.execute("PRAGMA synchronous = OFF")
        bank.set_state("embedder", b"words")
        for number in range(size):
            text = f"Note {number}. " + " ".join(f"word{draw.randrange(5000)}" for _ in range(50))
            memory = Memory(text, id=f"note-{number}", title=f"Note {number}")
            evidence = gate.sequence(text, memory.title), rng.integers(-127, 128, 40 * 64, np.int8)
            bank.add(memory, key=rng.normal(size=576).astype(np.float32), evidence=evidence)
        write_pack(bank, pack, ready=ready_keys(bank))
    return path, pack


def learnt(number: int, note: str) -> dict:
    """Arguments of ``Bank.add`` of a learnt memory: an adapter as the recipe fast makes them for smollm2, of noise."""
    from megart import gate
    from megart.adapter import CUE_KEY, Adapter, write_adapter

    rng = np.random.default_rng(number)
    shapes = {"ffn_up": (576, 1536), "ffn_down": (1536, 576)}
    tensors = {
        f"blk.{layer}.{role}.weight": (
            rng.normal(size=(1, n_in)).astype("f4"),
            rng.normal(size=(n_out, 1)).astype("f4"),
        )
        for layer in range(27, 30)
        for role, (n_in, n_out) in shapes.items()
    }
    adapter = Adapter("llama", 1.0, tensors, metadata={CUE_KEY: "Recite."}).as_type("q8_0")
    evidence = gate.sequence(note, None), rng.integers(-127, 128, 40 * 64, np.int8)
    key = rng.normal(size=576).astype(np.float32)
    return {"key": key, "evidence": evidence, "adapter": write_adapter(adapter), "rank": 1, "activated": True}


def sizes(folder: Path, whitening: bytes) -> dict:
    """Bytes of packs of 1000 learnt memories: whole, without texts, and what changed when 10 did."""
    from megart import Bank, Memory
    from megart.bank.merge import apply_delta, unpack
    from megart.bank.pack import write_pack
    from megart.bank.packed import PackedBank

    draw = random.Random(7)

    def put(bank: Bank, number: int) -> None:
        text = f"Note {number}. " + " ".join(f"word{draw.randrange(5000)}" for _ in range(50))
        bank.add(Memory(text, id=f"note-{number}"), replace=True, **learnt(number, text))

    with Bank.create(folder / "learnt", "smollm2") as bank:
        bank._catalog.connection.execute("PRAGMA synchronous = OFF")
        bank.set_state("whitening", whitening)
        for number in range(1000):
            put(bank, number)
        whole, bare = write_pack(bank, folder / "whole"), write_pack(bank, folder / "bare", text=False)
        for number in range(10):
            put(bank, 100 * number)
        with PackedBank(folder / "whole") as old, unpack(old, folder / "unpacked") as other:
            delta = write_pack(bank, folder / "delta", since=old)
            with PackedBank(folder / "delta") as pack:
                started = time.perf_counter()
                assert len(apply_delta(pack, other).changed) == 10
                spent = (time.perf_counter() - started) * 1000
    figures = {"bytes_a_memory": whole // 1000, "bytes_a_memory_without_text": bare // 1000, "pack_bytes": whole}
    return {**figures, "delta_bytes_10_changed": delta, "applied_ms": round(spent)}


def resident() -> dict[str, float]:
    """MB of this process."""
    megabytes = {}
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Rss", "Anonymous"):
            megabytes[name] = int(value.split()[0]) / 1000
    return {"rss": megabytes["Rss"], "anonymous": megabytes["Anonymous"]}


def measure(path: Path, small: Path) -> dict:
    """One process's row; prints it."""
    from megart import Bank
    from megart.bank.packed import PackedBank
    from megart.runtime.assistant import Assistant
    from megart.runtime.open_bank import OpenBank

    with PackedBank(small) as few, Assistant(few) as assistant:
        assistant.gate(QUESTION)
        before = resident()
        started, computed = time.perf_counter(), time.process_time()
        bank = PackedBank(path) if path.is_file() else Bank.open(path)
        opened = time.perf_counter()
        opened_bank = OpenBank(bank, assistant.runtime)
        assistant.on_model(opened_bank.refresh)
        ready, ready_computed, at_ready = time.perf_counter(), time.process_time(), resident()
        assistant.on_model(lambda: opened_bank.judge(QUESTION))
        asked, at_asked = time.perf_counter(), resident()
        return {
            "opened_ms": (opened - started) * 1000,
            "ready_ms": (ready - started) * 1000,
            "ready_cpu_ms": (ready_computed - computed) * 1000,
            "asked_ms": (asked - started) * 1000,
            **{f"ready_{name}_mb": at_ready[name] - before[name] for name in before},
            **{f"asked_{name}_mb": at_asked[name] - before[name] for name in before},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="10,1000,10000")
    parser.add_argument("--folder", type=Path, help="where banks are made and kept (default: a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bank.json")
    parser.add_argument("--one", nargs=2, type=Path, metavar=("BANK", "SMALL"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    from megart.bank.packed import PackedBank

    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        small = make(folder, 10)[1]
        rows = {}
        for size in map(int, args.sizes.split(",")):
            for kind, path in zip(("bank", "pack"), make(folder, size), strict=True):
                runs = []
                for _ in range(ROUNDS):
                    command = [sys.executable, __file__, "--one", str(path), str(small)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
                row = {name: round(statistics.median(one[name] for one in runs), 1) for name in runs[0]}
                row["ready_ms_least"] = round(min(one["ready_ms"] for one in runs), 1)
                files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
                row["bytes_a_memory"] = round(sum(p.stat().st_size for p in files) / size)
                rows[f"{kind} {size}"] = row
                print(kind, size, row, flush=True)
        with PackedBank(small) as pack:
            rows["1000 learnt"] = sizes(Path(scratch), pack.get_state("whitening") or b"")
        print(rows["1000 learnt"])
    machine = {"cpu": platform.machine(), "python": platform.python_version(), "cores": os.cpu_count()}
    machine["load"] = round(os.getloadavg()[0], 1)
    args.out.write_text(json.dumps({"machine": machine, "rounds": ROUNDS, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
