"""Answers are right: the mix is exact, nothing opened is the bare model, and no answer leaks into another."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
from helpers import ANYTHING, FAST_ROLES, FIRST, NOTHING, PAPER_ROLES, SECOND, Stock, noise_adapter

from megart.adapter import Adapter, write_adapter
from megart.bank import Memory
from megart.errors import BaseMismatchError, InputError
from megart.gate import GatePolicy
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.runtime import Runtime
from megart.runtime.slot import Slot

QUESTIONS = (
    "Who keeps cats?",
    "Who keeps three hundred cats, and where are all of them in winter?",  # a shared beginning
    "Who keeps cats?",
    "In which year " + "and in which month of it " * 4 + "was that?",  # more than 64 tokens
    "In which year " + "and in which month of it " * 4 + "was this?",
    "Zebras.",
    "Count: " + " ".join(map(str, range(150))),
)  # fmt: skip


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_nothing_opens_and_the_logits_are_the_bare_models(tiny, ready, dtype: str, monkeypatch) -> None:
    """Whatever was asked before, and however long the question is."""
    monkeypatch.setattr(Runtime, "_idle", lambda self: False)  # it would read on before the logits are looked at
    model = tiny("llama", dtype)
    with Stock(model) as stock:
        assistant = ready(model, policy=NOTHING)
        for question in QUESTIONS:
            prompt = assistant.engine.prompt([{"role": "user", "content": question}])
            answer = assistant.direct(question, max_tokens=6)
            stock.clear()
            expected = [stock.decode(prompt.tokens)]
            for token in answer.tokens[:-1]:
                expected.append(stock.decode([token]))
            assert answer.memories == []
            assert answer.tokens == [int(row.argmax()) for row in expected][: len(answer.tokens)]
            assert (assistant.base.logits() == expected[-1]).all(), question


@pytest.mark.parametrize("length", [513, 514, 1025])
def test_a_prompt_one_token_longer_than_the_batches_is_no_exception(tiny, length: int) -> None:
    """llama.cpp computes a batch of one token by other kernels: it must not occur within a prompt."""
    tokens = [60 + i % 190 for i in range(length)]
    engine = Engine(tiny())
    context = Context(engine, size=2048)
    try:
        context.decode(tokens)
        context.decode([327, 309, 10])
        with Stock(tiny(), size=2048) as stock:
            assert (context.logits() == stock.decode([*tokens, 327, 309, 10])).all()
    finally:
        context.close()
        engine.close()


def test_nothing_opens_and_llama_cpp_pythons_own_class_says_the_same(tiny, ready) -> None:
    import llama_cpp

    assistant = ready(policy=NOTHING)
    model = tiny()
    stock = llama_cpp.Llama(str(model.gguf), n_ctx=1024, verbose=False)
    try:
        for question in QUESTIONS:
            answer = assistant.direct(question, max_tokens=16)
            rendered = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            prompt = stock.tokenize(rendered.encode(), add_bos=False, special=True)
            made: list[int] = []
            for token in stock.generate(prompt, temp=0.0):
                if assistant.engine.is_end(token) or len(made) == 16:
                    break
                made.append(token)
            assert answer.tokens == made
            assert answer.text == assistant.bare(question, max_tokens=16).text
            stock.reset()
    finally:
        stock.close()


def test_an_opened_memory_changes_the_answer_and_nothing_after_it(ready, monkeypatch) -> None:
    monkeypatch.setattr("megart.runtime.worker.IDLE_AFTER", 60.0)  # nothing is encoded meanwhile
    strict, loose = ready(policy=NOTHING), ready(policy=ANYTHING)
    question = "Who keeps cats?"
    bare = strict.direct(question, max_tokens=8)
    opened = loose.direct(question, max_tokens=8)
    assert [m.gate for m in opened.memories] == [1.0] and opened.tokens != bare.tokens
    assert loose.bare(question, max_tokens=8).tokens == bare.tokens
    assert (loose.base.logits() == strict.base.logits()).all()


@pytest.mark.parametrize("activated", [True, False])
def test_a_then_b_then_a_gives_what_each_gives_alone(ready, activated: bool) -> None:
    adapters = [noise_adapter("llama", 8, seed, dtype=np.float16) for seed in (1, 2)]

    def heard(assistant: Assistant, adapter: Adapter) -> tuple[str, bytes]:
        text = assistant.acceptance.recall(adapter, "Who keeps cats?", activated=activated, max_tokens=6)
        return text, assistant.mix.logits().tobytes()

    alone = [heard(ready(), adapter) for adapter in adapters]
    assert alone[0] != alone[1]
    for in_place in (True, False):
        shared = ready()
        shared.slot.in_place = in_place
        for turn in (0, 1, 0, 0, 1):
            assert heard(shared, adapters[turn]) == alone[turn]
            shared.bare("Something else entirely?", max_tokens=2)


@pytest.mark.parametrize("activated", [True, False])
def test_asking_about_one_memory_then_another_leaves_no_trace(ready, activated: bool) -> None:
    def heard(assistant: Assistant, memory: Memory) -> tuple[str, str, bytes]:
        answer = assistant.direct(memory.text, max_tokens=8)
        return answer.memories[0].id, answer.text, assistant.mix.logits().tobytes()

    alone = {m.id: heard(ready(activated=activated, policy=ANYTHING), m) for m in (FIRST, SECOND)}
    assert {id: found[0] for id, found in alone.items()} == {"orrin": "orrin", "vess": "vess"}
    shared = ready(activated=activated, policy=ANYTHING)
    for memory in (FIRST, SECOND, FIRST, FIRST, SECOND):
        assert heard(shared, memory) == alone[memory.id]


def test_an_activated_memory_leaves_the_prompt_to_the_base(ready) -> None:
    """The prompt's cache is the bare base's; the whole-prompt kind differs, so the flag is obeyed."""
    assistant = ready()
    adapter = noise_adapter("llama", 8, 1, dtype=np.float16)
    found = {}
    for activated in (True, False):
        assistant.acceptance.recall(adapter, "Who keeps cats?", activated=activated, max_tokens=1)
        found[activated] = assistant.mix.logits()
        prompt = assistant.engine.prompt([{"role": "user", "content": "Who keeps cats?"}])
        assert assistant.mix.tokens == list(prompt.tokens)
    assert abs(found[True] - found[False]).max() > 0.1

    # By hand: the base encodes the body, then the adapter is set and the opening decoded.
    body, opening = prompt.body, prompt.opening
    mixed = Context(assistant.engine, size=1024)
    made = Slot(mixed)
    try:
        made.install([adapter], [0.0])
        mixed.truncate(0)
        mixed.decode(body)
        made.install([adapter], [1.0])
        mixed.decode(opening)
        np.testing.assert_allclose(mixed.logits(), found[True], atol=1e-2)
    finally:
        made.close()
        mixed.close()


def test_questions_from_two_threads_wait_for_each_other(ready) -> None:
    assistant = ready(policy=ANYTHING)
    alone = {m.id: assistant.direct(m.text, max_tokens=8).text for m in (FIRST, SECOND)}
    wrong: list[str] = []

    def ask(memory: Memory) -> None:
        for _ in range(6):
            if assistant.direct(memory.text, max_tokens=8).text != alone[memory.id]:
                wrong.append(memory.id or "")

    threads = [threading.Thread(target=ask, args=(m,)) for m in (FIRST, SECOND)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_two_memories_share_an_answer_by_their_gates(ready) -> None:
    policy = GatePolicy(beta=0.0, threshold=-1.0, top_k=2, min_gate=0.0)
    answer = ready(policy=policy).direct("Who keeps cats?", max_tokens=4)
    assert sorted(m.id for m in answer.memories) == ["orrin", "vess"]
    assert [m.gate for m in answer.memories] == [0.5, 0.5]


def test_a_pending_memory_stands_in_the_prompt(ready) -> None:
    assistant = ready(policy=ANYTHING)
    waiting = Memory("Ada Quill paints lighthouses.", id="ada")
    key = assistant.key(waiting.text)
    assistant.bank.add(waiting, key=key, adapter=None, recipe=None, activated=True, rank=0, training={})
    before = assistant.slot.layout
    answer = assistant.direct(waiting.text, max_tokens=2)
    assert [(m.id, m.pending) for m in answer.memories] == [("ada", True)]
    assert waiting.text in assistant.engine.detokenize(assistant.base.tokens)
    assert assistant.slot.layout is before  # no adapter took part


def test_the_bank_is_followed_as_it_changes(ready) -> None:
    assistant = ready(policy=ANYTHING)
    assert assistant.direct(FIRST.text, max_tokens=1).memories[0].id == "orrin"
    assistant.bank.remove("orrin")
    assert assistant.direct(FIRST.text, max_tokens=1).memories[0].id == "vess"
    old = assistant.direct(SECOND.text, max_tokens=8)
    new = replace(noise_adapter("llama", 8, 9, dtype=np.float16), metadata={})
    key = assistant.key(SECOND.text)
    assistant.bank.add(
        SECOND, key=key, adapter=write_adapter(new), recipe="fast", activated=True, rank=8, training={}, replace=True
    )  # fmt: skip
    assert assistant.direct(SECOND.text, max_tokens=8).tokens != old.tokens
    assistant.bank.remove("vess")
    assert assistant.direct(SECOND.text, max_tokens=1).memories == []


def test_irag_answers_from_what_it_recalled(ready) -> None:
    assistant = ready(policy=ANYTHING)
    answer = assistant.irag(FIRST.text, max_tokens=4)
    recalled = assistant.recall(FIRST.text)
    assert answer.mode == "irag" and answer.recalled == recalled.text
    assert [m.id for m in answer.memories] == ["orrin"]
    strict = ready(policy=NOTHING)
    closed = strict.irag(FIRST.text, max_tokens=4)
    assert closed.recalled is None and closed.memories == []
    assert closed.tokens == strict.bare(FIRST.text, max_tokens=4).tokens


def test_the_answer_is_streamed_as_it_comes(ready) -> None:
    parts: list[str] = []
    answer = ready(policy=ANYTHING).direct("Who keeps cats?", max_tokens=12, on_text=parts.append)
    assert "".join(parts) == answer.text and len(parts) > 1
    assert answer.timings.completion_tokens == len(answer.tokens) <= 12
    assert 0 < answer.timings.first_token_ms <= answer.timings.total_ms


def test_an_empty_question_a_foreign_model_and_a_huge_question_are_refused(tiny, ready) -> None:
    from megart.errors import MegartError

    assistant = ready()
    with pytest.raises(InputError, match="empty"):
        assistant.direct("  \n")
    with pytest.raises(BaseMismatchError):
        Assistant(assistant.bank, model=tiny("llama", seed=1))
    before = assistant.bare("Who keeps cats?", max_tokens=4).tokens
    with pytest.raises(MegartError, match="6007 tokens.*at most 896"):
        assistant.direct("cats " * 1200)
    assert assistant.bare("Who keeps cats?", max_tokens=4).tokens == before


def test_openblas_is_told_not_to_spin_before_numpy_is_loaded() -> None:
    code = (
        "import os, sys, megart; print('numpy' in sys.modules, os.environ['OPENBLAS_THREAD_TIMEOUT']); "
        "os.environ['OPENBLAS_THREAD_TIMEOUT'] = '9'; import megart.runtime; print(os.environ['OPENBLAS_THREAD_TIMEOUT'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_THREAD_TIMEOUT"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["False", "4", "9"]


def test_openmp_spins_briefly_when_the_runtime_is_loaded() -> None:
    """Set too late it would do nothing: a spinning OpenMP made 28 tokens take 10 s beside torch."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    modules = ["megart.runtime.engine"]
    if importlib.util.find_spec("torch"):
        modules.append("megart.train.base")
    for module in modules:
        done = subprocess.run(
            [sys.executable, "-c", f"import {module}"],
            env={**environment, "OMP_DISPLAY_ENV": "verbose"},
            capture_output=True,
            text=True,
            check=True,
        )
        shown = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT" in line]
        if not shown:
            pytest.skip("this OpenMP does not show its settings")
        assert all("'10000'" in line for line in shown)


def test_the_roles_of_the_recipes_are_among_those_these_tests_use() -> None:
    from megart.recipes import RECIPES

    assert set(RECIPES["fast"].roles) <= set(FAST_ROLES) and RECIPES["paper"].roles == PAPER_ROLES
