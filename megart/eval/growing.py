"""Banks that grow while they are measured: memories copied from a learnt bank, and strangers added cheaply."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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


def synthetic_adapter(like: Adapter) -> tuple[bytes, bool]:
    """A valid adapter of noise, of rank 1, on the first target of *like*: its bytes, and whether it is activated."""
    random = np.random.default_rng(0)
    name, (a, b) = next(iter(like.tensors.items()))
    tensors = {
        name: (
            random.normal(0, 1e-4, (1, shape(a)[1])).astype(np.float16),
            random.normal(0, 1e-4, (shape(b)[0], 1)).astype(np.float16),
        )
    }
    tokens = list(like.invocation_tokens)
    return write_adapter(Adapter(like.arch, 1.0, tensors, tokens, {})), bool(tokens)


def noise_like(like: Adapter, rank: int) -> bytes:
    """An adapter of noise with all the targets of *like* and another rank: for timing only."""
    random = np.random.default_rng(0)
    tensors = {}
    for name, (a, b) in like.tensors.items():
        tensors[name] = (
            random.normal(0, 1e-3, (rank, shape(a)[1])).astype(np.float16),
            random.normal(0, 1e-3, (shape(b)[0], rank)).astype(np.float16),
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
