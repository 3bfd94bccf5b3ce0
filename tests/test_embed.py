"""Which layer the gate reads, and the whitening that every bank of a base shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import few_lines

from megart.bank import Bank
from megart.models import user_cache_dir
from megart.runtime import embed
from megart.runtime.assistant import Assistant
from megart.runtime.embed import pick_layer


@pytest.mark.parametrize(("n_layer", "layer"), [(30, 2), (4, 2), (3, 1), (2, 0), (1, 0)])
def test_a_shallow_model_is_not_read_at_its_last_layer(n_layer: int, layer: int) -> None:
    """There llama.cpp computes only the tokens whose logits were asked for."""
    assert pick_layer(n_layer) == layer


def test_the_whitening_is_measured_once_for_a_base(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = embed.corpus()[::20]
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    measured: list[None] = []
    learn = embed.learn_whitening
    monkeypatch.setattr(embed, "learn_whitening", lambda context: measured.append(None) or learn(context))

    def whitening(name: str) -> embed.Whitening:
        with Bank.create(tmp_path / name, tiny("llama"), exist_ok=True) as bank, Assistant(bank) as assistant:
            return assistant.open_bank.memories.prepare()

    first = whitening("a")
    assert len(measured) == 1
    np.testing.assert_array_equal(whitening("b").matrix, first.matrix)
    whitening("a")
    assert len(measured) == 1
    (kept,) = (user_cache_dir() / "whitenings").iterdir()
    kept.write_bytes(b"half")
    whitening("c")
    assert len(measured) == 2 and len([*kept.parent.iterdir()]) == 1
    lines.pop()  # measured otherwise: what is kept is another's
    whitening("d")
    assert len(measured) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "catalog.sqlite"))  # no folder: nothing can be kept
    whitening("e")
    assert len(measured) == 4


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_cache_of_the_whitening_is_made_anew(tiny, tmp_path: Path, monkeypatch, damage: str) -> None:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    whole = {}
    for name in ("a", "b"):
        with Bank.create(tmp_path / name, tiny("llama")) as bank, Assistant(bank) as assistant:
            whole[name] = assistant.open_bank.memories.prepare().matrix
        (kept,) = (user_cache_dir() / "whitenings").iterdir()
        data = bytearray(kept.read_bytes())
        kept.write_bytes(data[: len(data) // 2] if damage == "cut" else data[:-60] + bytes(b ^ 255 for b in data[-60:]))
    np.testing.assert_array_equal(whole["a"], whole["b"])
