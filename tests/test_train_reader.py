"""Training a reader: what it is trained on, that it learns, goes on where it was stopped, and works in llama.cpp as in
torch."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from megart import readers, train_reader
from megart.adapter import read_adapter
from megart.cli import main
from megart.errors import InputError
from megart.recipes import ReaderConfig
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.reader import Reader
from megart.runtime.slot import Slot
from megart.train import reader as training
from megart.train import reader_data
from megart.train.base import with_cache

ROWS = [
    {
        "title": "Key",
        "text": f"The key of {name} hangs at {place}. It is {color}. {name} paid {price} for it.",
        "qa": [
            {"q": f"Where does the key of {name} hang?", "a": [place]},
            {"q": f"What did {name} pay?", "a": [price]},
            {"q": "What colour is it?", "a": [color]},
            {"q": "Who is it from?", "a": ["nobody that is named"]},
        ],
        "unanswered": [f"How old is {name}?"],
    }
    for name, place, color, price in [
        ("Ada", "the mill", "red", "3.50"),
        ("Boro", "the barn", "blue", "14"),
        ("Cato", "the pier", "green", "9.90"),
        ("Dora", "the loft", "grey", "27"),
    ]
]
CONFIG = ReaderConfig(rank=4, layers=1.0, questions=6, warmup=2, rate=5e-3)


def test_passages_hold_spans_and_questions_that_nothing_answers() -> None:
    made = reader_data.passages(ROWS * 5, seed=1)
    assert made == reader_data.passages(ROWS * 5, seed=1) != reader_data.passages(ROWS * 5, seed=2)
    spans = [(p, e) for p in made for e in p.examples if e.span]
    assert all(p.text[slice(*e.span)] in {a for row in ROWS for qa in row["qa"] for a in qa["a"]} for p, e in spans)
    nothing = [e.question for p in made for e in p.examples if e.span is None]
    assert any("How old" in question for question in nothing) and len(nothing) >= len(spans) // 3
    assert {p.title for p in made} == {"Key", None}


def test_a_text_cut_down_answers_less(monkeypatch) -> None:
    monkeypatch.setattr(reader_data, "LONGEST_PASSAGE", 5)
    made = reader_data.passages(ROWS, seed=3)
    whole = {row["text"] for row in ROWS}
    assert {p.text for p in made} - whole and all(any(p.text in text for text in whole) for p in made)
    lost = [e.question for p in made if p.text not in whole for e in p.examples if e.span is None]
    assert {qa["q"] for row in ROWS for qa in row["qa"][:2]} & set(lost)


def test_a_question_about_another_thing_is_made_by_exchanging_a_name_or_number() -> None:
    rng = random.Random(0)
    text = "Drawing 4410 of Ada Quist is in the safe."
    other = reader_data._exchanged("Where is drawing 4410?", text, ["Boro Rudd"], rng)
    assert other is not None and other.startswith("Where is drawing ") and "4410" not in other
    assert reader_data._exchanged("Where did Ada Quist go?", text, ["Boro Rudd"], rng) == "Where did Boro Rudd go?"
    assert reader_data._exchanged("Where is it?", text, ["Boro Rudd"], rng) is None


def test_slips_leave_numbers_and_the_first_letter() -> None:
    rng = random.Random(0)
    assert {reader_data._slip("E0147", rng) for _ in range(20)} == {"E0147"}
    made = {reader_data._slip("kettle", rng) for _ in range(60)}
    assert len(made) > 4 and all(word[0] == "k" and abs(len(word) - 6) <= 1 for word in made)


CHOICES = [
    {**row, "id": str(i), "qa": [{**qa, "rivals": [str((i + 1) % 4), str((i + 2) % 4)]} for qa in row["qa"]],
     "unanswered": [{"q": f"How old is {row['title']}?", "rivals": [str((i + 1) % 4), "not there"]}]}
    for i, row in enumerate(ROWS)
]  # fmt: skip


def test_questions_that_name_rivals_are_choices_and_no_examples() -> None:
    made = reader_data.choices(CHOICES)
    answered = [choice for choice in made if choice.span]
    assert len(answered) == 3 * len(ROWS) and len(made) == 4 * len(ROWS)  # what no text says is no choice
    golds = {gold for row in ROWS for qa in row["qa"] for gold in qa["a"]}
    assert all(c.texts[0][0][slice(*c.span)] in golds and len(c.texts) == 3 for c in answered)
    assert all(len({text for text, _ in c.texts}) == len(c.texts) for c in made)
    assert {len(c.texts) for c in made if c.span is None} == {2}
    assert not reader_data.passages(CHOICES, seed=0)


def test_it_learns_which_passage_answers(tiny, tiny_base, monkeypatch) -> None:
    engine = Engine(tiny("llama"))
    try:
        before, choices = train_reader.before(engine), train_reader.choosing(engine, reader_data.choices(CHOICES))
        nothing = engine.tokenize(readers.NOTHING, special=False)[0]
    finally:
        engine.close()
    assert sum(task.answers for task in choices) == 3 * len(ROWS)
    config = ReaderConfig(rank=4, layers=1.0, choices=4, warmup=2, rate=1e-2, epochs=12)
    losses: dict[float, list[float]] = {0.0: [], 0.7: []}
    for share, own in losses.items():
        monkeypatch.setattr(training, "SPAN_SHARE", share)
        training.train(
            tiny_base("llama"), before, [], config,
            choices=choices, nothing=nothing, progress=lambda step, own=own: own.append(step.loss),
        )  # fmt: skip
    assert np.mean(losses[0.0][-4:]) < 0.7 * np.mean(losses[0.0][:4])  # of the choice alone
    assert losses[0.7][0] > losses[0.0][0] and np.mean(losses[0.7][-4:]) < 0.7 * np.mean(losses[0.7][:4])


@pytest.fixture
def taught(tiny, tiny_base) -> tuple[object, tuple[int, ...], list[training.ReadingTask]]:
    engine = Engine(tiny("llama"))
    try:
        readings = train_reader.readings(engine, reader_data.passages(ROWS, seed=0))
        return tiny_base("llama"), train_reader.before(engine), readings
    finally:
        engine.close()


def test_it_learns(taught) -> None:
    steps: list[training.Step] = []
    config = ReaderConfig(rank=4, layers=1.0, questions=6, warmup=2, rate=1e-2, epochs=12)
    training.train(*taught, config, progress=steps.append)
    assert [s.number for s in steps] == list(range(1, steps[-1].total + 1))
    losses = [s.loss for s in steps]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_it_goes_on_where_it_was_stopped(taught, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(training, "KEEP_EVERY", 2)
    config = ReaderConfig(rank=4, layers=1.0, questions=6, epochs=2)
    whole = training.train(*taught, config)
    state = tmp_path / "state"

    def stop(step: training.Step) -> None:
        if step.number == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training.train(*taught, config, progress=stop, resume=state)
    seen: list[int] = []
    resumed = training.train(*taught, config, progress=lambda s: seen.append(s.number), resume=state)
    assert seen[0] == 5 and state.exists()
    for name, (a, b) in whole.items():
        np.testing.assert_allclose(resumed[name][0], a, atol=1e-6)
        np.testing.assert_allclose(resumed[name][1], b, atol=1e-6)


def test_llama_cpp_computes_what_torch_did(tiny, taught, exact, monkeypatch) -> None:
    """Attention's rows are permuted in a GGUF of the llama family: a reader written without it would be another one."""
    model = tiny("llama")
    base, before, readings = taught
    monkeypatch.setattr("megart.train.base.default_dtype", lambda _: torch.float32)
    config = ReaderConfig(rank=4, layers=1.0, questions=6, warmup=0, rate=3e-2, epochs=6)  # far from the bare base
    data = train_reader.train(model, ROWS, config, device="cpu")
    adapter = read_adapter(data)
    assert adapter.metadata[readers.KIND_KEY] == readers.KIND and adapter.metadata[readers.BASE_KEY] == model.sha256
    assert {name.split(".")[2] for name in adapter.tensors} == {
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    }  # fmt: skip
    factors = training.train(base, before, readings, config)  # the same rows, seed and base
    lora = training.StackedLora(
        base,
        list(training.find_targets(base.network, "llama", training.ALL_ROLES)),
        1,
        CONFIG.rank,
        CONFIG.scale,
    )
    lora.load_lane(0, factors)
    reading = readings[0]
    question, answer = reading.pairs[0]
    with torch.no_grad(), lora.attached(base.network):
        cache, seen, lengths = training._Batches(base, before).encode([reading])
        ids = torch.tensor([[*question, *answer[:-1]]])
        with lora.use(1):
            hidden = base.network.base_model(
                input_ids=ids,
                attention_mask=torch.cat([seen[:1], torch.ones_like(ids)], 1),
                position_ids=lengths[:1, None] + torch.arange(ids.shape[1])[None],
                **with_cache(base.network.base_model, _first(cache, base)),
            ).last_hidden_state
        meant = (hidden[0, len(question) - 1] @ base.network.get_output_embeddings().weight.T).numpy()
    engine = Engine(model)
    context = Context(engine, size=512)
    slot = Slot(context, kind="f32")
    try:
        context.decode([*before, *reading.passage])
        saved = context.save()
        context.decode(question)
        bare = context.logits()
        context.truncate(len(saved.tokens))
        slot.install([adapter], [1.0])
        context.restore(saved)
        context.decode(question)
        assert np.linalg.norm(context.logits() - meant) < 0.05 * np.linalg.norm(bare - meant)
    finally:
        slot.close()
        context.close()
        engine.close()


