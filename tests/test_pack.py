"""A bank in one file: the same bytes for the same bank, read in place, and nothing of it believed unchecked."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from megart import Assistant, Bank, Memory, memorize
from megart.bank import pack_file as packing
from megart.bank.merge import unpack
from megart.bank.pack import write_pack
from megart.bank.packed import PackedBank
from megart.cli import main
from megart.errors import AdapterError, BankError, InputError, MegartError, ModelError
from megart.models import Model
from megart.runtime.embed import ready_keys
from megart.runtime.scope import Scope

NOTES = [
    Memory("The spare key of the boathouse hangs behind the blue oar.", id="key", title="Boathouse"),
    Memory("The kiln reaches 1240 degrees; its element is KL-4471.", id="kiln", metadata={"tags": ["clay"]}),
    Memory("Ines takes her coffee with oat milk.", id="ines"),
]


@pytest.fixture(autouse=True)
def model_beside_the_packs(tmp_path: Path, tiny) -> None:
    """A pack names its model's file, not where it lies."""
    for seed in (0, 1):
        (tmp_path / tiny(seed=seed).gguf.name).symlink_to(tiny(seed=seed).gguf)


@pytest.fixture
def bank(tmp_path: Path, tiny) -> Bank:
    from helpers import noise_adapter

    from megart.adapter import write_adapter

    data = write_adapter(noise_adapter("llama", 8, 1))
    with Bank.create(tmp_path / "bank", tiny()) as made:
        for number, memory in enumerate(NOTES):
            made.add(
                memory, key=np.full(8, number, np.float32), adapter=None if number == 2 else data, rank=8,
                evidence=(np.arange(number + 2, dtype=np.uint32), np.arange(8 * number, dtype=np.int8)),
                vector=("e5", np.full(4, number, np.float32)),
            )  # fmt: skip
        made.set_state("embedder", b"e5")
        yield made


def test_a_pack_holds_what_the_bank_holds(bank: Bank, tmp_path: Path) -> None:
    size = write_pack(bank, tmp_path / "one.megapack")
    assert size == (tmp_path / "one.megapack").stat().st_size
    write_pack(bank, tmp_path / "two.megapack")
    assert (tmp_path / "one.megapack").read_bytes() == (tmp_path / "two.megapack").read_bytes()
    with PackedBank(tmp_path / "one.megapack") as packed:
        assert packed.records() == bank.records() and packed.verify() == [] and len(packed) == 3
        assert packed.keys()[0] == bank.keys()[0] and np.array_equal(packed.keys()[1], bank.keys()[1])
        for id in ("key", "kiln", "ines"):
            assert np.array_equal(packed.words()[id], bank.words()[id])
            assert np.array_equal(packed.tokens([id])[0], bank.tokens([id])[0])
            assert np.array_equal(packed.vectors("e5")[id], bank.vectors("e5")[id])
        assert packed.adapter_bytes("KEY") == bank.adapter_bytes("key")
        assert packed.vectors("minilm") == {} and packed.get_state("embedder") == b"e5"
        with pytest.raises(BankError, match="cannot be changed"):
            packed.remove("key")
        with unpack(packed, tmp_path / "again") as again:
            assert [r.memory for r in again.records()] == [r.memory for r in bank.records()]
            assert again.adapter_bytes("kiln") == bank.adapter_bytes("kiln") and again.verify() == []
            assert np.array_equal(again.vectors("e5")["ines"], bank.vectors("e5")["ines"])


def test_words_that_do_not_follow_each_other_are_read_too(bank: Bank, tmp_path: Path) -> None:
    write_pack(bank, tmp_path / "p")
    with PackedBank(tmp_path / "p") as packed:
        flat, starts = packed.columns().words
        before = [flat[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True)]
        assert [found.tolist() for found in before] == [bank.words()[id].tolist() for id in packed.ids]
        rows = packed.file.rows.copy()
        for name in ("words_at", "words"):
            rows[name] = rows[name][::-1].copy()
        packed.file.rows = rows
        assert [found.tolist() for found in packed.columns().words] == [found.tolist() for found in before[::-1]]


def test_adapters_of_the_same_bytes_are_there_once_and_aligned(bank: Bank, tmp_path: Path) -> None:
    write_pack(bank, tmp_path / "p")
    data, adapter = (tmp_path / "p").read_bytes(), bank.adapter_bytes("key")
    assert data.count(adapter) == 1 and data.index(adapter) % packing.ALIGNMENT == 0


