"""The mix of the extension against the NumPy specification, bit for bit."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from megart import _core, quant

BOTH = pytest.mark.parametrize("impl", [_core, reference], ids=["core", "reference"])
KINDS = st.sampled_from(["f32", "f16", "q8_0", "q4_0"])  # of factors; blocks where rows are whole ones
SLOTS = st.sampled_from(["f32", "f16", "q8_0"])
RANKS = st.one_of(st.sampled_from([4, 8, 16, 32, 64, 128]), st.integers(0, 40))


def factor(values, kind):
    with np.errstate(over="ignore"):
        if 0 in values.shape:
            return values.astype(np.float16 if kind == "f16" else np.float32)
        return quant.quantize(values.astype(np.float32), kind)


@st.composite
def tasks(draw):
    """(a, b, gates, rank of the slot, types of the outputs) for one to three matrices."""
    ranks = draw(st.lists(RANKS, max_size=4))
    gates = draw(st.lists(st.sampled_from([1.0, 0.5, 0.3, -2.7, 0.0, 1e-6, 3e4]), min_size=len(ranks)))
    gates = np.array(gates[: len(ranks)], np.float32)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([1.0, 1e-6, 1e4]))
    matrices = []
    for _ in range(draw(st.integers(1, 3))):
        width = draw(st.one_of(st.integers(0, 70), st.sampled_from([32, 64, 96])))
        height = draw(st.integers(0, 70))
        types = [(draw(KINDS), draw(KINDS)) for _ in ranks]
        a = [factor(rng.standard_normal((r, width)), t) for r, (t, _) in zip(ranks, types)]
        b = [factor(rng.standard_normal((height, r)) * spread, t) for r, (_, t) in zip(ranks, types)]
        matrices.append((a, b, width, height, draw(SLOTS), draw(SLOTS)))
    rank = sum(ranks) + draw(st.integers(0, 20))
    return matrices, gates, -(-rank // 32) * 32 if draw(st.booleans()) else rank


def outputs(matrices, rank):
    """Slots full of rubbish: what is not written shows."""
    out_a = [rubbish(rank, w, t) for _, _, w, _, t, _ in matrices]
    out_b = [rubbish(h, rank, t) for _, _, _, h, _, t in matrices]
    return out_a, out_b


def rubbish(rows, columns, kind):
    if kind == "q8_0" and columns % 32 == 0:
        return np.full((rows, columns // 32), np.array((np.nan, 77), quant.Q8_0))
    return np.full((rows, columns), np.nan, np.float32 if kind == "f32" else np.float16)


def mix(impl, a, b, gates, out_a, out_b):
    impl.mix_all([a], [b], gates, [out_a], [out_b])


def assert_same_bits(got, expected):
    for x, y in zip(got, expected):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x.reshape(-1).view(np.uint8), y.reshape(-1).view(np.uint8))


@pytest.mark.parametrize("name", _core.simd_levels())
@settings(max_examples=120, deadline=None)
@given(task=tasks(), threads=st.integers(1, 3))
def test_mix_all_matches_the_reference(name, task, threads):
    matrices, gates, rank = task
    a, b = [m[0] for m in matrices], [m[1] for m in matrices]
    got_a, got_b = outputs(matrices, rank)
    expected_a, expected_b = outputs(matrices, rank)
    best = _core.simd()
    _core.use_simd(name)
    try:
        assert _core.mix_all(a, b, gates, got_a, got_b, threads=threads) is None
    finally:
        _core.use_simd(best)
    reference.mix_all(a, b, gates, expected_a, expected_b)
    assert_same_bits(got_a, expected_a)
    assert_same_bits(got_b, expected_b)


@BOTH
def test_mix_is_the_gated_sum(impl):
    rng = np.random.default_rng(0)
    a = [rng.standard_normal((r, 33)).astype(np.float32) for r in (16, 4, 7)]
    b = [rng.standard_normal((21, r)).astype(np.float32) for r in (16, 4, 7)]
    gates = np.array([0.7, 1.0, -0.2], np.float32)
    out_a, out_b = np.empty((64, 33), np.float32), np.empty((21, 64), np.float32)
    mix(impl, a, b, gates, out_a, out_b)
    expected = sum(g * (y @ x) for g, x, y in zip(gates, a, b))
    np.testing.assert_allclose(out_b @ out_a, expected, rtol=1e-4, atol=1e-4)
    assert not out_a[27:].any() and not out_b[:, 27:].any()


@BOTH
def test_blocks_are_llama_cpps_own(impl):
    """As quant.py (the gguf package) makes them, where no value lies half way; blocks of A stay as they were."""
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((5, 96)).astype(np.float32), rng.standard_normal((70, 5)).astype(np.float16)
    stored = quant.quantize(rng.standard_normal((2, 96)), "q8_0")
    stored["qs"] //= 2  # none is 127: made anew they would be others
    none = np.zeros((70, 2), np.float16)
    out_a, out_b = rubbish(32, 96, "q8_0"), rubbish(70, 32, "q8_0")
    mix(impl, [a, stored], [b, none], np.array([0.3, 1], np.float32), out_a, out_b)
    wide = np.zeros((70, 32), np.float32)
    wide[:, :5] = b.astype(np.float32) * np.float32(0.3)
    rest = np.zeros((25, 3), quant.Q8_0)
    assert_same_bits(
        [out_a, out_b], [np.concatenate([quant.quantize(a, "q8_0"), stored, rest]), quant.quantize(wide, "q8_0")]
    )


@BOTH
@pytest.mark.parametrize("gates", [(1.0, 1.0), (1.0, 0.5)])
def test_blocks_of_b_stay_as_they_are_where_nothing_is_to_be_done_to_them(impl, gates):
    rng = np.random.default_rng(4)
    a = [np.zeros((r, 1), np.float32) for r in (32, 64)]
    b = [quant.quantize(rng.standard_normal((70, r)), "q8_0") for r in (32, 64)]
    for blocks in b:
        blocks["qs"] //= 2  # none is 127: made anew they would be others
    out = rubbish(70, 128, "q8_0")
    mix(impl, a, b, np.array(gates, np.float32), np.empty((128, 1), np.float32), out)
    kept = [(out[:, :1] == b[0]).all(), (out[:, 1:3] == b[1]).all()]
    assert kept == [gates == (1.0, 1.0)] * 2
    sides = [g * quant.dequantize(blocks) for g, blocks in zip(gates, b)]
    np.testing.assert_allclose(quant.dequantize(out)[:, :96], np.concatenate(sides, axis=1), atol=0.02)
    assert not quant.dequantize(out)[:, 96:].any()


@BOTH
def test_half_way_goes_to_even_and_nothing_is_left_of_what_f16_cannot_scale(impl):
    values = np.zeros((2, 32), np.float32)
    values[0, :6] = [127, 0.5, 1.5, 2.5, -0.5, -1.5]
    values[1] = 127 * 2.0**-26
    out = rubbish(2, 32, "q8_0")
    mix(impl, [values], [np.zeros((1, 2), np.float32)], np.ones(1, np.float32), out, np.empty((1, 2), np.float32))
    assert out["d"].tolist() == [[1], [0]] and not out["qs"][1].any()
    assert out["qs"][0, 0, :6].tolist() == [127, 0, 2, 2, 0, -2]


@BOTH
def test_no_adapters_make_an_empty_slot(impl):
    out_a, out_b = np.ones((8, 5), np.float16), np.ones((6, 8), np.float16)
    mix(impl, [], [], np.empty(0, np.float32), out_a, out_b)
    assert not out_a.any() and not out_b.any()


def test_every_f16_value_rounds_as_numpy_does():
    values = np.arange(65536, dtype=np.uint16).view(np.float16)
    values = values[~np.isnan(values)][None, :].copy()
    width = values.shape[1]
    for gate in (1.0, 0.5, 1 / 3, 1e-4, 1000.0):
        gates = np.array([gate], np.float32)
        expected = np.empty((1, width), np.float16)
        a = [np.zeros((width, 1), np.float16)]
        mix(reference, a, [values], gates, np.empty((width, 1), np.float16), expected)
        for name in _core.simd_levels():
            best = _core.simd()
            _core.use_simd(name)
            out = np.empty((1, width), np.float16)
            mix(_core, a, [values], gates, np.empty((width, 1), np.float16), out)
            _core.use_simd(best)
            assert_same_bits([out], [expected])


def test_f32_to_f16_rounds_to_nearest_even():
    rng = np.random.default_rng(1)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = (halves[:-1].astype(np.float64) + halves[1:]) / 2
    values = np.concatenate([bits.view(np.float32), middles.astype(np.float32), -halves])
    values = values[~np.isnan(values)][None, :].copy()
    width = values.shape[1]
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    for name in _core.simd_levels():
        best = _core.simd()
        _core.use_simd(name)
        out = np.empty((1, width), np.float16)
        a, out_a = [np.zeros((width, 1), np.float32)], np.empty((width, 1), np.float32)
        mix(_core, a, [values], np.ones(1, np.float32), out_a, out)
        _core.use_simd(best)
        assert_same_bits([out], [expected])


def test_a_mix_large_enough_for_several_threads_is_the_same():
    rng = np.random.default_rng(2)
    a = [[rng.standard_normal((16, 1024)).astype(np.float16) for _ in range(2)] for _ in range(40)]
    b = [[rng.standard_normal((4096, 16)).astype(np.float16) for _ in range(2)] for _ in range(40)]
    gates, found = np.array([0.7, 0.3], np.float32), []
    for threads in (1, 2, 5):
        out_a = [np.full((64, 1024), np.nan, np.float16) for _ in range(40)]
        out_b = [np.full((4096, 64), np.nan, np.float16) for _ in range(40)]
        _core.mix_all(a, b, gates, out_a, out_b, threads)
        found.append(out_a + out_b)
    assert sum(out.nbytes for out in found[0]) > 2 * (8 << 20)
    for other in found[1:]:
        assert_same_bits(found[0], other)


def good():
    return {
        "a": [np.ones((4, 6), np.float16), np.ones((2, 6), np.float32)],
        "b": [np.ones((5, 4), np.float16), np.ones((5, 2), np.float32)],
        "gates": np.array([1, 0.5], np.float32),
        "out_a": np.ones((8, 6), np.float16),
        "out_b": np.ones((5, 8), np.float16),
    }


def frozen(shape):
    array = np.ones(shape, np.float16)
    array.flags.writeable = False
    return array


F2 = np.float16
BAD = {
    "gates count": (
        ValueError,
        r"a\[0\] and b\[0\]: got 2 and 2 adapters, expected 3",
        {"gates": np.ones(3, "f4")},
    ),
    "gates nan": (
        ValueError,
        r"gates: got .* not finite at 1",
        {"gates": np.array([1, np.nan], "f4")},
    ),
    "gates f64": (TypeError, r"gates: got float64, expected float32;", {"gates": np.ones(2)}),
    "gates list": (TypeError, r"gates: got list, expected", {"gates": [1.0, 0.5]}),
    "a tuple of none": (TypeError, r"a\[0\]\[0\]: got NoneType", {"a": (None, None)}),
    "a array": (
        TypeError,
        r"a\[0\]: got ndarray, expected a list of arrays",
        {"a": np.ones((2, 4, 6), F2)},
    ),
    "a dims": (
        ValueError,
        r"a\[0\]\[1\]: got 1 dimensions",
        {"a": [np.ones((4, 6), F2), np.ones(6, F2)]},
    ),
    "a width": (
        ValueError,
        r"a\[0\]\[1\]: got \[2, 7\], expected \[rank, 6\]",
        {"a": [np.ones((4, 6), F2), np.ones((2, 7), F2)]},
    ),
    "b height": (
        ValueError,
        r"b\[0\]\[0\]: got \[3, 4\], expected \[5, rank\]",
        {"b": [np.ones((3, 4), F2), np.ones((5, 2), F2)]},
    ),
    "ranks": (
        ValueError,
        r"a\[0\]\[0\] and b\[0\]\[0\]: got ranks 4 and 3",
        {"b": [np.ones((5, 3), F2), np.ones((5, 2), F2)]},
    ),
    "too many": (
        ValueError,
        r"a\[0\]: got total rank 6, expected at most 5; open fewer",
        {"out_a": np.ones((5, 6), F2), "out_b": np.ones((5, 5), F2)},
    ),
    "slot": (
        ValueError,
        r"out_a\[0\] and out_b\[0\]: got \[7, 6\] and \[5, 8\], expected",
        {"out_a": np.ones((7, 6), F2)},
    ),
    "out read-only": (TypeError, r"out_b\[0\]: got a read-only array", {"out_b": frozen((5, 8))}),
    "out f64": (TypeError, r"out_a\[0\]: got float64", {"out_a": np.ones((8, 6))}),
    "out columns": (TypeError, r"out_b\[0\]: got .* not C-contiguous", {"out_b": np.ones((8, 5), F2).T}),
    "b fields": (
        TypeError,
        r"b\[0\]\[0\]: got .*, expected float32 or float16, or blocks of q8_0 or q4_0",
        {"b": [np.zeros((5, 4), [("x", "f2"), ("y", "i1", (32,))])] * 2},
    ),
    "out blocks": (
        TypeError,
        r"out_b\[0\]: got .*, expected float32 or float16, or blocks of q8_0;",
        {"out_b": np.zeros((5, 8), quant.Q4_0)},
    ),
    "out rank in blocks": (
        ValueError,
        r"out_a\[0\] and out_b\[0\]: got \[8, 6\] and \[5, 32\], expected",
        {"out_b": np.zeros((5, 1), quant.Q8_0)},
    ),
    "b bfloat": (TypeError, r"b\[0\]\[0\]: got uint16", {"b": [np.ones((5, 4), np.uint16)] * 2}),
}


@BOTH
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_and_nothing_is_written(impl, case):
    error, message, changes = BAD[case]
    args = {**good(), **changes}
    before = [args[n].copy() for n in ("out_a", "out_b")]
    with pytest.raises(error, match=message):
        mix(impl, **args)
    np.testing.assert_array_equal(args["out_a"], before[0])
    np.testing.assert_array_equal(args["out_b"], before[1])


def many(count=3):
    one = [good() for _ in range(count)]
    args = {name: [o[name] for o in one] for name in ("a", "b", "out_a", "out_b")}
    return {**args, "gates": one[0]["gates"]}


@BOTH
def test_mix_all_names_the_matrix_and_writes_nothing(impl):
    args = many()
    args["a"][2][1] = np.ones((2, 9), F2)
    with pytest.raises(ValueError, match=r"a\[2\]\[1\]: got \[2, 9\], expected \[rank, 6\]"):
        impl.mix_all(**args)
    args["a"][2][1] = np.ones((2, 6))
    with pytest.raises(TypeError, match=r"a\[2\]\[1\]: got float64"):
        impl.mix_all(**args)
    assert all((out == 1).all() for out in args["out_a"] + args["out_b"])


@BOTH
def test_mix_all_refuses_uneven_lists(impl):
    args = many()
    args["b"].pop()
    with pytest.raises(ValueError, match="got 3, 2, 3 and 3 items, expected the same number"):
        impl.mix_all(**args)
    with pytest.raises(TypeError, match="out_a: got ndarray, expected a list; "):
        impl.mix_all(**{**many(), "out_a": np.ones((3, 8, 6), F2)})
    with pytest.raises(ValueError, match="threads: got 0"):
        impl.mix_all(**many(), threads=0)


@BOTH
def test_shared_memory_is_refused(impl):
    args = many()
    args["out_a"][1] = args["out_a"][0]
    with pytest.raises(ValueError, match="outputs that share memory"):
        impl.mix_all(**args)
    args = many()
    args["a"][2][0] = args["out_a"][0][2:6]
    with pytest.raises(ValueError, match="a factor that shares memory with an output"):
        impl.mix_all(**args)
    args = many()
    buffer = np.ones(8 * 6 + 5 * 8, F2)
    args["out_a"][0], args["out_b"][0] = buffer[:48].reshape(8, 6), buffer[48:].reshape(5, 8)
    impl.mix_all(**args)


def test_gil_is_free_while_matrices_are_mixed():
    rng = np.random.default_rng(0)
    count, rank = 60, 50
    a = [[rng.standard_normal((rank, 600)).astype(F2)] for _ in range(count)]
    b = [[rng.standard_normal((1500, rank)).astype(F2)] for _ in range(count)]
    out_a = [np.empty((64, 600), F2) for _ in range(count)]
    out_b = [np.empty((1500, 64), F2) for _ in range(count)]
    gates = np.full(1, 0.3, np.float32)
    level = _core.simd()
    _core.use_simd("scalar")
    stamps, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0002)

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        inside = 0
        for _ in range(20):
            begin = time.perf_counter()
            _core.mix_all(a, b, gates, out_a, out_b)
            end = time.perf_counter()
            inside = max(inside, sum(begin < stamp < end for stamp in stamps))
            if inside >= 3:
                break
    finally:
        stop.set()
        thread.join()
        _core.use_simd(level)
    assert inside >= 3


def test_caller_may_empty_its_lists_meanwhile():
    args = many(40)
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            for row in args["a"]:
                row[0] = np.ones((4, 6), F2)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(200):
            _core.mix_all(**args, threads=2)
    finally:
        stop.set()
        thread.join()
    assert (args["out_a"][0][:6] == 1).all()
