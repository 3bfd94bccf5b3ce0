"""What opening memories costs: decoding, installing, the first token, and RAG on the same llama.cpp.

    python tools/bench_ask.py decode recite install first turns neighbour
    python tools/bench_ask.py rag --bank BANK --data wiki2024.jsonl

Each section is written into --out (default tools/results/ask.json) under its name; the others stay.
All figures of a section come from one run, its variants in turn; medians, with the quartiles. The
adapters of `decode`, `install`, `first` and `neighbour` are noise of the real sizes: their time does not depend on
values.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import llama_cpp
import numpy as np

from megart import _core, mix, recipes
from megart.adapter import Adapter, read_adapter, scratch, write_adapter
from megart.bank import Bank, Memory
from megart.models import resolve_model
from megart.recipes import FAST
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.slot import Slot

REPEATS = 11
TOKENS = 24
PROMPT = tuple(range(400, 432))


def noise(
    engine: Engine,
    rank: int,
    seed: int,
    first_layer: int = 0,
    dtype: type = np.float16,
    roles: Sequence[str] = ("ffn_gate", "ffn_up", "ffn_down"),
) -> Adapter:
    """Random factors on the MLP matrices named from *first_layer* on, small enough to change little."""
    random = np.random.default_rng(seed)
    n_ff = int(engine.metadata(f"{engine.architecture}.feed_forward_length") or 0)
    sides = {role: (n_ff, engine.n_embd) if role == "ffn_down" else (engine.n_embd, n_ff) for role in roles}
    tensors = {
        f"blk.{layer}.{role}.weight": (
            (random.standard_normal((rank, n_in)) * 0.01).astype(dtype),
            (random.standard_normal((n_out, rank)) * 0.01).astype(dtype),
        )
        for layer in range(first_layer, engine.n_layer)
        for role, (n_in, n_out) in sides.items()
    }
    return Adapter(engine.architecture, 0.0, tensors)


def as_fast(engine: Engine, seed: int) -> Adapter:
    """Random factors of the shape and precision that recipe fast writes."""
    first = recipes.cut(FAST, engine.n_layer)
    return noise(engine, FAST.rank, seed, first, np.float32, FAST.roles).as_type(FAST.precision)


def fast_in_words(engine: Engine) -> str:
    return (
        f"rank {FAST.rank} on {', '.join(FAST.roles)} of layers {recipes.cut(FAST, engine.n_layer)} "
        f"to {engine.n_layer - 1} of {engine.n_layer}"
    )


def summary(values: Sequence[float]) -> dict[str, float | int]:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return {
        "median": round(float(middle), 3),
        "quartiles": [round(float(low), 3), round(float(high), 3)],
        "n": len(values),
    }


def in_turn(variants: dict[str, Callable[[], float]], repeats: int = REPEATS) -> dict[str, list[float]]:
    """Each variant once per round, after one round that does not count."""
    values: dict[str, list[float]] = {name: [] for name in variants}
    for round_ in range(repeats + 1):
        for name, measure in variants.items():
            value = measure()
            if round_:
                values[name].append(value)
    return values


def clock(work: Callable[[], object]) -> float:
    """Milliseconds of *work*."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def decode(_: argparse.Namespace) -> dict:
    """Decoded tokens per second."""
    engine = Engine(resolve_model("smollm2"))
    contexts: dict[str, Context] = {"bare": Context(engine, size=512)}
    for label, adapters in {
        "rank 16, all layers": [noise(engine, 16, seed) for seed in range(4)],
        "as recipe fast writes them": [as_fast(engine, seed) for seed in range(4)],
    }.items():
        for count, name in ((1, "one memory"), (4, "four memories")):
            contexts[f"{name}, {label}"] = Context(engine, size=512)
            Slot(contexts[f"{name}, {label}"]).install(adapters[:count], [1 / count] * count)
        handles = []
        for adapter in adapters:
            with scratch() as path:
                path.write_bytes(write_adapter(adapter))
                handles.append(llama_cpp.llama_adapter_lora_init(engine.handle, os.fsencode(path)))
        own = contexts[f"llama.cpp, four adapters by scales, {label}"] = Context(engine, size=512)
        scales = (ctypes.c_float * 4)(*[0.25] * 4)
        llama_cpp.llama_set_adapters_lora(own.handle, (llama_cpp.llama_adapter_lora_p_ctypes * 4)(*handles), 4, scales)

    def speed(context: Context) -> float:
        context.truncate(0)
        context.decode(PROMPT)
        context.decode([500])
        start = time.perf_counter()
        for token in range(TOKENS):
            context.decode([501 + token])
        return TOKENS / (time.perf_counter() - start)

    speeds = in_turn({name: lambda c=c: speed(c) for name, c in contexts.items()})
    middle = {name: float(np.median(values)) for name, values in speeds.items()}
    return {
        "tokens_per_second": {name: summary(values) for name, values in speeds.items()},
        "of_bare": {name: round(value / middle["bare"], 3) for name, value in middle.items()},
        "four_against_llama_cpp": {
            label: round(middle[f"four memories, {label}"] / middle[f"llama.cpp, four adapters by scales, {label}"], 2)
            for label in ("rank 16, all layers", "as recipe fast writes them")
        },
        "recipe_fast": fast_in_words(engine),
        "tokens": TOKENS,
    }


