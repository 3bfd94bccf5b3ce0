"""Conversations, options, streaming and many askers: every answer is what it would be alone."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable

import llama_cpp
import pytest
from helpers import ANYTHING, FIRST, NOTHING, SECOND, noise_adapter, save

from megart.errors import InputError, MegartError
from megart.gate import GatePolicy
from megart.models import Model
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.hot import HotAdapters
from megart.runtime.worker import CancelledError, Stream, Worker

BOTH = pytest.mark.parametrize("activated", [True, False])
HISTORY = [
    {"role": "system", "content": "Answer in one sentence, please, and say nothing else at all."},
    {"role": "user", "content": "What is the old mill for?"},
    {"role": "assistant", "content": "For cats, and for the man who keeps them there all winter."},
]


def turns(assistant: Assistant, count: int = 4, **options: object) -> list[tuple[tuple[str, ...], str, list[int]]]:
    """A conversation that opens one memory and then the other: (ids, text, tokens) of each answer."""
    history: list[dict[str, str]] = [*HISTORY]
    found = []
    for turn in range(count):
        memory = (FIRST, SECOND)[turn % 2]
        answer = assistant.ask(memory.text, history=history, max_tokens=6, **options)
        found.append((tuple(m.id for m in answer.memories), answer.text, answer.tokens))
        history += [{"role": "user", "content": memory.text}, {"role": "assistant", "content": answer.text}]
    return found


def alone(ready: Callable[..., Assistant], said: list[tuple[tuple[str, ...], str, list[int]]], **options: object):
    """The same turns, each asked of an assistant that has heard nothing before."""
    history: list[dict[str, str]] = [*HISTORY]
    found = []
    for turn, (_, text, _) in enumerate(said):
        memory = (FIRST, SECOND)[turn % 2]
        answer = ready(**options).ask(memory.text, history=history, max_tokens=6)
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

    assistant.ask(FIRST.text, history=HISTORY, max_tokens=1)
    wait_idle(assistant)
    monkeypatch.setattr(Context, "decode", spy)
    assistant.ask(SECOND.text, history=HISTORY, max_tokens=1)  # the other memory, the same beginning
    prompt = assistant.engine.prompt([*HISTORY, {"role": "user", "content": SECOND.text}])
    assert sum(decoded) < len(assistant.engine.tokenize(SECOND.text)) + 16 < len(prompt.body) / 2


@pytest.mark.parametrize("history", [HISTORY, []])
def test_what_was_said_is_encoded_while_nobody_asks(ready, history: list[dict[str, str]]) -> None:
    assistant = ready(policy=ANYTHING)
    said = assistant.ask(FIRST.text, history=history, max_tokens=8)
    wait_idle(assistant)
    messages = [*history, {"role": "user", "content": FIRST.text}, {"role": "assistant", "content": said.text}]
    assert assistant.base.tokens == list(assistant.engine.prompt(messages).body)
    follow_up = [*messages, {"role": "user", "content": SECOND.text}]
    fresh = ready(policy=ANYTHING).chat(follow_up, max_tokens=8)
    assert assistant.chat(follow_up, max_tokens=8).tokens == fresh.tokens


def wait_idle(assistant: Assistant) -> None:
    for _ in range(500):
        with assistant.engine.lock:
            idle = assistant.responder.idle_reader
            if idle.settled:
                return
        time.sleep(0.01)
    raise AssertionError("the conversation was not encoded")


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
    first = assistant.ask(FIRST.text, max_tokens=6)
    monkeypatch.setattr(type(assistant.slot), "_install", lambda *_: pytest.fail("installed again"))
    assert assistant.ask(FIRST.text, max_tokens=6).tokens == first.tokens


def test_messages_and_modes_that_cannot_be_are_refused(ready) -> None:
    assistant = ready(policy=NOTHING)
    for bad in ([], [{"role": "assistant", "content": "x"}]):
        with pytest.raises(InputError, match="the user's"):
            assistant.chat(bad)
    with pytest.raises(InputError, match="'robot'"):
        assistant.ask("Why?", history=[{"role": "robot", "content": "x"}])
    with pytest.raises(InputError, match="the mode 'guess'"):
        assistant.stream("Why?", mode="guess")
    assert assistant.chat([{"role": "user", "content": "Why?"}], max_tokens=3).tokens == (
        assistant.ask("Why?", max_tokens=3).tokens
    )


def test_words_that_the_template_or_the_history_also_has_are_found(ready) -> None:
    engine = ready(policy=NOTHING).engine
    for word in ("im", "user", "assistant", "cats"):
        prompt = engine.prompt([*HISTORY, {"role": "user", "content": word}])
        first, last = prompt.span
        assert engine.detokenize(prompt.body[first:last]) == word and last > len(prompt.body) - 8


# -- options -----------------------------------------------------------------------------------------


def test_a_seed_makes_chance_repeat(ready) -> None:
    assistant = ready(policy=NOTHING)

    def said(**options: object) -> list[int]:
        return assistant.ask("Why?", **{"max_tokens": 12, **options}).tokens

    assert said(temperature=1.5, seed=7) == said(temperature=1.5, seed=7)
    assert len({tuple(said(temperature=1.5, seed=seed)) for seed in range(4)}) > 1
    assert len({tuple(said(temperature=1.5)) for _ in range(4)}) > 1
    assert said(temperature=1.5, top_k=1) == said() == said(temperature=2.0, top_p=1e-6, top_k=0)
    assert said(temperature=2.0, min_p=1.0, top_k=0, top_p=1.0) == said()
    repeated = said(max_tokens=40)
    punished = said(max_tokens=40, repeat_penalty=100.0)
    assert len(set(punished)) == len(punished) and len(set(repeated)) < len(repeated)


def test_an_answer_ends_before_a_stop_text_and_never_shows_its_beginning(ready) -> None:
    assistant = ready(policy=ANYTHING)
    whole = assistant.ask(FIRST.text, max_tokens=30).text
    stop = whole[9:13]
    parts: list[str] = []
    answer = assistant.ask(FIRST.text, max_tokens=30, stop=[stop, "never said"], on_text=parts.append)
    assert answer.text == whole[: whole.index(stop)] == "".join(parts) and answer.finish == "stop"
    assert assistant.ask(FIRST.text, max_tokens=30, stop=whole[-3:] + "!").text == whole


def test_a_grammar_binds_the_answer(ready) -> None:
    assistant = ready(policy=ANYTHING)
    grammar = 'root ::= ("cat" | "dog") ", " [0-9] [0-9]'
    for options in ({}, {"temperature": 2.0, "seed": 3}):
        answer = assistant.ask(FIRST.text, grammar=grammar, **options)
        assert answer.text[:5] in ("cat, ", "dog, ") and answer.text[5:].isdigit() and len(answer.text) == 7
        assert answer.finish == "stop"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "b": {"type": "boolean"}}}
    schema["required"] = ["n", "b"]
    for given in (schema, json.dumps(schema)):
        made = json.loads(assistant.ask(FIRST.text, json_schema=given, temperature=1.0, seed=1, max_tokens=60).text)
        assert isinstance(made["n"], int) and isinstance(made["b"], bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0; expected at least 1"),
        ({"temperature": -1.0}, "temperature -1.0; expected 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": -1}, "top_k -1"),
        ({"min_p": 1.5}, "min_p 1.5"),
        ({"repeat_penalty": 0.0}, "repeat_penalty 0.0"),
        ({"seed": -1}, "seed -1"),
        ({"stop": [""]}, "stop"),
        ({"heat": 1.0}, "the option 'heat'"),
        ({"grammar": 'roof ::= "x"'}, "GBNF"),
        ({"grammar": 'root ::= "x'}, r"cannot read \(parse: .*\); expected GBNF"),
        ({"json_schema": "{"}, "JSON schema"),
        ({"json_schema": "{}", "grammar": "x"}, "both"),
    ],
)
def test_options_that_cannot_be_are_one_line(ready, capfd, options: dict, message: str) -> None:
    assistant = ready(policy=NOTHING)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        assistant.ask("Why?", **options)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # llama.cpp's parser of grammars prints past its logger
    assert assistant.ask("Why?", max_tokens=2).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_size": 10**9}, "got a context of 1000000000 tokens; expected 1 to 2048"),
        ({"context_size": 0}, "got a context of 0 tokens"),
        ({"threads": 99_999}, "got 99999 threads; expected 1 to 512"),
        ({"threads": -1}, "got -1 threads"),
    ],
)
def test_sizes_that_would_end_the_process_are_refused(ready, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(**options)


# -- streams and many askers ---------------------------------------------------------------------


def test_a_stream_hands_out_text_and_then_the_answer(ready) -> None:
    assistant = ready(policy=ANYTHING)
    with assistant.stream(FIRST.text, max_tokens=12) as stream:
        parts = list(stream)
    assert len(parts) > 1 and "".join(parts) == stream.answer.text
    assert stream.answer.tokens == assistant.ask(FIRST.text, max_tokens=12).tokens
    assert list(stream) == []


def test_a_stream_left_early_ends_and_the_next_question_is_right(ready) -> None:
    assistant = ready(policy=ANYTHING)
    expected = ready(policy=ANYTHING).ask(SECOND.text, max_tokens=6).tokens
    with assistant.stream(FIRST.text, max_tokens=900) as stream:
        next(iter(stream))
    assert stream.answer.finish == "cancelled" and len(stream.answer.tokens) < 900
    waiting = assistant.stream(FIRST.text, max_tokens=900)
    queued = assistant.stream(FIRST.text)
    queued.cancel()
    waiting.cancel()
    with pytest.raises(CancelledError):
        _ = queued.answer
    assert assistant.ask(SECOND.text, max_tokens=6).tokens == expected

    def fail(part: str) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError):
        assistant.ask(FIRST.text, max_tokens=900, on_text=fail)
    assert assistant.ask(SECOND.text, max_tokens=6).tokens == expected


def test_eight_threads_hear_what_each_would_hear_alone(ready, tool, tmp_path) -> None:
    policy = GatePolicy(threshold=0.2, top_k=2, min_gate=0.05)
    asked: list[tuple[str, str, dict]] = []
    for text in (FIRST.text, SECOND.text, "Who keeps cats?", "When does the ferry of Vess sail?", "Zebras."):
        for mode in ("ask", "recall", "bare", "irag"):
            asked.append((mode, text, {"max_tokens": 5}))
        asked.append(("ask", text, {"max_tokens": 5, "history": HISTORY}))
        asked.append(("ask", text, {"max_tokens": 5, "temperature": 1.0, "seed": 5}))

    def heard(assistant: Assistant, at: int) -> tuple:
        mode, text, options = asked[at]
        stream = assistant.stream(text, mode=mode, **options)
        text = "".join(stream)
        made = stream.answer
        assert text == made.text
        return made.text, made.tokens, made.recalled, [(m.id, m.gate) for m in made.memories]

    # what a random model recalls takes more tokens when it is read back
    wide = Model("wide", tool("tiny_gguf").make(tmp_path / "wide.gguf", context=4096))
    room = {"context_size": 4096, "model": wide}
    quiet = ready(policy=policy, **room)
    expected = [heard(quiet, at) for at in range(len(asked))]
    assert len({tuple(map(str, e[3])) for e in expected}) >= 3  # either memory, and none
    assistant = ready(policy=policy, hot_bytes=1, **room)  # only one adapter stays open
    wrong: list[object] = []

    def ask(seed: int) -> None:
        order = random.Random(seed).sample(range(len(asked)), 12)
        try:
            wrong.extend(asked[at] for at in order if heard(assistant, at) != expected[at])
            with assistant.stream(FIRST.text, max_tokens=500) as left:
                next(iter(left))
        except Exception as error:  # noqa: BLE001  carried to the test's own thread
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_the_worker_serves_in_order_carries_errors_and_ends() -> None:
    worker = Worker()
    began = threading.Event()
    go = threading.Event()
    order: list[int] = []

    def hold(stream: Stream[int]) -> int:
        began.set()
        go.wait(5)
        return 0

    first = worker.submit(hold)
    assert began.wait(5)
    others = [worker.submit(lambda _, n=n: order.append(n) or n) for n in range(5)]
    broken = worker.submit(lambda _: 1 // 0)
    go.set()
    assert [s.answer for s in (first, *others)] == [0, 0, 1, 2, 3, 4] and order == [0, 1, 2, 3, 4]
    with pytest.raises(ZeroDivisionError):
        list(broken)
    worker.close()
    worker.close()
    with pytest.raises(MegartError, match="closed"):
        worker.submit(hold)


def test_hot_adapters_keep_to_their_budget(tmp_path) -> None:
    paths = [save(noise_adapter("llama", 8, seed), tmp_path / f"{seed}.gguf") for seed in range(4)]
    size = HotAdapters().get(("0", "x"), paths[0]).nbytes
    hot = HotAdapters(2 * size)
    kept = [hot.get((str(i), "x"), path) for i, path in enumerate(paths)]
    assert len(hot) == 2 and hot.nbytes == 2 * size
    assert hot.get(("3", "x"), paths[3]) is kept[3] and hot.get(("2", "x"), paths[2]) is kept[2]
    assert hot.get(("0", "x"), paths[0]) is not kept[0]
    hot.keep_only({("0", "x")})
    assert len(hot) == 1 and hot.nbytes == size
    hot.get(("0", "y"), paths[0])  # the same memory, taught again
    assert len(hot) == 2
    tight = HotAdapters(1)
    tight.get(("0", "x"), paths[0])
    assert len(tight) == 1


def test_what_fails_while_nobody_asks_ends_no_question() -> None:
    failed = threading.Event()

    def idle() -> bool:
        failed.set()
        raise MemoryError

    worker = Worker(idle)
    assert worker.submit(lambda _: 1).answer == 1 and failed.wait(5)
    second = worker.submit(lambda _: 2)
    assert second._done.wait(5) and second.answer == 2
    worker.close()


def test_irag_is_cancelled_while_it_recalls(ready) -> None:
    assistant = ready(policy=ANYTHING)
    expected = ready(policy=ANYTHING).ask(SECOND.text, max_tokens=6).tokens
    decoded = []
    decode = assistant.mix.decode

    def watched(tokens) -> None:
        decoded.append(len(tokens))
        if len(decoded) == 4:
            stream.cancel()
        decode(tokens)

    assistant.mix.decode = watched
    stream = assistant.stream(FIRST.text, mode="irag")
    made = stream.answer
    assert (made.text, made.finish, made.mode) == ("", "cancelled", "irag") and len(decoded) < 6
    assistant.mix.decode = decode
    assert assistant.ask(SECOND.text, max_tokens=6).tokens == expected


def test_a_closed_assistant_says_so_and_frees_nothing_under_a_thread(ready) -> None:
    assistant = ready(policy=ANYTHING)
    running, go = threading.Event(), threading.Event()

    def hold() -> None:
        with assistant.engine.lock:
            running.set()
            go.wait(5)
            assert assistant.engine.handle

    thread = threading.Thread(target=hold)
    thread.start()
    running.wait(5)
    closing = threading.Thread(target=assistant.close)
    closing.start()
    closing.join(0.2)
    assert closing.is_alive()
    go.set()
    closing.join(5)
    thread.join(5)
    for call in (
        lambda: assistant.gate("x"),
        lambda: assistant.key("x"),
        lambda: assistant.found_by("x"),
        lambda: assistant.rekey(),
        lambda: assistant.prepare(),
        lambda: assistant.encoder,
    ):
        with pytest.raises(MegartError, match="closed"):
            call()


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
