"""Conversations and what is cached of them: every answer is what it would be alone."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import llama_cpp
import pytest
from helpers import ANYTHING, FIRST, HISTORY, NOTHING, SECOND, noise_adapter, wait_idle

from megart.errors import InputError
from megart.models import Model
from megart.runtime.answer import Answer
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.request import Request
from megart.runtime.respond import _so_far
from megart.runtime.sampling import SamplingOptions

BOTH = pytest.mark.parametrize("activated", [True, False])


def turns(assistant: Assistant, count: int = 4, **options: object) -> list[tuple[tuple[str, ...], str, list[int]]]:
    """A conversation that opens one memory and then the other: (ids, text, tokens) of each answer."""
    history: list[dict[str, str]] = [*HISTORY]
    found = []
    for turn in range(count):
        memory = (FIRST, SECOND)[turn % 2]
        answer = assistant.direct(memory.text, history=history, max_tokens=6, **options)
        found.append((tuple(m.id for m in answer.memories), answer.text, answer.tokens))
        history += [{"role": "user", "content": memory.text}, {"role": "assistant", "content": answer.text}]
    return found


def alone(ready: Callable[..., Assistant], said: list[tuple[tuple[str, ...], str, list[int]]], **options: object):
    """The same turns, each asked of an assistant that has heard nothing before."""
    history: list[dict[str, str]] = [*HISTORY]
    found = []
    for turn, (_, text, _) in enumerate(said):
        memory = (FIRST, SECOND)[turn % 2]
        answer = ready(**options).direct(memory.text, history=history, max_tokens=6)
        found.append((tuple(m.id for m in answer.memories), answer.text, answer.tokens))
        history += [{"role": "user", "content": memory.text}, {"role": "assistant", "content": text}]
    return found


# -- cached tokens ---------------------------------------------------------------------------------


@BOTH
def test_a_conversation_is_what_each_turn_is_alone(ready, activated: bool) -> None:
    options = {"activated": activated, "policy": ANYTHING}
    said = turns(ready(**options))
    assert [ids for ids, _, _ in said] == [("orrin",), ("vess",)] * 2
    assert said == alone(ready, said, **options)


def test_without_the_fingerprint_a_mix_would_answer_from_anothers_cache(ready, monkeypatch) -> None:
    """The check is what keeps them apart: without it the very same turns go wrong."""
    options = {"activated": False, "policy": ANYTHING}
    expected = alone(ready, turns(ready(**options)), **options)

    def by_tokens_only(self: Context, tokens, by) -> int:
        shared = 0
        while shared < min(len(tokens), len(self.tokens)) and tokens[shared] == self.tokens[shared]:
            shared += 1
        return shared

    monkeypatch.setattr(Context, "match", by_tokens_only)
    assert turns(ready(**options)) != expected


def test_the_prompts_prefix_stays_valid_whatever_opens(ready, monkeypatch) -> None:
    assistant = ready(policy=ANYTHING)
    decoded: list[int] = []
    decode = Context.decode

    def spy(self: Context, tokens) -> None:
        if self is assistant.base:
            decoded.append(len(tokens))
        decode(self, tokens)

    assistant.direct(FIRST.text, history=HISTORY, max_tokens=1)
    wait_idle(assistant)
    monkeypatch.setattr(Context, "decode", spy)
    assistant.direct(SECOND.text, history=HISTORY, max_tokens=1)  # the other memory, the same beginning
    prompt = assistant.engine.prompt([*HISTORY, {"role": "user", "content": SECOND.text}])
    assert sum(decoded) < len(assistant.engine.tokenize(SECOND.text)) + 16 < len(prompt.body) / 2


@pytest.mark.parametrize("history", [HISTORY, []])
def test_what_was_said_is_encoded_while_nobody_asks(ready, history: list[dict[str, str]]) -> None:
    assistant = ready(policy=ANYTHING)
    said = assistant.direct(FIRST.text, history=history, max_tokens=8)
    wait_idle(assistant)
    messages = [*history, {"role": "user", "content": FIRST.text}, {"role": "assistant", "content": said.text}]
    assert assistant.base.tokens == list(assistant.engine.prompt(messages).body)
    follow_up = [*messages, {"role": "user", "content": SECOND.text}]
    fresh = ready(policy=ANYTHING).chat(follow_up, mode="direct", max_tokens=8)
    assert assistant.chat(follow_up, mode="direct", max_tokens=8).tokens == fresh.tokens


def test_only_what_the_mix_lacks_is_copied_to_it(ready, monkeypatch) -> None:
    """A long conversation's beginning stays where it is, and what is decoded after it is the same to the last bit."""
    sizes: list[int] = []
    real = llama_cpp.llama_state_seq_get_data

    def copied(handle, buffer, size, sequence):
        sizes.append(size)
        return real(handle, buffer, size, sequence)

    monkeypatch.setattr(llama_cpp, "llama_state_seq_get_data", copied)
    whole, parts = (ready(policy=NOTHING) for _ in range(2))
    begin, tail, more, end = [*range(60, 140)], [*range(150, 170)], [*range(200, 230)], [3, 4, 5]
    parts.base.advance(begin)
    parts.base.copy_to(parts.mix)
    parts.mix.decode(tail)  # an answer, which the next turn takes back
    for assistant in (parts, whole):
        assistant.base.advance(begin + more)
        assistant.base.copy_to(assistant.mix)
        assert assistant.mix.tokens == begin + more
        assistant.mix.decode(end)
    assert (parts.mix.logits() == whole.mix.logits()).all()
    assert sizes[1] < sizes[2] / 3, "80 of the 110 tokens were there"
    count = len(sizes)
    parts.mix.truncate(len(begin + more))
    parts.base.copy_to(parts.mix)
    assert len(sizes) == count, "nothing was missing"
    parts.base.advance(begin[:40])
    parts.base.copy_to(parts.mix)
    assert parts.mix.tokens == begin[:40] and len(sizes) == count
    parts.mix.decode(end)
    whole.mix.truncate(0)
    whole.base.advance(begin[:40])
    whole.base.copy_to(whole.mix)
    whole.mix.decode(end)
    assert (parts.mix.logits() == whole.mix.logits()).all()


