"""The C++ core beside what could stand in for it: scanning keys, and mixing adapters.

    python tools/bench_core.py scan mix

`scan`: a query against 10^3 to 10^6 keys of 576 values in f32, f16 and int8: the core's `scores` (and
its whole `gate`: scan, top-k, softmax), NumPy, FAISS flat of the same type, and the time that merely
reading the keys takes at the machine's measured bandwidth. `mix`: `mix_all` against memcpy of the bytes
it writes. Medians with quartiles, variants in turn; results go into tools/results/core.json.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megart import _core, quant
from megart.openmp import spin_briefly

spin_briefly()
import faiss  # noqa: E402  after the setting above: it brings OpenMP

sys.path.insert(0, str(Path(__file__).parent))
from bench_ask import clock, in_turn, summary, write  # noqa: E402

WIDTH = 576
KINDS = ("f32", "f16", "int8")
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
REPEATS = 11
OPENED = 8


def reader() -> Callable[[np.ndarray, int], object]:
    """Reads all of an array with some threads; built here with the machine's own instructions."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        sys.exit("bench_core: no C++ compiler; install one or name it with CXX=...")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "read_bandwidth.so"
        source = Path(__file__).with_name("read_bandwidth.cpp")
        flags = ["-std=c++17", "-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(source), "-o", str(made)], check=True)
        read = ctypes.CDLL(str(made)).read_all
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_uint64
    return lambda array, threads: read(array.ctypes.data, array.nbytes // 8, threads)


def made_keys(count: int, kind: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Random unit rows as f32, f16, or int8 with a scale per row."""
    random = np.random.default_rng(count)
    keys = random.standard_normal((count, WIDTH), dtype=np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    if kind == "int8":
        scales = np.abs(keys).max(axis=1) / np.float32(127)
        return np.round(keys / scales[:, None]).astype(np.int8), scales
    return keys.astype(np.float16 if kind == "f16" else np.float32), None


def flat(keys: np.ndarray, scales: np.ndarray | None) -> object:
    """FAISS's exact index of the same bytes a value."""
    if keys.dtype == np.float32:
        index = faiss.IndexFlatIP(WIDTH)
    else:
        of = faiss.ScalarQuantizer.QT_fp16 if keys.dtype == np.float16 else faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexScalarQuantizer(WIDTH, of, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, len(keys), 50_000):
        part = keys[start : start + 50_000].astype(np.float32)
        if scales is not None:
            part *= scales[start : start + 50_000, None]
        if not index.is_trained:
            index.train(part)
        index.add(part)
    return index


def by_numpy(query: np.ndarray, keys: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
    """What a program without the core would write."""
    if scales is not None:
        return keys.astype(np.float32) @ query * scales
    return keys @ query if keys.dtype == np.float32 else keys.astype(np.float32) @ query


def scan(_: argparse.Namespace) -> dict:
    """Milliseconds of one query against all keys."""
    read, threads = reader(), len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(threads)
    rows = {f"{kind}, {count} keys": scan_one(read, threads, kind, count) for kind in KINDS for count in COUNTS}
    return {"threads": threads, "width": WIDTH, **rows}


def scan_one(read: Callable[[np.ndarray, int], object], threads: int, kind: str, count: int) -> dict:
    query = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    keys, scales = made_keys(count, kind)
    index = flat(keys, scales)
    more = {} if scales is None else {"scales": scales}
    calls = {
        "reading": lambda: read(keys, threads),
        "scores": lambda: _core.scores(query, keys, threads, **more),
        "gate": lambda: _core.gate(query, keys, OPENED, 1.0, threads, **more),
        "numpy": lambda: by_numpy(query, keys, scales),
        "faiss": lambda: index.search(query[None], OPENED),
    }
    rounds = max(1, 100_000 // count)  # short calls are timed together

    def timed(call: Callable[[], object]) -> float:
        return clock(lambda: [call() for _ in range(rounds)]) / rounds

    found = in_turn({name: lambda call=call: timed(call) for name, call in calls.items()}, REPEATS)
    middle = {name: float(np.median(values)) for name, values in found.items()}
    exact = by_numpy(query, keys, scales)
    apart = float(np.abs(_core.scores(query, keys, threads, **more) - exact).max() / np.abs(exact).max())
    print(f"{kind:>5} {count:>8} { ({k: round(v, 3) for k, v in middle.items()}) }", file=sys.stderr)
    return {
        "bytes": keys.nbytes,
        **{f"{name}_ms": summary(values) for name, values in found.items()},
        "read_gb_per_s": round(keys.nbytes / middle["reading"] / 1e6, 1),
        "scores_against_reading": round(middle["scores"] / middle["reading"], 2),
        "gate_against_reading": round(middle["gate"] / middle["reading"], 2),
        "faster_than_numpy": round(middle["numpy"] / middle["scores"], 1),
        "faster_than_faiss": round(middle["faiss"] / middle["gate"], 1),
        "largest_error": float(f"{apart:.1g}"),
    }


# Adapters of a model as SmolLM2-135M: (layers, tensors a layer as (in, out)).
UP, DOWN = (576, 1536), (1536, 576)
MIXES = {
    "1 x rank 4 as recipe fast writes it (q8_0 and f16)": ((4,), 15, (UP, DOWN), "q8_0", "f16"),
    "2 x rank 4 as recipe fast writes it (q8_0 and f16)": ((4, 4), 15, (UP, DOWN), "q8_0", "f16"),
    "4 x rank 16, f16": ((16,) * 4, 30, (UP, UP, DOWN), "f16", "f16"),
    "4 x rank 16, f32": ((16,) * 4, 30, (UP, UP, DOWN), "f32", "f32"),
    "4 x rank 16, q8_0": ((16,) * 4, 30, (UP, UP, DOWN), "q8_0", "f16"),
    "1 x rank 128, f16": ((128,), 30, (UP, DOWN), "f16", "f16"),
}


def mixing(_: argparse.Namespace) -> dict:
    """Milliseconds of `mix_all` into f16 outputs of 64 ranks and more, against memcpy."""
    return {name: mix_one(*what) for name, what in MIXES.items()}


def mix_one(ranks: Sequence[int], layers: int, targets: Sequence[tuple[int, int]], a_kind: str, b_kind: str) -> dict:
    cores, slot = len(os.sched_getaffinity(0)), -(-sum(ranks) // 64) * 64
    random = np.random.default_rng(0)

    def drawn(rows: int, columns: int, kind: str) -> np.ndarray:
        return quant.quantize(random.standard_normal((rows, columns), dtype=np.float32), kind)

    shapes = [shape for _ in range(layers) for shape in targets]
    a = [[drawn(rank, n_in, a_kind) for rank in ranks] for n_in, _ in shapes]
    b = [[drawn(n_out, rank, b_kind) for rank in ranks] for _, n_out in shapes]
    out_a = [np.zeros((slot, n_in), np.float16) for n_in, _ in shapes]
    out_b = [np.zeros((n_out, slot), np.float16) for _, n_out in shapes]
    outs = [*out_a, *out_b]
    sources = [np.ones_like(out) for out in outs]
    gates = np.full(len(ranks), 1 / len(ranks), np.float32)

    def mixed(threads: int) -> float:
        return clock(lambda: _core.mix_all(a, b, gates, out_a, out_b, threads))

    found = in_turn(
        {
            "memcpy_ms": lambda: clock(lambda: [np.copyto(out, source) for source, out in zip(sources, outs)]),
            "mix_one_thread_ms": lambda: mixed(1),
            "mix_ms": lambda: mixed(cores),
        },
        31,
    )
    middle = {key: float(np.median(values)) for key, values in found.items()}
    return {
        "bytes": sum(out.nbytes for out in outs),
        **{key: summary(values) for key, values in found.items()},
        "one_thread_against_memcpy": round(middle["mix_one_thread_ms"] / middle["memcpy_ms"], 2),
        "against_memcpy": round(middle["mix_ms"] / middle["memcpy_ms"], 2),
    }


SECTIONS = {"scan": scan, "mix": mixing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "core.json")
    args = parser.parse_args()
    for name in args.sections:
        write(args.out, {name: {"command": f"python tools/bench_core.py {name}", **SECTIONS[name](args)}})


if __name__ == "__main__":
    main()
