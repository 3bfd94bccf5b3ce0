"""A bank of every earlier format opens, keeps all it held, and is of today's format then; a newer one is refused."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from megart.bank import Bank, Memory, catalog
from megart.errors import BankError

BANKS = Path(__file__).parent / "banks"
FORMATS = sorted(int(path.stem.removeprefix("format")) for path in BANKS.glob("format*.sql"))


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path / "bank"
    (folder / "adapters").mkdir(parents=True)
    for id in ("ada", "suisha"):
        (folder / "adapters" / f"{id}.gguf").write_bytes(b"GGUF " + id.encode())
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as connection:
        connection.executescript((BANKS / f"format{request.param}.sql").read_text("utf-8"))
    return folder


def test_there_is_a_bank_of_every_earlier_format() -> None:
    assert set(range(1, len(catalog.MIGRATIONS))) - {5} <= set(FORMATS)  # no commit ever wrote format 5


@pytest.mark.parametrize(("old", "format"), [(n, n) for n in FORMATS], indirect=["old"])
def test_an_old_bank_opens_and_keeps_what_it_held(old: Path, format: int) -> None:
    for _ in range(2):
        with Bank.open(old) as bank:
            assert bank.format == len(catalog.MIGRATIONS) and bank.base.sha256 == "ab" * 32
            ada, mill, suisha = bank.records()
            assert ada.memory == Memory(
                "Ada Quill keeps bees.",
                id="ada",
                title="Ada Quill",
                paraphrases=("Bees are kept by Ada Quill.",),
                questions=("What does Ada keep?",),
                metadata={"tags": ["bees"]},
            )
            assert (ada.state, ada.recipe, ada.activated, ada.rank) == ("learnt", "fast", True, 2)
            assert (ada.created_at, ada.learnt_at) == ("2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z")
            assert (mill.state, mill.text, suisha.title) == ("pending", "The mill stands still.", "水車")
            ids, keys = bank.keys()
            assert ids == ["ada", "mill", "suisha"] and np.array_equal(keys[1], np.arange(1, 5, dtype="f4"))
            assert bank.adapter_bytes("suisha") == b"GGUF suisha" and bank.get_state("whitening") == b"\x01\x02"
            # Evidence that was made another way is made anew when the bank is next asked.
            made_anew = {1: 3, 2: 3, 3: 3, 4: 1}.get(format, 0)
            assert len(bank.without_evidence()) == made_anew
            assert sorted(bank.vectors("e5")) == (["ada", "mill", "suisha"] if format > 5 else [])
            assert bank.verify() == []
    with Bank.open(old) as bank:
        bank.add(Memory("New.", id="new"), key=np.ones(4, np.float32), adapter=b"x")
        bank.remove("ada")
        assert [record.id for record in bank.records()] == ["mill", "suisha", "new"] and bank.verify() == []


@pytest.mark.parametrize("old", [1], indirect=True)
def test_a_migration_that_fails_leaves_the_old_bank_as_it_was(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM memory")
        raise sqlite3.OperationalError("disk I/O error")

    before = (old / "catalog.sqlite").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(catalog, "MIGRATIONS", [*catalog.MIGRATIONS[:-1], fail])
        with pytest.raises(BankError):
            Bank.open(old)
    assert (old / "catalog.sqlite").read_bytes() == before
    with Bank.open(old) as bank:
        assert len(bank) == 3


@pytest.mark.parametrize("old", [max(FORMATS)], indirect=True)
def test_a_newer_format_is_refused_with_the_remedy(old: Path) -> None:
    with closing(sqlite3.connect(old / "catalog.sqlite")) as connection:
        connection.execute(f"PRAGMA user_version = {len(catalog.MIGRATIONS) + 1}")
        connection.commit()
    with pytest.raises(BankError, match="made by a newer megart .*; upgrade megart"):
        Bank.open(old)
