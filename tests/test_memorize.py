"""Memorizing: nothing is committed that the runtime does not recall, and nothing learnt is lost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from helpers import Stock, few_lines

from megart import recipes
from megart.adapter import read_adapter
from megart.bank import Bank, Memory
from megart.direct import cues
from megart.errors import BaseMismatchError, InputError, MemorizeError
from megart.gate import GatePolicy
from megart.memorize import Progress, memorize
from megart.prompts import RECALL_CUE
from megart.recipes import DIRECT, FAST, PAPER
from megart.runtime import embed
from megart.runtime.assistant import Assistant
from megart.train import export
from megart.verbatim import similarity

# A random model knows nothing: it learns longer, and only the text itself.
# Tiny models have few layers and learn best with all of them.
QUICK = replace(FAST, rank=4, alpha=4.0, rate=1e-2, max_steps=150, examples_per_step=2, layers=1.0, betas=(0.9, 0.95))
ONE_STEP = replace(FAST, max_steps=1)
ORRIN = Memory("Orrin keeps three grey cats.", id="orrin")
VESS = Memory("The mill of Vess burnt in 1871.", id="vess")
ADA = Memory("Ada met Boro at dusk.", id="ada")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full precision whatever the processor, and few lines to whiten by."""
    monkeypatch.setattr("megart.train.base.default_dtype", lambda _: torch.float32)
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)


@pytest.fixture
def bank(tiny, tmp_path: Path) -> Iterator[Bank]:
    with Bank.create(tmp_path / "bank", tiny("llama")) as made:
        yield made


@pytest.fixture
def learn(bank: Bank) -> Callable[..., object]:
    """``memorize`` into the bank, on the CPU and with the quick recipe."""

    def run(*memories: Memory, **options: object) -> object:
        return memorize(bank, memories, **{"recipe": QUICK, "device": "cpu", **options})

    return run


def files(bank: Bank) -> list[str]:
    return sorted(path.name for path in (bank.path / "adapters").iterdir())


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_memories_are_learnt_and_recalled_word_for_word(tiny, tmp_path: Path, arch: str) -> None:
    seen: list[Progress] = []
    with Bank.create(tmp_path / "b", tiny(arch)) as bank:
        records = memorize(bank, [ORRIN, VESS], recipe=QUICK, device="cpu", progress=seen.append)
        assert [(r.id, r.state, r.activated, r.recipe) for r in records] == [
            ("orrin", "learnt", True, "fast"),
            ("vess", "learnt", True, "fast"),
        ]
        assert bank.verify() == []
        with Assistant(bank, policy=GatePolicy(threshold=-1.0, top_k=1)) as assistant:
            for memory in (ORRIN, VESS, ORRIN):
                answer = assistant.recall(cues(memory)[0])
                assert (answer.memories[0].id, answer.text) == (memory.id, memory.text)
                assert answer.finish == "stop"
            assert assistant.bare(ORRIN.text).text != ORRIN.text
            ids, means = bank.keys()
            assert sorted(ids) == ["orrin", "vess"] and means.shape == (2, 64)
            np.testing.assert_array_equal(means[ids.index("orrin")], assistant.key(ORRIN.text))
    states = [p.state for p in seen]
    assert states[0] == "loading" and states.count("learnt") == 2
    assert [(p.done, p.total) for p in seen if p.state == "learnt"] == [(1, 2), (2, 2)]
    steps = [p.step for p in seen if p.state == "studying" and p.id == "orrin"]
    assert steps == list(range(1, len(steps) + 1))


def test_the_file_says_what_it_is_and_stock_llama_cpp_takes_it(bank: Bank, learn) -> None:
    (record,) = learn(replace(ORRIN, title="Orrin"))
    path = bank.adapter_path("orrin")
    adapter = read_adapter(path)
    assert adapter.metadata["general.name"] == "Orrin"
    assert adapter.metadata["megart.memory_id"] == "orrin"
    assert adapter.metadata["megart.recall_cue"] == RECALL_CUE
    assert adapter.metadata["megart.base_sha256"] == bank.model.sha256
    assert adapter.rank == record.rank and adapter.alpha / adapter.rank == QUICK.scale
    assert path.stat().st_size == record.adapter_bytes
    with Assistant(bank) as assistant:
        opening = assistant.engine.prompt([{"role": "user", "content": "?"}]).opening
    assert tuple(adapter.invocation_tokens) == opening
    with Stock(bank.model, [(path, 1.0)]) as stock:
        assert np.isfinite(stock.decode([60, 61, 62])).all()
    assert json.dumps(record.training) and record.training["recall"] == 1.0


