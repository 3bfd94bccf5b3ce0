"""One question: which pass serves the gate, what may open together, what is read, and who may interrupt."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from helpers import ANYTHING, FIRST, NOTHING, SECOND, noise_adapter
from numpy import float16

from megart.adapter import write_adapter
from megart.bank import Bank, Memory
from megart.direct import recall_cue
from megart.errors import BankError, InputError
from megart.gate import GatePolicy
from megart.prompts import recall
from megart.runtime import adapter_cache
from megart.runtime.assistant import ANSWER_TOKENS, Assistant
from megart.runtime.context import Context
from megart.runtime.recall import recall as recite
from megart.runtime.scope import Scope
from megart.runtime.score import score, turn

CATS = "Who keeps cats?"
BOTH = GatePolicy(beta=0.0, threshold=-1.0, top_k=2, min_gate=0.0)


def decoded(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the tokens that each context decodes from now on."""
    counts = {"base": 0, "mix": 0, "encoder": 0}
    decode = Context.decode

    def spy(self: Context, tokens) -> None:
        for name in counts:
            if self is getattr(assistant.runtime, name):
                counts[name] += len(tokens)
        decode(self, tokens)

    assistant.on_model(lambda: assistant.runtime.encoder)
    monkeypatch.setattr(Context, "decode", spy)
    return counts


def change_kind(assistant: Assistant, memory: Memory, activated: bool) -> None:
    """*memory* again, with an adapter of the other kind."""
    data = write_adapter(noise_adapter("llama", 8, 5, dtype=float16))
    key = assistant.key(memory.text)
    assistant.bank.add(memory, key=key, adapter=data, recipe="paper", activated=activated, rank=8, replace=True)


# -- the pass that serves the gate -----------------------------------------------------------------


def test_a_bank_of_whole_prompt_memories_is_gated_by_the_shallow_layers_alone(ready, monkeypatch) -> None:
    """The base's prefill would be thrown away: only the mix encodes the prompt."""
    assistant = ready(activated=False, policy=ANYTHING)
    expected = assistant.direct(FIRST.text, max_tokens=6)
    counts = decoded(assistant, monkeypatch)
    answer = assistant.direct(SECOND.text, max_tokens=6)
    prompt = assistant.engine.prompt([{"role": "user", "content": SECOND.text}])
    assert counts["base"] == 0 and 0 < counts["encoder"] <= len(prompt.body)
    assert answer.memories[0].id == "vess" and expected.memories[0].id == "orrin"
    monkeypatch.setattr(type(assistant.open_bank), "reads_whole_prompts", False)
    other = ready(activated=False, policy=ANYTHING)
    full = other.direct(SECOND.text, max_tokens=6)
    assert (full.tokens, full.memories) == (answer.tokens, answer.memories)


def test_nothing_opens_in_such_a_bank_and_the_base_answers(ready) -> None:
    assistant = ready(activated=False, policy=NOTHING)
    for text in (FIRST.text, "Zebras.", FIRST.text):
        assert assistant.direct(text, max_tokens=6).tokens == assistant.bare(text, max_tokens=6).tokens


def test_an_activated_memory_is_served_by_one_prefill(ready, monkeypatch) -> None:
    assistant = ready(policy=ANYTHING)
    assistant.direct(SECOND.text, max_tokens=1)  # makes the bank's evidence and the slot
    assistant.base.truncate(0)
    counts = decoded(assistant, monkeypatch)
    answer = assistant.direct(FIRST.text, max_tokens=1)
    prompt = assistant.engine.prompt([{"role": "user", "content": FIRST.text}])
    assert answer.memories[0].id == "orrin"
    assert counts == {"base": len(prompt.body), "mix": len(prompt.opening), "encoder": 0}


# -- memories of different kinds -------------------------------------------------------------------


HEADINGS = {"orrin": "Orrin keeps three grey cats in the old...", "vess": "The ferry of Vess sails at dusk and..."}


def test_kinds_that_open_together_cannot_be_mixed_and_the_best_ones_answers(ready) -> None:
    assistant = ready(policy=BOTH, combine="mix")
    change_kind(assistant, SECOND, activated=False)
    for memory, other in ((FIRST, SECOND), (SECOND, FIRST)):
        alone = assistant.direct(memory.text, max_tokens=6, scope=Scope(only=(memory.id or "",)))
        answer = assistant.direct(memory.text, max_tokens=6)
        assert len(answer.memories) == 1
        if [m.id for m in answer.memories] != [memory.id]:
            continue  # with beta 0 either may be the best one
        assert [(m.id, m.gate) for m in answer.excluded] == [(other.id, 0.5)]
        assert answer.memories[0].gate == 1.0 and answer.tokens == alone.tokens
        assert answer.to_dict()["excluded"] == [{"id": other.id, "title": HEADINGS[other.id], "gate": 0.5}]
        turns = ready(policy=BOTH)
        change_kind(turns, SECOND, activated=False)
        both = turns.direct(memory.text, max_tokens=12)  # one after the other they need no mix
        assert len(both.memories) == 2 and both.excluded == [] and both.tokens[:6] == alone.tokens
        break
    else:
        pytest.fail("neither question opened its own memory")


