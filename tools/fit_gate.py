"""Fits the weights of the gate (megart/gate/evidence.py, partner.py) and its threshold, and prints them.

    python tools/fit_gate.py DATA_DIR [--cache DIR] [--reading]

A conditional logit model whose outside option is "no memory applies", by maximum likelihood with a small
quadratic penalty; a weight may only speak in its own direction. Rows: wiki2024 partitions 0-4 (each a bank of its own,
with and without the memory asked about; all together; among half of the distractors of bench_gate.py), SQuAD's and
TOFU's questions about memories at even places, our own questions about fictional partition 2, mmlu_dev, questions to
the banks of other partitions, made ones about a common word, and the compositional questions of partitions 0-4.
Partitions 5-9, odd places, MMLU and facts_mcq are reported and never read here. --reading fits the weight of the
reranker (megart/gate/rerank.py) instead, on SQuAD's and TOFU's questions about memories at even places.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from bench_gate import CHOSEN_ON, QUESTIONS, Bench
from gate_reading import Asked, Bank, Reader, joined, rows
from scipy.optimize import minimize, minimize_scalar

from megart import gate
from megart.eval.suites.paraphrase import typo
from megart.gate import partner, rerank
from megart.gate.evidence import AGAINST, WEIGHTS

PENALTY = 3e-5
ROUNDS = 4
# Of 100 questions of partitions 0-4 to their own banks, so many shall open something.
OPEN = 0.98
NONE = -1
# What each kind counts for the second memory.
PARTNER_SHARES = {"own": 1.0, "together": 1.0, "squad": 0.7, "tofu": 0.5, "two memories": 1.3}
PARTNER_PENALTY = 1e-4
# What speaks against a memory; the rest speaks for one, and "always" is free.
AGAINST_ONE = {"elsewhere", "broken_name", "strange_name", "other_name", "strange_person", "size", "nameless"}
# What each kind of row counts together.
SHARES = {
    "own": 1.0,
    "left out": 1.0,
    "together": 0.5,
    "distractors": 0.7,
    "squad": 1.0,
    "tofu": 0.7,
    "fictional": 0.5,
    "fictional left out": 0.1,
    "neighbour": 0.5,
    "general": 0.5,
    "a word": 0.3,
    "slip": 0.4,
    "slip left out": 0.4,
    "general, encyclopaedia": 0.7,
    "among encyclopaedia": 0.5,
    "general, many": 0.5,
    "two memories": 0.5,
}
# About one common word that a memory holds: nobody's memory is asked for.
GENERIC = (
    "What is a {}?",
    "What does {} mean?",
    "Can you explain {} to me?",
    "Why do people need {}?",
    "Give me an example of {}.",
    "How does {} work?",
)


@dataclass
class Row:
    """One question to one bank: its evidence, and the place of the right candidate (NONE: none applies).

    ``beside``: the place of the other right one, of a question that needs two.
    """

    kind: str
    evidence: gate.Evidence
    right: int
    beside: int = NONE


def ask(bank: Bank, kind: str, asked: Asked, owner: int | None) -> Row | None:
    """``owner``: the memory's place in the bank, None where nothing applies; None for one that is no candidate."""
    evidence = bank.index.evidence(*asked.reading.parts)
    if evidence is None:
        return None
    if owner is None:
        return Row(kind, evidence, NONE)
    place = np.flatnonzero(evidence.rows == owner)
    return Row(kind, evidence, int(place[0])) if len(place) else None


def collect(bench: Bench) -> Iterator[Row | None]:
    asked = bench.wiki_questions()
    general = bench.reader.questions("mmlu_dev", [r["q"] for r in rows(bench.data / "mmlu_dev.jsonl")])
    chosen = [i for partition in CHOSEN_ON for i in bench.of(partition)]
    for partition in CHOSEN_ON:
        members = bench.of(partition)
        bank = bench.bank(members)
        for place, i in enumerate(members):
            rest = bench.bank([m for m in members if m != i])
            for question in asked[i]:
                yield ask(bank, "own", question, place)
                yield ask(rest, "left out", question, None)
        typos = bench.reader.questions(f"typos-{partition}", [typo(q.reading.text) for i in members for q in asked[i]])
        for place, i in enumerate(members):
            rest = bench.bank([m for m in members if m != i])
            for question in typos[3 * place : 3 * place + 3]:
                yield ask(bank, "slip", question, place)
                yield ask(rest, "slip left out", question, None)
        strangers = [asked[i][0] for i in chosen if bench.wiki[i]["partition"] != partition]
        yield from (ask(bank, "neighbour", question, None) for question in strangers)
        yield from (ask(bank, "general", question, None) for question in general)
        words = generic([bench.wiki[i]["text"] for i in members])
        yield from (ask(bank, "a word", q, None) for q in bench.reader.questions(f"words-{partition}", words))
    bank = bench.bank(chosen)
    yield from (ask(bank, "together", q, place) for place, i in enumerate(chosen) for q in asked[i])
    others = bench.reader.texts("distractors", [(text, None) for text in bench.pieces()]).take(
        range(0, len(bench.pieces()), 2)
    )
    bank = Bank(joined(bench.wiki_texts().take(chosen), others), bench.reader)
    yield from (ask(bank, "distractors", q, place) for place, i in enumerate(chosen) for q in asked[i])
    yield from (ask(bank, "general, many", q, None) for q in general)
    for name, (texts, questions, owners) in {"squad": bench.squad(), "tofu": bench.tofu()}.items():
        bank = Bank(texts, bench.reader)
        yield from (ask(bank, name, q, o) for q, o in zip(questions, owners) if o % 2 == 0)
    texts, questions, owners = bench.squad()
    even = [i for i in range(len(texts.means)) if i % 2 == 0]
    bank = Bank(texts.take(even), bench.reader)
    yield from (ask(bank, "general, encyclopaedia", q, None) for q in general)
    both = Bank(joined(bench.wiki_texts().take(chosen), texts.take(even)), bench.reader)
    yield from (ask(both, "general, encyclopaedia", q, None) for q in general)
    yield from (ask(both, "among encyclopaedia", q, place) for place, i in enumerate(chosen) for q in asked[i])
    yield from fictional(bench)
    yield from compositional(bench)


