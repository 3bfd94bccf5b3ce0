"""Questions to train a reader to choose by: each with the notes of its bank that the gate ranks first, as JSON Lines.

    python tools/reader_choices.py WORK [--embedder e5+states] [--rivals 3] [--seed 1] > choices.jsonl

The banks are those of reader_notes/banks that are not held, made in WORK, pending. Each line is a note with id, text,
title, qa [{q, a, rivals}] and unanswered [{q, rivals}]: "rivals" are the ids of the best other notes for the question.
All questions in other words are taken, of the other kinds a share (KINDS), drawn by --seed.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from bench_held import held
from reader_notes import HELD

import megart
from megart.runtime.scope import EVERYTHING

NOTES = Path(__file__).parent / "reader_notes"
KINDS = {"synonym": 1.0, "near": 0.4, "typo": 0.4, "language": 0.6}
OTHERS = 0.4  # direct, key words, first person, numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--embedder", default="e5+states")
    parser.add_argument("--rivals", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    for path in sorted((NOTES / "banks").glob("*.jsonl")):
        if path.stem not in HELD:
            for row in chosen(path, args, rng):
                print(json.dumps(row, ensure_ascii=False))


def chosen(path: Path, args: argparse.Namespace, rng: random.Random) -> list[dict]:
    """The notes of one bank with the questions that are taken, and their rivals."""
    notes = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    languages = (NOTES / "languages" / path.name).read_text("utf-8").splitlines()
    asked_in = {row["id"]: row["qa"] for row in map(json.loads, languages)}
    rows = []
    with held(args.work / path.stem, path.stem, args.embedder) as bank, megart.Assistant(bank) as assistant:
        for note in notes:
            qa = [q for q in note["qa"] if rng.random() < KINDS.get(q["kind"], OTHERS)]
            qa += [q for q in asked_in.get(note["id"], []) if rng.random() < KINDS["language"]]
            near = [q for q in note["near"] if rng.random() < KINDS["near"]]
            for q in qa:
                q["rivals"] = rivals(assistant, q["q"], note["id"], args.rivals)
            unanswered = [{"q": q, "rivals": rivals(assistant, q, note["id"], args.rivals)} for q in near]
            rows.append({**{key: note[key] for key in ("id", "text", "title")}, "qa": qa, "unanswered": unanswered})
    return rows


def rivals(assistant: megart.Assistant, question: str, own: str, most: int) -> list[str]:
    """The ids of the notes that the gate ranks first for *question*, without *own*."""

    def look() -> list[str]:
        opening = assistant.open_bank
        opening.memories.refresh()
        found = opening._find(opening._encode(question), EVERYTHING)
        return [opening.records[row].id for row in found.rows[: most + 1]]

    return [id for id in assistant.on_model(look) if id != own][:most]


if __name__ == "__main__":
    main()
