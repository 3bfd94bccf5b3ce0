"""One thread computes, and no more of OpenMP's threads wait than there are cores."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ANYTHING, FIRST, noise_adapter, wait_idle

from megart import openmp
from megart.runtime import embed, score, worker
from megart.runtime.context import Context

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems have other OpenMPs")
cores = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core has no team")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settles_at(most: int) -> bool:
    """Threads that were let go end a moment later."""
    for _ in range(200):
        if threads() <= most:
            return True
        time.sleep(0.01)
    return False


@linux
@cores
def test_a_team_that_is_let_go_is_gone_and_comes_back(ready) -> None:
    context: Context = ready(threads=2).base
    openmp.release_team()
    before = threads()
    context.decode(list(range(60, 90)))
    assert threads() > before, "llama.cpp computes by OpenMP"
    openmp.release_team()
    assert settles_at(before)
    context.decode(list(range(60, 90)))
    assert threads() > before


@linux
@cores
@pytest.mark.parametrize("idle_after", [60.0, 0.05])
def test_no_team_waits_when_an_answer_is_there(ready, monkeypatch, idle_after: float) -> None:
    """Neither the asker's nor the worker's, nor after idle work: the next that computes has all cores."""
    monkeypatch.setattr(worker, "IDLE_AFTER", idle_after)
    assistant = ready(threads=2, policy=ANYTHING)
    assistant.on_model(openmp.release_team)
    openmp.release_team()
    time.sleep(0.2)
    none_waits = threads()
    assistant.base.decode(list(range(60, 90)))  # a team of this thread's own
    assert threads() > none_waits
    assistant.direct(FIRST.text, max_tokens=4)
    if idle_after < 1:
        wait_idle(assistant)
    assert settles_at(none_waits)


def test_everything_computes_on_the_thread_that_answers(ready, monkeypatch, tmp_path: Path) -> None:
    assistant = ready(policy=ANYTHING)
    seen: dict[str, set[str]] = {}
    doing = ""
    for name in ("decode", "decode_every"):
        real = getattr(Context, name)

        def spy(self: Context, tokens, real=real) -> None:
            seen.setdefault(doing, set()).add(threading.current_thread().name)
            real(self, tokens)

        monkeypatch.setattr(Context, name, spy)
    adapter = noise_adapter("llama", 8, 3)
    prompt = score.tokens_prompt(list(range(60, 90)))
    verbs: dict[str, Callable[[], object]] = {
        "ask": lambda: assistant.direct(FIRST.text, max_tokens=2),
        "key": lambda: assistant.key("Cats sleep in mills.", "Cats"),
        "index_entry": lambda: assistant.index_entry("Cats sleep in mills.", "Cats"),
        "gate": lambda: assistant.gate("Who keeps cats?"),
        "rekey": assistant.rekey,
        "try_recall": lambda: assistant.acceptance.recall(adapter, "Cats?", activated=True, max_tokens=2),
        "try_margin": lambda: assistant.acceptance.margin(adapter, "Cats?", "Cats sleep.", activated=True),
        "score": lambda: score.score(assistant, prompt, [[5, 6]]),
        "generate": lambda: score.generate(assistant, prompt, None, 2),
    }
    for doing, verb in verbs.items():  # noqa: B007 - the spy above reads it
        verb()
    assert seen == {name: {"megart-worker"} for name in verbs}


@linux
def test_ctrl_c_ends_making_keys_anew_and_the_bank_keeps_its_own(ready) -> None:
    assistant = ready(policy=ANYTHING)
    assistant.prepare()
    revision, done = assistant.bank.revision, []

    def progress(count: int, of: int) -> None:
        done.append(count)
        time.sleep(0.1)  # until the caller waits
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as a terminal does
        time.sleep(0.3)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            assistant.rekey(on_progress=progress)
    finally:
        signal.signal(signal.SIGINT, old)
    assert done == [1] and assistant.bank.revision == revision
    assert assistant.rekey() == "words"


def blas() -> set[int]:
    """How many threads NumPy computes with; what SciPy and others load later is their own."""
    counts = {library["num_threads"] for library in openmp._blas().info()}
    if openmp._ONE._inside == 0 and max(counts, default=1) == 1:
        pytest.skip("this NumPy computes on one thread anyway")
    return counts


@cores
def test_what_is_asked_is_weighed_on_one_blas_thread(ready, monkeypatch) -> None:
    """Those of OpenBLAS would spin beside llama.cpp, where NumPy was loaded before megart could tell it not to."""
    before, seen = blas(), []
    real = embed.read

    def spy(*args: object) -> object:
        seen.append(blas())
        return real(*args)

    monkeypatch.setattr(embed, "read", spy)
    assistant = ready(policy=ANYTHING)
    assistant.ask(FIRST.text, max_tokens=2)
    assistant.direct(FIRST.text, max_tokens=2)
    assistant.gate(FIRST.text)
    assert seen and all(counts == {1} for counts in seen)
    assert blas() == before


@cores
def test_two_that_weigh_at_once_give_numpy_its_threads_back() -> None:
    before, inside, leave, seen = blas(), threading.Event(), threading.Event(), []

    @openmp.one_blas_thread
    def first() -> None:
        inside.set()
        leave.wait(10)

    @openmp.one_blas_thread
    def second() -> None:
        leave.set()
        one.join(10)  # the first leaves before this one
        seen.append(blas())

    one = threading.Thread(target=first)
    one.start()
    inside.wait(10)
    second()
    assert seen == [{1}] and blas() == before
