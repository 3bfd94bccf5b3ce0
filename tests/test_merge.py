"""Memories travel: banks and packs merged, compared, and brought up to date by what changed since a pack."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megart import Bank, Memory
from megart.bank.merge import apply_delta, diff, merge, unpack
from megart.bank.pack import write_pack
from megart.bank.packed import PackedBank
from megart.cli import main
from megart.errors import BankError, BaseMismatchError, InputError

KEY = Memory("The spare key hangs behind the blue oar.", id="key", title="Boathouse", metadata={"tags": ["house"]})
KILN = Memory("The kiln reaches 1240 degrees.", id="kiln")
INES = Memory("Ines takes her coffee with oat milk.", id="ines")


@pytest.fixture(autouse=True)
def model_beside_the_packs(tmp_path: Path, tiny) -> None:
    """A pack names its model's file, not where it lies."""
    for seed in (0, 1):
        (tmp_path / tiny(seed=seed).gguf.name).symlink_to(tiny(seed=seed).gguf)


@pytest.fixture
def adapter() -> bytes:
    from helpers import noise_adapter

    from megart.adapter import write_adapter

    return write_adapter(noise_adapter("llama", 8, 1))


Make = Callable[..., Bank]


@pytest.fixture
def make(tmp_path: Path, tiny, adapter: bytes) -> Make:
    """``make(name, *memories, learnt=True)``: a bank of *memories*, each found by what its text makes."""
    opened = []

    def bank(name: str, *memories: Memory, learnt: bool = True, seed: int = 0) -> Bank:
        made = Bank.create(tmp_path / name, tiny(seed=seed))
        opened.append(made)
        made.set_state("whitening", b"one")
        for memory in memories:
            put(made, memory, adapter if learnt else None)
        return made

    yield bank
    for made in opened:
        made.close()


def put(bank: Bank, memory: Memory, adapter: bytes | None, dates: tuple[str, str] | None = None) -> None:
    number = len(memory.text)
    bank.add(
        memory, key=np.full(8, number, np.float32), adapter=adapter, rank=8, recipe="fast", activated=True,
        evidence=(np.arange(number, dtype=np.uint32), np.arange(8, dtype=np.int8)), training={"steps": number},
        replace=True, dates=dates or ("2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z"),
    )  # fmt: skip


def packed(bank: Bank, path: Path, **how: object) -> bytes:
    write_pack(bank, path, **how)
    return path.read_bytes()


def test_unpacking_loses_nothing(make: Make, tmp_path: Path) -> None:
    """Dates, evidence and figures of learning too: the bank that comes out packs to the very same bytes."""
    data = packed(make("a", KEY, KILN), tmp_path / "p")
    with PackedBank(tmp_path / "p") as pack, unpack(pack, tmp_path / "b") as again:
        assert packed(again, tmp_path / "q") == data


def test_merging_keeps_all_and_takes_the_same_text_once(make: Make, tmp_path: Path, adapter: bytes) -> None:
    twin = Memory(KEY.text, id="the-key", metadata={"tags": ["boat"], "source": "phone"})
    into, phone = make("into", KEY), make("phone", twin, KILN)
    write_pack(make("laptop", INES), tmp_path / "laptop.megapack")
    with PackedBank(tmp_path / "laptop.megapack") as laptop:
        done = merge([phone, laptop], into)
    assert (done.added, done.same, done.renamed) == (["kiln", "ines"], ["key"], [])
    assert [r.id for r in into.records()] == ["key", "kiln", "ines"] and into.verify() == []
    assert into.get("key").title == "Boathouse" and into.get("key").metadata == {
        "tags": ["house", "boat"],
        "source": "phone",
    }
    for id, source in (("kiln", phone), ("ines", None)):
        assert into.adapter_bytes(id) == adapter and into.get(id).created_at == "2026-01-02T03:04:05Z"
        assert len(into.words()[id]) and len(into.tokens([id])[0])
        assert source is None or into.get(id) == source.get(id)
    again = merge([phone], into)
    assert again.added == [] and again.same == ["key", "kiln"] and len(phone) == 2


def test_a_pending_memory_gets_the_adapter_of_its_text(make: Make, adapter: bytes) -> None:
    into, other = make("into", KEY, learnt=False), make("other", Memory(KEY.text, id="other"))
    assert merge([other], into).learnt == ["key"]
    assert (
        into.get("key").state == "learnt"
        and into.get("key").title == "Boathouse"
        and into.adapter_bytes("key") == adapter
    )


