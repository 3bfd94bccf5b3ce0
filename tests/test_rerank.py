"""The reranker: which memories it reads, what of them, what it changes, and that it changes nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import few_lines

from megart import prompts
from megart.bank import Bank, Memory
from megart.gate import Candidates, GatePolicy, decide, rerank
from megart.gate.words import term, term_hash
from megart.models import Model
from megart.runtime import embed
from megart.runtime import likelihood as likelihood_module
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.likelihood import Likelihood
from megart.runtime.score import score, turn

ANYTHING = GatePolicy(threshold=-1.0)


def candidates(*scores: float, partner: int | None = None) -> Candidates:
    values = np.array(scores)
    powers = np.exp(values)
    everything = powers.sum() + 1
    parts = np.column_stack([values / 2, values / 2])
    rows = np.arange(len(values), dtype=np.int64) + 10
    return Candidates(rows, values, powers / everything, 1 / everything, parts, partner, ("a", "b"))


def places(found: Candidates, policy: GatePolicy | None = None) -> list[int]:
    return rerank.near(found, policy or GatePolicy())


# -- which, and what of them ------------------------------------------------------------------------


def test_only_those_near_the_best_are_looked_at_and_three_at_most() -> None:
    near, far = np.log(rerank.SHARE) + 0.01, np.log(rerank.SHARE) - 0.01
    assert places(candidates(3, 3 + near)) == [0, 1]
    assert places(candidates(3, 3 + far)) == []
    assert places(candidates(3, 3 + near, 3 + far)) == [0, 1]
    assert places(candidates(3, 3, 3, 3)) == [0, 1, 2]
    assert places(candidates(3)) == [] and places(candidates()) == []


def test_a_question_that_needs_two_memories_has_both() -> None:
    assert places(candidates(3, 3, partner=1)) == []


def test_where_nothing_opens_or_the_policy_says_so_nothing_is_looked_at() -> None:
    assert places(candidates(-2, -2)) == [] and places(candidates(-2, -2), ANYTHING) == [0, 1]
    assert places(candidates(3, 3), GatePolicy(rerank=False)) == []


def test_the_sentences_that_hold_most_of_the_question_are_read_first() -> None:
    text = (
        "Ilse kept bees. She sold the honey in Bled! Her brother fished.\nThe honey was dark; Bled liked it. She sang."
    )
    telling = {
        term_hash(term(word)): nats for word, nats in {"honey": 2.0, "Bled": 3.0, "sell": 1.0, "brother": 1.5}.items()
    }
    assert rerank.passages(text, telling) == ["She sold the honey in Bled!", "Bled liked it.", "The honey was dark;"]
    assert rerank.passages(text, {}) == ["Ilse kept bees.", "She sold the honey in Bled!", "Her brother fished."]
    assert rerank.passages(" \n", telling) == []


def test_a_passage_gains_the_mean_of_all_its_tokens_and_its_best_few() -> None:
    nats = np.r_[-np.ones(7), np.full(rerank.WINDOW, 2.0), -np.ones(3)].astype(np.float32)
    best = 2.0 * rerank.WINDOW
    assert rerank.gain(nats) == pytest.approx((best - 10 + best) / 2)
    assert rerank.gain(np.array([1.0, -3.0])) == -2.0  # shorter than a window
    assert rerank.gain(np.zeros(0)) == 0.0


# -- what it changes --------------------------------------------------------------------------------


def test_a_second_look_moves_probability_among_those_looked_at_and_nothing_else() -> None:
    before = candidates(1.0, 0.8, -1.0, -2.0)
    after = rerank.reranked(before, [0, 1], [0.0, 10.0])
    assert after.rows.tolist() == [11, 10, 12, 13]
    assert (after.p_none, after.p[2:].tolist()) == (before.p_none, before.p[2:].tolist())
    assert after.p[:2].sum() == pytest.approx(before.p[:2].sum()) and after.p[0] > after.p[1]
    # 0.2 behind, and 10 nats more
    assert after.scores[0] - after.scores[1] == pytest.approx(10 * rerank.WEIGHT - 0.2)
    assert after.parts.sum(axis=1) == pytest.approx(after.scores) and after.names == ("a", "b", "reading")
    assert [o.index for o in decide(after, replace(GatePolicy(), min_gate=0.4))] == [11]


def test_equal_gains_change_nothing() -> None:
    before = candidates(1.0, 0.8, 0.5)
    after = rerank.reranked(before, [0, 1, 2], [7.0, 7.0, 7.0])
    assert after.scores == pytest.approx(before.scores) and after.p == pytest.approx(before.p)
    assert after.rows.tolist() == before.rows.tolist()


def test_each_memory_counts_by_its_best_passage_and_one_of_which_nothing_was_read_by_nothing() -> None:
    texts = {10: "One. Two. Three.", 11: "Four."}
    asked = []

    def gains(groups, tokens):
        asked.append(([list(group) for group in groups], tokens))
        return [[np.array([1.0]), np.array([5.0]), np.array([-2.0])], []]

    assert rerank.looks(candidates(2, 2), [0, 1], texts.__getitem__, gains) == [5.0, 0.0]
    assert asked == [([["One.", "Two.", "Three."], ["Four."]], rerank.TOKENS)]


# -- reading ----------------------------------------------------------------------------------------


@pytest.fixture
def assistant(tiny: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Assistant]:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    with Bank.create(tmp_path / "bank", tiny()) as bank, Assistant(bank, policy=ANYTHING, threads=1) as made:
        for number, text in enumerate(("Ada met Boro in Vess.", "Ada met Kiril in Vess.")):
            bank.add(Memory(text, f"m{number}"), **made.index_entry(text))
        yield made


def test_a_gain_is_the_difference_of_two_log_probabilities(assistant: Assistant) -> None:
    texts = ["Ada met Boro in Vess.", "A", "The ferry burnt."]
    question = "Whom did Ada meet?"
    likelihood = assistant.on_model(lambda: Likelihood(lambda: assistant.runtime.reranker))
    found = assistant.on_model(lambda: likelihood.gains(question, [texts[:2], texts[2:]], 100))
    assert [len(group) for group in found] == [2, 1]
    for text, nats in zip(texts, [*found[0], *found[1]], strict=True):
        tokens = assistant.engine.tokenize(text, special=False)
        after, alone = (
            score(assistant, turn(assistant.engine, words), [tokens], memories=None).scores[0].logprob
            for words in (question, prompts.NOTHING_ASKED)
        )
        assert len(nats) == len(tokens) and nats.sum() == pytest.approx(after - alone, abs=2e-3)
    again = assistant.on_model(lambda: likelihood.gains(question, [texts], 100))
    for one, other in zip([*found[0], *found[1]], again[0], strict=True):
        assert one == pytest.approx(other, abs=2e-3)


def test_of_a_memory_no_more_is_read_than_the_limit(assistant: Assistant) -> None:
    texts = ["Ada met Boro in Vess.", "Boro ran.", "The ferry burnt down."]
    sizes = [len(assistant.engine.tokenize(text, special=False)) for text in texts]
    likelihood = Likelihood(lambda: assistant.runtime.reranker)

    def lengths(limit: int) -> list[int]:
        return [len(nats) for nats in assistant.on_model(lambda: likelihood.gains("Who ran?", [texts], limit))[0]]

    assert lengths(sum(sizes)) == sizes
    assert lengths(sum(sizes) - 1) == sizes[:2]
    assert lengths(sizes[0]) == sizes[:1]
    assert lengths(4) == [4]


def test_what_was_read_alone_is_not_read_again(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood, texts = Likelihood(lambda: assistant.runtime.reranker), ["Ada met Boro.", "Boro ran."]
    read: list[int] = []
    decode = Context.decode_every
    monkeypatch.setattr(Context, "decode_every", lambda self, tokens: (read.append(len(tokens)), decode(self, tokens)))
    assistant.on_model(lambda: likelihood.gains("Who ran?", [texts], 48))
    first = len(read)
    assistant.on_model(lambda: likelihood.gains("Who met?", [texts], 48))
    assert (first, len(read)) == (4, 6)


def test_what_is_remembered_of_texts_alone_is_bounded(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["Ada met Boro.", "Boro ran.", "Kiril ran."]
    monkeypatch.setattr(likelihood_module, "KEPT", 2)
    bounded, free = (Likelihood(lambda: assistant.runtime.reranker) for _ in range(2))
    for pair in (texts[:2], texts[1:], texts[:1]):
        found, expected = (assistant.on_model(partial(one.gains, "Who ran?", [pair], 48)) for one in (bounded, free))
        for nats, others in zip(found[0], expected[0], strict=True):
            assert nats == pytest.approx(others, abs=2e-3)
        assert len(bounded._alone) <= 2


def test_a_question_that_leaves_no_room_is_answered_without(assistant: Assistant) -> None:
    likelihood = Likelihood(lambda: assistant.runtime.reranker)
    found = assistant.on_model(lambda: likelihood.gains("word " * 2000, [["Ada met Boro."], ["Boro ran."]], 48))
    assert found == [[], []]


def test_a_cache_that_cannot_be_cut_back_is_not_used(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recurrent model's."""
    monkeypatch.setattr(assistant.runtime.reranker, "can_forget", False)
    likelihood = Likelihood(lambda: assistant.runtime.reranker)
    assert assistant.on_model(lambda: likelihood.gains("Who ran?", [["Boro ran."]], 48)) == [[]]


