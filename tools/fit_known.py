"""Fit the weights by which ask decides whether a memory that was read answers (megart/gate/known.py).

    python tools/fit_known.py WORK --bank NAME=FILE ... [--negatives FILE] [--general FILE ...]

Each FILE holds memories with ``qa`` (and perhaps ``unanswered`` or ``near``) as JSON Lines and becomes a bank of pending
memories in WORK. Every question is asked with its memory there and left out, every unanswered one as it is, and some lines of the
general files of every bank; each memory that is read is a row: does it answer? Two logistic models with a small penalty
are fitted, with the text embedder e5 and without. Their figures are those of banks that they were not fitted on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

import megart
from megart.gate import known
from megart.runtime.reader import Reading
from megart.runtime.recall import recall
from megart.runtime.scope import EVERYTHING, Scope

PENALTY = 0.5
GENERAL = 36  # lines of all general files together, of each bank
MODES = ("meaning", "words")
Row = tuple[dict[str, float], bool]


@dataclass
class Case:
    """One question: for each mode the features of each memory that is read, and whether it is the right one."""

    bank: str
    kind: str
    there: bool
    q: str = ""
    rows: dict[str, list[Row]] = field(default_factory=dict)

    @property
    def group(self) -> str:
        if self.there:
            return "there"
        return "left out" if self.kind.startswith("not-") else self.kind


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
    parser.add_argument("--rows", type=Path, help="keep the features here, or take them from here")
    args = parser.parse_args()
    if args.rows and args.rows.exists():
        cases = [Case(**case) for case in json.loads(args.rows.read_text())]
    else:
        cases = []
        for named in args.bank:
            cases += collect(*named.split("=", 1), args)
            if args.rows:
                args.rows.write_text(json.dumps([vars(case) for case in cases]))
    for mode in MODES:
        print(f"== {mode}")
        for bank in dict.fromkeys(case.bank for case in cases):
            weights = fit([case for case in cases if case.bank != bank], mode)
            report(bank, [case for case in cases if case.bank == bank], mode, weights)
        weights = fit(cases, mode)
        report("all, fitted on all", cases, mode, weights)
        for name, weight in weights.items():
            print(f'    "{name}": {weight:.3f},')


def general(files: list[Path], seed: int) -> list[tuple[str, str]]:
    """(question, kind) of some lines of each file; of plain lines every sixth, which no reader was trained on."""
    rng, made = random.Random(seed), []
    for file in files:
        lines = file.read_text(encoding="utf-8").splitlines()
        plain = not lines[0].startswith("{")
        asked = lines[5::6] if plain else [json.loads(line)["q"] for line in lines]
        asked = [q for q in asked if q.strip() and len(q) < 300]
        made += [(q, "talk" if plain else "general") for q in rng.sample(asked, min(len(asked), GENERAL // len(files)))]
    return made


def collect(name: str, file: str, args: argparse.Namespace) -> Iterator[Case]:
    """Every question about the memories of *file*, read by the runtime."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    group, _, part = name.partition("@")  # wiki@1: partition 1
    rows = [row for row in rows if row.get("bank", group) == group and (not part or row["partition"] == int(part))]
    rows = rows[: args.limit or None]
    path = args.work / name
    bank = megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2")
    bank.set_state("embedder", b"e5")
    memories = [
        megart.Memory(row["text"], title=row.get("title"), id=row.get("id") or f"m{i}") for i, row in enumerate(rows)
    ]
    megart.memorize(bank, memories, later=True)
    rng = random.Random(name)
    asked = [(q, "unanswered", None, EVERYTHING) for row in rows for q in row.get("unanswered", ())]
    asked += [(q, "near", None, EVERYTHING) for row in rows for q in row.get("near", ())[:2]]
    if args.negatives:
        every = map(json.loads, args.negatives.read_text(encoding="utf-8").splitlines())
        asked += [(n["q"], n["kind"], None, EVERYTHING) for n in every if n["bank"] == group]
    asked += [(q, kind, None, EVERYTHING) for q, kind in general(args.general, len(name))]
    for memory, row in zip(memories, rows, strict=True):
        for qa in spread(row["qa"], args.questions, rng):
            for scope in (EVERYTHING, Scope(without=(memory.id or "",))):
                asked.append((qa["q"], qa.get("kind", "direct"), memory.id, scope))
    with megart.Assistant(bank) as assistant:
        for number, (q, kind, right, scope) in enumerate(asked):
            there = right is not None and scope is EVERYTHING
            found = assistant.on_model(lambda q=q, right=right, scope=scope: read(assistant, q, right, scope))
            yield Case(name, kind if there or right is None else f"not-{kind}", there, q, found)
            if number % 200 == 0:
                print(name, number, len(asked), flush=True)
    bank.close()


