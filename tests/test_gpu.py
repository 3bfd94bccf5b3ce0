"""What only a CUDA device can show; tools/gpu_check.sh runs these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from helpers import few_lines

from megart.bank import Bank, Memory
from megart.memorize import memorize
from megart.models import Model
from megart.recipes import FAST
from megart.runtime import embed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no CUDA device"),
]


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma3"])
def test_a_memory_taught_on_cuda_is_recalled_by_llama_cpp(
    tiny: Callable[..., Model], tmp_path: Path, arch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    monkeypatch.setattr("megart.train.base.default_dtype", lambda _: torch.float32)
    memories = [
        Memory(f"{name} keeps {n + 3} grey cats.", id=name.lower()) for n, name in enumerate(("Ada", "Bo", "Cy"))
    ]
    with Bank.create(tmp_path / "bank", tiny(arch)) as bank:
        records = memorize(bank, memories, recipe=replace(FAST, rate=1e-2, max_steps=150), device="cuda")
    assert [(r.state, r.training["recall"]) for r in records] == [("learnt", 1.0)] * 3
    assert all(r.training["device"].startswith("cuda") for r in records)
