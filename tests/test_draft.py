"""Guessing the answer from the memory's text changes when it comes, never what it says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from helpers import ANYTHING, FIRST, HISTORY, NOTHING, SECOND

from megart.errors import InputError
from megart.gate import GatePolicy
from megart.runtime import assistant as assistant_module
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.draft import Draft
from megart.runtime.generate import generate
from megart.runtime.runtime import Runtime
from megart.runtime.sampling import SamplingOptions
from megart.runtime.scope import Scope

TEXT = [5, 6, 7, 8, 9, 5, 6, 20, 21, 22, 23, 24, 25, 26, 27, 28, 2]


def test_guesses_are_what_the_text_has_next() -> None:
    draft = Draft(lambda: [TEXT], longest=6)
    assert draft.after([5]) == [6, 7], "so the text begins"
    assert draft.after([9]) == [] and draft.after([1, 21]) == [], "one word stands in many texts"
    assert draft.after([1, 20, 21]) == [22, 23, 24, 25], "twice as many as agree"
    assert draft.after([9, 5, 6]) == [20, 21, 22, 23, 24, 25], "the longer agreement wins, at most six"
    assert draft.after([5, 6]) == [7, 8, 9, 5], "of two that agree alike the first"
    assert draft.after([27, 28]) == [2], "and the end of the turn"
    assert draft.after([28, 2]) == [] and draft.after([]) == []
    assert Draft(lambda: [TEXT], longest=0).after([20, 21]) == []


def test_of_several_texts_the_one_that_agrees_most_guesses() -> None:
    draft = Draft(lambda: [[1, 2, 3, 4, 5], [9, 2, 3, 4, 7]])
    assert draft.after([9, 2, 3, 4]) == [7] and draft.after([1, 2, 3, 4]) == [5]


class Knowing:
    """A draft that knows the answer, and lies at every *lie*-th token of it."""

    def __init__(self, answer: Sequence[int], lie: int, longest: int = 7):
        self._said = [token + 1 if lie and i % lie == lie - 1 else token for i, token in enumerate(answer)]
        self._longest = longest

    def after(self, said: Sequence[int]) -> list[int]:
        return self._said[len(said) : len(said) + self._longest]


WAYS = {
    "greedy": {},
    "sampled": {"temperature": 1.5, "seed": 7},
    "penalty": {"temperature": 0.8, "seed": 3, "repeat_penalty": 1.3},
    "grammar": {"grammar": "root ::= [a-z ]+", "temperature": 1.0, "seed": 1},
    "one": {"max_tokens": 1},
    "two": {"max_tokens": 2},
}


@pytest.mark.parametrize("lie", [0, 1, 3, 5])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_said_does_not_depend_on_the_guesses(ready, way: str, lie: int) -> None:
    context = ready(policy=NOTHING).base
    options = SamplingOptions(**{"max_tokens": 24, **WAYS[way]})
    prompt = list(range(60, 90))

    def made(draft: Draft | None) -> tuple[str, list[int], str, list[int], int]:
        context.truncate(0)
        context.decode(prompt)
        answer = generate(context, options, draft=draft)
        return answer.text, answer.tokens, answer.finish, list(context.tokens), answer.guessed

    *plain, none = made(None)
    *guessed, some = made(Knowing(plain[1], lie))
    assert guessed == plain and plain[3] == prompt + plain[1][: len(plain[3]) - len(prompt)]
    assert none == 0 and some <= len(plain[1])
    assert some == 0 if lie == 1 or way in ("one", "two") else some > len(plain[1]) // 2


def test_guesses_are_decoded_together(ready, monkeypatch) -> None:
    context = ready(policy=NOTHING).base
    context.decode(list(range(60, 90)))
    answer = generate(context, SamplingOptions(max_tokens=24)).tokens
    sizes: list[int] = []
    real = Context.decode_every
    monkeypatch.setattr(Context, "decode_every", lambda self, part: (sizes.append(len(part)), real(self, part))[1])
    monkeypatch.setattr(Context, "decode", lambda self, tokens: pytest.fail("token by token"))
    context.truncate(30)
    context.decode_every([context.tokens[-1]])
    context.truncate(30)
    sizes.clear()
    generate(context, SamplingOptions(max_tokens=24), draft=Knowing(answer, 0))
    assert sizes == [8, 8, 7]


def test_a_stop_text_and_cancelling_leave_no_guesses_in_the_cache(ready) -> None:
    context = ready(policy=NOTHING).base
    prompt = list(range(60, 90))
    context.decode(prompt)
    whole = generate(context, SamplingOptions(max_tokens=24))
    stop = context.engine.detokenize(whole.tokens[9:11])
    heard: list[str] = []
    for options, cancelled in (
        (SamplingOptions(max_tokens=24, stop=(stop,)), lambda: False),
        (SamplingOptions(max_tokens=24), lambda: len(heard) > 10),
    ):
        heard.clear()
        context.truncate(0)
        context.decode(prompt)
        answer = generate(context, options, heard.append, cancelled, Knowing(whole.tokens, 0))
        assert answer.finish == ("cancelled" if cancelled() else "stop") and 5 < len(answer.tokens) < 24
        assert context.tokens == (prompt + answer.tokens)[: len(context.tokens)]
        assert len(context.tokens) - len(prompt) <= len(answer.tokens)


def test_guesses_never_overflow_the_context(ready) -> None:
    context = ready(policy=NOTHING, context_size=256).base
    prompt = list(range(2, 2 + context.size - 5))
    context.decode(prompt)
    plain = generate(context, SamplingOptions(max_tokens=64)).tokens
    context.truncate(0)
    context.decode(prompt)
    assert generate(context, SamplingOptions(max_tokens=64), draft=Knowing(plain, 0)).tokens == plain and len(plain) == 5


def test_a_recurrent_model_is_not_guessed_for(ready, monkeypatch) -> None:
    """It cannot forget a wrong guess."""
    context = ready(policy=NOTHING).base
    assert context.can_forget
    context.decode(list(range(60, 90)))
    context.can_forget = False
    monkeypatch.setattr(Context, "decode_every", lambda *_: pytest.fail("guessed"))
    generate(context, SamplingOptions(max_tokens=6), draft=Knowing([1] * 9, 0))


def recites(monkeypatch, answers: dict[str, list[int]]) -> None:
    """Make the text of the memory that opens guess its whole answer, as it does where the memory was taught."""

    class Reciting(Draft):
        def __init__(self, _: object, longest: int):
            super().__init__(lambda: [[*answer, 2] for answer in answers.values()], longest)

    monkeypatch.setattr("megart.runtime.direct.Draft", Reciting)


def test_in_a_conversation_the_base_reads_along(ready, monkeypatch) -> None:
    """When the answer ends the base has read it, and the next turn is what it would be without."""
    plain = ready(policy=ANYTHING, draft_max=0)
    answers = {m.id: plain.direct(m.text, history=HISTORY, max_tokens=24).tokens for m in (FIRST, SECOND)}
    assert len(set(map(tuple, answers.values()))) == 2
    recites(monkeypatch, answers)
    monkeypatch.setattr(Runtime, "_idle", lambda self: False)
    assistant = ready(policy=ANYTHING)
    said = assistant.direct(FIRST.text, history=HISTORY, max_tokens=24)
    assert said.tokens == answers[FIRST.id] and said.timings.guessed_tokens > 16
    prompt = assistant.engine.prompt([*HISTORY, {"role": "user", "content": FIRST.text}])
    held = assistant.base.tokens
    assert held == [*prompt.tokens, *said.tokens][: len(held)] and len(held) > len(prompt.tokens) + 20
    assert assistant.base.match(held, assistant.base.bare) == len(held), "read by the base, not copied from the mix"
    follow_up = [
        *HISTORY,
        {"role": "user", "content": FIRST.text},
        {"role": "assistant", "content": said.text},
        {"role": "user", "content": SECOND.text},
    ]
    fresh = ready(policy=ANYTHING)
    assert (
        assistant.chat(follow_up, mode="direct", max_tokens=8).tokens
        == fresh.chat(follow_up, mode="direct", max_tokens=8).tokens
    )


def test_what_nobody_will_go_on_from_is_not_read_along(ready, monkeypatch) -> None:
    plain: Assistant = ready(policy=ANYTHING, draft_max=0)
    answers = {FIRST.id: plain.direct(FIRST.text, max_tokens=24).tokens}
    recites(monkeypatch, answers)
    monkeypatch.setattr(Runtime, "_idle", lambda self: False)
    assistant = ready(policy=ANYTHING)
    body = assistant.engine.prompt([{"role": "user", "content": FIRST.text}]).body
    said = assistant.direct(FIRST.text, max_tokens=24)
    assert said.timings.guessed_tokens > 16 and assistant.base.tokens == list(body)
    assistant.chat([{"role": "user", "content": FIRST.text}], mode="direct", max_tokens=24)
    assert len(assistant.base.tokens) > len(body) + 20


def test_reading_along_takes_no_longer_than_guessing_saves(ready, monkeypatch) -> None:
    """An answer that its memory's text does not guess is not held up by reading."""
    monkeypatch.setattr(Runtime, "_idle", lambda self: False)
    assistant = ready(policy=ANYTHING)
    said = assistant.direct(FIRST.text, history=HISTORY, max_tokens=24)
    assert said.memories and said.timings.guessed_tokens == 0
    assert len(assistant.base.tokens) == len(
        assistant.engine.prompt([*HISTORY, {"role": "user", "content": FIRST.text}]).body
    )


