"""Word index and late interaction of the extension against the NumPy specification."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from megart import _core

BOTH = pytest.mark.parametrize("impl", [_core, reference], ids=["core", "reference"])
memories = st.lists(st.lists(st.integers(0, 9), max_size=20), max_size=12)
questions = st.lists(st.integers(1, 11), min_size=1, max_size=8, unique=True)


def flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    return np.array([t for row in rows for t in row], np.uint32), starts


@settings(max_examples=200, deadline=None)
@given(rows=memories, terms=questions, seed=st.integers(0, 2**31))
def test_the_index_matches_the_reference(rows, terms, seed) -> None:
    random = np.random.default_rng(seed)
    words, idf = np.array(terms, np.uint32), random.random(len(terms)).astype(np.float32)
    pairs = random.integers(0, len(terms), (5, 2)).astype(np.int32)
    picked = random.integers(0, len(rows), 7 if rows else 0).astype(np.int64)
    made, wanted = (impl.Lexicon(*flat(rows)) for impl in (_core, reference))
    assert len(made) == len(wanted) == len(rows)
    np.testing.assert_array_equal(made.df(words), wanted.df(words))
    np.testing.assert_allclose(made.bm25(words, idf), wanted.bm25(words, idf), rtol=1e-4, atol=1e-6)
    for got, expected in zip(made.match(words, idf, pairs, picked), wanted.match(words, idf, pairs, picked)):
        assert got.dtype == expected.dtype
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), max_size=8),
    tokens=st.integers(0, 5),
    width=st.integers(1, 70),
    seed=st.integers(0, 2**31),
)
def test_late_interaction_matches_the_reference(lengths, tokens, width, seed) -> None:
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths]).astype(np.int64)
    query = random.integers(-127, 128, (tokens, width)).astype(np.int8)
    states = random.integers(-127, 128, (starts[-1], width)).astype(np.int8)
    states[random.random(len(states)) < 0.3] = 0  # ends of sentences
    weights = (random.random(tokens) * (random.random(tokens) < 0.8)).astype(np.float32)
    known = random.integers(0, 2, (len(lengths), tokens)).astype(np.uint8)
    got = _core.late_interaction(query, weights, known, states, starts)
    wanted = reference.late_interaction(query, weights, known, states, starts)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@BOTH
def test_words_of_two_sentences_are_not_side_by_side(impl) -> None:
    lexicon = impl.Lexicon(*flat([[1 << 12, 2 << 12, 0, 3 << 12], [2 << 12, 3 << 12]]))
    idf = np.ones(3, np.float32)
    terms, rows = np.array([1, 2, 3], np.uint32) << 12, np.array([0, 1], np.int64)
    present, shares = lexicon.match(terms, idf, np.array([[1, 2]], np.int32), rows)
    assert present.tolist() == [[2, 2, 2], [0, 2, 2]]
    assert shares[:, 0].tolist() == [2, 2] and shares[:, 1].tolist() == [0, 2]


@BOTH
def test_the_first_sentence_counts_with_each_and_relatives_count_less(impl) -> None:
    title, word, relative, other = 1 << 12, 2 << 12, 2 << 12 | 7, 3 << 12
    lexicon = impl.Lexicon(*flat([[title, 0, other, 0, relative]]))
    terms, rows = np.array([title, word], np.uint32), np.zeros(1, np.int64)
    present, shares = lexicon.match(terms, np.array([1, 2], np.float32), np.empty((0, 2), np.int32), rows, 0.5)
    assert present.tolist() == [[2, 1]]
    assert shares.tolist() == [[1, 0, 2]]
    assert lexicon.df(terms).tolist() == [1, 0]


@BOTH
def test_the_same_token_is_wholly_alike(impl) -> None:
    query = np.array([[3, -4], [100, 0]], np.int8)
    states = np.array([[-3, 4], [6, -8], [0, 7]], np.int8)
    starts, known = np.array([0, 2, 2, 3], np.int64), np.zeros((3, 2), np.uint8)
    got = impl.late_interaction(query, np.array([1, 0], np.float32), known, states, starts)
    np.testing.assert_allclose(got, [[1, 1, 1], [0, 0, 0], [-0.8, -0.8, 0]], atol=1e-6)


@BOTH
def test_tokens_of_one_sentence_count_together_and_known_words_are_no_news(impl) -> None:
    a, b, end = [1, 0], [0, 1], [0, 0]
    query, weights = np.array([a, b], np.int8), np.array([1, 3], np.float32)
    # a and b in sentences of their own, in one, and in one beside the first
    states = np.array([end, a, end, b, a, b, a, end, b], np.int8)
    starts, known = np.array([0, 4, 6, 9], np.int64), np.array([[1, 0], [1, 1], [0, 1]], np.uint8)
    got = impl.late_interaction(query, weights, known, states, starts)
    np.testing.assert_allclose(got, [[0.75, 0.75, 1], [1, 0, 1], [1, 0.25, 1]], atol=1e-6)


ONE = (np.array([1], np.uint32), np.array([0, 1], np.int64))
T, W = np.array([1], np.uint32), np.ones(1, np.float32)
KNOWN = np.zeros((1, 1), np.uint8)
NO_PAIRS, FIRST = np.empty((0, 2), np.int32), np.zeros(1, np.int64)
BAD = {
    "starts": (ValueError, "starts: got offsets that", lambda: _core.Lexicon(ONE[0], np.array([0, 2], np.int64))),
    "falling": (ValueError, "starts: got", lambda: _core.Lexicon(ONE[0], np.array([0, 2, 1], np.int64))),
    "no starts": (ValueError, "starts: got", lambda: _core.Lexicon(ONE[0], np.empty(0, np.int64))),
    "terms i64": (TypeError, "incompatible", lambda: _core.Lexicon(np.ones(1, np.int64), ONE[1])),
    "idf nan": (ValueError, "idf: got a weight", lambda: _core.Lexicon(*ONE).bm25(T, W * np.nan)),
    "idf below 0": (ValueError, "idf: got a weight", lambda: _core.Lexicon(*ONE).bm25(T, -W)),
    "idf length": (ValueError, "idf: got 2, expected 1", lambda: _core.Lexicon(*ONE).bm25(T, np.ones(2, np.float32))),
    "b": (ValueError, "k1 and b: got", lambda: _core.Lexicon(*ONE).bm25(T, W, b=1.5)),
    "row": (ValueError, "rows: got 1", lambda: _core.Lexicon(*ONE).match(T, W, NO_PAIRS, FIRST + 1)),
    "row below 0": (ValueError, "rows: got -1", lambda: _core.Lexicon(*ONE).match(T, W, NO_PAIRS, FIRST - 1)),
    "pair": (ValueError, "pairs: got 1", lambda: _core.Lexicon(*ONE).match(T, W, np.array([[0, 1]], np.int32), FIRST)),
    "width": (
        ValueError,
        "columns of tokens: got 2, expected 3",
        lambda: _core.late_interaction(np.ones((1, 3), np.int8), W, KNOWN, np.ones((1, 2), np.int8), ONE[1]),
    ),
    "weights": (
        ValueError,
        "weights: got a weight",
        lambda: _core.late_interaction(np.ones((1, 3), np.int8), -W, KNOWN, np.ones((1, 3), np.int8), ONE[1]),
    ),
    "known": (
        ValueError,
        "columns of known: got 2, expected 1",
        lambda: _core.late_interaction(
            np.ones((1, 3), np.int8), W, np.zeros((1, 2), np.uint8), np.ones((1, 3), np.int8), ONE[1]
        ),
    ),
    "kin": (ValueError, "kin: got", lambda: _core.Lexicon(*ONE).match(T, W, NO_PAIRS, FIRST, 1.5)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case) -> None:
    error, message, call = BAD[case]
    with pytest.raises(error, match=message):
        call()


def test_the_gil_is_free_while_tokens_are_compared() -> None:
    random = np.random.default_rng(0)
    query = random.integers(-127, 128, (40, 64)).astype(np.int8)
    states = random.integers(-127, 128, (40_000, 64)).astype(np.int8)
    stamps, stop = [], threading.Event()

    def tick() -> None:
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0002)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        inside = 0
        for _ in range(20):
            begin = time.perf_counter()
            _core.late_interaction(
                query, np.ones(40, np.float32), np.zeros((1, 40), np.uint8), states, np.array([0, 40_000], np.int64)
            )
            end = time.perf_counter()
            inside = max(inside, sum(begin < stamp < end for stamp in stamps))
            if inside >= 3:
                break
    finally:
        stop.set()
        thread.join()
    assert inside >= 3