def test_the_papers_recipe_acts_on_the_whole_prompt(bank: Bank, learn) -> None:
    recipe = replace(PAPER, rank=16, alpha=16.0, rate=1e-2, epochs=60, recall=1.0)
    (record,) = learn(replace(ORRIN, paraphrases=("Three grey cats live with Orrin.",)), recipe=recipe)
    assert (record.recipe, record.activated) == ("paper", False)
    assert record.training["steps"] % 120 == 0  # epochs x examples, not "until learnt"
    adapter = read_adapter(bank.adapter_path("orrin"))
    assert adapter.invocation_tokens == []
    assert adapter.alpha / adapter.rank == pytest.approx(adapter.rank**0.5)
    assert {n.split(".")[2] for n in adapter.tensors} == {"ffn_up", "ffn_down"}


def test_what_cannot_be_recalled_is_not_committed_and_is_named(bank: Bank, learn) -> None:
    seen: list[Progress] = []
    with pytest.raises(MemorizeError, match="orrin.*vess|vess.*orrin"):
        learn(ORRIN, VESS, recipe=ONE_STEP, progress=seen.append)
    assert len(bank) == 0 and files(bank) == [] and bank.verify() == []
    assert {p.id for p in seen if p.state == "failed"} == {"orrin", "vess"}
    assert any(p.state == "again" for p in seen)  # it tried harder first


def test_one_pass_over_the_text_says_whether_decoding_would_give_it(bank: Bank, learn) -> None:
    learn(ORRIN)
    adapter = read_adapter(bank.adapter_path("orrin"))
    with Assistant(bank) as assistant:
        cue = RECALL_CUE
        assert assistant.acceptance.recall(adapter, cue, activated=True) == ORRIN.text
        margins = [assistant.acceptance.margin(adapter, cue, text, activated=True) for text in (ORRIN.text, VESS.text)]
        assert margins[0] > 0 > margins[1]
        # Alone, the first token and the end of turn are not enough.
        assert assistant.acceptance.margin(adapter, cue, "Orrin", activated=True) < 0