def spread(qa: list[dict], most: int, rng: random.Random) -> list[dict]:
    """At most *most* of the questions *qa*, of different kinds as far as there are such."""
    kinds: dict[str, list[dict]] = {}
    for one in rng.sample(qa, len(qa)):
        kinds.setdefault(one.get("kind", "direct"), []).append(one)
    rounds = [one for group in zip_longest(*kinds.values()) for one in group if one]
    return rounds[:most]


def read(assistant: megart.Assistant, q: str, right: str | None, scope: Scope) -> dict[str, list[Row]]:
    """The candidates of *q* that would be read in each mode, and what reading them gives."""
    opening, reader = assistant.open_bank, assistant.runtime.reader
    opening.memories.refresh()
    reading = opening._encode(q)
    both = opening._find(reading, scope)
    order = np.argsort(-both.alone, kind="stable") if both.alone is not None else np.empty(0, int)
    words = (
        replace(both, rows=both.rows[order], scores=both.alone[order], cosines=None, alone=None) if len(order) else both
    )
    made: dict[str, list[Row]] = {}
    read_already: dict[str, Reading] = {}
    for mode, found in zip(MODES, (both, words), strict=True):
        made[mode] = []
        considered = opening.consider(reading, found, None)
        for candidate in considered.candidates[: known.MOST] if considered.likely else ():
            said = read_already.get(candidate.record.id)
            if said is None:
                held = recall(assistant.runtime, opening, candidate.record)
                said = read_already[candidate.record.id] = reader.read(held, q, candidate.record.title)
            if said.span[0] == said.span[1] or candidate.seen.about.identifier:
                continue
            values = known.features(candidate.seen, said.odds, said.logprob)
            made[mode].append((values, candidate.record.id == right and scope is EVERYTHING))
    return made


def fit(cases: list[Case], mode: str) -> dict[str, float]:
    """Weights of the logistic model; each kind of question of each bank weighs the same."""
    rows = [(case, values, right) for case in cases for values, right in case.rows[mode]]
    names = list(rows[0][1])
    x = np.array([[values[name] for name in names] for _, values, _ in rows])
    y = np.array([float(right) for *_, right in rows])
    counts: dict[tuple[str, str], int] = {}
    for case, *_ in rows:
        counts[case.bank, case.group] = counts.get((case.bank, case.group), 0) + 1
    share = {"there": 1.0, "left out": 0.5, "near": 0.5, "unanswered": 0.5}
    s = np.array([100 * share.get(c.group, 0.3) / max(40, counts[c.bank, c.group]) for c, *_ in rows])
    w = np.zeros(x.shape[1])
    for _ in range(60):  # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (s * (p - y)) + PENALTY * w
        hessian = (x.T * (s * p * (1 - p))) @ x + PENALTY * np.eye(len(w))
        w -= np.linalg.solve(hessian, gradient)
    return dict(zip(names, w.tolist(), strict=True))


def report(name: str, cases: list[Case], mode: str, weights: dict[str, float]) -> None:
    """Shares of questions answered from the right memory, from a wrong one, and answered though they should not be."""
    for threshold in (0.1, 0.15, 0.2, 0.3, 0.4):

        def answered(case: Case, threshold: float = threshold) -> bool | None:
            for values, right in case.rows[mode]:
                if known.probability(values, weights) >= threshold:
                    return right
            return None

        there = [answered(c) for c in cases if c.there]
        line = f"{name} >= {threshold}: n {len(there)} right {np.mean([a is True for a in there]):.3f}"
        line += f" wrong {np.mean([a is False for a in there]):.3f}"
        for group in sorted({c.group for c in cases if not c.there}):
            of = [answered(c) is not None for c in cases if c.group == group]
            line += f" | {group} {np.mean(of):.3f} ({len(of)})"
        print(line)
    kinds = sorted({c.kind for c in cases if c.there})
    if len(kinds) > 1:
        shares = {
            k: np.mean([any(r for _, r in c.rows[mode]) for c in cases if c.there and c.kind == k]) for k in kinds
        }
        print("    read:", " ".join(f"{k} {v:.2f}" for k, v in shares.items()))


if __name__ == "__main__":
    main()
