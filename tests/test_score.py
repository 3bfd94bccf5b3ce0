"""Scores are what decoding token by token would give, and the prompt's cache is shared without leaking."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import few_lines, logits_of, noise_adapter

from megart.adapter import write_adapter
from megart.bank import Bank, Memory
from megart.gate import GatePolicy
from megart.models import Model
from megart.runtime import embed, score
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.engine import Engine

WORDS = ([70, 71, 72, 73], [80], [90, 91])


@pytest.fixture
def assistant(tiny: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Assistant]:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    policy = GatePolicy(threshold=-1.0, top_k=1)
    with Bank.create(tmp_path / "bank", tiny()) as bank, Assistant(bank, policy=policy, threads=1) as made:
        for seed, text in enumerate(("Ada met Boro.", "Vess burnt down.")):
            adapter = write_adapter(noise_adapter("llama", 4, seed))
            bank.add(Memory(text, f"m{seed}"), key=made.key(text), adapter=adapter, rank=4, activated=seed == 0)
        yield made


def by_hand(assistant: Assistant, prompt: object, words: list[int], memories: object) -> float:
    with assistant.engine.lock:
        context, _ = score.stand(assistant, prompt, memories)
        rows = (
            np.concatenate([context.logits()[None], logits_of(context, words[:-1])])
            if words[1:]
            else context.logits()[None]
        )
    rows = rows.astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return float(rows[np.arange(len(words)), words].sum())


@pytest.mark.parametrize("memories", [None, "gate", ["m0"], ["m1"]])
def test_scores_are_those_of_token_by_token(assistant: Assistant, memories: object) -> None:
    prompt = score.turn(assistant.engine, "Whom did Ada meet?")
    found = score.score(assistant, prompt, WORDS, memories=memories)
    for one, words in zip(found.scores, WORDS, strict=True):
        assert one.logprob == pytest.approx(by_hand(assistant, prompt, words, memories), abs=2e-3)
        assert one.tokens == len(words)
    again = score.score(assistant, prompt, WORDS[::-1], memories=memories).scores[::-1]
    assert [s.logprob for s in again] == pytest.approx([s.logprob for s in found.scores], abs=2e-3)
    assert [m.id for m in found.memories] == ([] if memories is None else ["m0"] if memories == "gate" else memories)


def test_memories_change_the_scores_and_leave_the_base_alone(assistant: Assistant) -> None:
    prompt = score.turn(assistant.engine, "Whom did Ada meet?")
    bare = score.score(assistant, prompt, WORDS, memories=None)
    opened = [score.score(assistant, prompt, WORDS, memories=[id]) for id in ("m0", "m1")]
    after = score.score(assistant, prompt, WORDS, memories=None)
    assert [s.logprob for s in after.scores] == [s.logprob for s in bare.scores]
    for found in opened:
        assert abs(found.scores[0].logprob - bare.scores[0].logprob) > 0.05
    assert abs(opened[0].scores[0].logprob - opened[1].scores[0].logprob) > 0.05


def test_what_was_generated_is_greedy(assistant: Assistant) -> None:
    prompt = score.turn(assistant.engine, "Whom did Ada meet?")
    for memories in (None, ["m0"]):
        made, _ = score.generate(assistant, prompt, memories, 5)
        found = score.score(assistant, prompt, [made.tokens, [*made.tokens[:-1], 3]], memories=memories)
        assert [s.greedy for s in found.scores] == [True, False]
    assert assistant.bare("Whom did Ada meet?", max_tokens=5).text == score.generate(assistant, prompt, None, 5)[0].text


def test_one_token_that_was_not_the_likeliest_is_enough_not_to_be_greedy(assistant: Assistant) -> None:
    prompt = score.turn(assistant.engine, "Whom did Ada meet?")
    made, _ = score.generate(assistant, prompt, None, 1)
    other = [token for token in (70, 80) if token != made.tokens[0]][0]
    with assistant.engine.lock:
        context, _ = score.stand(assistant, prompt, None)
        context.decode([other])
        likeliest = int(context.logits().argmax())
    found = score.score(assistant, prompt, [[other, likeliest], [other]], memories=None)
    assert [s.greedy for s in found.scores] == [False, False]


@pytest.mark.parametrize("count", [1, 2, 5, 6, 9])
def test_tokens_are_foretold_in_batches_as_one_by_one(tiny: Callable[..., Model], count: int) -> None:
    engine = Engine(tiny(), threads=1)
    tokens = list(range(60, 60 + count))
    batched, single = (Context(engine, size=64, batch=4) for _ in range(2))
    for context in (batched, single):
        context.decode([50, 51, 52])
    rows = [*batched.predictions(batched.logits(), tokens)]
    expected = np.concatenate([single.logits()[None], logits_of(single, tokens)[:-1]])
    assert np.stack(rows) == pytest.approx(expected, abs=2e-3)
    assert batched.tokens == [50, 51, 52, *tokens[:-1]]
    for closing in (batched, single, engine):
        closing.close()


def test_generation_ends_at_a_stop_word(assistant: Assistant) -> None:
    prompt = score.turn(assistant.engine, "Whom did Ada meet?")
    whole = score.generate(assistant, prompt, None, 12)[0].text
    word = whole[5:8]
    assert score.generate(assistant, prompt, None, 12, [word])[0].text == whole.split(word)[0]


def test_a_plain_text_needs_no_template(assistant: Assistant) -> None:
    tokens = assistant.engine.tokenize("Ada met", bos=True)
    prompt = score.tokens_prompt(tokens)
    assert list(prompt.tokens) == tokens
    assert score.score(assistant, prompt, WORDS, memories=None).scores[1].logprob == pytest.approx(
        by_hand(assistant, prompt, WORDS[1], None), abs=2e-3
    )


def test_ranking_agrees_with_what_opens(assistant: Assistant) -> None:
    for question in ("Whom did Ada meet?", "What burnt?"):
        ranking = score.rank(assistant, question)
        assert ranking.scores == sorted(ranking.scores, reverse=True)
        assert ranking.opened == [m.id for m in assistant.direct(question, max_tokens=1).memories] == ranking.ids[:1]