def compositional(bench: Bench) -> Iterator[Row | None]:
    """Each question twice to each bank, its own and all together: either of its two memories is right."""
    mine = [r for r in rows(bench.data / "wiki2024_compositional.jsonl") if r["partition"] in CHOSEN_ON]
    questions = bench.reader.questions("compositional-chosen", [r["q"] for r in mine])
    chosen = [i for partition in CHOSEN_ON for i in bench.of(partition)]
    together = bench.bank(chosen), [bench.wiki[m]["id"] for m in chosen]
    for row, question in zip(mine, questions):
        members = bench.of(row["partition"])
        for bank, ids in ((bench.bank(members), [bench.wiki[m]["id"] for m in members]), together):
            both = [ask(bank, "two memories", question, ids.index(id)) for id in row["paragraph_ids"]]
            if all(both):
                both = [replace(one, beside=other.right) for one, other in (both, both[::-1])]
            yield from both


def generic(texts: Sequence[str]) -> list[str]:
    """One question for each text, about its longest word without a capital."""
    longest = [max(re.findall(r"(?<![\w-])[a-z]{4,10}(?![\w-])", text), key=len) for text in texts]
    return [GENERIC[i % len(GENERIC)].format(word) for i, word in enumerate(longest)]


def fictional(bench: Bench) -> Iterator[Row | None]:
    mine = rows(QUESTIONS / "fictional_chosen_on.jsonl")
    here = [r for r in rows(bench.data / "fictional.jsonl") if r["partition"] == mine[0]["partition"]]
    texts = bench.reader.texts(f"fictional-{mine[0]['partition']}", [(r["text"], None) for r in here])
    questions = bench.reader.questions("fictional-chosen", [r["q"] for r in mine])
    bank, ids = Bank(texts, bench.reader), [r["id"] for r in here]
    for row, question in zip(mine, questions):
        place = ids.index(row["id"])
        yield ask(bank, "fictional", question, place)
        rest = Bank(texts.take([i for i in range(len(here)) if i != place]), bench.reader)
        yield ask(rest, "fictional left out", question, None)


def fit(examples: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """(weights, against), in the order of their names."""
    counts = {kind: sum(row.kind == kind for row in examples) for kind in SHARES}
    importance = np.array([SHARES[row.kind] / counts[row.kind] for row in examples])
    importance /= importance.sum()
    starts = np.r_[0, np.cumsum([len(row.evidence.rows) for row in examples])[:-1]]
    owner = np.repeat(np.arange(len(examples)), [len(row.evidence.rows) for row in examples])
    features = np.concatenate([row.evidence.features for row in examples])
    named = np.array([row.right != NONE for row in examples])
    right = starts + np.array([max(row.right, 0) for row in examples])
    weights = np.array([*WEIGHTS.values(), *AGAINST.values()])
    width = len(WEIGHTS)
    bounds = [
        (None, None) if name == "always" else (None, 0) if name in AGAINST_ONE else (0, None)
        for name in (*WEIGHTS, *AGAINST)
    ]
    for _ in range(ROUNDS):  # which candidate margins decides the features against all of them
        against = np.stack([row.evidence.against(row.evidence.features @ weights[:width]) for row in examples])

        def loss(w: np.ndarray, against: np.ndarray = against) -> tuple[float, np.ndarray]:
            scores = features @ w[:width] + (against @ w[width:])[owner]
            top = np.maximum(np.maximum.reduceat(scores, starts), 0)
            powers = np.exp(scores - top[owner])
            everything = np.add.reduceat(powers, starts) + np.exp(-top)
            p = powers / everything[owner]
            likelihood = np.where(named, scores[right], 0) - top - np.log(everything)
            pull = -p * importance[owner]
            pull[right[named]] += importance[named]
            slope = np.r_[pull @ features, np.add.reduceat(pull, starts) @ against]
            return -float(likelihood @ importance) + PENALTY / 2 * float(w @ w), -slope + PENALTY * w

        weights = minimize(loss, weights, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500}).x
    return weights[:width], weights[width:]


