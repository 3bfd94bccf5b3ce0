"""Fixtures of the command line: nothing of the user around, an empty bank, a bank of two memories."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from screen import Run, adapter

from megart.bank import Bank, Memory
from megart.cli import main
from megart.models import Model


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's own: no bank, no settings, a UTF-8 locale, no terminal."""
    for name in ("MEGART_BANK", "MEGART_DEBUG", "NO_COLOR", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: object, code: int = 0) -> tuple[int, str, str]:
        returned = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert returned == code, err
        return returned, out, err

    return call


@pytest.fixture
def loadable(tmp_path: Path, tiny: Callable[..., Model]) -> Path:
    """A random model that llama.cpp loads."""
    return Path(shutil.copy(tiny().gguf, tmp_path / "base.gguf"))


@pytest.fixture
def empty(tmp_path: Path, model: Path) -> Path:
    path = tmp_path / "bank"
    Bank.create(path, model).close()
    return path


@pytest.fixture
def bank(empty: Path) -> Path:
    """One learnt and one pending memory, at fixed times."""
    random = np.random.default_rng(1)
    with Bank.open(empty) as open_bank:
        open_bank.add(
            Memory(
                "Ada Quill keeps bees.\nShe sells no honey.",
                id="ada",
                title="Ada Quill",
                questions=("What does Ada keep?",),
                paraphrases=("Bees are kept by Ada Quill.",),
                metadata={"source": "Zoë"},
            ),
            key=random.normal(size=4).astype(np.float32),
            adapter=adapter(),
            recipe="fast",
            activated=True,
            rank=2,
            training={"steps": 11, "seconds": 2.5},
        )
        open_bank.add(Memory("The mill stands still.", id="mill"), key=np.ones(4, np.float32))
        with open_bank._catalog.write() as connection:
            connection.execute("UPDATE memory SET created_at = '2026-01-02T03:04:05Z'")
            connection.execute("UPDATE memory SET learnt_at = '2026-01-02T03:05:00Z' WHERE state = 'learnt'")
    return empty