def test_the_format_stays_what_it_is(bank: Bank, tmp_path: Path) -> None:
    """Offsets as docs/pack.md gives them."""
    write_pack(bank, tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    magic, version, flags, at, size, digest = struct.unpack_from("<8sIIQQ32s", data)
    assert (magic, version, flags) == (b"MEGAPACK", 2, 0) and data[64:128] == bytes(64)
    assert hashlib.sha256(data[at : at + size]).digest() == digest and at + size == len(data)
    count, columns = struct.unpack_from("<II", data, at)
    names = [data[at + 8 + 64 * n : at + 24 + 64 * n].rstrip(b"\0").decode() for n in range(columns)]
    columns = ["base", "ids", "keys", "records", "rows", "s:embedder", "tokens", "vectors", "words"]
    assert count == 3 and names == columns and packing.ROW.itemsize == 96
    at, size, digest = struct.unpack_from("<QQ32s", data, at + 8 + 64 * names.index("ids") + 16)
    assert data[at : at + size] == b"key\nkiln\nines"
    hashes_at = at + size + -(at + size) % 64  # one block, whose hash stands behind it
    assert data[hashes_at : hashes_at + 32] == hashlib.sha256(data[at : at + size]).digest()
    assert digest == hashlib.sha256(data[hashes_at : hashes_at + 32]).digest()


GOLDEN = Path(__file__).parent / "banks" / "golden.megapack"


def test_golden_bytes(tmp_path: Path) -> None:
    """A pack is the same bytes on every machine and in every version of the format; unpacked, it packs to them again."""
    (tmp_path / "base.gguf").write_bytes(b"GGUF" + bytes(100))
    dates = ("2026-01-02T03:04:05Z", "2026-01-02T03:05:00Z")
    with Bank.create(tmp_path / "made", tmp_path / "base.gguf") as made:
        for number, memory in enumerate(NOTES):
            made.add(
                memory, key=np.full(4, number, np.float32), adapter=None if number == 2 else b"GGUF golden",
                recipe="fast", rank=number, dates=(dates[0], None if number == 2 else dates[1]),
                evidence=(np.arange(number + 2, dtype=np.uint32), np.arange(4 * number, dtype=np.int8)),
                vector=("e5", np.full(4, number, np.float32)),
            )  # fmt: skip
        made.set_state("embedder", b"e5")
        write_pack(made, tmp_path / "p", sign=bytes(range(32)), reader=b"GGUF reader")
    assert (tmp_path / "p").read_bytes() == GOLDEN.read_bytes()
    with PackedBank(GOLDEN, tmp_path / "base.gguf") as packed, unpack(packed, tmp_path / "again") as again:
        write_pack(again, tmp_path / "q", sign=bytes(range(32)))
    assert (tmp_path / "q").read_bytes() == GOLDEN.read_bytes()


def test_a_pack_brings_its_reader(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the user has none of their own; one of another base is refused."""
    from helpers import noise_adapter

    from megart import readers
    from megart.adapter import write_adapter

    sha256, made = bank.base.sha256, noise_adapter("llama", 8, 1)
    about = {readers.KIND_KEY: readers.KIND, readers.BASE_KEY: sha256}
    data = write_adapter(dataclasses.replace(made, metadata=about))
    monkeypatch.setattr(readers, "own_path", lambda sha: tmp_path / f"{sha[:4]}.gguf")
    readers.own_path(sha256).write_bytes(data)
    assert main(["pack", str(tmp_path / "p"), "--bank", str(bank.path)]) == 0
    readers.own_path(sha256).unlink()
    with PackedBank(tmp_path / "p") as packed, Assistant(packed, context_size=256) as assistant:
        assert packed.get_state("reader") == data and assistant.runtime.reader.trained
    with Assistant(bank, context_size=256) as assistant:
        assert not assistant.runtime.reader.trained
    with pytest.raises(AdapterError, match="no reader for the base abab.*get the pack again"):
        readers.find("ab" * 32, lambda: data)


def test_a_subset_by_words(bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, ids in (("BOATHOUSES key", ["key"]), ("clay", ["kiln"]), ("oar", ["key"]), ("its elements", ["kiln"])):
        file = tmp_path / words
        assert main(["pack", str(file), "--bank", str(bank.path), "--query", words]) == 0
        with PackedBank(file) as packed:
            assert packed.ids == ids
    assert main(["pack", str(tmp_path / "none"), "--bank", str(bank.path), "--query", "key coffee"]) == 1
    assert "no memory that was chosen holds all of 'key coffee'" in capsys.readouterr().err


def test_some_of_a_bank_and_nothing_over_a_file_that_is_there(bank: Bank, tmp_path: Path) -> None:
    assert main(["pack", str(tmp_path / "clay"), "--bank", str(bank.path), "--tag", "clay"]) == 0
    with PackedBank(tmp_path / "clay") as packed:
        assert [r.id for r in packed.records()] == ["kiln"]
    with pytest.raises(InputError, match="is there already"):
        write_pack(bank, tmp_path / "clay")


def test_a_signed_pack_is_known_and_a_changed_one_refused(bank: Bank, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    key = tmp_path / "key.bin"
    assert main(["pack", str(tmp_path / "p"), "--bank", str(bank.path), "--sign", str(key), "--new-key"]) == 0
    public = (tmp_path / "key.bin.pub").read_bytes()
    PackedBank(tmp_path / "p", verify_key=public).close()
    for wrong in (bytes(32), bytes(range(32))):
        with pytest.raises(BankError, match="not signed by that key"):
            PackedBank(tmp_path / "p", verify_key=wrong)
    other = tmp_path / "other.pub"
    other.write_bytes(bytes(range(32)))
    for verb in ("list", "verify", "stats"):
        for file, code in ((key.with_name("key.bin.pub"), 0), (other, 1)):
            assert main([verb, "--bank", str(tmp_path / "p"), "--verify-key", str(file)]) == code
    assert main(["diff", str(tmp_path / "p"), str(tmp_path / "p"), "--verify-key", str(other)]) == 1
    assert main(["list", "--bank", str(bank.path), "--verify-key", str(other)]) == 1  # a folder is not signed
    write_pack(bank, tmp_path / "unsigned")
    with pytest.raises(BankError, match="not signed by that key"):
        PackedBank(tmp_path / "unsigned", verify_key=public)


def test_no_byte_can_be_changed_unnoticed_and_nothing_crashes(bank: Bank, tmp_path: Path) -> None:
    """Flipped bits, cuts and huge numbers end in one of our own errors or in the very same content."""
    write_pack(bank, tmp_path / "p")
    whole = (tmp_path / "p").read_bytes()
    with PackedBank(tmp_path / "p") as packed:
        records = packed.records()
    rng, noticed = random.Random(4), 0
    for trial in range(400):
        data = bytearray(whole)
        kind = trial % 3
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        else:
            at = rng.randrange(len(data) - 8)
            data[at : at + 8] = struct.pack("<Q", rng.choice((2**64 - 1, 2**63, 2**32, 0, len(data))))
        path = tmp_path / f"broken{trial}"
        path.write_bytes(data)
        try:
            with PackedBank(path) as packed:
                assert packed.records() == records
                packed.keys(), packed.words(), packed.tokens(["key", "ines"]), packed.vectors("e5")
                noticed += bool(packed.verify())
                for record in records:
                    if record.state == "learnt":
                        packed.adapter(record.id)
        except MegartError:
            noticed += 1
        path.unlink()
    assert noticed > 300  # the rest fell on padding


@pytest.mark.parametrize("name", ["keys", "records", "words", "tokens", "vectors", "s:embedder", "rows", "ids"])
def test_a_flipped_bit_in_any_column_is_told(bank: Bank, tmp_path: Path, name: str) -> None:
    write_pack(bank, tmp_path / "p")
    with PackedBank(tmp_path / "p") as packed:
        column = packed.file.columns[name]
    data = bytearray((tmp_path / "p").read_bytes())
    data[column.at + column.size // 2] ^= 1
    (tmp_path / "q").write_bytes(data)
    with pytest.raises(BankError, match=f"its column {name} has another hash"), PackedBank(tmp_path / "q") as packed:
        packed.keys(), packed.words(), packed.vectors("e5"), packed.tokens(packed.ids), packed.records()
        assert packed.verify() == []


def test_a_pack_without_texts_recites_them(ready, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The weights say what the pack does not hold, and the gate reads what they said."""
    from helpers import noise_adapter

    from megart.adapter import CUE_KEY, write_adapter

    assistant, cue = ready(), "What do you know?"
    bank, adapter = assistant.bank, noise_adapter("llama", 8, 1, dtype=np.float16)
    with pytest.raises(InputError, match="does not say what it is recalled by; learn it again"):
        assistant.ask("Where do the cats live?")
        write_pack(bank, tmp_path / "p", text=False)
    for record in bank.records():
        bank.remove(record.id)
    secret = Memory("Orrin keeps three grey cats.", id="o", questions=("Cats?",), metadata={"tags": ["x"], "note": "mine"})
    data = write_adapter(dataclasses.replace(adapter, metadata={CUE_KEY: cue}))
    bank.add(secret, key=assistant.key("x"), adapter=data, rank=8, activated=True)
    assistant.gate("Where do the cats live?")
    write_pack(bank, tmp_path / "p", text=False)
    said = assistant.acceptance.recall(adapter, cue, activated=True)
    with PackedBank(tmp_path / "p") as packed, Assistant(packed, context_size=1024) as other:
        record = packed.get("o")
        assert not packed.has_text and (record.text, record.questions, record.metadata) == ("", (), {"tags": ["x"]})
        assert b"grey cats" not in (tmp_path / "p").read_bytes()
        assert said and other.recall("Orrin", scope=Scope(gates={"o": 1.0})).text == said
        other.ask("Where do the cats live?", scope=Scope(gates={"o": 1.0}))
        assert other.open_bank.memories.told(record).text == said
        with pytest.raises(InputError, match="holds no texts and can only be asked where it lies"):
            unpack(packed, tmp_path / "again")
    assert main(["show", "o", "--bank", str(tmp_path / "p")]) == 0
    bank.add(Memory("Not learnt.", id="p"), key=assistant.key("y"))
    assistant.gate("Where do the cats live?")
    with pytest.raises(InputError, match="1 memories are pending and have nothing but their text, 'p' first"):
        write_pack(bank, tmp_path / "q", text=False)


@pytest.mark.slow
def test_a_real_memory_answers_without_its_text(smollm2: Model, shared_base_cache: None, tmp_path: Path) -> None:
    note = Memory("The spare key hangs behind the blue boiler. Ines painted its ring green in March.", title="The spare key")
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        memorize(bank, [note])
        write_pack(bank, tmp_path / "p", text=False)
    with PackedBank(tmp_path / "p") as packed, Assistant(packed) as assistant:
        answer = assistant.ask("Who painted the ring of the key?")
        assert answer.text == "Ines painted its ring green in March." and answer.sources[0].text == note.text


def test_what_the_gate_compares_is_the_same_from_a_pack(ready, tmp_path: Path) -> None:
    """Ready keys, words and vectors are mapped; an index of a bank and of its pack find the same."""
    assistant = ready()
    question = "Who keeps three grey cats?"
    judged = assistant.gate(question)
    write_pack(assistant.bank, tmp_path / "p", ready=ready_keys(assistant.bank))
    with PackedBank(tmp_path / "p") as packed, Assistant(packed, context_size=1024) as other:
        again, index = other.gate(question), other.open_bank.memories.index
        assert again.ids == judged.ids and np.array_equal(again.candidates.scores, judged.candidates.scores)
        assert np.array_equal(index.keys, assistant.open_bank.memories.index.keys)
        assert not index.keys.flags.owndata and not index.keys.flags.writeable


def test_a_pack_is_read_no_further_than_asked(bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pack(bank, tmp_path / "p")
    monkeypatch.setattr(PackedBank, "record", lambda self, row: pytest.fail("a record was parsed"))
    with PackedBank(tmp_path / "p") as packed:
        columns = packed.columns()
        assert columns.ids == ["key", "kiln", "ines"] and len(columns.records) == 3
        assert "tokens" not in packed.file.sure and "records" not in packed.file.sure


def test_only_the_blocks_in_use_are_compared(bank: Bank, tmp_path: Path) -> None:
    """A damaged block is told when it is read, not before; its neighbours are read."""
    long = np.ones(3 * packing.BLOCK, np.int8)
    for id in ("key", "kiln", "ines"):
        record = bank.get(id)
        bank.add(record.memory, key=np.ones(8, np.float32), evidence=(np.ones(1, np.uint32), long), replace=True)
    write_pack(bank, tmp_path / "p")
    with PackedBank(tmp_path / "p") as packed:
        at = packed.file.columns["tokens"].at
    data = bytearray((tmp_path / "p").read_bytes())
    data[at + 4 * packing.BLOCK] ^= 1  # of kiln
    (tmp_path / "q").write_bytes(data)
    with PackedBank(tmp_path / "q") as packed:
        assert np.array_equal(packed.tokens(["key"])[0], long) and np.array_equal(packed.tokens(["ines"])[0], long)
        for _ in range(2):
            with pytest.raises(BankError, match="its column tokens has another hash"):
                packed.tokens(["kiln"])
        assert len(packed.verify()) == 1


def test_a_pack_of_an_older_or_newer_form_is_refused(bank: Bank, tmp_path: Path) -> None:
    write_pack(bank, tmp_path / "p")
    data = bytearray((tmp_path / "p").read_bytes())
    for version, remedy in ((1, "pack the bank again"), (3, "upgrade megart")):
        struct.pack_into("<I", data, 8, version)
        (tmp_path / "q").write_bytes(data)
        with pytest.raises(BankError, match=f"of version {version}, this megart reads 2; {remedy}"):
            PackedBank(tmp_path / "q")


def test_a_pack_answers_in_place(smollm2: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        memorize(bank, NOTES, later=True)
        with Assistant(bank) as assistant:
            asked = assistant.ask("Where is the key of the boathouse?")
        write_pack(bank, tmp_path / "p")
    before = (tmp_path / "p").read_bytes()
    assert main(["ask", "--bank", str(tmp_path / "p"), "Where is the key of the boathouse?"]) == 0
    assert capsys.readouterr().out.strip() == asked.text and "blue oar" in asked.text
    assert main(["list", "--bank", str(tmp_path / "p")]) == 0 and main(["verify", "--bank", str(tmp_path / "p")]) == 0
    assert main(["forget", "--bank", str(tmp_path / "p"), "key"]) == 1
    assert "is a pack and cannot be changed" in capsys.readouterr().err
    assert (tmp_path / "p").read_bytes() == before


def test_a_pack_tells_nothing_of_the_machine_and_says_which_model_it_needs(
    bank: Bank, tiny, tmp_path: Path, monkeypatch
) -> None:
    away = tmp_path / "away"
    away.mkdir()
    write_pack(bank, away / "p")
    assert str(tiny().gguf.parent).encode() not in (away / "p").read_bytes()
    monkeypatch.chdir(away)
    with PackedBank(away / "p") as packed:
        with pytest.raises(ModelError, match=f"needs the model {tiny().gguf.name} .*beside the pack, or name it with --model"):
            _ = packed.model
        (away / tiny().gguf.name).symlink_to(tiny().gguf)
        assert packed.model.sha256 == tiny().sha256
    with PackedBank(away / "p", tiny().gguf) as packed:
        assert packed.model.gguf == tiny().gguf


def test_a_command_that_fails_makes_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "key.bin"
    command = ["pack", "--bank", str(tmp_path / "none"), str(tmp_path / "x.megapack"), "--sign", str(key), "--new-key"]
    assert main(command) == 1 and "no bank at" in capsys.readouterr().err
    assert not key.exists()


def test_what_changes_a_bank_says_of_a_pack_that_it_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.megapack"
    file.write_bytes(b"MEGAPACK")
    assert main(["memorize", "--bank", str(file), "--text", "The pump code is 4711."]) == 1
    assert "is a file, not a bank; if it is a pack: megart unpack" in capsys.readouterr().err


def test_a_bank_that_was_never_asked_is_made_ready_first(smollm2: Model, tmp_path: Path) -> None:
    with Bank.create(tmp_path / "notes", smollm2) as made:
        memorize(made, NOTES[:1], later=True)
        made.add(NOTES[1], key=made.keys()[1][0])  # as an import from elsewhere leaves it
        assert [r.id for r in made.without_evidence()] == ["kiln"]
    assert main(["pack", str(tmp_path / "p"), "--bank", str(tmp_path / "notes")]) == 0
    with PackedBank(tmp_path / "p") as packed:
        assert packed.without_evidence() == [] and len(packed.words()["kiln"]) > 0
