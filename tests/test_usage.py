"""What a bank counts of its use, and memories that end."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import FIRST, SECOND

from megart import Assistant, Bank, Memory
from megart.bank.memory import FORGET_AFTER
from megart.bank.pack import write_pack
from megart.bank.packed import PackedBank
from megart.cli import main
from megart.errors import BankError, MemoryNotFoundError
from megart.runtime.scope import Scope

PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"


@pytest.fixture(autouse=True)
def model_beside_the_packs(tmp_path: Path, tiny) -> None:
    """A pack names its model's file, not where it lies."""
    for seed in (0, 1):
        (tmp_path / tiny(seed=seed).gguf.name).symlink_to(tiny(seed=seed).gguf)


@pytest.fixture
def bank(tmp_path: Path, tiny) -> Bank:
    with Bank.create(tmp_path / "bank", tiny()) as made:
        for id in ("a", "b", "c"):
            made.add(Memory(f"What {id} says.", id=id, metadata={"tags": ["letters"]}), key=np.ones(4, np.float32))
        yield made


def ends(bank: Bank, id: str, when: str) -> None:
    bank.annotate(id, {FORGET_AFTER: when})


# -- counts -----------------------------------------------------------------------------------------


def test_counts_add_up_and_go_with_their_memory(bank: Bank) -> None:
    revision = bank.revision
    bank.note_use({"a": 1, "b": 2, "gone": 5})
    bank.note_use({"A": 3})
    assert [(id, n) for id, (n, _) in bank.use().items()] == [("a", 4), ("b", 2)]
    assert bank.revision == revision  # no reader has to look again
    bank.remove("a")
    assert list(bank.use()) == ["b"]


def test_counting_waits_for_no_writer(bank: Bank) -> None:
    with Bank.open(bank.path) as other, other._catalog.hold():
        started = time.perf_counter()
        with pytest.raises(BankError, match="locked"):
            bank.note_use({"a": 1})
        assert time.perf_counter() - started < 2
    bank.note_use({"a": 1})
    held = threading.Event()

    def hold() -> None:
        with Bank.open(bank.path) as other, other._catalog.hold():
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    bank.set_state("x", b"y")  # writers wait as before
    thread.join()