def test_kinds_opened_by_hand_together_are_refused(ready) -> None:
    assistant = ready(policy=BOTH)
    change_kind(assistant, SECOND, activated=False)
    both = {"orrin": 0.5, "vess": 0.5}
    with pytest.raises(InputError, match=r"different kinds to open \(activated, whole prompt\)"):
        assistant.direct("Who?", scope=Scope(gates=both))
    with pytest.raises(InputError, match="different kinds"):
        score(assistant, turn(assistant.engine, "Who?"), [[60]], memories=["orrin", "vess"])
    assert assistant.direct("Who?", max_tokens=2, scope=Scope(gates={"vess": 1.0})).memories[0].id == "vess"


# -- several memories, one after the other -----------------------------------------------------------


def test_memories_that_open_together_answer_in_turn_each_as_if_alone(ready) -> None:
    heard: list[str] = []
    answer = ready(policy=BOTH).direct(CATS, max_tokens=12, on_text=heard.append)
    alone = ready(policy=BOTH)
    order = [memory.id for memory in answer.memories]
    said = [alone.direct(CATS, max_tokens=12, scope=Scope(gates={id: 1.0})) for id in order]
    assert sorted(order) == ["orrin", "vess"] and [m.gate for m in answer.memories] == [0.5, 0.5]
    assert said[0].finish == "length" and answer.tokens == said[0].tokens  # the limit is of both together
    assert answer.finish == "length"
    whole = ready(policy=BOTH).direct(CATS, on_text=heard.clear and heard.append)
    assert len(whole.tokens) <= 2 * ANSWER_TOKENS
    first, second = (alone.direct(CATS, scope=Scope(gates={id: 1.0})) for id in order)
    assert whole.text == f"{first.text}\n{second.text}" and whole.tokens == first.tokens + second.tokens
    assert "".join(heard).endswith(whole.text)


def test_a_mix_is_made_of_gates_by_hand_and_where_it_is_asked_for(ready) -> None:
    both = Scope(gates={"orrin": 0.5, "vess": 0.5})
    mixed = ready(policy=BOTH, combine="mix").direct(CATS, max_tokens=8)
    by_hand = ready(policy=BOTH).direct(CATS, max_tokens=8, scope=both)
    in_turn = ready(policy=BOTH).direct(CATS, max_tokens=8)
    assert mixed.tokens == by_hand.tokens != in_turn.tokens
    grammar = ready(policy=BOTH).direct(CATS, grammar='root ::= "yes" | "no"')
    assert grammar.text in ("yes", "no") and len(grammar.memories) == 2
    with pytest.raises(InputError, match=r"got combine 'sum'; expected one of turns, mix"):
        ready(combine="sum")


def test_a_stop_text_ends_the_turns_too(ready) -> None:
    assistant = ready(policy=BOTH)
    whole = assistant.direct(CATS, max_tokens=200)
    first = whole.text.split("\n")[0]
    for stop in ("\n", first[2:6]):
        heard: list[str] = []
        answer = assistant.direct(CATS, max_tokens=200, stop=stop, on_text=heard.append)
        assert answer.text == whole.text.split(stop)[0] == "".join(heard) and answer.finish == "stop"


def test_a_turn_that_is_cancelled_is_the_last(ready) -> None:
    with ready(policy=BOTH).stream(CATS, mode="direct") as stream:
        next(iter(stream))
    assert stream.answer.finish == "cancelled" and len(stream.answer.tokens) < ANSWER_TOKENS
    # No other turn was begun; the last token may be half of a character.
    assert ready(policy=BOTH).direct(CATS).text.startswith(stream.answer.text.rstrip("\ufffd"))
    assert not stream.answer.text.endswith("\n")