def test_its_time_is_told_apart(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Context.decode_every
    monkeypatch.setattr(Context, "decode_every", lambda self, tokens: (time.sleep(0.1), decode(self, tokens)))
    times = assistant.direct("Whom did Ada meet in Vess?", max_tokens=1).timings
    assert times.rerank_ms > 400 and times.gate_ms < 300 and 0 <= times.prefill_ms < 300
    parts = times.embed_ms + times.gate_ms + times.rerank_ms + times.mix_ms + times.install_ms + times.prefill_ms
    assert 0 < times.first_token_ms - parts < 50  # what lies between the stages: rendering the prompt, bookkeeping


def test_a_follow_up_keeps_open_what_the_second_look_at_the_earlier_question_chose(assistant: Assistant) -> None:
    question = "Whom did Ada meet in Vess?"
    said = [{"role": "user", "content": question}, {"role": "assistant", "content": "Boro."}]
    alone, follow_up = assistant.gate(question), assistant.gate("Why?", history=said)
    assert follow_up.candidates.names[-1] == "reading"
    assert follow_up.candidates.scores == pytest.approx(alone.candidates.scores, abs=1e-3)
    assert follow_up.ids == alone.ids


def test_the_paper_s_gate_is_left_as_it_is(assistant: Assistant) -> None:
    assistant.rekey("paper")
    assert assistant.gate("Whom did Ada meet in Vess?").candidates.names == ("product",)


def test_its_context_is_freed_with_the_others(assistant: Assistant) -> None:
    reader = assistant.on_model(lambda: assistant.runtime.reranker)
    assistant.close()
    assert reader.handle is None


def test_the_gate_looks_twice_where_memories_are_near_and_not_where_it_is_told_not_to(assistant: Assistant) -> None:
    judged = assistant.gate("Whom did Ada meet in Vess?")
    assert judged.candidates.names[-1] == "reading"
    answer = assistant.direct("Whom did Ada meet in Vess?", max_tokens=2)
    assert answer.timings.rerank_ms > 0
    assert {m.id: m.gate for m in answer.memories} == pytest.approx(dict(judged.opened), abs=1e-3)
    assert assistant.direct("Did Ada meet Kiril?", max_tokens=2).timings.rerank_ms == 0
    assistant.open_bank.policy = replace(ANYTHING, rerank=False)
    assert assistant.gate("Whom did Ada meet in Vess?").candidates.names[-1] != "reading"
    # where nothing opens there is nothing to tell apart
    assistant.open_bank.policy = replace(ANYTHING, threshold=2.0)
    assert assistant.gate("Whom did Ada meet in Vess?").candidates.names[-1] != "reading"


def test_the_real_model_tells_which_memory_answers(smollm2: Model, tmp_path: Path) -> None:
    """Both hold the words of the question; the base knows which of them answers it."""
    with Bank.create(tmp_path / "bank", smollm2) as bank, Assistant(bank) as assistant:
        for number, text in enumerate(TWINS):
            bank.add(Memory(text, f"m{number}"), **assistant.index_entry(text))
        for question, id in ASKED.items():
            judged = assistant.gate(question)
            assert judged.candidates.names[-1] == "reading", question
            assert judged.ids[0] == id and judged.candidates.parts[0, -1] > 0, question


TWINS = (
    "The brass telescope of Ilse Varga was made by the optician Josip Hren in a cellar in Bled.",
    "The brass telescope of Ilse Varga was sold in 1931 for ninety dinars and a mule.",
)
ASKED = {
    "Who was the maker of the brass telescope of Ilse Varga?": "m0",
    "What was the price of the brass telescope of Ilse Varga?": "m1",
    "How much money did the brass telescope of Ilse Varga bring?": "m1",
    "What was given in exchange for the brass telescope of Ilse Varga?": "m1",
}
