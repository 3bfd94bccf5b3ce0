"""The harness runs its own tasks on megart: the same numbers as our scores, with and without the bank."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

if not all(map(importlib.util.find_spec, ("lm_eval", "datasets"))):
    pytest.skip("needs lm-eval", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")

from helpers import few_lines, noise_adapter

from megart.adapter import write_adapter
from megart.bank import Bank, Memory
from megart.errors import InputError
from megart.gate import GatePolicy
from megart.models import Model
from megart.runtime import embed, score
from megart.runtime.assistant import Assistant

DOCS = [
    {"question": "Whom did Ada meet?", "choices": ["Boro", "Vess"], "gold": 0, "text": "Ada met Boro at dusk."},
    {"question": "What burnt?", "choices": ["The mill of Vess", "Nothing"], "gold": 0, "text": "The mill burnt."},
]
CHOICE = """task: megart_choice
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: "{{choices}}"
doc_to_target: gold
metric_list: [{metric: acc}]
"""
SAY = """task: megart_say
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["zq"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""
ROLL = """task: megart_roll
dataset_path: json
dataset_kwargs: {data_files: {test: "%s"}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""


@pytest.fixture
def bank(tiny: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    for name in ("HF_HOME", "HF_DATASETS_CACHE", "LM_HARNESS_CACHE_PATH"):
        monkeypatch.setenv(name, str(tmp_path / "hf"))
    with Bank.create(tmp_path / "bank", tiny()) as made, Assistant(made, threads=1) as assistant:
        text = "Ada met Boro at dusk."
        made.add(
            Memory(text, "ada"), key=assistant.key(text), adapter=write_adapter(noise_adapter("llama", 4, 0)), rank=4
        )
    return tmp_path / "bank"


def tasks(folder: Path) -> Path:
    (folder / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS), "utf-8")
    (folder / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("say", SAY), ("roll", ROLL)):
        (folder / "tasks" / f"{name}.yaml").write_text(text % (folder / "docs.jsonl"), "utf-8")
    return folder / "tasks"


def test_tasks_of_the_harness(bank: Path, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from megart.eval.lm import MegartLM

    manager = TaskManager(include_path=str(tasks(tmp_path)), include_defaults=False)
    model = MegartLM(bank=str(bank), threads=1)
    found = lm_eval.simple_evaluate(
        model=model, tasks=["megart_choice", "megart_say", "megart_roll"], task_manager=manager, log_samples=True,
        bootstrap_iters=0,
    )  # fmt: skip
    assert set(found["results"]) == {"megart_choice", "megart_say", "megart_roll"}
    sample = found["samples"]["megart_choice"][0]
    prompt = score.tokens_prompt(model.engine.tokenize("Question: Whom did Ada meet?\nAnswer:", bos=True))
    words = [model.engine.tokenize(f" {text}", special=False) for text in DOCS[0]["choices"]]
    ours = score.score(model.assistant, prompt, words).scores
    assert [r[0][0] for r in sample["resps"]] == pytest.approx([s.logprob for s in ours], abs=1e-3)
    said = found["samples"]["megart_say"][0]["resps"][0][0]
    plain = score.tokens_prompt(model.engine.tokenize("Whom did Ada meet?", bos=True))
    assert said == score.generate(model.assistant, plain, "gate", 5)[0].text
    assert found["results"]["megart_roll"]["word_perplexity,none"] > 1


def test_with_and_without_the_bank(bank: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from megart.eval import lm

    assert get_model("megart") is lm.MegartLM
    asked = [
        Instance("loglikelihood", {}, ("Ada met Boro at", " dusk"), 0),
        Instance("loglikelihood", {}, ("", "Ada"), 1),
    ]
    found = {}
    for gate in ("on", "off"):
        model = lm.MegartLM.create_from_arg_string(f"bank={bank},gate={gate},threads=1")
        model.assistant.open_bank.policy = GatePolicy(threshold=-1.0, top_k=1)
        found[gate] = model.loglikelihood(asked)
    assert found["on"][0][0] != pytest.approx(found["off"][0][0], abs=1e-3)
    bare = lm.MegartLM(model=str(model.engine.model.gguf), threads=1)
    assert bare.loglikelihood(asked) == found["off"]
    with pytest.raises(InputError, match="got the model argument 'colour'"):
        lm.MegartLM(bank=str(bank), colour="red")
    with pytest.raises(InputError, match='expected "on" or "off"'):
        lm.MegartLM(bank=str(bank), gate="ajar")
