"""Banks that grow while they are measured: memories copied from a learnt bank, and strangers added cheaply."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from ..adapter import Adapter, write_adapter
from ..bank import Bank, Memory
from ..quant import shape
from .run import PartitionBank


def copy_memory(source: PartitionBank, target: Bank, id: str, new_id: str | None = None) -> None:
    """Put memory *id* of *source* into *target* (as *new_id*), its adapter as it is; not twice."""
    if target.find(new_id or id) is not None:
        return
    record = source.bank.get(id)
    target.add(
        replace(record.memory, id=new_id or id),
        **source.assistant.index_entry(record.text, record.title),
        adapter=source.bank.adapter_bytes(id) if record.state == "learnt" else None,
        recipe=record.recipe,
        activated=record.activated,
        rank=record.rank,
        training=record.training,
    )


def noise_like(like: Adapter, rank: int, *, targets: int | None = None, size: float = 1e-3) -> bytes:
    """An adapter of noise on the first so many *targets* of *like* (None: all), of another rank."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, (a, b) in islice(like.tensors.items(), targets):
        tensors[name] = (
            random.normal(0, size, (rank, shape(a)[1])).astype(np.float16),
            random.normal(0, size, (shape(b)[0], rank)).astype(np.float16),
        )
    return write_adapter(Adapter(like.arch, float(rank), tensors, list(like.invocation_tokens), {}))


def add_strangers(
    taught: PartitionBank, texts: Iterable[tuple[str, str | None]], adapter: bytes, activated: bool, first: int
) -> int:
    """Add memories of *texts* (text, title) that share a synthetic adapter; returns how many."""
    count = 0
    for number, (text, title) in enumerate(texts, first):
        id = f"stranger-{number:06}"
        if taught.bank.find(id) is None:
            taught.bank.add(
                Memory(text, id, title), **taught.assistant.index_entry(text, title), adapter=adapter, recipe="synthetic",
                activated=activated, rank=1, training={"synthetic": True},
            )  # fmt: skip
        count += 1
    return count


def folder_bytes(path: Path) -> int:
    """Bytes of every file under *path*."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def resident_bytes() -> int | None:
    """Resident memory of this process, None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None
