"""How vectors by a text embedder are compared."""

from __future__ import annotations

import numpy as np
import pytest

from megart.gate import Vectors, unit
from megart.gate.meaning import BOTH, E5_SMALL, E5_STATES, MEANING, fitted


def like_e5(count: int, seed: int) -> np.ndarray:
    """Vectors that have much in common, some more than others, as e5's: float32 [count, 384]."""
    own, chance = fitted(E5_SMALL), np.random.default_rng(seed)
    assert own is not None
    return unit(own.notes + chance.uniform(0.1, 0.5, (count, 1)) * unit(chance.standard_normal((count, 384))))


def test_the_fitted_cosine_is_what_its_definition_says() -> None:
    own, notes, question = fitted(E5_SMALL), like_e5(40, 0), like_e5(1, 1)[0]
    assert own is not None
    mapped = unit((notes - own.notes) @ own.matrix)
    asked = unit(((question - own.questions) @ own.matrix)[None])[0]
    rows = np.array([3, 0, 17])
    assert np.allclose(Vectors(notes, E5_SMALL).cosines(question, rows)[:, 0], mapped[rows] @ asked, atol=1e-5)


def test_one_scan_finds_those_that_the_fitted_cosine_puts_first() -> None:
    notes, questions = like_e5(2000, 2), like_e5(20, 3)
    vectors = Vectors(notes.astype(np.float16), E5_SMALL)
    for question in questions:
        exact = vectors.cosines(question, np.arange(len(notes)))[:, 0]
        chosen = np.argsort(-vectors.scan(question))[:16]
        assert int(exact.argmax()) in chosen
        assert len({*np.argsort(-exact)[:8].tolist()} - {*chosen.tolist()}) <= 1


@pytest.mark.parametrize(("family", "size"), [("minilm", 384), ("e5", 768), (E5_SMALL, 12), ("another", 5)])
def test_other_vectors_are_compared_as_they_are(family: str, size: int) -> None:
    notes = unit(np.random.default_rng(0).standard_normal((6, size)))
    vectors, weighs = Vectors(notes, family), MEANING.get(family, MEANING["minilm"])
    part = weighs.parts[0]
    assert np.allclose(vectors.scan(notes[2]), part.weight * notes @ notes[2], atol=1e-4)
    cosines = np.array([1, notes[4] @ notes[2]])
    assert np.allclose(vectors.cosines(notes[2], np.array([2, 4]))[:, 0], cosines, atol=1e-5)
    assert np.allclose(vectors.odds(notes[2], np.array([2, 4])), part.weight * (cosines - part.zero), atol=1e-4)
    assert vectors.share == weighs.share


def test_vectors_of_several_embedders_may_differ_in_size() -> None:
    by_e5, by_states = like_e5(20, 7), unit(np.random.default_rng(8).standard_normal((20, 448)))
    together, alone, rows = Vectors(np.concatenate([by_e5, by_states], 1), E5_STATES), Vectors(by_e5, E5_SMALL), np.arange(20)
    question, half = like_e5(1, 9)[0], 0.5 * by_states[3]
    asked, (_, second) = np.concatenate([question, half]), MEANING[E5_STATES].parts
    cosines = together.cosines(asked, rows)
    assert np.allclose(cosines[:, :1], alone.cosines(question, rows)) and np.allclose(cosines[:, 1], by_states @ half, atol=1e-5)
    assert np.allclose(together.lengths(asked), [np.linalg.norm(question), 0.5])
    nothing = together.odds(np.concatenate([question, 0 * half]), rows)
    assert np.allclose(together.odds(asked, rows) - nothing, second.weight * (cosines[:, 1] - second.zero / 2), atol=1e-3)


def test_of_two_embedders_each_counts_as_far_as_the_question_says() -> None:
    by_e5, by_minilm = like_e5(30, 4), unit(np.random.default_rng(5).standard_normal((30, 384)))
    question, english = like_e5(1, 6)[0], by_minilm[7]
    both = Vectors(np.concatenate([by_e5, by_minilm], 1), BOTH)
    alone, rows = Vectors(by_e5, E5_SMALL), np.arange(30)
    first, second = MEANING[BOTH].parts
    assert both.own.shape == (30, 384) and np.allclose(both.alike(np.tile(by_e5[3], 2)), by_e5 @ by_e5[3], atol=1e-5)
    for knows in (0.0, 0.4, 1.0):
        asked = np.concatenate([question, knows * english])
        cosines = alone.cosines(question, rows)[:, 0], by_minilm @ english
        odds = first.weight * (cosines[0] - first.zero) + knows * second.weight * (cosines[1] - second.zero)
        assert np.allclose(both.odds(asked, rows), odds, atol=1e-3)
        scan = first.weight * alone.scan(question) / MEANING[E5_SMALL].parts[0].weight + knows * second.weight * cosines[1]
        assert np.allclose(both.scan(asked), scan, atol=1e-3)