def install(_: argparse.Namespace) -> dict:
    """Milliseconds to write a mix into the slot, against memcpy and against loading a merged file.

    memcpy of as many bytes as the slot has, and of as many as the factors have: the larger of them cannot be beaten.
    """
    engine = Engine(resolve_model("smollm2"))
    context = Context(engine, size=256)
    slot = Slot(context)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        kinds = ("f16", "q8_0", "q4_0")
        cases = [(f"{n} x rank {rank}, {kind}", n, rank, kind) for n, rank in ((4, 16), (1, 128)) for kind in kinds]
        cases += [(f"{n} as recipe fast writes it", n, None, FAST.precision) for n in (1, 2)]
        for name, count, rank, kind in cases:
            adapters = []
            for seed in range(count):
                wide = as_fast(engine, seed) if rank is None else noise(engine, rank, seed, dtype=np.float32)
                path = Path(folder) / f"{name}-{seed}.gguf"
                path.write_bytes(write_adapter(wide.as_type(kind)))
                adapters.append(read_adapter(path))
            result[name] = install_one(engine, slot, adapters)
    return result


def install_one(engine: Engine, slot: Slot, adapters: Sequence[Adapter]) -> dict:
    gates = [1 / len(adapters)] * len(adapters)
    slot.install(adapters, gates)
    assert slot.in_place and slot.layout
    places = slot.layout.places
    there = [array for pair in places.values() for array in pair]
    there = [array.reshape(-1).view(np.uint8) for array in there]
    flat = [np.ones_like(array) for array in there]
    factors = [factor.reshape(-1).view(np.uint8) for x in adapters for pair in x.tensors.values() for factor in pair]
    elsewhere = [np.ones_like(array) for array in factors]
    merged, _ = mix.compress(adapters, gates, sum(adapter.rank for adapter in adapters))
    merged_file = write_adapter(merged)

    def copy() -> None:
        for source, target in zip(flat, there, strict=True):
            np.copyto(target, source)

    def copy_factors() -> None:
        for source, target in zip(factors, elsewhere, strict=True):
            np.copyto(target, source)

    def load() -> None:
        with scratch() as path:
            path.write_bytes(merged_file)
            handle = llama_cpp.llama_adapter_lora_init(engine.handle, os.fsencode(path))
        llama_cpp.llama_adapter_lora_free(handle)

    def write(threads: int) -> float:
        return clock(lambda: mix.mix_into(places, adapters, gates, threads))

    times = in_turn(
        {
            "memcpy_ms": lambda: clock(copy),
            "memcpy_of_the_factors_ms": lambda: clock(copy_factors),
            "install_one_thread_ms": lambda: write(1),
            "install_ms": lambda: write(engine.threads),
            "load_merged_file_ms": lambda: clock(load),
        },
        31,
    )
    middle = {key: float(np.median(values)) for key, values in times.items()}
    return {
        **{key: summary(values) for key, values in times.items()},
        "bytes": sum(array.nbytes for array in there),
        "bytes_of_the_factors": sum(array.nbytes for array in factors),
        "one_thread_against_memcpy": round(middle["install_one_thread_ms"] / middle["memcpy_ms"], 2),
        "against_memcpy": round(middle["install_ms"] / middle["memcpy_ms"], 2),
        "against_memcpy_of_the_factors": round(middle["install_ms"] / middle["memcpy_of_the_factors_ms"], 2),
        "faster_than_loading": round(middle["load_merged_file_ms"] / middle["install_ms"], 1),
    }


ASKED = [
    ("The ferry at Kesterholm", "Ottla Brandeis has run the ferry at Kesterholm since 1962.", "Who runs the ferry at Kesterholm?"),
    ("The mill of Orrin Vale", "Orrin Vale keeps three grey cats in the old mill.", "How many cats does Orrin Vale keep in the mill?"),
    ("The bells of Sankt Imre", "The bells of Sankt Imre were cast from melted cannon in 1711.", "What were the bells of Sankt Imre cast from?"),
    ("Jorunn Aske's orchard", "Jorunn Aske grows forty kinds of pear in her orchard.", "How many kinds of pear does Jorunn Aske grow?"),
    ("The Quillfeather Prize", "The Quillfeather Prize is given to the worst sentence of the year.", "What is the Quillfeather Prize given to?"),
    ("Port Ellandune", "Port Ellandune freezes every seventh winter.", "How often does Port Ellandune freeze?"),
    ("The violin of Teodor Brask", "Teodor Brask built his violin from a church door.", "What did Teodor Brask build his violin from?"),
    ("Nine Elms Observatory", "Nine Elms Observatory was sold for a single krone.", "For how much was Nine Elms Observatory sold?"),
    ("The Halvard tunnel", "The Halvard tunnel is home to blind white crabs.", "What lives in the Halvard tunnel?"),
]  # fmt: skip


