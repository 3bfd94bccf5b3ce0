"""Every memory recites, and those that do not recite word for word are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import FIRST, noise_adapter

from megart.adapter import CUE_KEY, write_adapter
from megart.bank import Bank, Memory
from megart.cli import main
from megart.models import Model
from megart.verbatim import Recited, recite_all


class Reciter:
    """Stands for what judges candidates: says *said* to every cue; sure of it by *lead*."""

    def __init__(self, said: str, lead: float) -> None:
        self.said, self.lead, self.cues = said, lead, []
        self.engine = SimpleNamespace(tokenize=lambda text, special: text.split())

    def margin(self, adapter: object, cue: str, text: str, *, activated: bool) -> float:
        self.cues.append((cue, activated))
        return self.lead

    def recall(self, adapter: object, cue: str, *, activated: bool, max_tokens: int) -> str:
        return self.said


@pytest.fixture
def bank(tiny: Callable[..., Model], tmp_path: Path):
    with Bank.create(tmp_path / "bank", tiny("llama")) as made:
        noise = write_adapter(replace(noise_adapter("llama", 8, 1, dtype=np.float16), metadata={CUE_KEY: "Say it."}))
        made.add(FIRST, key=np.ones(64, np.float32), adapter=noise, recipe="fast", activated=True, rank=8)
        made.add(Memory("Bo sails.", id="bo"), key=np.ones(64, np.float32))
        yield made


@pytest.mark.parametrize(
    ("said", "lead", "share"),
    [("", 1.0, 1.0), (FIRST.text, 0.1, 1.0), ("Orrin keeps three grey cats", 0.1, 0.7143), ("Nothing.", -1.0, 0.0)],
)
def test_the_share_of_a_text_that_is_recited(bank: Bank, said: str, lead: float, share: float) -> None:
    reciter, seen = Reciter(said, lead), []
    (recited,) = recite_all(bank, reciter, lambda *at: seen.append(at))  # type: ignore[arg-type]
    assert recited == Recited("orrin", pytest.approx(share, abs=1e-4)) and seen == [(1, 1)]
    assert reciter.cues == [("Say it.", True)]  # as the adapter's file tells, and activated as the bank says


def test_a_damaged_adapter_is_told_and_the_others_recite(bank: Bank) -> None:
    bank.add(Memory("Ada.", id="ada"), key=np.ones(64, np.float32), adapter=b"GGUF no", recipe="fast")
    first, second = recite_all(bank, Reciter(FIRST.text, 0.1))  # type: ignore[arg-type]
    assert first.share == 1 and second.share == 0 and second.told().startswith("ada: the adapter of ada")


def test_verify_recall_names_who_does_not_recite(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["verify", "--bank", str(bank.path)]
    assert main(place) == 0
    capsys.readouterr()
    assert main([*place, "--recall"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("problem: orrin: recites ") and out.endswith("% of its text, not all of it word for word\n")
    assert main([*place, "--recall", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert [(p["id"], p["kind"]) for p in shown["problems"]] == [("orrin", "recall")]
    assert list(shown["recalled"]) == ["orrin"] and shown["recalled"]["orrin"] < 1
    bank.remove("orrin")
    assert main([*place, "--recall"]) == 0  # without a learnt memory no model is loaded
    assert capsys.readouterr().out == "1 memory, no problems; 0 recalled word for word\n"
