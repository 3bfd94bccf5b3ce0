"""Fit the weights by which ask decides whether a memory that was read answers (megart/gate/known.py).

    python tools/fit_known.py WORK --bank NAME=FILE ... [--negatives FILE] [--general FILE ...]

Each FILE holds memories with ``qa`` (and perhaps ``unanswered`` or ``near``) as JSON Lines and becomes a bank of
pending memories in WORK. Every question is asked with its memory there and left out, every unanswered one as it is, and
some lines of the general files of every bank; each memory that is read is a row: does it answer? Two logistic models
with a small penalty are fitted, with the text embedder e5 and without. Their figures are those of banks that they were
not fitted on.

With --ranking nothing is read: what is fitted is how the embedder's cosines join in (megart/gate/meaning.py). Fit that
first.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

import megart
from megart.gate import Candidates, known
from megart.runtime import embed
from megart.runtime.open_bank import OpenBank
from megart.runtime.reader import Reading
from megart.runtime.recall import recall
from megart.runtime.scope import EVERYTHING, Scope

NOTES = Path(__file__).parent / "reader_notes"
PENALTY = 0.5
READ, READ_FROM = 3, -9.0  # candidates that are read here, and the score of the first from which on
GENERAL = 18  # lines of all general files together, of each bank
MODES = ("meaning", "words")
RANKED = {"plain": 1.0, "other words": 0.3, "another language": 0.2, "general": 0.3, "talk": 0.3}
LANGUAGES = "de en es fr it ja ko nl pl pt ru sv tr zh".split()
Row = tuple[dict[str, float], bool]


@dataclass
class Case:
    """One question: for each mode the features of each memory that is read, and whether it is the right one."""

    bank: str
    kind: str
    there: bool
    q: str = ""
    rows: dict[str, list[Row]] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)  # the score of the first candidate in each mode
    # Of all candidates the score by words, the cosine by each embedder, and whether it is the right one.
    ranked: list[tuple[float, list[float], bool]] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)  # of the question's vector by each embedder

    def read(self, mode: str) -> list[Row]:
        """What ask would read: it reads no more, and nothing where the best candidate's score is too low."""
        least = known.READ_FROM_MEANING if mode == "meaning" else known.READ_FROM
        return self.rows[mode][: known.MOST] if self.best.get(mode, -99.0) >= least else []

    @property
    def group(self) -> str:
        if self.there:
            return "there"
        return "left out" if self.kind.startswith("not-") else self.kind

    @property
    def sort(self) -> str:
        """Of a question whose memory is there how hard it is, else its group."""
        if not self.there:
            return self.group
        hard = {"synonym": "other words"} | dict.fromkeys(LANGUAGES, "another language")
        return hard.get(self.kind, "plain")

    @property
    def collection(self) -> str:
        """What its bank is one of: our own notes, the developers', or another set of texts, NAME@PARTITION."""
        if (NOTES / "banks" / f"{self.bank}.jsonl").exists():
            return "own notes"
        return self.bank.partition("@")[0] if "@" in self.bank else "the developers' notes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--bank", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--negatives", type=Path, help='rows {"bank", "q", "kind"} that no memory of the bank answers')
    parser.add_argument(
        "--general", type=Path, nargs="*", default=[], help='lines, or rows with "q", that none answers'
    )
    parser.add_argument("--limit", type=int, default=0, help="memories of a file")
    parser.add_argument("--questions", type=int, default=99, help="of a memory, of as many kinds as there are")
    parser.add_argument("--languages", type=int, default=0, help="questions in other languages, of a memory of our own")
    parser.add_argument("--embedder", default="e5", help="of the banks that are made")
    parser.add_argument(
        "--rows", type=Path, nargs="*", default=[], help="take the features from these, or keep them in the one"
    )
    parser.add_argument("--ranking", action="store_true", help="fit how the cosines join in, not what decides")
    parser.add_argument("--share", type=float, help="with --ranking: what words and states count, not to be fitted")
    args = parser.parse_args()
    cases = [Case(**case) for path in args.rows if path.exists() for case in json.loads(path.read_text())]
    for named in args.bank if not cases else ():
        cases += collect(*named.split("=", 1), args)
        for path in args.rows:
            path.write_text(json.dumps([vars(case) for case in cases]))
    if args.ranking:
        return fit_ranking(cases, args.share)
    for mode in MODES:
        print(f"== {mode}, each bank by weights that were fitted without it")
        banks = dict.fromkeys(case.bank for case in cases)
        weights = {bank: fit([case for case in cases if case.bank != bank], mode) for bank in banks}
        for collection in dict.fromkeys(case.collection for case in cases):
            report(collection, [case for case in cases if case.collection == collection], mode, weights)
        for name, weight in fit(cases, mode).items():
            print(f'    "{name}": {weight:.3f},')


