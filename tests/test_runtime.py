"""Answers are right: the mix is exact, nothing opened is the bare model, and no answer leaks into another."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ANYTHING, FAST_ROLES, FIRST, NOTHING, PAPER_ROLES, SECOND, Stock, noise_adapter, save

from megart import mix, quant
from megart.adapter import Adapter, write_adapter
from megart.bank import Memory
from megart.errors import AdapterError, BaseMismatchError, InputError
from megart.gate import GatePolicy
from megart.models import Model
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.runtime import Runtime
from megart.runtime.slot import Slot

TOKENS = tuple(range(60, 84))
CLOSE = 1e-4  # of logits whose standard deviation is 2


@contextmanager
def slot(model: Model, **options: object) -> Iterator[Slot]:
    engine = Engine(model)
    context = Context(engine, size=256)
    made = Slot(context, **options)
    try:
        yield made
    finally:
        made.close()
        context.close()
        engine.close()


def under(made: Slot, adapters: Sequence[Adapter], gates: Sequence[float]) -> np.ndarray:
    """Logits [2, vocabulary] under a mix: after a batch of prompt, and after one token more."""
    made.install(adapters, gates)
    made.context.truncate(0)
    made.context.decode(TOKENS)
    first = made.context.logits()
    made.context.decode([70])
    return np.stack([first, made.context.logits()])


def by_scales(stock: Stock, scales: Sequence[float]) -> np.ndarray:
    stock.set_scales(scales)
    stock.clear()
    return np.stack([stock.decode(TOKENS), stock.decode([70])])


# -- the mix -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_the_mix_equals_adapters_set_by_scales(tiny, exact: None, tmp_path: Path, arch: str) -> None:
    adapters = [
        noise_adapter(arch, 8, 1),
        noise_adapter(arch, 16, 2, roles=PAPER_ROLES, alpha=64.0, size=0.3),  # rsLoRA's scale
        noise_adapter(arch, 5, 3, alpha=0.0),
    ]
    gates = [0.6, 0.3, 0.1]
    files = [(save(a, tmp_path / f"{i}.gguf"), g) for i, (a, g) in enumerate(zip(adapters, gates, strict=True))]
    with slot(tiny(arch), kind="f32") as made, Stock(tiny(arch), files, size=256) as stock:
        expected = by_scales(stock, gates)
        np.testing.assert_allclose(under(made, adapters, gates), expected, atol=CLOSE)
        assert made.in_place
        # Each of the three is felt, so a lost one would be seen.
        for excluded in range(3):
            scales = [0.0 if j == excluded else g for j, g in enumerate(gates)]
            assert abs(by_scales(stock, scales) - expected).max() > 100 * CLOSE


@pytest.mark.parametrize("kind", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("gate", [1.0, 0.5])
def test_one_adapter_of_the_slots_rank_is_bit_identical(tiny, tmp_path: Path, kind: str, gate: float) -> None:
    adapter = noise_adapter("llama", 64, 4)
    # Away from f16's subnormals, where halving would round.
    adapter.tensors = {n: (a, np.round(b * 512) / np.float32(512)) for n, (a, b) in adapter.tensors.items()}
    adapter = adapter.as_type(kind)
    path = save(adapter, tmp_path / "a.gguf")
    with slot(tiny(), kind=kind) as made, Stock(tiny(), [(path, gate)], size=256) as stock:
        made.context.close()
        made.context = _plain_attention(made.context.engine)
        assert (under(made, [adapter], [gate]) == by_scales(stock, [gate])).all()


def _plain_attention(engine: Engine) -> Context:
    """A context of the runtime with the attention that ``Stock`` uses, whatever its default is."""
    import llama_cpp

    default = llama_cpp.llama_context_default_params
    with pytest.MonkeyPatch.context() as patch:

        def params() -> object:
            chosen = default()
            chosen.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            return chosen

        patch.setattr(llama_cpp, "llama_context_default_params", params)
        return Context(engine, size=256)


def _sequence(dtype: type = np.float16) -> list[tuple[list[Adapter], list[float]]]:
    """Mixes that make a slot grow, take up other targets, and shrink again."""
    small = noise_adapter("qwen3", 8, 1, dtype=dtype)
    narrow = noise_adapter("qwen3", 24, 2, roles=PAPER_ROLES, dtype=dtype)
    large = noise_adapter("qwen3", 100, 3, dtype=dtype, size=0.5)
    return [
        ([narrow], [1.0]),
        ([small, narrow], [0.7, 0.3]),
        ([large, small], [0.5, 0.5]),
        ([small], [1.0]),
        ([narrow], [0.25]),
        ([small, narrow], [0.7, 0.3]),
    ]


@pytest.mark.parametrize("kind, ranks", [("f16", [64, 64, 128, 64, 64, 64]), ("q8_0", [32, 32, 128, 32, 32, 32])])
def test_both_routes_and_a_fresh_slot_agree_bit_for_bit(tiny, kind: str, ranks: list[int]) -> None:
    """Growing, new targets, shrinking: nothing of a larger mix is left in a smaller one."""
    with slot(tiny("qwen3"), kind=kind) as written, slot(tiny("qwen3"), kind=kind, in_place=False) as loaded:
        for (adapters, gates), rank in zip(_sequence(), ranks, strict=True):
            got = under(written, adapters, gates)
            assert written.in_place and not loaded.in_place
            assert (got == under(loaded, adapters, gates)).all()
            with slot(tiny("qwen3"), kind=kind) as fresh:
                assert (got == under(fresh, adapters, gates)).all()
            assert written.rank == rank  # the smallest that fits


def test_a_slot_of_blocks_is_near_the_exact_one(tiny, exact: None) -> None:
    with slot(tiny("qwen3"), kind="q8_0") as made, slot(tiny("qwen3"), kind="f32") as exactly:
        for adapters, gates in _sequence(np.float32):
            expected = under(exactly, adapters, gates)
            effect = expected - under(exactly, adapters, [0.0] * len(gates))
            error = under(made, adapters, gates) - expected
            assert np.sqrt(np.mean(error**2)) < 0.03 * np.sqrt(np.mean(effect**2))


def test_a_type_that_no_slot_has_is_refused(tiny) -> None:
    with (
        pytest.raises(InputError, match="got a slot of 'q4_0'; expected one of f32, f16, q8_0"),
        slot(tiny(), kind="q4_0"),
    ):
        pass


def test_where_rows_are_no_whole_blocks_a_is_f16() -> None:
    a, b = mix.blank({"x": (40, 70)}, 64, quant.Q8_0)["x"]
    assert (a.dtype, a.shape, b.dtype, b.shape) == (np.float16, (64, 40), quant.Q8_0, (70, 2))


def upper(adapter: Adapter, first: int) -> Adapter:
    """*adapter* without its pairs below layer *first*."""
    kept = {n: pair for n, pair in adapter.tensors.items() if int(n.split(".")[1]) >= first}
    return replace(adapter, tensors=kept)


def test_adapters_of_some_layers_only_equal_adapters_set_by_scales(tiny, exact: None, tmp_path: Path) -> None:
    """The slot holds the union of what opens and nothing else, whatever opened before."""
    adapters = [
        upper(noise_adapter("qwen3", 8, 1), 2),
        upper(noise_adapter("qwen3", 40, 2, roles=PAPER_ROLES, size=0.3), 3),
        upper(noise_adapter("qwen3", 40, 3), 1),
    ]
    files = [(save(a, tmp_path / f"{i}.gguf"), 0.0) for i, a in enumerate(adapters)]
    model = tiny("qwen3")
    with slot(model, kind="f32") as made, Stock(model, files, size=256) as stock:
        for opened in ([0], [1], [0, 1], [2], [0, 2], [1], [0], [0, 1, 2]):
            gates = [0.9 / (place + 1) for place in range(len(opened))]
            scales = [gates[opened.index(i)] if i in opened else 0.0 for i in range(3)]
            got = under(made, [adapters[i] for i in opened], gates)
            np.testing.assert_allclose(got, by_scales(stock, scales), atol=CLOSE)
            assert set(made.shapes) == {n for i in opened for n in adapters[i].tensors}
            assert made.in_place
        assert made.rank == 128  # of the largest sum over one tensor, 8 + 40 + 40


def test_a_layout_is_made_once_and_few_are_kept(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[int] = []
    load = Slot._load
    monkeypatch.setattr(Slot, "_load", lambda self, arrays: made_of.append(len(arrays)) or load(self, arrays))
    whole = noise_adapter("llama", 8, 1, dtype=np.float16)
    by_first = [upper(whole, first) for first in (0, 1, 2, 3)]
    with slot(tiny()) as made:
        first_time = [under(made, [adapter], [1.0]) for adapter in by_first]
        again = [under(made, [adapter], [1.0]) for adapter in reversed(by_first)]
        assert all((x == y).all() for x, y in zip(first_time, reversed(again), strict=True))
        assert made_of == [12, 9, 6, 3]
        narrow = noise_adapter("llama", 8, 2, dtype=np.float16, roles=("ffn_up",))
        under(made, [narrow], [1.0])  # a fifth: the least recently used goes
        assert (under(made, [by_first[0]], [1.0]) == first_time[0]).all()
        assert made_of == [12, 9, 6, 3, 4]
        assert (under(made, [by_first[3]], [1.0]) == first_time[3]).all()
        assert made_of == [12, 9, 6, 3, 4, 3]


def test_a_build_whose_tensors_look_otherwise_is_served_by_reloading(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """The self-check fails: same answers, other route."""
    adapters, gates = _sequence()[1]
    with slot(tiny("qwen3")) as made:
        expected = under(made, adapters, gates)
    monkeypatch.setattr(Slot, "_bind", lambda *_: False)
    with slot(tiny("qwen3")) as made:
        assert (under(made, adapters, gates) == expected).all()
        assert not made.in_place


@pytest.mark.parametrize("field, found", [("type", 1), ("ne", (64, 32, 1, 2)), ("nb", (34, 64))])
def test_a_tensor_of_other_bytes_is_not_written(tiny, monkeypatch: pytest.MonkeyPatch, field: str, found) -> None:
    adapters, gates = _sequence()[1]
    with slot(tiny("qwen3"), kind="q8_0") as made:
        expected = under(made, adapters, gates)
    bind = Slot._bind

    def changed(self: Slot, layout, tensors) -> bool:
        tensors[0][field] = found
        return bind(self, layout, tensors)

    monkeypatch.setattr(Slot, "_bind", changed)
    with slot(tiny("qwen3"), kind="q8_0") as made:
        assert (under(made, adapters, gates) == expected).all()
        assert not made.in_place


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
@pytest.mark.parametrize("elsewhere", ["all", "some layers"])
def test_tensors_in_device_memory_are_sent_over(
    tiny, monkeypatch: pytest.MonkeyPatch, elsewhere: str, kind: str
) -> None:
    """As with layers on a GPU, all of them or some: the mix is made here and copied to where the tensor lies."""
    with slot(tiny("qwen3"), kind=kind) as made:
        expected = [under(made, adapters, gates) for adapters, gates in _sequence()]
    bind = Slot._bind

    def on_device(self: Slot, layout, found) -> bool:
        for tensor in found:
            if elsewhere == "all" or tensor["name"].startswith(("blk.0.", "blk.2.")):
                tensor["is_host"], tensor["data"] = False, 0  # what may not be touched
        return bind(self, layout, found)

    monkeypatch.setattr(Slot, "_bind", on_device)
    with slot(tiny("qwen3"), kind=kind) as made:
        for (adapters, gates), wanted in zip(_sequence(), expected, strict=True):
            assert (under(made, adapters, gates) == wanted).all()
            assert made.in_place and made.layout
            sent, names = set(made.layout.device), set(made.layout.shapes)
            assert sent == (names if elsewhere == "all" else {n for n in names if n[4] in "02"})


def test_a_mix_that_does_not_fit_is_refused_and_the_slot_works_on(tiny) -> None:
    good, wide = noise_adapter("llama", 8, 1), noise_adapter("llama", 8, 2)
    wide.tensors = {n: (np.zeros((8, 32), np.float32), b) for n, (_, b) in wide.tensors.items()}
    with slot(tiny()) as made:
        before = under(made, [good], [1.0])
        with pytest.raises(AdapterError, match="qwen2"):
            made.install([noise_adapter("qwen2", 8, 1)], [1.0])
        with pytest.raises(AdapterError):
            made.install([wide], [1.0])
        with pytest.raises(AdapterError, match="shape"):
            made.install([good, wide], [0.5, 0.5])
        assert (under(made, [good], [1.0]) == before).all()


# -- a bank of two strong memories ----------------------------------------------------------------

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
        shared = ready(in_place=in_place)
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


def test_an_assistants_slot_is_of_the_type_asked_for(ready) -> None:
    assert ready(slot="q8_0").slot.dtype == quant.Q8_0
    assert ready(slot="f16").slot.dtype == np.float16


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
    before = assistant.slot.rank
    answer = assistant.direct(waiting.text, max_tokens=2)
    assert [(m.id, m.pending) for m in answer.memories] == [("ada", True)]
    assert waiting.text in assistant.engine.detokenize(assistant.base.tokens)
    assert assistant.slot.rank == before  # no adapter took part


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
    with pytest.raises(MegartError, match="1024"):
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