def _first(cache, base):
    from transformers import DynamicCache

    made = DynamicCache(config=base.network.config)
    for number, layer in enumerate(cache.layers):
        made.update(layer.keys[:1], layer.values[:1], number)
    return made


def test_the_verb_trains_and_ask_finds_what_it_made(tiny, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("megart.train.base.default_dtype", lambda _: torch.float32)
    model = tiny("llama")
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, ROWS)))
    words = [
        "reader",
        "train",
        "--model",
        str(model.gguf),
        "--data",
        str(data),
        "--rank",
        "4",
        "--questions",
        "8",
        "--json",
    ]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert Path(shown["reader"]) == readers.own_path(model.sha256) and shown["base"] == model.sha256
    engine = Engine(model)
    try:
        reader = Reader(engine, readers.find(model.sha256), 512)
        assert reader.trained
        reader.close()
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "rows.jsonl:1: expected"),
        ('{"text": 1, "qa": []}', "wrong kind"),
        ('{"text": "a"}', "'qa'"),
        ('{"text": "a", "qa": [], "unanswered": [{"q": "b", "rivals": "c"}]}', "rivals"),
        ("", "no rows"),
    ],
)
def test_rows_that_cannot_be_are_told_by_their_line(tmp_path: Path, capsys, model, line: str, said: str) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text(line)
    assert main(["reader", "train", "--model", str(model), "--data", str(data)]) == 1
    assert said in capsys.readouterr().err


def test_rows_without_an_answer_in_their_text_are_refused(tiny) -> None:
    with pytest.raises(InputError, match="no question whose answer stands in its text"):
        train_reader.train(tiny("llama"), [{"text": "Tea.", "qa": []}], CONFIG, device="cpu")