def general(files: list[Path], seed: int) -> list[tuple[str, str]]:
    """(question, kind) of some lines of each file; of plain lines every sixth, which no reader was trained on."""
    rng, questions = random.Random(seed), []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        plain = not lines[0].startswith("{")
        asked = lines[5::6] if plain else [json.loads(line)["q"] for line in lines]
        asked = [q for q in asked if q.strip() and len(q) < 300]
        questions += [
            (q, "talk" if plain else "general") for q in rng.sample(asked, min(len(asked), GENERAL // len(files)))
        ]
    return questions


def collect(name: str, file: str, args: argparse.Namespace) -> Iterator[Case]:
    """Every question about the memories of *file*, read by the runtime."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    group, _, part = name.partition("@")  # wiki@1: partition 1
    rows = [row for row in rows if row.get("bank", group) == group and (not part or row["partition"] == int(part))]
    rows = rows[: args.limit or None]
    path = args.work / name
    bank = megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2")
    bank.set_state("embedder", args.embedder.encode())
    memories = [
        megart.Memory(row["text"], title=row.get("title"), id=row.get("id") or f"m{i}") for i, row in enumerate(rows)
    ]
    megart.memorize(bank, memories, later=True)
    rng = random.Random(name)
    other: dict[str | None, list[dict]] = {}
    if args.languages and (NOTES / "languages" / f"{name}.jsonl").exists():
        lines = (NOTES / "languages" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        other = {row["id"]: row["qa"] for row in map(json.loads, lines)}
    asked: list[tuple[str, str, str | None]]
    asked = [(q, "unanswered", None) for row in rows for q in row.get("unanswered", ())]
    asked += [(q, "near", None) for row in rows for q in row.get("near", ())[:1]]
    if args.negatives:
        every = map(json.loads, args.negatives.read_text(encoding="utf-8").splitlines())
        asked += [(n["q"], n["kind"], None) for n in every if n["bank"] == group]
    asked += [(q, kind, None) for q, kind in general(args.general, len(name))]
    for memory, row in zip(memories, rows, strict=True):
        chosen = spread(row["qa"], args.questions, rng) + spread(other.get(memory.id, []), args.languages, rng)
        asked += [(qa["q"], qa.get("kind") or qa.get("lang") or "direct", memory.id) for qa in chosen]
    with megart.Assistant(bank, threads=1) as assistant:
        for number, (q, kind, right) in enumerate(asked):
            yield from assistant.on_model(
                lambda q=q, kind=kind, right=right: look(assistant, name, q, kind, right, args)
            )
            if number % 100 == 0:
                print(name, number, len(asked), flush=True)
    bank.close()


def look(
    assistant: megart.Assistant, name: str, q: str, kind: str, right: str | None, args: argparse.Namespace
) -> list[Case]:
    """*q* asked with its memory there and, if one answers it, without."""
    opening = assistant.open_bank
    opening.memories.refresh()
    encoded, read_already, cases = opening._encode(q), {}, []
    scopes = [EVERYTHING] if right is None else [EVERYTHING, Scope(without=(right,))]
    for scope in scopes:
        candidates, there = opening._find(encoded, scope), right is not None and scope is EVERYTHING
        case = Case(name, kind if there or right is None else f"not-{kind}", there, q)
        if args.ranking:
            case.ranked, case.lengths = ranked(opening, candidates, q, right)
        else:
            read(assistant, encoded, candidates, right, read_already, case)
        cases.append(case)
    return cases


def ranked(
    opening: OpenBank, candidates: Candidates, q: str, right: str | None
) -> tuple[list[tuple[float, list[float], bool]], list[float]]:
    """What ``Case`` keeps of *candidates*: ``ranked`` and ``lengths``."""
    question, index = opening.memories.meaning(q), opening.memories.index
    if candidates.alone is None or question is None or index is None or index.vectors is None:
        return [], []
    cosines = index.vectors.cosines(question, candidates.rows)
    ids = [opening.records[row].id for row in candidates.rows]
    lengths = index.vectors.lengths(question).tolist()
    rows = zip(candidates.alone, cosines, ids, strict=True)
    return [(float(alone), each.tolist(), id == right) for alone, each, id in rows], lengths


def fit_ranking(cases: list[Case], share: float | None) -> None:
    """Share, weights and zeros of the conditional logit over the candidates and "none", and what they rank first.

    Each sort of question of each bank weighs the same, but for RANKED.
    """
    import torch

    given = [case for case in cases if case.ranked and case.sort in RANKED]
    parts = len(given[0].lengths)
    values = np.full((len(given), max(len(case.ranked) for case in given), 1 + parts), -60.0, np.float32)
    right = np.full(len(given), values.shape[1])
    for row, case in enumerate(given):
        values[row, : len(case.ranked)] = [[alone, *cosines] for alone, cosines, _ in case.ranked]
        right[row] = next((place for place, ranked in enumerate(case.ranked) if ranked[2]), right[row])
    counts = Counter((case.bank, case.sort) for case in given)
    weight = torch.tensor([RANKED[case.sort] / counts[case.bank, case.sort] for case in given])
    each, truth, lengths = torch.tensor(values), torch.tensor(right), torch.tensor([case.lengths for case in given])
    first = [0.5 if share is None else share, *[10.0] * parts, *[0.3] * parts]
    fitted = torch.tensor(first, requires_grad=True)
    optimizer = torch.optim.LBFGS([fitted], max_iter=500)

    def scores() -> torch.Tensor:
        weights, zeros = fitted[1 : 1 + parts], fitted[1 + parts :]
        logits = fitted[0] * each[:, :, 0] + (each[:, :, 1:] - (lengths * zeros)[:, None]) @ weights
        return torch.cat([logits.where(each[:, :, 1] > -50, torch.tensor(-1e9)), torch.zeros(len(logits), 1)], 1)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (torch.nn.functional.cross_entropy(scores(), truth, reduction="none") * weight).sum()
        value.backward()
        if share is not None and fitted.grad is not None:
            fitted.grad[0] = 0
        return value

    optimizer.step(loss)
    print("share, weight of each, zero of each:", [round(v, 3) for v in fitted.tolist()])
    best = scores()[:, :-1].argsort(dim=1, descending=True).numpy()
    for kind in sorted({(case.collection, case.sort) for case in given if case.there}):
        rows = [row for row, case in enumerate(given) if case.there and (case.collection, case.sort) == kind]
        shares = [np.mean([right[row] in best[row, :most] for row in rows]) for most in (1, 2, 4)]
        print(*kind, f"(n {len(rows)}): first {shares[0]:.3f}, of two {shares[1]:.3f}, of four {shares[2]:.3f}")


def spread(qa: list[dict], most: int, rng: random.Random) -> list[dict]:
    """At most *most* of the questions *qa*, of different kinds as far as there are such."""
    kinds: dict[str, list[dict]] = {}
    for one in rng.sample(qa, len(qa)):
        kinds.setdefault(one.get("kind", "direct"), []).append(one)
    rounds = [one for group in zip_longest(*kinds.values()) for one in group if one]
    return rounds[:most]


def read(
    assistant: megart.Assistant,
    encoded: embed.EncodedQuestion,
    both: Candidates,
    right: str | None,
    read_already: dict[str, Reading],
    case: Case,
) -> None:
    """What reading the first candidates of each mode gives, into *case*: more than ask reads, to choose how many it should."""
    opening, reader = assistant.open_bank, assistant.runtime.reader
    order = np.argsort(-both.alone, kind="stable") if both.alone is not None else np.empty(0, int)
    words = (
        replace(both, rows=both.rows[order], scores=both.alone[order], meant=None, alone=None) if len(order) else both
    )
    for mode, candidates in zip(MODES, (both, words), strict=True):
        case.rows[mode] = []
        considered = opening.consider(encoded, candidates, None)
        case.best[mode] = float(candidates.scores[0]) if len(candidates.scores) else -99.0
        for candidate in considered.candidates[:READ] if case.best[mode] >= READ_FROM else ():
            reading = read_already.get(candidate.record.id)
            if reading is None:
                held = recall(assistant.runtime, opening, candidate.record)
                reading = reader.read(held, encoded.text, candidate.record.title)
                read_already[candidate.record.id] = reading
            if reading.span[0] == reading.span[1] or candidate.seen.about.is_another:
                continue
            values = known.features(candidate.seen, reading.odds, reading.logprob)
            case.rows[mode].append((values, candidate.record.id == right))


def fit(cases: list[Case], mode: str) -> dict[str, float]:
    """Weights of the logistic model; each kind of question of each bank weighs the same."""
    rows = [(case, values, right) for case in cases for values, right in case.read(mode)]
    names = list(rows[0][1])
    x = np.array([[values[name] for name in names] for _, values, _ in rows])
    y = np.array([float(right) for *_, right in rows])
    counts = Counter((case.bank, case.group) for case, *_ in rows)
    share = {"there": 1.0, "left out": 0.5, "near": 0.5, "unanswered": 0.5}
    s = np.array([100 * share.get(c.group, 0.3) / max(40, counts[c.bank, c.group]) for c, *_ in rows])
    w = logistic(x, y, s)
    return dict(zip(names, w.tolist(), strict=True))


def logistic(x: np.ndarray, y: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Weights [D] of the logistic model of truths *y* [N] by features *x* [N, D], each row counting *s* [N] times."""
    w = np.zeros(x.shape[1])
    for _ in range(60):  # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (s * (p - y)) + PENALTY * w
        hessian = (x.T * (s * p * (1 - p))) @ x + PENALTY * np.eye(len(w))
        w -= np.linalg.solve(hessian, gradient)
    return w


def report(name: str, cases: list[Case], mode: str, weights: dict[str, dict[str, float]]) -> None:
    """Shares of questions answered from the right memory, from a wrong one, and answered though they should not be.

    ``weights``: for the cases of each bank.
    """
    sorts = sorted({case.sort for case in cases}, key=lambda sort: (sort not in RANKED, sort))
    for threshold in (0.2, 0.3, 0.4, 0.5):

        def answered(case: Case, threshold: float = threshold) -> bool | None:
            believed: list[tuple[float, bool]] = []
            for values, right in case.read(mode):
                p = known.probability(values, weights[case.bank])
                if p >= threshold and values["reader"] >= known.ODDS_FROM:
                    believed.append((p, right))
                    if p >= known.SURE:
                        break
            return max(believed, key=lambda one: one[0])[1] if believed else None

        line = f"{name} >= {threshold}:"
        for sort in sorts:
            of = [(case.there, answered(case)) for case in cases if case.sort == sort]
            if of[0][0]:
                line += f" {sort} right {np.mean([a is True for _, a in of]):.3f} wrong"
                line += f" {np.mean([a is False for _, a in of]):.3f} (n {len(of)}) |"
            else:
                line += f" {sort} answered {np.mean([a is not None for _, a in of]):.3f} (n {len(of)}) |"
        print(line)
    read = {
        sort: np.mean([any(right for _, right in case.read(mode)) for case in cases if case.sort == sort])
        for sort in sorts
        if any(case.there for case in cases if case.sort == sort)
    }
    print("    the right one read:", ", ".join(f"{sort} {share:.3f}" for sort, share in read.items()))
    general = [bool(case.read(mode)) for case in cases if case.sort in ("general", "talk")]
    print(f"    any read of a general question: {np.mean(general):.3f} (n {len(general)})")


if __name__ == "__main__":
    main()