def test_what_another_mix_computed_is_copied_over(ready) -> None:
    assistant = ready(policy=ANYTHING)
    tokens = [*range(60, 100)]
    with assistant.engine.lock:
        assistant.slot.install([noise_adapter("llama", 8, 5)], [1.0])
        assistant.mix.advance(tokens)
        assistant.base.advance(tokens)
        assistant.base.copy_to(assistant.mix)
    assert assistant.mix.match(tokens, assistant.base.bare) == len(tokens)


def test_the_same_question_again_writes_no_slot(ready, monkeypatch) -> None:
    assistant = ready(policy=ANYTHING)
    first = assistant.direct(FIRST.text, max_tokens=6)
    monkeypatch.setattr(type(assistant.slot), "_install", lambda *_: pytest.fail("installed again"))
    assert assistant.direct(FIRST.text, max_tokens=6).tokens == first.tokens


def test_messages_and_modes_that_cannot_be_are_refused(ready) -> None:
    assistant = ready(policy=NOTHING)
    for bad in ([], [{"role": "assistant", "content": "x"}]):
        with pytest.raises(InputError, match="the user's"):
            assistant.chat(bad, mode="direct")
    with pytest.raises(InputError, match="'robot'"):
        assistant.direct("Why?", history=[{"role": "robot", "content": "x"}])
    with pytest.raises(InputError, match="the mode 'guess'"):
        assistant.stream("Why?", mode="guess")
    assert assistant.chat([{"role": "user", "content": "Why?"}], mode="direct", max_tokens=3).tokens == (
        assistant.direct("Why?", max_tokens=3).tokens
    )


def test_words_that_the_template_or_the_history_also_has_are_found(ready) -> None:
    engine = ready(policy=NOTHING).engine
    for word in ("im", "user", "assistant", "cats"):
        prompt = engine.prompt([*HISTORY, {"role": "user", "content": word}])
        first, last = prompt.span
        assert engine.detokenize(prompt.body[first:last]) == word and last > len(prompt.body) - 8


@pytest.mark.parametrize("whole", [True, False])
def test_ctrl_c_in_a_decode_leaves_the_cache_as_it_was(ready, monkeypatch, whole: bool) -> None:
    """Python raises it right after llama.cpp has returned: the tokens are in the cache already."""
    context, other = ready(policy=ANYTHING).base, ready(policy=ANYTHING).base
    begin, first, second = list(range(60, 70)), list(range(80, 95)), list(range(100, 112))
    context.advance(begin)
    real = llama_cpp.llama_decode

    def interrupted(*given: object) -> int:
        real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(llama_cpp, "llama_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        context.decode(first) if whole else context.decode_every(first)
    monkeypatch.undo()
    assert context.tokens == begin
    for one in (context, other):
        one.advance(begin + second)
    size = len(begin + second)
    assert (context.states(0, size) == other.states(0, size)).all() and (context.logits() == other.logits()).all()


def test_a_template_without_a_generation_prompt_has_an_opening_all_the_same(ready, tool, tmp_path, monkeypatch) -> None:
    """Mistral's templates: the answer begins after [/INST], whose last token every answer is decoded from."""
    maker = tool("tiny_gguf")
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(maker, "TEMPLATE", template)
    model = Model("inst", maker.make(tmp_path / "inst.gguf"))
    assistant = ready(model, policy=ANYTHING)
    prompt = assistant.engine.prompt([{"role": "user", "content": FIRST.text}])
    assert len(prompt.opening) == 1 and assistant.engine.detokenize(prompt.tokens).endswith("[/INST]")
    first, last = prompt.span
    assert assistant.engine.detokenize(prompt.body[first:last]).strip() == FIRST.text
    assert assistant.engine.detokenize(prompt.body[:first]).rstrip().endswith("[INST]")
    for verb in ("bare", "ask"):
        once = getattr(assistant, verb)(FIRST.text, max_tokens=6).tokens
        getattr(assistant, verb)(SECOND.text, max_tokens=6)
        assert getattr(assistant, verb)(FIRST.text, max_tokens=6).tokens == once
        assert getattr(assistant, verb)(FIRST.text, max_tokens=6).tokens == once
        assert once == getattr(ready(model, policy=ANYTHING), verb)(FIRST.text, max_tokens=6).tokens


def test_the_next_turn_is_read_after_the_whole_of_an_answer_that_was_begun() -> None:
    request = Request("bare", "Where?", [], SamplingOptions(), begun="In the ")
    engine = SimpleNamespace(prompt=lambda turns, tools: SimpleNamespace(body=turns[-1]["content"]))
    job = SimpleNamespace(request=request, runtime=SimpleNamespace(engine=engine))
    assert _so_far(job, Answer("mill.", "bare")) == "In the mill."  # type: ignore[arg-type]
