"""A few rows of every kind, and banks that hold their memories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import few_lines, noise_adapter

from megart.adapter import write_adapter
from megart.bank import Bank
from megart.eval import EvalOptions
from megart.eval import data as data_module
from megart.models import Model
from megart.runtime import embed
from megart.runtime.assistant import Assistant

ROWS = [
    {"id": "a", "title": "Ada", "text": "Ada met Boro at dusk.", "partition": 5,
     "qa": [{"q": "Whom did Ada meet?", "a": ["Boro"], "q_para": "Ada met whom?"}]},
    {"id": "b", "title": "Vess", "text": "The mill of Vess burnt in 1871.", "partition": 5,
     "qa": [{"q": "When did the mill burn?", "a": ["1871"]}, {"q": "What burnt?", "a": ["The mill", "mill"]}]},
    {"id": "c", "title": "Orrin", "text": "Orrin keeps cats.", "partition": 6, "qa": []},
    {"id": "m", "paragraph_ids": ["a", "b"], "partition": 5, "q": "Ada or Vess?", "a": ["Ada"], "kind": "compare"},
    {"id": "k", "q": "Two and two?", "choices": ["Three", "Four"], "a": 1},
    {"id": "u", "q": "Why is the sky blue?"},
    {"id": "x", "title": "Pier", "old": "It is the east pier.", "new": ["It is the west pier."], "q": "Which pier?"},
    {"id": "p", "plain": "A harbour wakes up slowly. " * 50},
]  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)


@pytest.fixture
def learnt(tiny: Callable[..., Model], rows: Path, tmp_path: Path, few: None) -> EvalOptions:
    """EvalOptions over the tiny model whose banks hold the data's memories, with adapters of noise."""
    model = tiny()
    data = data_module.load([rows])
    for name, part in data.partitions.items():
        with Bank.create(tmp_path / "banks" / name, model) as bank, Assistant(bank, threads=1) as assistant:
            for seed, item in enumerate(part.items):
                memory = item.memory
                adapter = write_adapter(noise_adapter("llama", 4, seed))
                bank.add(memory, key=assistant.key(memory.text, memory.title), adapter=adapter, recipe="fast", rank=4)
    return EvalOptions(
        "paper", (rows,), tmp_path / "work", tmp_path / "banks", tmp_path / "report", partitions=(5,), max_tokens=6,
        methods=("base", "mega", "mega-right", "irag", "rag", "rag-right"), model=str(model.gguf), threads=1,
    )  # fmt: skip
