"""Scores of the extension against the NumPy specification."""

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


@pytest.fixture(params=_core.simd_levels())
def level(request):
    best = _core.simd()
    _core.use_simd(request.param)
    yield request.param
    _core.use_simd(best)


def problem(count: int, width: int, dtype, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    query = rng.standard_normal(width).astype(np.float32)
    return query, rng.standard_normal((count, width)).astype(dtype)


problems = st.builds(
    problem,
    st.integers(0, 600),
    st.integers(1, 150),
    st.sampled_from([np.float32, np.float16]),
    st.integers(0, 2**32 - 1),
)


@pytest.mark.parametrize("name", _core.simd_levels())
@settings(max_examples=60, deadline=None)
@given(problem=problems, threads=st.integers(1, 3))
def test_scores_match_the_reference(name, problem, threads):
    query, keys = problem
    best = _core.simd()
    _core.use_simd(name)
    try:
        got = _core.scores(query, keys, threads=threads)
    finally:
        _core.use_simd(best)
    assert got.dtype == np.float32 and got.shape == (len(keys),)
    np.testing.assert_allclose(got, reference.scores(query, keys), rtol=1e-4, atol=1e-4)


def test_result_does_not_depend_on_threads(level):
    query, keys = problem(300_000, 77, np.float16, 3)  # enough bytes for several threads
    one = _core.scores(query, keys, 1)
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(one, _core.scores(query, keys, threads))


@BOTH
def test_every_f16_value_is_read_exactly(impl):
    keys = np.arange(65536, dtype=np.uint16).view(np.float16)
    keys = keys[np.isfinite(keys)][:, None].copy()
    expected = keys[:, 0].astype(np.float32)
    for name in _core.simd_levels():
        best = _core.simd()
        _core.use_simd(name)
        np.testing.assert_array_equal(impl.scores(np.ones(1, np.float32), keys), expected)
        wide = np.zeros((len(keys), 16), np.float16)
        wide[:, 3:4] = keys
        np.testing.assert_array_equal(impl.scores(np.ones(16, np.float32), wide), expected)
        _core.use_simd(best)


@BOTH
def test_no_keys_give_empty_arrays(impl):
    query = np.ones(5, np.float32)
    keys = np.empty((0, 5), np.float32)
    scores = impl.scores(query, keys)
    assert scores.shape == (0,) and scores.dtype == np.float32


Q, K = np.ones(4, np.float32), np.ones((3, 4), np.float32)
NAN_Q, NAN_K, INF_K = Q.copy(), K.copy(), K.astype(np.float16)
NAN_Q[2], NAN_K[1, 0], INF_K[2, 3] = np.nan, np.nan, np.inf
HUGE = np.full((1, 4), 3e38, np.float32)
ODD = np.frombuffer(bytes(1 + K.nbytes), np.uint8)[1:].view(np.float32).reshape(3, 4)

BAD = {
    "threads": (ValueError, r"threads: got 0, expected at least 1", (Q, K, 0)),
    "width": (ValueError, r"keys: got 3 columns, expected 4 as", (Q, K[:, :3].copy())),
    "no width": (ValueError, r"query: got 0 values", (Q[:0], K[:, :0].copy())),
    "query dims": (ValueError, r"query: got 2 dimensions, expected 1", (K, K)),
    "keys dims": (ValueError, r"keys: got 1 dimensions, expected 2", (Q, Q)),
    "query nan": (ValueError, r"query: got a value that is not finite at 2", (NAN_Q, K)),
    "key nan": (ValueError, r"keys: got a score that is not finite for row 1", (Q, NAN_K)),
    "key inf": (ValueError, r"keys: got a score that is not finite for row 2", (Q, INF_K)),
    "overflow": (ValueError, r"not finite for row 0", (Q, HUGE)),
    "query f64": (TypeError, r"query: got float64, expected float32; ", (Q.astype(float), K)),
    "query f16": (TypeError, r"query: got float16, expected float32; ", (Q.astype("f2"), K)),
    "keys f64": (TypeError, r"keys: got float64, expected float32 or float16", (Q, K + 0.0j)),
    "keys i8": (TypeError, r"keys: got int8, expected float32 or float16; ", (Q, K.astype("i1"))),
    "keys int": (TypeError, r"keys: got int32, expected float32 or", (Q, K.astype("i4"))),
    "byte order": (TypeError, r"query: got >f4, expected float32", (Q.astype(">f4"), K)),
    "list": (TypeError, r"query: got list, expected a numpy.ndarray", ([1.0], K)),
    "none": (TypeError, r"keys: got NoneType, expected a numpy.ndarray", (Q, None)),
    "columns": (TypeError, r"keys: got an array that is not C-contiguous", (Q, K[:, ::1].T)),
    "strided": (
        TypeError,
        r"query: got an array that is not C-contig",
        (np.ones(8, "f4")[::2], K),
    ),
    "unaligned": (TypeError, r"keys: got an array that is not C-contiguous and al", (Q, ODD)),
}
BAD["keys f64"] = (BAD["keys f64"][0], BAD["keys f64"][1], (Q, K.astype(float)))
BAD["columns"] = (*BAD["columns"][:2], (Q, np.ones((4, 3), np.float32).T))


@BOTH
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(impl, case):
    error, message, args = BAD[case]
    with pytest.raises(error, match=message):
        impl.scores(*args)


def test_unknown_level_is_refused():
    with pytest.raises(ValueError, match="name: got mmx, expected one of"):
        _core.use_simd("mmx")


def test_gil_is_free_while_keys_are_scanned():
    # One thread per side: Python goes on inside the time window of a single call.
    query, keys = problem(60_000, 576, np.float32, 0)
    level = _core.simd()
    _core.use_simd("scalar")
    stamps, stop, started = [], threading.Event(), threading.Event()

    def tick():
        started.set()
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0002)

    thread = threading.Thread(target=tick)
    thread.start()
    started.wait()
    try:
        inside = 0
        for _ in range(20):
            begin = time.perf_counter()
            _core.scores(query, keys)
            end = time.perf_counter()
            inside = max(inside, sum(begin < stamp < end for stamp in stamps))
            if inside >= 3:
                break
    finally:
        stop.set()
        thread.join()
        _core.use_simd(level)
    assert inside >= 3
