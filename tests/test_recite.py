"""A memory recites what greedy decoding says, whether the bank's text proves it in one pass or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import FIRST, noise_adapter
from numpy import float16

from megart.adapter import CUE_KEY, write_adapter
from megart.bank import Memory, Record
from megart.prompts import RECALL_CUE
from megart.runtime.assistant import Assistant
from megart.runtime.recall import recall
from megart.runtime.recite import of_text

LIMIT = 12


@pytest.fixture
def said(ready) -> tuple[Assistant, str, bytes]:
    """An assistant, and what an adapter of its bank says to the recall cue, LIMIT tokens long."""
    assistant = ready()
    adapter = noise_adapter("llama", 8, 3, dtype=float16)
    text = assistant.acceptance.recall(adapter, RECALL_CUE, activated=True, max_tokens=LIMIT)
    return assistant, text, write_adapter(replace(adapter, metadata={CUE_KEY: RECALL_CUE}))


def put(assistant: Assistant, text: str, adapter: bytes) -> Record:
    memory = Memory(text, id="said")
    return assistant.bank.add(
        memory, key=assistant.key(text), adapter=adapter, recipe="fast", activated=True, rank=8, replace=True
    )


def recited(assistant: Assistant, record: Record):
    return assistant.on_model(lambda: recall(assistant.runtime, assistant.open_bank, record))


def test_what_the_bank_holds_is_proven_or_corrected(said, monkeypatch) -> None:
    assistant, text, adapter = said
    monkeypatch.setattr("megart.runtime.recall.RECALL_TOKENS", LIMIT)
    right = recited(assistant, put(assistant, text, adapter))
    for wrong in (f"{text[: len(text) // 2]} and lies", "All of it is a lie."):
        other = recited(assistant, put(assistant, wrong, adapter))
        assert other.text.startswith(text) and not other.verbatim
    assert right.text.startswith(text)
    assert right.ends[-1] == len(right.text) and len(right.ends) == len(right.tokens)


def test_the_recital_stays_in_the_readers_cache(said) -> None:
    assistant, text, adapter = said
    recital = recited(assistant, put(assistant, text, adapter))
    cue = assistant.runtime.prompt(RECALL_CUE).tokens
    assert tuple(assistant.runtime.reader.context.tokens) == (*cue, *recital.tokens)


def test_a_memory_that_is_not_learnt_is_read_from_its_text(ready) -> None:
    assistant = ready()
    record = assistant.bank.add(Memory("Tea at four.", id="tea"), key=assistant.key("Tea at four."))
    recital = recited(assistant, record)
    assert recital == of_text(assistant.engine, "Tea at four.") and recital.verbatim
    assert assistant.base.tokens[-len(recital.tokens) :] == list(recital.tokens)


def test_an_old_banks_memory_recites_by_the_cue_it_was_taught(ready, monkeypatch) -> None:
    assistant = ready()
    seen: list[str] = []
    prompt = assistant.runtime.prompt
    monkeypatch.setattr(assistant.runtime, "prompt", lambda content, *a: seen.append(content) or prompt(content, *a))
    recited(assistant, assistant.bank.get("orrin"))
    from megart import direct

    assert seen[0] == direct.recall_cue(FIRST)
