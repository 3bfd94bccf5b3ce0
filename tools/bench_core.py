"""The C++ core beside what could stand in for it: scanning keys, and mixing adapters.

    python tools/bench_core.py scan mix find

`scan`: a query against 10^3 to 10^6 keys of 576 values in f32 and f16: the core's `scores` (and
the scan with the best of them), NumPy, FAISS flat of the same type, and the time that merely
reading the keys takes at the machine's measured bandwidth. `mix`: `mix_all` against memcpy of the bytes
it writes. `find`: the whole gate (words, keys, late interaction) over 10^4 to 10^6 made memories. Medians with
quartiles, variants in turn; results go into tools/results/core.json.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megart import _core, gate, quant
from megart.gate import evidence
from megart.openmp import spin_briefly

spin_briefly()
import faiss

sys.path.insert(0, str(Path(__file__).parent))
from bench_ask import clock, in_turn, summary, write

WIDTH = 576
KINDS = ("f32", "f16")
COUNTS = (1_000, 10_000, 100_000, 1_000_000)
REPEATS = 11
OPENED = 8


def reader() -> Callable[[np.ndarray, int], object]:
    """Reads all of an array with some threads; built here with the machine's own instructions."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        sys.exit("bench_core: no C++ compiler; install one or name it with CXX=...")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read_bandwidth.so"
        source = Path(__file__).with_name("read_bandwidth.cpp")
        flags = ["-std=c++17", "-O3", "-march=native", "-pthread", "-shared", "-fPIC"]
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
        read = ctypes.CDLL(str(library)).read_all
    read.argtypes, read.restype = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], ctypes.c_uint64
    return lambda array, threads: read(array.ctypes.data, array.nbytes // 8, threads)


def made_keys(count: int, kind: str) -> np.ndarray:
    """Random unit rows as f32 or f16."""
    random = np.random.default_rng(count)
    keys = random.standard_normal((count, WIDTH), dtype=np.float32)
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    return keys.astype(np.float16 if kind == "f16" else np.float32)


def flat(keys: np.ndarray) -> object:
    """FAISS's exact index of the same bytes a value."""
    if keys.dtype == np.float32:
        index = faiss.IndexFlatIP(WIDTH)
    else:
        index = faiss.IndexScalarQuantizer(WIDTH, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, len(keys), 50_000):
        part = keys[start : start + 50_000].astype(np.float32)
        if not index.is_trained:
            index.train(part)
        index.add(part)
    return index


def by_numpy(query: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """What a program without the core would write."""
    return keys @ query if keys.dtype == np.float32 else keys.astype(np.float32) @ query


def scan(_: argparse.Namespace) -> dict:
    """Milliseconds of one query against all keys."""
    read, threads = reader(), len(os.sched_getaffinity(0))
    faiss.omp_set_num_threads(threads)
    rows = {f"{kind}, {count} keys": scan_one(read, threads, kind, count) for kind in KINDS for count in COUNTS}
    return {"threads": threads, "width": WIDTH, **rows}


def scan_one(read: Callable[[np.ndarray, int], object], threads: int, kind: str, count: int) -> dict:
    query = np.random.default_rng(0).standard_normal(WIDTH).astype(np.float32)
    keys = made_keys(count, kind)
    index = flat(keys)
    calls = {
        "reading": lambda: read(keys, threads),
        "scores": lambda: _core.scores(query, keys, threads),
        "gate": lambda: evidence._top(_core.scores(query, keys, threads), OPENED),
        "numpy": lambda: by_numpy(query, keys),
        "faiss": lambda: index.search(query[None], OPENED),
    }
    rounds = max(1, 100_000 // count)  # short calls are timed together

    def timed(call: Callable[[], object]) -> float:
        return clock(lambda: [call() for _ in range(rounds)]) / rounds

    times = in_turn({name: lambda call=call: timed(call) for name, call in calls.items()}, REPEATS)
    middle = {name: float(np.median(values)) for name, values in times.items()}
    exact = by_numpy(query, keys)
    apart = float(np.abs(_core.scores(query, keys, threads) - exact).max() / np.abs(exact).max())
    print(f"{kind:>5} {count:>8} { ({k: round(v, 3) for k, v in middle.items()}) }", file=sys.stderr)
    return {
        "bytes": keys.nbytes,
        **{f"{name}_ms": summary(values) for name, values in times.items()},
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

    times = in_turn(
        {
            "memcpy_ms": lambda: clock(lambda: [np.copyto(out, source) for source, out in zip(sources, outs)]),
            "mix_one_thread_ms": lambda: mixed(1),
            "mix_ms": lambda: mixed(cores),
        },
        31,
    )
    middle = {key: float(np.median(values)) for key, values in times.items()}
    return {
        "bytes": sum(out.nbytes for out in outs),
        **{key: summary(values) for key, values in times.items()},
        "one_thread_against_memcpy": round(middle["mix_one_thread_ms"] / middle["memcpy_ms"], 2),
        "against_memcpy": round(middle["mix_ms"] / middle["memcpy_ms"], 2),
    }


# Made memories: words drawn by Zipf's law, in sentences; a question has words of one of them and common ones.
VOCABULARY, WORDS, SENTENCE, TOKENS_EACH = 200_000, 60, 15, 40


def finding(_: argparse.Namespace) -> dict:
    """Milliseconds of one question against all memories, from its states to its candidates; how long the index takes."""
    return {f"{count} memories": find_one(count) for count in COUNTS[1:]}


def find_one(count: int) -> dict:
    random, threads = np.random.default_rng(count), len(os.sched_getaffinity(0))
    hashes = np.array([gate.sequence(f"w{i}")[0] for i in range(VOCABULARY)], np.uint32)
    ranks = np.minimum(random.zipf(1.1, (count, WORDS)) - 1, VOCABULARY - 1)
    texts = np.zeros((count, WORDS + WORDS // SENTENCE), np.uint32)
    for sentence in range(WORDS // SENTENCE):  # 0 ends each
        first = sentence * (SENTENCE + 1)
        texts[:, first : first + SENTENCE] = hashes[ranks[:, sentence * SENTENCE : (sentence + 1) * SENTENCE]]
    keys = made_keys(count, "f16")
    tokens = random.integers(-127, 128, (TOKENS_EACH, 64), np.int8)
    started = time.perf_counter()
    index = gate.Index(list(texts), keys, lambda rows: [tokens] * len(rows))
    built = time.perf_counter() - started

    def asked(memory: int) -> tuple:
        words = [f"w{rank}" for rank in ranks[memory, :8]]
        question = gate.read_question(" ".join(words), lambda word: min(0.9, 2 / (1 + int(word[1:]))))
        owner = np.arange(len(question.terms), dtype=np.int32)
        query = keys[memory].astype(np.float32)
        return question, query, tokens[: len(owner)], owner

    questions = [asked(int(memory)) for memory in random.integers(0, count, 31)]
    spent = [clock(lambda parts=parts: index.find(*parts, threads=threads)) for parts in questions]
    scanned = [clock(lambda query=query: _core.scores(query, index.keys, threads)) for _, query, *_ in questions]
    resident = index.keys.nbytes + sum(text.nbytes for text in texts)
    print(f"{count:>8} built {built:.1f} s, found in {np.median(spent):.2f} ms", file=sys.stderr)
    return {
        "find_ms": summary(spent),
        "of_which_keys_ms": summary(scanned),
        "build_s": round(built, 2),
        "bytes_of_keys_and_words": int(resident),
    }


SECTIONS = {"scan": scan, "mix": mixing, "find": finding}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "core.json")
    args = parser.parse_args()
    for name in args.sections:
        write(args.out, {name: {"command": f"python tools/bench_core.py {name}", **SECTIONS[name](args)}})


if __name__ == "__main__":
    main()
