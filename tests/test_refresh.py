"""A bank that is open reads again what changed, and nothing else; after any change it is as one opened anew."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from megart.bank import Bank, Memory
from megart.bank.rows import Columns
from megart.runtime.assistant import Assistant
from megart.runtime.bank_index import BankIndex
from megart.runtime.scope import Scope

Ready = Callable[..., Assistant]


class Words:
    """A text embedder of eight directions."""

    name = family = "minilm"
    size = 8

    def memory(self, text: str, title: str | None) -> np.ndarray:
        made = np.random.default_rng(abs(hash((text, title)))).normal(size=8).astype(np.float32)
        return made / np.linalg.norm(made)

    def query(self, text: str) -> np.ndarray:
        return self.memory(text, None)

    def close(self) -> None:
        pass


def state(index: BankIndex) -> dict[str, object]:
    """All that the gate is made of, by id, in the order of the rows."""
    made = index.index
    assert made is not None and len(made) == len(index.records)
    terms = [found.tolist() for found in index._rows.words]
    rows = range(len(made))
    return {
        index.records[row].id: (
            index.records[row],
            index._ids[row],
            terms[row],
            None if made.vectors is None else made.vectors.own[row].tobytes(),
            index._tokens([row])[0].tobytes(),
        )
        for row in rows
    }


def is_as_anew(assistant: Assistant) -> bool:
    held = assistant.open_bank.memories
    runtime = assistant.runtime
    fresh = BankIndex(assistant.bank, runtime.engine, lambda: runtime.encoder, lambda: runtime.deep_encoder)
    fresh.refresh()
    assert held.index and fresh.index
    # A matrix product rounds otherwise beside other rows.
    near = np.allclose(held.index.keys, fresh.index.keys, atol=2e-3)
    return near and list(state(held).items()) == list(state(fresh).items())


@pytest.mark.parametrize("embedder", ["words", "minilm"])
def test_after_any_changes_an_open_bank_is_as_one_opened_anew(
    ready: Ready, monkeypatch: pytest.MonkeyPatch, embedder: str
) -> None:
    from megart.runtime import embedders

    monkeypatch.setattr(embedders, "make_text_embedder", lambda name, *_: Words() if name == "minilm" else None)
    assistant, chance = ready(threads=1), random.Random(embedder)
    memories = assistant.open_bank.memories
    with Bank.open(assistant.bank.path) as other:  # as another process would
        other.set_state("embedder", embedder.encode())

        def add(id: str, *, whole: bool, **values: object) -> None:
            memory = Memory(f"Note {chance.random()} of {id}.", id=id, title=id.title(), **values)
            entry = memories.index_entry(memory.text, memory.title)
            other.add(memory, replace=True, **(entry if whole else {"key": entry["key"]}))

        def change() -> None:
            ids, kind = [record.id for record in other.records()], chance.randrange(9)
            if kind < 3 or len(ids) < 3:
                add(f"n{chance.randrange(12)}", whole=kind > 0)
            elif kind == 3:
                other.remove(chance.choice(ids))
            elif kind == 4:
                other.annotate(chance.choice(ids), {"tags": [str(chance.random())]})
            elif kind == 5:
                add(chance.choice(ids), whole=True, metadata={"forget_after": "2020-01-01"})
            elif kind == 6:
                memories.rekey(chance.choice(("words", "minilm")) if chance.random() < 0.5 else None)
            else:
                other.remove_expired()

        def check() -> None:
            for _ in range(12):
                for _ in range(chance.choice((1, 1, 2, 5))):
                    change()
                assistant.open_bank.refresh()
                assert is_as_anew(assistant)
                assert not memories.refresh()

        assistant.on_model(check)


def test_nothing_is_kept_of_a_memory_that_another_process_forgot(ready: Ready) -> None:
    assistant = ready(threads=1)
    first, second = assistant.bank.records()[:2]
    for record in (first, second):
        assistant.ask("What is it?", scope=Scope(gates={record.id: 1.0}))
    reader = assistant.runtime.reader
    assert {name[1] for name in reader._recitals} == {first.text, second.text}
    with Bank.open(assistant.bank.path) as other:
        other.remove(first.id)
    assistant.gate("What is it?")
    assert [name[1] for name in reader._recitals] == [second.text]
    assert not reader.context.tokens


def test_another_embedder_makes_all_vectors_anew(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name alone changes: no memory does."""
    from megart.runtime import embedders

    monkeypatch.setattr(embedders, "make_text_embedder", lambda name, *_: Words() if name == "minilm" else None)
    assistant = ready(threads=1)
    memories = assistant.open_bank.memories

    def check() -> None:
        for name in ("words", "minilm", "words"):
            assistant.bank.set_state("embedder", name.encode())
            memories.refresh()
            assert memories.index and (memories.index.vectors is not None) is (name == "minilm")
            assert is_as_anew(assistant)

    assistant.on_model(check)


def test_only_what_changed_is_read(ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = ready(threads=1)
    memories = assistant.open_bank.memories
    read: list[int] = []
    real = Bank.columns

    def columns(self: Bank, seqs: list[int] | None = None) -> Columns:
        made = real(self, seqs)
        read.append(len(made.ids))
        return made

    monkeypatch.setattr(Bank, "columns", columns)
    with Bank.open(assistant.bank.path) as other:

        def check() -> None:
            memories.refresh()
            entry = memories.index_entry("Cy digs.", None)
            for work in (
                lambda: other.add(Memory("Cy digs.", id="cy"), **entry),
                lambda: other.annotate("orrin", {"tags": ["cats"]}),
                lambda: other.remove("vess"),
                lambda: other.set_state("strict", b"0.5"),
            ):
                work()
                memories.refresh()
            assert read == [2, 1, 1, 0, 0]
            assert [record.id for record in memories.records] == ["orrin", "cy"]
            assert memories.records[0].tags == ("cats",)

        assistant.on_model(check)


def test_a_memory_found_by_nothing_yet_is_completed_once(ready: Ready) -> None:
    """One that a process could not complete, since the bank could only be read, is tried again."""
    assistant = ready(threads=1)
    memories = assistant.open_bank.memories

    def check() -> None:
        memories.refresh()
        assistant.bank.add(Memory("Di sings.", id="di"), key=memories.index_entry("Di sings.", None)["key"])
        with pytest.MonkeyPatch.context() as patch:
            from megart.errors import BankError

            def refuse(*_: object) -> None:
                raise BankError("read-only")

            patch.setattr(assistant.bank, "set_evidence", refuse)
            memories.refresh()
        found = memories._tokens([2])[0].tobytes()
        assert [r.id for r in assistant.bank.without_evidence()] == ["di"] and found
        assistant.bank.set_state("strict", b"0.5")
        memories.refresh()
        assert assistant.bank.without_evidence() == [] and memories._tokens([2])[0].tobytes() == found
        assert not memories._unsaved

    assistant.on_model(check)


def test_a_repair_is_seen(ready: Ready) -> None:
    assistant = ready(threads=1)
    memories = assistant.open_bank.memories

    def check() -> None:
        memories.refresh()
        assistant.bank.adapter_path("vess").write_bytes(b"spoilt")
        assistant.bank.repair()
        memories.refresh()
        assert [record.state for record in memories.records] == ["learnt", "pending"]
        assert memories.records[1] == replace(assistant.bank.get("vess"))

    assistant.on_model(check)
