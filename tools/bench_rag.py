"""The same questions from memories and through a local RAG pipeline: the section `rag` of bench_ask.py.

Both run on the same llama.cpp model and threads. RAG embeds the question, searches FAISS for the nearest
passages and puts them into the prompt; its embedder is all-MiniLM-L6-v2 and,
for comparison, the base's own states that megart's keys are made of.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import faiss
import numpy as np
from bench_ask import summary

from megart.bank import Bank
from megart.prompts import with_text
from megart.runtime.assistant import Assistant
from megart.runtime.embedders import make_text_embedder

ANSWER = 96  # tokens at most, of either


class Retriever:
    """Passages by the nearness of their embedding, in FAISS's flat index."""

    def __init__(self, name: str, assistant: Assistant, rows: Sequence[dict]):
        self._model = make_text_embedder(name)  # None: the base's own states
        own = assistant.open_bank.memories

        def keys_of_all() -> np.ndarray:
            by = own.keys if self._model is None else self._model
            stored = np.stack([by.memory(row["text"], row.get("title")) for row in rows])
            return np.ascontiguousarray(own.keys.keys(stored) if self._model is None else stored, np.float32)

        keys = assistant.on_model(keys_of_all)
        self._index = faiss.IndexFlatIP(keys.shape[1])
        self._index.add(keys)
        self._assistant = assistant

    def __call__(self, question: str, k: int) -> list[int]:
        """Numbers of the *k* nearest passages."""
        if self._model is None:
            query = self._assistant.on_model(lambda: self._assistant.open_bank._encode(question).parts[1])
        else:
            query = self._model.query(question)
        return self._index.search(query[None], k)[1][0].tolist()


def run(args: argparse.Namespace) -> dict:
    """First token and total time with looking up, right answers, and how often the right passage was there."""
    rows = [json.loads(line) for line in args.data.read_text("utf-8").splitlines()]
    with Bank.open(args.bank) as bank, Assistant(bank) as assistant:
        known = [row for row in rows if (record := bank.find(row["id"])) is not None and record.state == "learnt"]
        if not known:
            raise SystemExit(f"bench_rag: no learnt memory of {args.bank} has questions in {args.data}")
        by = {name: Retriever(name, assistant, known) for name in ("minilm", "default")}

        def retrieved(name: str, k: int) -> Callable[[str, int], tuple[object, bool]]:
            def way(question: str, right: int) -> tuple[object, bool]:
                near = by[name](question, min(k, len(known)))
                texts = [known[i]["text"] for i in near]
                return assistant.bare(with_text(question, texts), max_tokens=ANSWER), right in near

            return way

        def remembered(question: str, right: int) -> tuple[object, bool]:
            answer = assistant.ask(question, max_tokens=ANSWER)
            return answer, known[right]["id"] in [m.id for m in answer.memories]

        ways: dict[str, Callable[[str, int], tuple[object, bool]]] = {
            "memories": remembered,
            "rag top-1, MiniLM": retrieved("minilm", 1),
            "rag top-3, MiniLM": retrieved("minilm", 3),
            "rag top-1, the base's states": retrieved("default", 1),
            "bare": lambda question, _: (assistant.bare(question, max_tokens=ANSWER), False),
        }
        measured: dict[str, list[tuple[float, float, bool, bool]]] = {name: [] for name in ways}
        for way in ways.values():
            way(known[0]["qa"][0]["q"], 0)  # loading and first touches do not count
        for right, row in enumerate(known):
            for qa in row["qa"]:
                for name, way in ways.items():
                    measured[name].append(timed(assistant, way, qa, right))
    return {
        "memories": len(known),
        "partitions": sorted({row["partition"] for row in known if "partition" in row}),
        "questions": len(measured["bare"]),
        **{
            name: {
                "first_token_ms": summary([v[0] for v in values]),
                "total_ms": summary([v[1] for v in values]),
                "right": f"{sum(v[2] for v in values)}/{len(values)}",
                "right_passage_opened_or_retrieved": f"{sum(v[3] for v in values)}/{len(values)}",
            }
            for name, values in measured.items()
        },
    }


def timed(assistant: Assistant, way: Callable, qa: dict, right: int) -> tuple[float, float, bool, bool]:
    """(ms to the first token, ms in all, is the answer right, was the right passage used), nothing cached."""
    with assistant.engine.lock:
        assistant.base.truncate(0)
        assistant.mix.truncate(0)
    start = time.perf_counter()
    answer, hit = way(qa["q"], right)
    total = (time.perf_counter() - start) * 1000
    before = total - answer.timings.total_ms  # looking up comes before the first token
    text = answer.text.lower()
    return before + answer.timings.first_token_ms, total, any(a.lower() in text for a in qa["a"]), hit