def test_one_id_with_two_texts_is_refused_before_anything_is_written(make: Make) -> None:
    into, other = make("into", KEY), make("other", INES, Memory("Another key.", id="KEY"))
    revision = into.revision
    with pytest.raises(InputError, match="1 ids stand for other texts.*nothing was merged: KEY; give --rename"):
        merge([other], into)
    assert into.revision == revision and len(into) == 1
    done = merge([other], into, rename=True)
    (old, new), *_ = done.renamed
    assert old == "KEY" and into.get(new).text == "Another key." and into.get("key").text == KEY.text and len(into) == 3
    assert merge([other], into, rename=True).renamed == []  # it is there by now


def test_two_sources_that_clash_with_each_other(make: Make) -> None:
    into, one, two = make("into"), make("one", Memory("First.", id="a")), make("two", Memory("Second.", id="A"))
    with pytest.raises(InputError, match="nothing was merged: A"):
        merge([one, two], into)
    assert len(into) == 0


def test_banks_of_another_model_or_of_other_keys_are_refused(make: Make) -> None:
    into = make("into", KEY)
    with pytest.raises(BaseMismatchError, match="memories belong to one model"):
        merge([make("stranger", KILN, seed=1)], into)
    paper = make("paper", KILN)
    paper.set_state("embedder", b"paper")
    with pytest.raises(InputError, match="of different kinds; run megart rekey"):
        merge([paper], into)
    with pytest.raises(InputError, match="merged into itself"):
        merge([into], into)


def test_token_states_of_another_whitening_are_made_anew(make: Make) -> None:
    into, other = make("into", KEY), make("other", KILN)
    other.set_state("whitening", b"two")
    merge([other], into)
    assert [r.id for r in into.without_evidence()] == ["kiln"]


