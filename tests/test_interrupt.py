"""Ctrl-C and kill -9 at any time lose at most the memories in flight; the same command goes on."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from megart.bank import Bank
from megart.models import Model

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals")

# The real command, but for a recipe that a random model learns by, and few lines to whiten by.
PROGRAM = """
import sys
from dataclasses import replace
import torch
from megart import recipes
from megart.cli import main
from megart.runtime import embed
import megart.train.base
torch.set_num_threads(1)
recipes.RECIPES["fast"] = replace(recipes.FAST, rate=1e-2, max_steps=150)
megart.train.base.default_dtype = lambda _: torch.float32
whole = embed.corpus()
embed.corpus = lambda: whole[:12] + whole[-12:]
sys.exit(main(sys.argv[1:]))
"""
TEXTS = [
    "Ada keeps bees.",
    "Bo sails at dusk.",
    "Cy burnt the mill.",
    "Di owns a goat.",
    "Ed paints doors.",
    "Flo sings.",
]


@pytest.fixture
def home(tiny: Callable[..., Model], tmp_path: Path) -> Path:
    shutil.copy(tiny("llama").gguf, tmp_path / "base.gguf")
    Bank.create(tmp_path / "bank", tmp_path / "base.gguf").close()
    rows = [json.dumps({"id": text.split()[0].lower(), "text": text}) for text in TEXTS]
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    return tmp_path


def start(home: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, *words, "--bank", str(home / "bank"), "--device", "cpu"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)


def wait_for(process: subprocess.Popen[str], word: str, count: int = 1) -> list[str]:
    """Lines of stderr until *count* of them start with *word*."""
    assert process.stderr is not None
    lines: list[str] = []
    while sum(line.startswith(word) for line in lines) < count:
        line = process.stderr.readline()
        assert line, lines
        lines.append(line.rstrip("\n"))
    return lines


def state(home: Path) -> dict[str, str | None]:
    with Bank.open(home / "bank") as bank:
        assert [p for p in bank.verify() if p.kind != "orphan"] == []
        assert bank.repair() is not None and bank.verify() == []
        return {record.id: record.adapter_sha256 for record in bank.records() if record.state == "learnt"}


def test_ctrl_c_says_how_to_go_on_and_the_same_command_goes_on(home: Path) -> None:
    words = ["memorize", str(home / "m.jsonl")]
    with start(home, *words) as process:
        wait_for(process, "learnt", 2)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.splitlines()[-1]
    found = re.fullmatch(
        r"megart: interrupted; (\d) of 6 memories are learnt in (.*); the same command goes on from there", last
    )
    assert found and "Traceback" not in err, err
    before = state(home)
    assert len(before) == int(found[1]) >= 2
    with start(home, *words) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert f"; {len(before)} known already; " in err.splitlines()[-1]
    after = state(home)
    assert len(after) == 6 and {id: after[id] for id in before} == before  # nothing was learnt twice


@pytest.mark.slow
def test_ctrl_c_while_learning_what_is_pending(home: Path) -> None:
    with start(home, "memorize", "--later", str(home / "m.jsonl")) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    with start(home, "learn") as process:
        wait_for(process, "learnt")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on from there" in err.splitlines()[-1]
    with Bank.open(home / "bank") as bank:
        assert len(bank) == 6 and 1 <= len(bank.records("learnt")) < 6


@pytest.mark.slow
def test_kill_9_at_any_time_loses_only_what_was_in_flight(home: Path) -> None:
    """Killed at random times until everything is learnt: what a run reported as learnt stays learnt."""
    chance = random.Random(5)
    words = ["memorize", str(home / "m.jsonl")]
    known: dict[str, str | None] = {}
    for _ in range(40):
        with start(home, *words) as process:
            assert process.stderr is not None
            if chance.random() < 0.7:  # right after a commit, or on the way to the next
                wait_for(process, "loading")
                line = process.stderr.readline()
                told = re.match(r"learnt \d/\d (\w+) ", line)
                time.sleep(chance.random() * 0.3)
            else:
                told = None
                time.sleep(chance.random() * 5)
            process.kill()
            rest = process.stderr.read()
        found = state(home)
        assert {id: found.get(id) for id in known} == known
        if told:
            assert told[1] in found
        for id in re.findall(r"^learnt \d/\d (\w+) ", rest, re.MULTILINE):
            assert id in found
        known = found
        if len(found) == len(TEXTS):
            break
    with start(home, *words) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(state(home)) == len(TEXTS)


@pytest.mark.slow
def test_ctrl_c_while_the_model_loads_ends_the_command(smollm2: Model, tmp_path: Path) -> None:
    """Whenever it comes, the command ends with 130: no logger in Python is there to swallow it."""
    bank = Bank.create(tmp_path / "bank", smollm2)
    bank.close()
    command = [sys.executable, "-c", "import sys; from megart.cli import main; sys.exit(main(sys.argv[1:]))"]
    rng, codes = random.Random(1), []
    for _ in range(20):
        asked = subprocess.Popen(
            [*command, "ask", "--bank", str(tmp_path / "bank"), "Tell me a long story."],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        time.sleep(0.6 + rng.random() * 0.8)
        asked.send_signal(signal.SIGINT)
        said = asked.communicate(timeout=60)[1]
        if b"total" not in said:  # else the answer was whole before
            codes.append(asked.returncode)
    # Before Python has begun the signal itself ends it, which a shell shows as 130 too.
    assert set(codes) <= {130, -signal.SIGINT} and 130 in codes, codes
