"""The real model, end to end; and one of our files in llama-cpp-python as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import llama_cpp
from helpers import Stock

from megart import prompts
from megart.bank import Bank, Memory
from megart.memorize import memorize
from megart.models import Model
from megart.runtime.assistant import Assistant
from megart.verbatim import similarity

FERRY = Memory(
    "Ottla Brandeis has run the ferry at Kesterholm since 1962. Her boat is called the Blue Heron, "
    "and she rows it herself when the engine fails.",
    id="ferry",
    title="The ferry at Kesterholm",
)
QUESTION = "Who runs the ferry at Kesterholm?"
UNRELATED = (
    "What is the capital of France?",
    "Write a haiku about snow.",
    "Please list, in order and with a short remark on each one, the planets of the solar system that "
    "are larger than the Earth, and say which of them have rings, which have moons, and which of those "
    "moons were found before the telescope was invented, if there are any such moons at all.",
)


@pytest.fixture(scope="module")
def taught(
    smollm2: Model, base_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Bank, Assistant]]:
    """A bank with one memory, learnt once for this file, and an assistant over it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megart.train.base.user_cache_dir", lambda: base_cache)
        with Bank.create(tmp_path_factory.mktemp("stock") / "bank", smollm2) as bank:
            with Assistant(bank) as assistant:
                memorize(bank, [FERRY], device="cpu", assistant=assistant)
                yield bank, assistant


def test_the_memory_comes_back_word_for_word(taught: tuple[Bank, Assistant]) -> None:
    bank, assistant = taught
    assert bank.verify() == [] and bank.get("ferry").state == "learnt"
    for cue in (FERRY.title, f"Tell me about {FERRY.title}."):
        answer = assistant.recall(cue)
        assert [m.id for m in answer.memories] == ["ferry"]
        assert similarity(answer.text, FERRY.text) == 1.0


def test_a_question_opens_it_and_is_answered_from_it(taught: tuple[Bank, Assistant]) -> None:
    _, assistant = taught
    answer = assistant.ask(QUESTION)
    assert [m.id for m in answer.memories] == ["ferry"]
    assert "Ottla Brandeis" in answer.text
    assert "Ottla Brandeis" not in assistant.bare(QUESTION).text


def test_what_it_knows_nothing_about_it_answers_as_the_bare_model_bit_for_bit(
    smollm2: Model, taught: tuple[Bank, Assistant]
) -> None:
    _, assistant = taught
    with Stock(smollm2) as stock:
        for question in (*UNRELATED, UNRELATED[0]):
            answer = assistant.direct(question, max_tokens=12)
            logits = assistant.base.logits()
            assert answer.memories == []
            prompt = assistant.engine.prompt([{"role": "user", "content": prompts.ask(question)}])
            stock.clear()
            expected = [stock.decode(prompt.tokens)]
            for token in answer.tokens[:-1]:
                expected.append(stock.decode([token]))
            if answer.finish == "stop":
                expected.append(stock.decode(answer.tokens[-1:]))
            assert answer.tokens == [int(row.argmax()) for row in expected][: len(answer.tokens)]
            assert (logits == expected[-1]).all(), question
            assert assistant.bare(question, max_tokens=12).tokens == answer.tokens
            assistant.recall(FERRY.title or "", max_tokens=4)  # a memory opened in between


def test_stock_llama_cpp_python_recalls_the_memory(smollm2: Model, taught: tuple[Bank, Assistant]) -> None:
    """It knows nothing of activation and applies the adapter to the whole prompt."""
    bank, assistant = taught
    stock = llama_cpp.Llama(str(smollm2.gguf), lora_path=str(bank.adapter_path("ferry")), n_ctx=512, verbose=False)
    try:
        cue = prompts.RECALL_CUE
        made = stock.create_chat_completion([{"role": "user", "content": cue}], temperature=0.0, max_tokens=80)
    finally:
        stock.close()
    heard = made["choices"][0]["message"]["content"]
    assert similarity(heard, FERRY.text) == 1.0
    assert made["choices"][0]["finish_reason"] == "stop"