def fit_partner(examples: Sequence[Row], weights: np.ndarray) -> np.ndarray:
    """The weights of ``partner``, in the order of their names: questions that need two against those about one."""
    kinds, features, truth = [], [], []
    for row in examples:
        if row.kind not in PARTNER_SHARES:
            continue
        scores = row.evidence.features @ weights
        best = int(scores.argmax())
        other, values = row.evidence.partner(best, scores)
        right = {row.right, row.beside} == {best, other}
        if row.beside != NONE and not right:
            continue  # neither the rule's fault nor its example
        kinds.append(row.kind)
        features.append(values)
        truth.append(right)
    x, y = np.stack(features), np.array(truth)
    share = np.array([PARTNER_SHARES[kind] / kinds.count(kind) for kind in kinds])

    def loss(w: np.ndarray) -> float:
        return float(share @ (np.logaddexp(0, x @ w) - y * (x @ w))) + PARTNER_PENALTY * float(w @ w)

    return minimize(loss, np.zeros(x.shape[1])).x


def fit_reading(bench: Bench) -> None:
    """Print the reranker's weight under which the right memories are likeliest, and what it changes."""
    looked: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    asked: dict[str, list[bool]] = {}
    for name, (texts, questions, owners) in {"squad": bench.squad(), "tofu": bench.tofu()}.items():
        bank, looked[name], asked[name] = Bank(texts, bench.reader), [], []
        for question, owner in zip(questions, owners):
            if owner % 2:
                continue
            candidates = bank.find_once(question)
            asked[name].append(candidates.rows[0] == owner)
            places = rerank.near(candidates, gate.GatePolicy())
            if places:
                gains = partial(bench.reader.gains, question.reading.text)
                nats = rerank.looks(candidates, places, texts.said.__getitem__, gains)
                looked[name].append((candidates.scores[places], np.array(nats), candidates.rows[places] == owner))
        bench.reader.keep_gains()
    told = {name: [row for row in rows if row[2].any()] for name, rows in looked.items()}

    def loss(weight: float) -> float:  # each set counts the same
        return -sum(
            np.mean([(s + weight * g)[right].sum() - np.logaddexp.reduce(s + weight * g) for s, g, right in rows])
            for rows in told.values()
        )

    best = minimize_scalar(loss, bounds=(0, 1), method="bounded").x
    print(
        f"rerank.WEIGHT = {best:.3f}; loss {loss(0):.4f} without, {loss(rerank.WEIGHT):.4f} as it is, {loss(best):.4f}"
    )
    for name, here in looked.items():
        more = sum(int(right[(s + rerank.WEIGHT * g).argmax()]) - int(right[0]) for s, g, right in here)
        count, before = len(asked[name]), np.mean(asked[name])
        print(f"{name}: n {count}, looked at {len(here)}, right {before:.4f}, then {before + more / count:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--reading", action="store_true", help="fit the reranker")
    args = parser.parse_args()
    if args.reading:
        return fit_reading(Bench(args.data, Reader(args.cache)))
    every = [*collect(Bench(args.data, Reader(args.cache)))]
    examples = [row for row in every if row is not None]
    print(f"{len(examples)} rows; of {len(every) - len(examples)} the right memory is no candidate")
    weights, against = fit(examples)
    for name, names, values in (("WEIGHTS", WEIGHTS, weights), ("AGAINST", AGAINST, against)):
        print(name, "=", json.dumps({n: round(float(v), 3) for n, v in zip(names, values)}, indent=4))
    beside = dict(zip(partner.WEIGHTS, (round(float(v), 1) for v in fit_partner(examples, weights))))
    print("partner.WEIGHTS =", json.dumps(beside, indent=4))
    named, other = dict(zip(WEIGHTS, weights)), dict(zip(AGAINST, against))
    judged = [(row, row.evidence.weighed(named, other)) for row in examples]
    sure = [1 - c.p_none for row, c in judged if row.kind == "own"]
    threshold = float(np.quantile(sure, 1 - OPEN))
    print(f"threshold = {threshold:.3f}")
    for kind in SHARES:
        here = [(row, c) for row, c in judged if row.kind == kind]
        opens = np.mean([1 - c.p_none >= threshold for _, c in here])
        right = np.mean([row.right != NONE and c.rows[0] == row.evidence.rows[row.right] for row, c in here])
        half = np.mean([1 - c.p_none >= 0.5 for _, c in here])
        print(f"{kind}: n {len(here)}, opens {opens:.4f}, at half {half:.4f} right {right:.4f}")
    pairs = [(row, c) for row, c in judged if row.kind == "two memories"]
    both = np.mean([row.evidence.rows[row.right] in c.rows[:2] for row, c in pairs])
    print(f"two memories: one of them among the first two {both:.4f}")


if __name__ == "__main__":
    main()
