"""How often each gate opens the right memory, and how often it opens for nothing.

    python tools/bench_gate.py DATA_DIR [--parts NAME,...] [--cache DIR] [--out tools/results/gate.json]

DATA_DIR holds the files that its README lists. Everything was chosen on wiki2024 partitions 0-4 and the
like (tools/fit_gate.py); reported are partitions 5-9, all of wiki2024, and sets that chose nothing or in half.
Parts: partitions, typos, whole, distractors, encyclopaedia, squad, tofu, fictional, compositional, times, looks.
--cache keeps the states that the base gives, so that a second run takes seconds. Results of earlier parts are kept in
--out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from gate_reading import Asked, Bank, Reader, Texts, joined, rows
from scipy.stats import binomtest

from megart import gate
from megart.eval.suites.paraphrase import typo
from megart.runtime.likelihood import Likelihood

PARTS = ("partitions", "typos", "whole", "distractors", "encyclopaedia", "squad", "tofu", "fictional", "compositional",
         "times", "looks")  # fmt: skip
METHODS = ("paper", "dense", "bm25", "minilm", "minilm+bm25", "default")
# The default with the threshold that the others get.
AT_98 = "default at 98 % opens"
CHOSEN_ON, REPORTED = range(5), range(5, 10)
DISTRACTORS = 10_000
QUESTIONS = Path(__file__).parent / "questions"


def share(hits: Sequence[bool]) -> dict[str, float | int | list[float]]:
    """A share with its n and its 95 % Wilson interval."""
    n, k = len(hits), int(sum(hits))
    low, high = binomtest(k, n).proportion_ci(method="wilson")
    return {"share": round(k / n, 4), "n": n, "interval": [round(low, 4), round(high, 4)]}


def _two_open(once: Sequence[gate.Candidates], twice: Sequence[gate.Candidates]) -> dict:
    """How many of some questions are reranked, and to how many two memories open, with it and without."""

    def two(candidates: Sequence[gate.Candidates]) -> dict:
        return share([len(gate.decide(one, gate.GatePolicy())) > 1 for one in candidates])

    looked = share([after.names != before.names for before, after in zip(once, twice)])
    return {"looked_at_twice": looked, "two_open": two(twice), "two_open_without": two(once)}


class Bench:
    def __init__(self, data: Path, reader: Reader):
        self.data, self.reader = data, reader
        self.wiki = rows(data / "wiki2024.jsonl")
        self.thresholds: dict[str, float] = {"default": gate.GatePolicy().threshold}

    # -- wiki2024 ---------------------------------------------------------------------------

    def wiki_texts(self) -> Texts:
        return self.reader.texts("wiki", [(r["text"], r["title"]) for r in self.wiki], paper=True)

    def wiki_questions(self) -> list[list[Asked]]:
        flat = iter(self.reader.questions("wiki", [x["q"] for r in self.wiki for x in r["qa"]], paper=True))
        return [[next(flat) for _ in r["qa"]] for r in self.wiki]

    def strangers(self) -> dict[str, list[Asked]]:
        names = ("mmlu", "facts_mcq", "mmlu_dev")
        return {
            n: self.reader.questions(n, [r["q"] for r in rows(self.data / f"{n}.jsonl")], paper=False) for n in names
        }

    def of(self, partition: int) -> list[int]:
        return [i for i, r in enumerate(self.wiki) if r["partition"] == partition]

    def bank(self, members: Sequence[int]) -> Bank:
        return Bank(self.wiki_texts().take(list(members)), self.reader)

    def threshold(self, method: str) -> float:
        """Where 98 of 100 questions of partitions 0-4 still open; the default's is its policy's."""
        if method not in self.thresholds:
            asked = self.wiki_questions()
            sure = []
            for partition in CHOSEN_ON:
                members = self.of(partition)
                bank = self.bank(members)
                sure += [bank.top(q, "default" if method == AT_98 else method)[1] for i in members for q in asked[i]]
            self.thresholds[method] = float(np.quantile(sure, 0.02))
        return self.thresholds[method]

    def partitions(self) -> dict:
        """One bank of about 50 per partition 5-9: top-1, opens, false opens, and gates against outcomes."""
        asked, strangers, result = self.wiki_questions(), self.strangers(), {}
        for label in (*METHODS, AT_98):
            method = "default" if label == AT_98 else label
            limit = self.threshold(label)
            right, opened, out = [], [], []
            closed: dict[str, list[bool]] = {name: [] for name in ("mmlu", "facts_mcq")}
            for partition in REPORTED:
                members = self.of(partition)
                bank = self.bank(members)
                for place, i in enumerate(members):
                    rest = self.bank([m for m in members if m != i])
                    for question in asked[i]:
                        best, sure = bank.top(question, method)
                        right.append(best[0] == place)
                        opened.append(sure >= limit)
                        out.append(rest.top(question, method)[1] >= limit)
                if method != "paper":  # whose gate opens for everything
                    for name in closed:
                        closed[name] += [bank.top(q, method)[1] >= limit for q in strangers[name]]
            result[label] = {"top1": share(right), "opens": share(opened), "left_out": share(out)}
            if method != "paper":
                result[label] |= {f"false_{name}": share(hits) for name, hits in closed.items()}
            result[label]["threshold"] = round(limit, 4)
        result["reliability"] = self.reliability()
        return result

    def reliability(self) -> list[dict]:
        """Gates of the softmax over the candidates, where something opened, against how often they are right."""
        asked = self.wiki_questions()
        pairs = []
        for partition in REPORTED:
            members = self.of(partition)
            bank = self.bank(members)
            pairs += [self._gate(bank, q, p) for p, i in enumerate(members) for q in asked[i]]
        texts, questions, owners = self.squad()
        odd = [i for i in range(len(texts.means)) if i % 2]
        bank, place = Bank(texts.take(odd), self.reader), {i: p for p, i in enumerate(odd)}
        pairs += [self._gate(bank, q, place[o]) for q, o in zip(questions, owners) if o % 2]
        points = np.array([pair for pair in pairs if pair is not None])
        edges = [0, 0.5, 0.7, 0.85, 0.95, 1.0 + 1e-9]
        table = []
        for low, high in zip(edges, edges[1:]):
            here = points[(points[:, 0] >= low) & (points[:, 0] < high)]
            if len(here):
                table.append({"gate": round(float(here[:, 0].mean()), 3), "right": share((here[:, 1] > 0).tolist())})
        return table

    def _gate(self, bank: Bank, asked: Asked, owner: int) -> tuple[float, bool] | None:
        candidates = bank.find(asked)
        if 1 - candidates.p_none < gate.GatePolicy().threshold:
            return None
        return float(candidates.p[0] / candidates.p.sum()), int(candidates.rows[0]) == owner

    def whole(self) -> dict:
        """All 492 memories in one bank; top-1 of the questions of partitions 5-9 and of all."""
        asked, bank = self.wiki_questions(), self.bank(range(len(self.wiki)))
        return {method: self._of_wiki(bank, asked, method) for method in METHODS}

    def _of_wiki(self, bank: Bank, asked: list[list[Asked]], method: str) -> dict:
        every, some, opened = [], [], []
        for i, questions in enumerate(asked):
            for question in questions:
                best, sure = bank.top(question, method)
                every.append(best[0] == i)
                if self.wiki[i]["partition"] in REPORTED:
                    some.append(best[0] == i)
                    opened.append(sure >= self.threshold(method))
        return {"top1_5_to_9": share(some), "top1_all": share(every), "opens_5_to_9": share(opened)}

    def distractors(self) -> dict:
        """wiki2024 among 10 000 pieces of other texts."""
        others = self.reader.texts("distractors", [(text, None) for text in self.pieces()])
        mine = self.wiki_texts()
        bank, asked = Bank(joined(mine, others), self.reader), self.wiki_questions()
        return {method: self._of_wiki(bank, asked, method) for method in METHODS if method != "paper"}

    def typos(self) -> dict:
        """The questions of partitions 5-9 with two letters swapped in each of their two longest words, as `partitions`."""
        asked = self.wiki_questions()
        right: dict[str, list[bool]] = {method: [] for method in METHODS[1:]}
        opened: dict[str, list[bool]] = {method: [] for method in METHODS[1:]}
        out = []
        for partition in REPORTED:
            members = self.of(partition)
            lines = [typo(q.reading.text) for i in members for q in asked[i]]
            mistyped = iter(self.reader.questions(f"typos-{partition}", lines))
            bank = self.bank(members)
            for place, i in enumerate(members):
                rest = self.bank([m for m in members if m != i])
                for question in [next(mistyped) for _ in asked[i]]:
                    for method in right:
                        best, sure = bank.top(question, method)
                        right[method].append(best[0] == place)
                        opened[method].append(sure >= self.threshold(method))
                    out.append(rest.top(question, "default")[1] >= self.threshold("default"))
        figures = {method: {"top1": share(right[method]), "opens": share(opened[method])} for method in right}
        figures["default"]["left_out"] = share(out)
        return figures

    def encyclopaedia(self) -> dict:
        """Partitions 5-9 among SQuAD's paragraphs at odd places: general questions meet memories of general matters."""
        asked, strangers = self.wiki_questions(), self.strangers()
        mine = [i for partition in REPORTED for i in self.of(partition)]
        texts = self.squad()[0]
        odd = texts.take(range(1, len(texts.means), 2))
        bank = Bank(joined(self.wiki_texts().take(mine), odd), self.reader)
        result: dict = {"memories": len(bank.index)}
        for method in METHODS[1:]:
            tops = [(bank.top(q, method), place) for place, i in enumerate(mine) for q in asked[i]]
            limit = self.threshold(method)
            result[method] = {
                "top1": share([best[0] == place for (best, _), place in tops]),
                "opens": share([sure >= limit for (_, sure), _ in tops]),
            }
            for name in ("mmlu", "facts_mcq"):
                result[method][f"false_{name}"] = share([bank.top(q, method)[1] >= limit for q in strangers[name]])
        return result

    def pieces(self) -> list[str]:
        """Sentences of 8 words and more of wikitext2, SQuAD, TOFU and the questions of MMLU, without doubles."""
        whole = [line for line in (self.data / "wikitext2.txt").read_text("utf-8").split("\n") if line.strip()]
        whole += [r["text"] for name in ("squad", "tofu") for r in rows(self.data / f"{name}.jsonl")]
        whole += [r["q"] for r in rows(self.data / "mmlu.jsonl")]
        sentences: dict[str, None] = {}
        for text in whole:
            held = ""
            for sentence in re.split(r"(?<=[.!?]) +", text):
                held = f"{held} {sentence}".strip()
                if len(held.split()) >= 8:
                    sentences[held] = None
                    held = ""
        everything = [*sentences]
        return [everything[i] for i in np.linspace(0, len(everything) - 1, DISTRACTORS).astype(int)]

    # -- other sets ---------------------------------------------------------------------------

    def squad(self) -> tuple[Texts, list[Asked], list[int]]:
        return self._set("squad", lambda r: r["title"].replace("_", " "))

    def tofu(self) -> tuple[Texts, list[Asked], list[int]]:
        return self._set("tofu", lambda r: None)

    def _set(self, name: str, title: Callable[[dict], str | None]) -> tuple[Texts, list[Asked], list[int]]:
        all_rows = rows(self.data / f"{name}.jsonl")
        texts = self.reader.texts(name, [(r["text"], title(r)) for r in all_rows])
        questions = self.reader.questions(name, [x["q"] for r in all_rows for x in r["qa"]])
        return texts, questions, [i for i, r in enumerate(all_rows) for _ in r["qa"]]

    def _ranked(self, texts: Texts, questions: list[Asked], owners: list[int]) -> dict:
        """Questions about memories at odd places: those of the even ones helped to choose the weights."""
        bank, result = Bank(texts, self.reader), {}
        mine = [(q, owner) for q, owner in zip(questions, owners) if owner % 2]
        for method in METHODS[1:]:
            tops = [(bank.top(q, method), owner) for q, owner in mine]
            right = [best[0] == owner for (best, _), owner in tops]
            opened = [sure >= self.threshold(method) for (_, sure), _ in tops]
            result[method] = {"top1_odd": share(right), "opens_odd": share(opened)}
        once, twice = ([find(q) for q, _ in mine] for find in (bank.find_once, bank.find))
        result["default"] |= _two_open(once, twice) | {
            "top1_odd_without": share([candidates.rows[0] == owner for candidates, (_, owner) in zip(once, mine)])
        }
        return result

    def run(self, part: str) -> dict:
        if part == "squad":
            return self._ranked(*self.squad())
        if part == "tofu":
            return self._ranked(*self.tofu())
        if part == "fictional":
            return self.fictional()
        return getattr(self, part)()

    def fictional(self) -> dict:
        """50 events of one person each, questions of our own (tools/questions/fictional.jsonl)."""
        memories, mine = rows(self.data / "fictional.jsonl"), rows(QUESTIONS / "fictional.jsonl")
        asked = self.reader.questions("fictional", [r["q"] for r in mine])
        hits: dict[str, list[bool]] = {method: [] for method in METHODS[1:]}
        opened: dict[str, list[bool]] = {method: [] for method in METHODS[1:]}
        for partition in sorted({r["partition"] for r in mine}):
            here = [r for r in memories if r["partition"] == partition]
            texts = self.reader.texts(f"fictional-{partition}", [(r["text"], None) for r in here])
            bank = Bank(texts, self.reader)
            for row, question in zip(mine, asked):
                if row["partition"] == partition:
                    for method in hits:
                        best, sure = bank.top(question, method)
                        hits[method].append(here[best[0]]["id"] == row["id"])
                        opened[method].append(sure >= self.threshold(method))
        return {m: {"top1": share(hits[m]), "opens": share(opened[m])} for m in hits}

    def compositional(self) -> dict:
        """Questions that need two memories, one bank per partition 5-9; and how often one about one opens two."""
        mine = [r for r in rows(self.data / "wiki2024_compositional.jsonl") if r["partition"] in REPORTED]
        asked = self.reader.questions("compositional", [r["q"] for r in mine])
        hits: dict[str, list[bool]] = {method: [] for method in METHODS[1:]}
        both = []
        for row, question in zip(mine, asked):
            members = self.of(row["partition"])
            bank, wanted = self.bank(members), set(row["paragraph_ids"])
            for method in hits:
                best, _ = bank.top(question, method)
                hits[method].append({self.wiki[members[b]]["id"] for b in best} == wanted)
            opened = gate.decide(bank.find(question), gate.GatePolicy())
            both.append({self.wiki[members[o.index]]["id"] for o in opened} == wanted)
        result = {method: {"both_in_top2": share(hit)} for method, hit in hits.items()}
        result["default"]["both_open_and_no_other"] = share(both)
        result["default"] |= {f"for_one_{name}": shares for name, shares in self.seconds().items()}
        return result

    def seconds(self) -> dict[str, dict]:
        """Questions about one memory, to which two may open: partitions 5-9 in banks of their own, and in one of all."""
        asked, everything = self.wiki_questions(), self.bank(range(len(self.wiki)))
        candidates: dict[str, tuple[list, list]] = {"partitions": ([], []), "whole": ([], [])}
        for partition in REPORTED:
            members = self.of(partition)
            for name, bank in (("partitions", self.bank(members)), ("whole", everything)):
                for question in (q for i in members for q in asked[i]):
                    candidates[name][0].append(bank.find_once(question))
                    candidates[name][1].append(bank.find(question))
        return {name: _two_open(*both) for name, both in candidates.items()}

    def times(self) -> dict:
        """Milliseconds from the states to the decision, one thread, medians of 200 questions."""
        others = self.reader.texts("distractors", [(text, None) for text in self.pieces()])
        asked = [q for questions in self.wiki_questions() for q in questions][:200]
        first = [typo(q.reading.text) for i in self.of(REPORTED[0]) for q in self.wiki_questions()[i]]
        mistyped = self.reader.questions(f"typos-{REPORTED[0]}", first)
        result = {}
        for count in (50, 1000, 10_000):
            bank = Bank(others.take(list(range(count))), self.reader)
            for name, questions in ((str(count), asked), (f"{count}, letters swapped", mistyped)):
                spent = []
                for question in questions:
                    started = time.perf_counter()
                    gate.decide(bank.find(question), gate.GatePolicy())
                    spent.append((time.perf_counter() - started) * 1000)
                result[name] = {"median_ms": round(float(np.median(spent)), 3), "n": len(spent)}
        sizes = [t.nbytes for t in self.wiki_texts().tokens]
        result["token_bytes_per_memory"] = {
            "mean": round(float(np.mean(sizes))),
            "largest": max(sizes),
            "of": "wiki2024",
        }
        return result

    def looks(self) -> dict:
        """Milliseconds of reranking TOFU's memories, first and later, against a prefill of the question.

        Medians of 30 questions, the system prompt cached for all three; and how many tokens are read after the
        question.
        """
        texts, questions, _ = self.tofu()
        bank, context = Bank(texts, self.reader), self.reader.small
        spent: dict[str, list[float]] = {"first": [], "later": [], "prefill": []}
        sizes = []
        for question in questions:
            candidates = bank.find_once(question)
            places = gate.rerank.near(candidates, gate.GatePolicy())
            if not places or len(spent["first"]) == 30:
                continue
            likelihood = Likelihood(lambda: context)
            prompt = self.reader.engine.prompt([{"role": "user", "content": question.reading.text}])
            for name in spent:
                context.advance(self.reader.engine.prompt([{"role": "user", "content": "Hello!"}]).tokens)
                started = time.perf_counter()
                if name == "prefill":
                    context.advance(prompt.tokens, logits=True)
                else:
                    gains = partial(likelihood.gains, question.reading.text)
                    gate.rerank.looks(candidates, places, texts.said.__getitem__, gains)
                spent[name].append((time.perf_counter() - started) * 1000)
            pieces = [gate.rerank.passages(texts.said[candidates.rows[place]], candidates.telling) for place in places]
            nats = likelihood.gains(question.reading.text, pieces, gate.rerank.TOKENS)
            sizes.append(sum(len(passage) for some in nats for passage in some))
        result: dict = {"tokens": {"median": int(np.median(sizes)), "n": len(sizes)}}
        return result | {
            name: {"median_ms": round(float(np.median(ms)), 1), "n": len(ms)} for name, ms in spent.items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "gate.json")
    args = parser.parse_args()
    bench = Bench(args.data, Reader(args.cache))
    result = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    result = {key: result[key] for key in PARTS if key in result}
    for part in args.parts.split(","):
        started = time.perf_counter()
        result[part] = bench.run(part)
        bench.reader.keep_gains()
        print(part, round(time.perf_counter() - started, 1), "s", json.dumps(result[part]), flush=True)
        about = {
            "command": "python tools/bench_gate.py DATA_DIR",
            "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
            "policy": vars(gate.GatePolicy()),
        }
        args.out.write_text(json.dumps(about | result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
