"""Streams and many askers: every answer is what it would be alone, in its turn, and can be ended."""

from __future__ import annotations

import os
import random
import threading

import pytest
from helpers import ANYTHING, FIRST, HISTORY, SECOND, noise_adapter

from megart.errors import MegartError
from megart.gate import GatePolicy
from megart.models import Model
from megart.runtime import adapter_cache
from megart.runtime.adapter_cache import AdapterCache
from megart.runtime.assistant import Assistant
from megart.runtime.worker import CancelledError, Stream, Worker


def test_a_stream_hands_out_text_and_then_the_answer(ready) -> None:
    assistant = ready(policy=ANYTHING)
    with assistant.stream(FIRST.text, mode="direct", max_tokens=12) as stream:
        parts = list(stream)
    assert len(parts) > 1 and "".join(parts) == stream.answer.text
    assert stream.answer.tokens == assistant.direct(FIRST.text, max_tokens=12).tokens
    assert list(stream) == []


def test_a_stream_left_early_ends_and_the_next_question_is_right(ready) -> None:
    assistant = ready(policy=ANYTHING)
    expected = ready(policy=ANYTHING).direct(SECOND.text, max_tokens=6).tokens
    with assistant.stream(FIRST.text, mode="direct", max_tokens=900) as stream:
        next(iter(stream))
    assert stream.answer.finish == "cancelled" and len(stream.answer.tokens) < 900
    waiting = assistant.stream(FIRST.text, mode="direct", max_tokens=900)
    queued = assistant.stream(FIRST.text, mode="direct")
    queued.cancel()
    waiting.cancel()
    with pytest.raises(CancelledError):
        _ = queued.answer
    assert assistant.direct(SECOND.text, max_tokens=6).tokens == expected

    def fail(part: str) -> None:
        raise ValueError(part)

    with pytest.raises(ValueError):
        assistant.direct(FIRST.text, max_tokens=900, on_text=fail)
    assert assistant.direct(SECOND.text, max_tokens=6).tokens == expected


def test_eight_threads_hear_what_each_would_hear_alone(ready, tool, tmp_path, monkeypatch) -> None:
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
    monkeypatch.setattr(adapter_cache, "BUDGET", 1)
    assistant = ready(policy=policy, **room)  # only one adapter stays open
    wrong: list[object] = []

    def ask(seed: int) -> None:
        order = random.Random(seed).sample(range(len(asked)), 12)
        try:
            wrong.extend(asked[at] for at in order if heard(assistant, at) != expected[at])
            with assistant.stream(FIRST.text, mode="direct", max_tokens=500) as left:
                next(iter(left))
        except Exception as error:
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_and_does_not_hang() -> None:
    worker = Worker()
    worker.call(lambda: 1)
    child = os.fork()
    if child == 0:
        try:
            worker.call(lambda: 1)
        except MegartError as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert worker.call(lambda: 2) == 2
    worker.close()


def test_hot_adapters_keep_to_their_budget() -> None:
    made = [noise_adapter("llama", 8, seed) for seed in range(5)]
    names = [(str(i), f"sha {i}") for i in range(5)]
    size = made[0].nbytes
    hot = AdapterCache(2 * size)
    for name, adapter in zip(names[:4], made, strict=False):
        assert hot.get(name, lambda adapter=adapter: adapter) is adapter
    assert len(hot) == 2
    for place in (3, 2):  # open still: not loaded again
        assert hot.get(names[place], lambda: pytest.fail("loaded again")) is made[place]
    loaded: list[int] = []
    assert hot.get(names[0], lambda: loaded.append(0) or made[0]) is made[0] and loaded == [0]
    hot.keep_only({names[0]})
    assert len(hot) == 1
    hot.get(("0", "taught again"), lambda: made[4])
    assert len(hot) == 2
    tight = AdapterCache(1)
    tight.get(names[0], lambda: made[0])
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
    expected = ready(policy=ANYTHING).direct(SECOND.text, max_tokens=6).tokens
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
    assert assistant.direct(SECOND.text, max_tokens=6).tokens == expected


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
        lambda: assistant.index_entry("x"),
        lambda: assistant.rekey(),
        lambda: assistant.prepare(),
    ):
        with pytest.raises(MegartError, match="closed"):
            call()