def test_it_reads_along_with_each_memory_in_its_turn(ready, monkeypatch) -> None:
    both = GatePolicy(beta=0.0, threshold=-1.0, top_k=2, min_gate=0.0)
    talk = [{"role": "user", "content": FIRST.text}]
    plain = ready(policy=both, draft_max=0)
    order = [memory.id for memory in plain.chat(talk, mode="direct", max_tokens=1).memories]
    apart = [plain.direct(FIRST.text, max_tokens=20, scope=Scope(gates={id: 1.0})).tokens for id in order]
    recites(monkeypatch, dict(enumerate(apart)))
    monkeypatch.setattr(Runtime, "_idle", lambda self: False)
    monkeypatch.setattr(assistant_module, "ANSWER_TOKENS", 20)
    assistant = ready(policy=both)
    made = assistant.chat(talk, mode="direct")
    assert len(made.memories) == 2 and made.tokens == apart[0] + apart[1] and made.timings.guessed_tokens > 30
    between = assistant.engine.tokenize("\n")
    whole = [*assistant.engine.prompt(talk).tokens, *apart[0], *between, *apart[1]]
    held = assistant.base.tokens
    assert held == whole[: len(held)] and len(held) > len(whole) - 4


def test_the_bare_model_is_not_guessed_for(ready, monkeypatch) -> None:
    bare = ready(policy=NOTHING, draft_max=0).direct(FIRST.text, max_tokens=24)
    recites(monkeypatch, {FIRST.id: bare.tokens})
    assert ready(policy=NOTHING).direct(FIRST.text, max_tokens=24).timings.guessed_tokens == 0


@pytest.mark.parametrize("bad", [-1, 256])
def test_a_draft_that_cannot_be_is_refused(ready, bad: int) -> None:
    with pytest.raises(InputError, match="draft_max"):
        ready(draft_max=bad)