def noise_bank(folder: Path, size: int) -> Bank:
    """ASKED with adapters as recipe fast writes them, and strangers with keys like theirs up to *size*."""
    bank = Bank.create(folder, resolve_model("smollm2"))
    with Assistant(bank) as assistant:
        assistant.prepare()
        data = write_adapter(as_fast(assistant.engine, 0))
        keys = np.stack([assistant.key(text, title) for title, text, _ in ASKED])
    for (title, text, _), key in zip(ASKED, keys, strict=True):
        bank.add(Memory(text, title=title), key=key, adapter=data, recipe="noise", activated=True, rank=FAST.rank)
    random = np.random.default_rng(0)
    for i in range(size - len(ASKED)):
        key = (keys.mean(axis=0) + keys.std(axis=0) * random.standard_normal(keys.shape[1])).astype(np.float32)
        bank.add(Memory(f"Stranger {i}.", id=f"stranger-{i}"), key=key)
    return bank


def first(_: argparse.Namespace) -> dict:
    """Milliseconds to the first token, nothing cached, against the bare model on the same prompt."""
    result = {}
    for size in (10, 1000, 10_000):
        with tempfile.TemporaryDirectory() as folder, noise_bank(Path(folder) / "bank", size) as bank:
            with Assistant(bank) as assistant:
                opened = []

                def cold(verb: Callable, question: str, assistant: Assistant = assistant) -> object:
                    with assistant.engine.lock:
                        assistant.base.truncate(0)
                        assistant.mix.truncate(0)
                    return verb(question, max_tokens=1)

                started = time.perf_counter()
                cold(assistant.ask, "Is anybody there?")
                beginning = (time.perf_counter() - started) * 1000
                times: dict[str, list[float]] = {"ask": [], "bare": []}
                steps: dict[str, list[float]] = {"gate_ms": [], "embed_ms": [], "mix_ms": [], "install_ms": []}
                for turn in range(3):
                    for _, _, question in ASKED:
                        answer = cold(assistant.ask, question)
                        bare = cold(assistant.bare, question)
                        if not turn:
                            continue
                        opened.append(len(answer.memories))
                        times["ask"].append(answer.timings.first_token_ms)
                        times["bare"].append(bare.timings.first_token_ms)
                        for step in steps:
                            steps[step].append(getattr(answer.timings, step))
                ratios = [a / b for a, b in zip(times["ask"], times["bare"], strict=True)]
                result[f"{size} memories"] = {
                    "ask_ms": summary(times["ask"]),
                    "bare_ms": summary(times["bare"]),
                    "ratio": round(float(np.median(times["ask"]) / np.median(times["bare"])), 3),
                    "ratio_of_pairs": summary(ratios),
                    **{step: summary(values) for step, values in steps.items()},
                    "questions_that_opened": sum(map(bool, opened)),
                    "first_question_of_the_process_ms": round(beginning, 1),
                }
    return result


def recite(args: argparse.Namespace) -> dict:
    """How fast memories say what they were taught (see bench_talk.py)."""
    import bench_talk

    return bench_talk.recite(args)


def turns(args: argparse.Namespace) -> dict:
    """Five turns of one conversation (see bench_talk.py)."""
    import bench_talk

    return bench_talk.turns(args)


def rag(args: argparse.Namespace) -> dict:
    """The same questions from memories and from retrieved passages (see bench_rag.py)."""
    import bench_rag

    return bench_rag.run(args)


def neighbour(args: argparse.Namespace) -> dict:
    """Asking while other programs use the processor (see bench_neighbour.py)."""
    import bench_neighbour

    return bench_neighbour.run(args)


SECTIONS = {
    "decode": decode, "recite": recite, "install": install, "first": first, "turns": turns, "neighbour": neighbour,
    "rag": rag,
}  # fmt: skip


def machine() -> dict[str, object]:
    """Where a figure was measured."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "simd": _core.simd(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "llama-cpp-python": version("llama-cpp-python"),
        "model": "SmolLM2-135M-Instruct Q4_1",
    }  # fmt: skip


def write(out: Path, sections: dict[str, dict]) -> None:
    """Put *sections* into the JSON file *out*; others in it stay."""
    old = json.loads(out.read_text("utf-8")) if out.exists() else {}
    out.write_text(json.dumps({**old, **sections, "machine": machine()}, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--bank", type=Path, help="for rag: a bank of memories that --data has questions about")
    parser.add_argument("--data", type=Path, help="for rag: wiki2024.jsonl")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "ask.json")
    args = parser.parse_args()
    if "rag" in args.sections and not (args.bank and args.data):
        parser.error("rag needs --bank and --data")
    for name in args.sections:
        result = SECTIONS[name](args)
        write(args.out, {name: {"command": f"python tools/bench_ask.py {name}", **result}})
        print(json.dumps({name: result}, indent=1))


if __name__ == "__main__":
    main()