def test_the_runtime_has_the_last_word(bank: Bank, learn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learnt in PyTorch is not enough: what counts is the exported file in llama.cpp."""
    made = export.to_adapter

    def spoilt(factors: dict, *, metadata: dict, **options: object) -> object:
        sign = -1 if metadata["megart.memory_id"] == "orrin" else 1
        return made({name: (a, sign * b) for name, (a, b) in factors.items()}, metadata=metadata, **options)

    monkeypatch.setattr(export, "to_adapter", spoilt)
    # The function megart.memorize hides the module of that name.
    monkeypatch.setattr(sys.modules["megart.memorize"], "ATTEMPTS", 1)
    with pytest.raises(MemorizeError, match="orrin"):
        learn(ORRIN, ADA)
    assert [r.id for r in bank.records()] == ["ada"]


def test_a_wrongly_scaled_export_is_never_committed(bank: Bank, learn, monkeypatch: pytest.MonkeyPatch) -> None:
    right = export.to_adapter

    def weak(*args: object, **options: object) -> object:
        made = right(*args, **options)
        return replace(made, alpha=made.alpha / 10)

    monkeypatch.setattr(export, "to_adapter", weak)
    # The function megart.memorize hides the module of that name.
    monkeypatch.setattr(sys.modules["megart.memorize"], "ATTEMPTS", 1)
    with pytest.raises(MemorizeError, match="orrin"):
        learn(ORRIN)
    assert len(bank) == 0


def test_an_interrupted_run_keeps_what_is_learnt_and_goes_on_later(bank: Bank, learn) -> None:
    def stop_at_second(p: Progress) -> None:
        if p.state == "learnt" and p.done == 2:
            raise KeyboardInterrupt

    memories = (ORRIN, VESS, ADA)
    with pytest.raises(KeyboardInterrupt):
        learn(*memories, progress=stop_at_second)
    done = {r.id: r.adapter_sha256 for r in bank.records()}
    assert len(done) == 2 and bank.verify() == []

    seen: list[Progress] = []
    records = learn(*memories, progress=seen.append)
    assert [r.id for r in records] == ["orrin", "vess", "ada"]
    (rest,) = {m.id for m in memories} - set(done)
    assert {p.id for p in seen} == {"", rest}
    assert {p.total for p in seen if p.state == "learnt"} == {1}
    assert all(bank.get(id).adapter_sha256 == sha for id, sha in done.items())

    loaded: list[Progress] = []
    assert [r.id for r in learn(*memories, progress=loaded.append)] == ["orrin", "vess", "ada"]
    assert loaded == []  # nothing to do: nothing is loaded


def test_an_interrupt_while_studying_leaves_the_bank_whole(bank: Bank, learn) -> None:
    def stop(p: Progress) -> None:
        if p.state == "studying":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(ORRIN, progress=stop)
    assert len(bank) == 0 and files(bank) == []
    assert [r.state for r in learn(ORRIN)] == ["learnt"]


def test_the_same_id_with_another_text_is_refused_unless_it_is_to_be_replaced(bank: Bank, learn) -> None:
    (old,) = learn(ORRIN)
    other = replace(ORRIN, text="Orrin sold his cats.")
    with pytest.raises(InputError, match="orrin"):
        learn(other)
    with pytest.raises(InputError, match="orrin"):
        learn(ORRIN, other)
    assert bank.get("orrin").text == ORRIN.text
    (new,) = learn(other, replace_existing=True)
    assert (new.text, new.state) == (
        other.text,
        "learnt",
    ) and new.adapter_sha256 != old.adapter_sha256
    assert files(bank) == ["orrin.gguf"] and bank.verify() == []


def test_a_pending_memory_is_learnt_when_it_is_given_again(bank: Bank, learn) -> None:
    with Assistant(bank) as assistant:
        key = assistant.key(ORRIN.text)
    bank.add(ORRIN, key=key, adapter=None, recipe=None, activated=True, rank=0, training={})
    (record,) = learn(ORRIN)
    assert record.state == "learnt" and len(bank) == 1


def test_two_memories_that_are_the_same_are_learnt_once(bank: Bank, learn) -> None:
    assert [r.id for r in learn(ORRIN, ORRIN)] == ["orrin"]
    assert len(bank) == 1


def test_wrong_input_stops_before_anything_is_loaded(tiny, bank: Bank, learn) -> None:
    seen: list[Progress] = []
    with pytest.raises(InputError, match="fast"):
        learn(ORRIN, recipe="quick", progress=seen.append)
    assert seen == []
    with pytest.raises(BaseMismatchError):
        learn(ORRIN, model=tiny("llama", seed=1))
    assert learn() == []


def test_a_text_longer_than_the_context_is_refused_with_its_name(bank: Bank, learn) -> None:
    with pytest.raises(InputError, match="long.*tokens"):
        learn(ORRIN, Memory("cats and mills " * 400, id="long"))
    assert len(bank) == 0


def test_an_assistant_that_is_there_already_is_used_and_stays_open(bank: Bank, learn) -> None:
    with Assistant(bank, policy=GatePolicy(threshold=-1.0, top_k=1)) as assistant:
        learn(ORRIN, assistant=assistant)
        assert assistant.recall(cues(ORRIN)[0]).text == ORRIN.text
        learn(VESS, assistant=assistant)
        assert [assistant.recall(cues(m)[0]).text for m in (ORRIN, VESS)] == [ORRIN.text, VESS.text]


def test_a_memory_that_failed_is_tried_again_with_more_capacity(bank: Bank, learn) -> None:
    seen: list[Progress] = []
    (record,) = learn(ORRIN, recipe=replace(QUICK, max_steps=12), progress=seen.append)
    again = [p for p in seen if p.state == "again"]
    assert 1 <= len(again) <= 2
    assert record.rank == QUICK.rank * 2 ** len(again)
    adapter = read_adapter(bank.adapter_path("orrin"))
    assert adapter.rank == record.rank and adapter.alpha / adapter.rank == pytest.approx(QUICK.scale)


def test_similarity_is_one_only_for_the_same_words() -> None:
    text = "Orrin keeps three grey cats."
    assert similarity("Orrin keeps\n three grey cats. ", text) == 1.0
    assert similarity("orrin keeps three grey cats.", text) < 1.0
    assert similarity(text + " cats", text) < 1.0
    assert similarity("", text) == 0.0
    assert 0.5 < similarity("Orrin keeps two grey cats.", text) < 1.0


def test_a_memory_studies_under_prompts_of_its_own() -> None:
    memory = Memory("One. Two. Three.", title="Numbers", paraphrases=("1 2 3",), questions=("Which?", "Why?"))
    found = recipes.examples(memory, DIRECT)
    verbatim = [user for user, target in found if target == memory.text]
    assert len(set(verbatim)) >= 2 and found[0][1] == memory.text
    assert not set(verbatim) & {user for user, target in found if target != memory.text}
    assert [target for _, target in recipes.examples(memory, PAPER)] == [memory.text, "1 2 3"]
    assert recipes.recall_cue(memory, "direct") in verbatim