def test_what_changed_from_one_to_the_other(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = make("first", KEY, KILN)
    second = make("second", Memory(KEY.text, id="KEY", title="The boathouse"), INES)
    found = diff(first, second)
    assert (found.added, found.removed) == (("ines",), ("kiln",)) and found.changed == {"KEY": ("title", "metadata")}
    write_pack(first, tmp_path / "p")
    assert main(["diff", str(tmp_path / "p"), str(first.path)]) == 0
    assert capsys.readouterr().out == "the same 2 memories\n"
    assert main(["diff", str(tmp_path / "p"), str(second.path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["- kiln", "+ ines", "~ KEY: title, metadata"]
    assert main(["diff", str(tmp_path / "p"), str(second.path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == {"KEY": ["title", "metadata"]}


# -- delta packs -------------------------------------------------------------------------------------


@pytest.fixture
def changed(make: Make, tmp_path: Path, adapter: bytes) -> Bank:
    """A bank packed as ``old``, then changed: kiln forgotten, key rewritten, ines new; packed as ``delta`` and ``new``."""
    bank = make("home", KEY, KILN, Memory("The mill stands still.", id="mill"))
    write_pack(bank, tmp_path / "old")
    bank.remove("kiln")
    put(
        bank, Memory("The spare key is with Ines.", id="key", title="Boathouse"), adapter, ("2026-02-01T00:00:00Z",) * 2
    )
    put(bank, INES, adapter)
    with PackedBank(tmp_path / "old") as old:
        write_pack(bank, tmp_path / "delta", since=old)
    write_pack(bank, tmp_path / "new")
    return bank


def test_a_delta_brings_what_was_unpacked_up_to_date(changed: Bank, tmp_path: Path) -> None:
    with PackedBank(tmp_path / "old") as old, unpack(old, tmp_path / "b") as bank:
        with PackedBank(tmp_path / "delta") as delta:
            assert [r.id for r in delta.records()] == ["key", "ines"] and delta.delta.forgotten == ("kiln",)
            assert delta.get_state("whitening") is None  # it did not change
            done = apply_delta(delta, bank)
            assert (done.added, done.changed, done.forgotten) == (("ines",), ("key",), ("kiln",))
            assert packed(bank, tmp_path / "again") == (tmp_path / "new").read_bytes()
            assert apply_delta(delta, bank).changed == ()  # it is applied


def test_a_delta_of_nothing_and_one_after_another(changed: Bank, tmp_path: Path, adapter: bytes) -> None:
    with PackedBank(tmp_path / "new") as new:
        write_pack(changed, tmp_path / "nothing", since=new)
        put(changed, KILN, adapter)
        write_pack(changed, tmp_path / "third", since=new)
    with PackedBank(tmp_path / "nothing") as nothing:
        assert len(nothing) == 0 and nothing.delta.since == nothing.delta.becomes
    with PackedBank(tmp_path / "old") as old, unpack(old, tmp_path / "b") as bank:
        for name in ("delta", "third"):
            with PackedBank(tmp_path / name) as delta:
                apply_delta(delta, bank)
        assert [r.id for r in bank.records()] == ["key", "mill", "ines", "kiln"]


def test_memories_made_anew_by_another_embedder_are_in_the_delta(changed: Bank, tmp_path: Path) -> None:
    keys = {r.id: (np.zeros(8, np.float32), (np.ones(1, np.uint32), np.ones(1, np.int8))) for r in changed.records()}
    changed.set_keys(keys, {"embedder": b"e5"}, changed.revision)
    with PackedBank(tmp_path / "new") as new:
        write_pack(changed, tmp_path / "rekeyed", since=new)
        with unpack(new, tmp_path / "b") as bank, PackedBank(tmp_path / "rekeyed") as delta:
            assert len(delta) == 3 and len(apply_delta(delta, bank).changed) == 3
            assert packed(bank, tmp_path / "q1") == packed(changed, tmp_path / "q2")


def test_a_delta_is_refused_where_it_does_not_fit(changed: Bank, make: Make, tmp_path: Path) -> None:
    with PackedBank(tmp_path / "delta") as delta:
        with pytest.raises(InputError, match="goes on from the pack .* holds no pack; unpack that pack first"):
            apply_delta(delta, make("other", KEY))
        with PackedBank(tmp_path / "new") as new, unpack(new, tmp_path / "n") as bank:
            assert apply_delta(delta, bank).changed == ()  # what it leads to is there
        with pytest.raises(InputError, match="only what changed since another pack"):
            unpack(delta, tmp_path / "x")
        with pytest.raises(InputError, match="only what changed since another pack"):
            merge([delta], make("third", KEY))
        with pytest.raises(InputError, match="a delta needs a whole pack"):
            write_pack(changed, tmp_path / "y", since=delta)
    assert main(["ask", "--bank", str(tmp_path / "delta"), "Where is the key?"]) == 1


@pytest.mark.parametrize("local", ["rewritten", "forgotten", "annotated"])
def test_what_was_changed_here_is_never_overwritten(changed: Bank, tmp_path: Path, adapter: bytes, local: str) -> None:
    with PackedBank(tmp_path / "old") as old, unpack(old, tmp_path / "b") as bank:
        put(bank, Memory("Mine, and nobody else's.", id="mine"), adapter)
        if local == "rewritten":
            put(bank, Memory("The key is lost.", id="key"), adapter)
        elif local == "forgotten":
            bank.remove("key")
        else:
            bank.annotate("kiln", {"note": "mine"})
        before = bank.records()
        with (
            PackedBank(tmp_path / "delta") as delta,
            pytest.raises(InputError, match="nothing was applied: (key|kiln)"),
        ):
            apply_delta(delta, bank)
        assert bank.records() == before


def test_memories_of_ones_own_stay_beside_a_delta(changed: Bank, tmp_path: Path, adapter: bytes) -> None:
    with PackedBank(tmp_path / "old") as old, unpack(old, tmp_path / "b") as bank:
        put(bank, Memory("Mine, and nobody else's.", id="mine"), adapter)
        assert main(["merge", str(tmp_path / "delta"), str(bank.path)]) == 0
        assert {r.id for r in bank.records()} == {"key", "mill", "ines", "mine"}


def test_an_interrupted_delta_goes_on(changed: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        PackedBank(tmp_path / "old") as old,
        unpack(old, tmp_path / "b") as bank,
        PackedBank(tmp_path / "delta") as delta,
    ):

        def stop(self: Bank, id: str) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Bank, "remove", stop)
            apply_delta(delta, bank)
        apply_delta(delta, bank)
        assert packed(bank, tmp_path / "again") == (tmp_path / "new").read_bytes()


def test_the_verbs_say_what_they_did(changed: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = {name: str(tmp_path / name) for name in ("old", "delta2", "b", "c")}
    assert main(["unpack", at["old"], at["b"]]) == 0
    assert main(["pack", at["delta2"], "--bank", str(changed.path), "--since", at["old"]]) == 0
    assert "packed 2 memories, and that 1 are forgotten, of" in capsys.readouterr().out
    assert main(["unpack", at["delta2"], at["b"]]) == 0
    assert capsys.readouterr().out.startswith("added 1, changed 1, forgot 1; ")
    assert main(["merge", at["b"], at["old"], at["c"], "--rename", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["added"][:3] == ["key", "mill", "ines"] and told["memories"] == 5 and told["renamed"][0][0] == "key"
    assert main(["pack", at["c"] + "x", "--bank", at["c"], "--since", at["old"], "--no-text"]) == 1
    assert "give one of them" in capsys.readouterr().err


def test_a_crafted_delta_names_ids_only(changed: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megart.bank import pack as packing

    monkeypatch.setattr(
        packing,
        "_changed",
        lambda found, since, text: (found, b'{"since": "", "becomes": "", "was": {}, "forgotten": ["../x"]}'),
    )
    with PackedBank(tmp_path / "old") as old:
        write_pack(changed, tmp_path / "bad", since=old)
    with PackedBank(tmp_path / "bad") as bad, pytest.raises(BankError, match="names what is no id"):
        _ = bad.delta