def test_counting_can_be_switched_off(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    bank.note_use({"a": 1})
    assert main(["stats", "--bank", str(bank.path), "--usage", "off"]) == 0
    assert "answered  not counted" in capsys.readouterr().out
    bank.note_use({"a": 1})
    assert bank.use() == {}
    assert main(["stats", "--bank", str(bank.path), "--usage", "on"]) == 0
    bank.note_use({"a": 1})
    assert list(bank.use()) == ["a"]


def test_an_answer_is_counted_when_the_assistant_closes_or_rests(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    from megart.runtime import usage

    assistant = ready()
    opened = Scope(gates={FIRST.id: 1.0})
    assistant.direct("Who keeps cats?", scope=opened, max_tokens=2)
    assert assistant.bank.use() == {}
    assistant.open_bank.usage.tell(now=True)
    assert [(id, n) for id, (n, _) in assistant.bank.use().items()] == [("orrin", 1)]
    monkeypatch.setattr(usage, "EVERY", 0.0)
    assistant.direct("Who keeps cats?", scope=opened, max_tokens=2)
    for _ in range(500):
        if assistant.bank.use()["orrin"][0] == 2:
            break
        time.sleep(0.01)
    assert assistant.bank.use()["orrin"][0] == 2
    monkeypatch.undo()
    assistant.direct("Who keeps cats?", scope=opened, max_tokens=2)
    assistant.close()
    assert assistant.bank.use()["orrin"][0] == 3


def test_what_cannot_be_counted_holds_nothing_up(ready, tmp_path: Path) -> None:
    assistant = ready()
    assistant.gate("Who keeps cats?")
    write_pack(assistant.bank, tmp_path / "p")
    with PackedBank(tmp_path / "p") as packed, Assistant(packed, context_size=1024) as other:
        other.direct("Who keeps cats?", scope=Scope(gates={FIRST.id: 1.0}), max_tokens=2)
    assert packed.use() == {}


def test_stats_say_what_there_is(bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bank.note_use({"b": 2})
    ends(bank, "a", PAST)
    ends(bank, "c", FUTURE)
    assert main(["stats", "--bank", str(bank.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["memories"], found["learnt"], found["pending"], found["tags"]) == (3, 0, 3, {"letters": 3})
    assert (found["expire"], found["expired"], found["used"]) == (2, 1, 1)
    assert found["bytes"] > 8192 and [(m["id"], m["opened"]) for m in found["most_used"]] == [("b", 2)]
    assert main(["stats", "--bank", str(bank.path)]) == 0
    out = capsys.readouterr().out
    assert "most used        b (2 times, last 2" in out and "to be forgotten  2, of which 1 expired" in out
    bank.set_evidence([(r, (np.ones(1, np.uint32), np.ones(1, np.int8))) for r in bank.records()])
    write_pack(bank, tmp_path / "p")
    assert main(["stats", "--bank", str(tmp_path / "p"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts_use"] is False
    assert main(["stats", "--bank", str(tmp_path / "p"), "--usage", "on"]) == 1


# -- memories that end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expires"),
    [("2020-01-01", 1577836800.0), ("2020-01-01T01:00:00+01:00", 1577836800.0), (PAST, 1577836800.0)]
    + [(odd, None) for odd in ("never", "", 3, None, "2020-13-01", ["2020-01-01"])],
)
def test_only_a_date_ends_a_memory(bank: Bank, given: object, expires: float | None) -> None:
    bank.annotate("a", {FORGET_AFTER: given})
    assert bank.get("a").expires == expires
    assert [r.id for r in bank.remove_expired()] == (["a"] if expires else [])


def test_an_expired_memory_is_not_opened(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = ready()
    assert len(assistant.gate("Who keeps cats?").ids) == 2
    now = time.time()
    ends(assistant.bank, FIRST.id, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now + 3600)))
    assert len(assistant.gate("Who keeps cats?").ids) == 2
    monkeypatch.setattr(time, "time", lambda: now + 3601)  # nobody changed the bank
    assert assistant.gate("Who keeps cats?").ids == [SECOND.id]
    with pytest.raises(MemoryNotFoundError, match="expired"):
        assistant.direct("Who keeps cats?", scope=Scope(gates={FIRST.id: 1.0}))
    assert len(assistant.bank) == 2


def test_an_expired_memory_of_a_pack_is_not_opened(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends(bank, "a", PAST)
    ends(bank, "c", FUTURE)
    bank.set_evidence([(r, (np.ones(1, np.uint32), np.ones(1, np.int8))) for r in bank.records()])
    write_pack(bank, tmp_path / "p")
    with PackedBank(tmp_path / "p") as packed:
        columns = packed.columns()
        assert columns.ids == ["b", "c"] and [r.id for r in columns.records] == ["b", "c"]
        assert len(columns.keys) == len(columns.words) == 2 and columns.until == bank.get("c").expires
        assert len(packed) == 3


def test_the_next_writer_forgets_what_is_past_its_time(
    tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Bank.create(tmp_path / "bank", tiny()) as bank:
        at = ["--bank", str(bank.path), "--later"]
        assert main(["memorize", *at, "--ttl", "30d", "--id", "a", "--text", "The key is here."]) == 0
        assert 29 < (bank.get("a").expires - time.time()) / 86400 <= 30
        assert main(["memorize", *at, "--ttl", "2h", "--id", "a", "--text", "The key is here."]) == 0
        assert bank.get("a").expires - time.time() < 7201  # given again: counted from now
        ends(bank, "a", PAST)
        assert main(["memorize", *at, "--id", "b", "--text", "The mill stands still."]) == 0
        assert [record.id for record in bank.records()] == ["b"] and bank.get("b").expires is None
        assert main(["memorize", *at, "--ttl", "soon", "--text", "x"]) == 1
    assert "got 'soon'; expected a number with m, h, d, w or y, such as 30d" in capsys.readouterr().err


def test_forgetting_what_is_past_its_time_and_what_would_go(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    at = ["--bank", str(bank.path), "--yes"]
    ends(bank, "a", PAST)
    assert main(["forget", *at, "--expired", "--dry-run", "b"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out] == ["would forget b", "would forget a"] and len(bank) == 3
    assert main(["forget", *at, "--expired", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"forgotten": [], "would_forget": ["a"]}
    assert main(["forget", *at, "--expired"]) == 0
    assert capsys.readouterr().out == "forgot a\n" and [r.id for r in bank.records()] == ["b", "c"]
    assert main(["forget", *at, "--expired"]) == 0 and len(bank) == 2
    assert main(["forget", *at]) == 1
    assert "got nothing to forget; give ids, or --expired" in capsys.readouterr().err
