"""Fit the weights by which ask decides whether a memory that was read answers (megart/gate/known.py).

    python tools/fit_known.py WORK --bank NAME=FILE ... [--negatives FILE]

Each FILE holds memories with ``qa`` (and perhaps ``unanswered``) as JSON Lines and becomes a bank of pending memories in
WORK. Every question is asked with its memory there and left out, every unanswered one as it is; each memory that is read
is a row: does it answer? A logistic model with a small penalty is fitted on all banks, and its figures are those of
banks that it was not fitted on, each left out in turn.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import megart
from megart.gate import known
from megart.runtime import ask
from megart.runtime.opening import EVERYTHING, Scope
from megart.runtime.respond import Question
from megart.runtime.sampling import Options

PENALTY = 1.0


@dataclass
class Case:
    """One question: of each memory read, its features and whether it is the right one. ``kind`` as in the data."""

    bank: str
    kind: str
    there: bool
    rows: list[tuple[list[float], bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--bank", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--negatives", type=Path, help='rows {"bank", "q", "kind"} that no memory of the bank answers')
    parser.add_argument("--limit", type=int, default=0, help="memories of a file")
    parser.add_argument("--rows", type=Path, help="keep the features here, or take them from here")
    args = parser.parse_args()
    if args.rows and args.rows.exists():
        cases = [Case(**case) for case in json.loads(args.rows.read_text())]
    else:
        cases = [case for named in args.bank for case in collect(*named.split("=", 1), args)]
        if args.rows:
            args.rows.write_text(json.dumps([vars(case) for case in cases]))
    for bank in dict.fromkeys(case.bank for case in cases):
        weights = fit([case for case in cases if case.bank != bank])
        report(bank, [case for case in cases if case.bank == bank], weights)
    weights = fit(cases)
    report("all, fitted on all", cases, weights)
    report("all, as they stand", cases, np.array([*known.WEIGHTS.values()]))
    for name, weight in zip(known.WEIGHTS, weights, strict=True):
        print(f'    "{name}": {weight:.3f},')


def collect(name: str, file: str, args: argparse.Namespace) -> list[Case]:
    """Every question about the memories of *file*, read by the runtime."""
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("bank", name) == name][: args.limit or None]
    path = args.work / name
    bank = megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2")
    memories = [
        megart.Memory(row["text"], title=row.get("title"), id=row.get("id") or f"m{i}") for i, row in enumerate(rows)
    ]
    megart.memorize(bank, memories, later=True)
    negatives = [(q, "unanswered") for row in rows for q in row.get("unanswered", ())]
    if args.negatives:
        every = map(json.loads, args.negatives.read_text(encoding="utf-8").splitlines())
        negatives += [(n["q"], n["kind"]) for n in every if n["bank"] == name]
    cases = []
    with megart.Assistant(bank) as assistant:
        for memory, row in zip(memories, rows, strict=True):
            for qa in row["qa"]:
                for scope in (EVERYTHING, Scope(without=(memory.id or "",))):
                    cases.append(case(assistant, name, qa["q"], qa.get("kind", "direct"), memory.id, scope))
        for q, kind in negatives:
            cases.append(case(assistant, name, q, kind, None, EVERYTHING))
    bank.close()
    print(name, len(cases), flush=True)
    return cases


def case(assistant: megart.Assistant, bank: str, q: str, kind: str, right: str | None, scope: Scope) -> Case:
    responder = assistant.responder
    asked = Question("ask", q, [], Options(), scope)

    def run() -> Case:
        found, _ = responder.find(responder.prompt(*asked.worded()), asked)
        there = right is not None and scope is EVERYTHING
        rows = []
        for candidate in found.candidates if found.likely else ():
            tried = ask._try(responder, candidate, asked, found, ask._Clock())
            rows.append((tried.values, candidate.record.id == right))
        return Case(bank, kind if there else f"not-{kind}" if right else kind, there, rows)

    return assistant.on_model(run)


def fit(cases: list[Case]) -> np.ndarray:
    """Weights of the logistic model, float64 [F]; a question's rows weigh one together."""
    x = np.array([values for c in cases for values, _ in c.rows])
    y = np.array([float(right) for c in cases for _, right in c.rows])
    w = np.zeros(x.shape[1])
    for _ in range(50):  # Newton's method
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ (p - y) + PENALTY * w
        hessian = (x.T * (p * (1 - p))) @ x + PENALTY * np.eye(len(w))
        w -= np.linalg.solve(hessian, gradient)
    return w


def report(name: str, cases: list[Case], weights: np.ndarray) -> None:
    """Shares of questions answered from the right memory, from a wrong one, and answered though they should not be."""

    def answered(c: Case) -> bool | None:
        for values, right in c.rows:
            if 1 / (1 + np.exp(-np.dot(values, weights))) >= known.THRESHOLD:
                return right
        return None

    there = [answered(c) for c in cases if c.there]
    print(
        f"{name}: n {len(there)} right {np.mean([a is True for a in there]):.3f} "
        f"wrong {np.mean([a is False for a in there]):.3f} not known {np.mean([a is None for a in there]):.3f} "
        f"(read {np.mean([any(r for _, r in c.rows) for c in cases if c.there]):.3f})"
    )
    for kind in sorted({c.kind.split("-")[0] for c in cases if not c.there}):
        of = [answered(c) for c in cases if not c.there and c.kind.split("-")[0] == kind]
        print(
            f"    {'left out' if kind == 'not' else kind}: n {len(of)} answered {np.mean([a is not None for a in of]):.3f}"
        )


if __name__ == "__main__":
    main()