def test_a_memory_is_recalled_by_what_it_was_taught_with_whatever_opened_it(ready, monkeypatch) -> None:
    assistant = ready(policy=ANYTHING)
    counts = decoded(assistant, monkeypatch)
    assistant.recall(FIRST.text, max_tokens=1)
    cued = assistant.runtime.prompt(recall_cue(FIRST))
    assert counts["encoder"] > 0 and counts["base"] == len(cued.body)  # the user's words take a shallow pass only
    cue = recall_cue(FIRST)
    meant = assistant.acceptance.recall(assistant.open_bank.adapter(assistant.bank.get("orrin")), cue, activated=True)
    answers = [assistant.recall(words) for words in (FIRST.text, "Who keeps Orrin's grey cats?")]
    assert [a.text for a in answers] == [meant, meant] and all(a.memories[0].id == "orrin" for a in answers)
    imported = ready(policy=ANYTHING)
    record = imported.bank.get("orrin")
    imported.bank.add(
        record.memory, key=imported.key(FIRST.text), adapter=imported.bank.adapter_path("orrin").read_bytes(),
        recipe="imported", activated=True, rank=8, training={}, replace=True,
    )  # fmt: skip
    words = recall(FIRST.text)
    own = imported.acceptance.recall(imported.open_bank.adapter(imported.bank.get("orrin")), words, activated=True)
    assert imported.recall(FIRST.text).text == own != meant  # nobody knows what that one was taught with


def test_a_damaged_adapter_is_told_with_its_remedy(ready, caplog: pytest.LogCaptureFixture) -> None:
    assistant = ready(policy=ANYTHING)
    path = assistant.bank.adapter_path("orrin")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BankError, match=r"orrin.*; run: megart verify --repair$"):
        assistant.direct(FIRST.text, max_tokens=1)
    with caplog.at_level("WARNING", "megart"):  # it is read from its text meanwhile
        recital = assistant.on_model(
            lambda: recite(assistant.runtime, assistant.open_bank, assistant.bank.get("orrin"))
        )
    assert recital.text == FIRST.text or recital.text in assistant.bank.get("orrin").text
    assert "orrin is read from its text: the adapter of orrin is damaged" in caplog.text


# -- what is read -------------------------------------------------------------------------------------


def test_only_the_adapters_that_open_are_read_and_few_stay_open(ready, monkeypatch) -> None:
    read: list[str] = []
    load = Bank.adapter
    monkeypatch.setattr(adapter_cache, "BUDGET", 1)
    monkeypatch.setattr(Bank, "adapter", lambda bank, id: read.append(id) or load(bank, id))
    assistant = ready(policy=ANYTHING)
    assistant.direct(FIRST.text, max_tokens=1)
    assistant.direct(FIRST.text + " ", max_tokens=1)
    assert read == ["orrin"]
    assistant.direct(SECOND.text, max_tokens=1)
    assistant.direct(FIRST.text, max_tokens=1)
    assert read == ["orrin", "vess", "orrin"] and len(assistant.open_bank._adapters) == 1


# -- others who want the model meanwhile -----------------------------------------------------------------


@pytest.mark.parametrize("activated", [True, False])
def test_a_recall_from_another_thread_waits_for_the_answer_that_is_being_decoded(ready, activated: bool) -> None:
    """An install while a mix decodes would mix two memories, silently."""
    assistant = ready(policy=ANYTHING, activated=activated)
    other = replace(noise_adapter("llama", 8, 9, dtype=float16), metadata={})
    expected = assistant.direct(FIRST.text, max_tokens=150).tokens
    alone = assistant.acceptance.recall(other, "Who?", activated=activated, max_tokens=20)
    heard: list[str] = []
    stop = threading.Event()

    def recall() -> None:
        while not stop.is_set():
            heard.append(assistant.acceptance.recall(other, "Who?", activated=activated, max_tokens=20))
            assistant.gate(SECOND.text)

    thread = threading.Thread(target=recall)
    thread.start()
    try:
        found = [assistant.direct(FIRST.text, max_tokens=150).tokens for _ in range(5)]
    finally:
        stop.set()
        thread.join()
    assert found == [expected] * 5 and heard and set(heard) == {alone}


def test_five_turns_decode_what_is_new_and_no_more(ready, monkeypatch) -> None:
    """Whatever opens, the base's cache of the conversation stays valid."""
    assistant = ready(policy=ANYTHING)
    counts = decoded(assistant, monkeypatch)
    history: list[dict[str, str]] = []
    opened, longest = [], 0
    for turn_ in range(5):
        memory = (FIRST, SECOND)[turn_ % 2]
        answer = assistant.direct(memory.text, history=history, max_tokens=6)
        opened.append(answer.memories[0].id)
        longest = answer.timings.prompt_tokens
        history += [{"role": "user", "content": memory.text}, {"role": "assistant", "content": answer.text}]
    assert set(opened) == {"orrin", "vess"}
    # Once each, and a token or two again where a lone one was left (see Context.decode).
    assert counts["base"] <= longest + 5 * 2 + 20
