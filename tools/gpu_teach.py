"""Throughput of teaching on a device: ``python tools/gpu_teach.py cuda 128``. The last line is the result.

The memories are made up by a template: people, places and numbers that no model knows.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from pathlib import Path

import torch

import megart

FIRST = "Orla Bram Cosima Dorin Elske Fintan Greet Hauke Ilse Joris Katla Lubo Mirela Nils Odile Piet".split()
LAST = "Vantongeren Askildsen Quillfeather Ombrachi Tregaskis Drozdowicz Halloran Pettibone Szalay Brandvold".split()
PLACES = "Gannet Skerry,Lower Morrow,Kvitfonn,Ulmazur,Saint Perran,Hollow Quay,Brackenfell,Tirvana".split(",")
TRADES = "tunes church bells,repairs barometers,breeds blue geese,paints tram signs,keeps the tide tables".split(",")


def made_up(count: int, seed: int = 1) -> list[megart.Memory]:
    """*count* memories of about 40 words, the same for the same seed."""
    chance = random.Random(seed)
    memories = []
    for number in range(count):
        name = f"{chance.choice(FIRST)} {chance.choice(LAST)}"
        text = (
            f"{name} {chance.choice(TRADES)} in {chance.choice(PLACES)} since {chance.randint(1850, 2020)}. The "
            f"workshop has {chance.randint(3, 90)} windows and stands behind the {chance.choice(PLACES)} post office. "
            f"A neighbour from {chance.choice(PLACES)} once paid {chance.randint(100, 9000)} crowns for a single visit."
        )
        memories.append(megart.Memory(text, id=f"made-up-{number}", title=name))
    return memories


def main() -> None:
    device, count = sys.argv[1], int(sys.argv[2])
    started = 0.0

    def progress(event: object) -> None:
        nonlocal started
        if not started and getattr(event, "state", "") == "studying":
            started = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder, megart.Bank.create(Path(folder) / "bank", "smollm2") as bank:
        try:
            megart.memorize(bank, made_up(count), device=device, progress=progress)
        except megart.MemorizeError as error:
            print(error)
        seconds = time.perf_counter() - started
        records = bank.records("learnt")
    exact = sum(record.training.get("recall") == 1.0 for record in records)
    size = sum(record.adapter_bytes for record in records) / max(1, len(records))
    peak = torch.cuda.max_memory_allocated() if device.startswith("cuda") else 0
    memory = f", {peak / 2**30:.1f} GiB of GPU memory" if peak else ""
    print(
        f"{len(records)} of {count} learnt, {exact} recalled word for word, {len(records) / seconds:.2f} memories/s "
        f"without loading, {size / 1e6:.2f} MB each{memory}"
    )
    sys.exit(len(records) < 0.99 * count)


if __name__ == "__main__":
    main()
