"""Fit the weights by which two memories say the same at another time (megart/gate/versions.py).

    python tools/fit_versions.py WORK [--notes FOLDER]

Each row of tools/reader_notes/updates.dev has an ``old`` and a ``new`` note, ``others`` like them, a question ``q``, the
same of how it was before (``q_before``), and questions about the others; it becomes a bank of pending memories in WORK.
Six banks of our own notes, which hold no updates, are asked two questions a note; their notes get dates, a day apart.
With --notes the developers' banks farm and clinic are banks too (FOLDER holds memories.jsonl and updates.jsonl), each
with all its questions. A pair is a memory that answers a question and one of those most like it; an old and its new note
say the same, all other pairs do not. Two logistic models with a small penalty are fitted, with the text embedder e5 and
without; the figures are of rows that a model was not fitted on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from fit_known import NOTES, logistic, spread

import megart
from megart.gate import known, versions
from megart.runtime.ask import VERSIONS
from megart.runtime.found import Candidate
from megart.runtime.reader import Reading
from megart.runtime.recall import recall
from megart.runtime.scope import EVERYTHING

BANKS = ("farm", "clinic")
OWN = ("boat", "garden", "office", "taxi", "flats", "workshop")
UPDATES = NOTES / "updates.dev"
FOLDS = 14
OF_NOTES = 3.0  # what a pair of notes counts that are asked about as they are: most questions are of this kind
MODES = {"meaning": "e5", "words": "words"}


@dataclass
class Pair:
    """A memory that answers the question *q* of row *row*, and another: the features, and whether they say the same."""

    row: int
    kind: str
    q: str
    values: dict[str, float]
    answers: tuple[str, str]
    same: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--notes", type=Path)
    args = parser.parse_args()
    sources = [of_row(row) for row in lines(UPDATES)] + [of_own(name) for name in OWN]
    if args.notes:
        memories, updates = lines(args.notes / "memories.jsonl"), lines(args.notes / "updates.jsonl")
        sources += [of_bank(name, memories, updates) for name in BANKS]
    for mode, embedder in MODES.items():
        pairs = [pair for i, one in enumerate(sources) for pair in collect(args.work / f"{mode}-{i}", i, one, embedder)]
        report(mode, pairs)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@dataclass
class Kept:
    """The notes of a bank, what is asked of it, (kind, question), and which two ids say the same."""

    notes: list[dict]
    asked: list[tuple[str, str]]
    same: set[frozenset[str]]


def of_row(row: dict) -> Kept:
    notes = [row["old"] | {"id": "old"}, row["new"] | {"id": "new"}]
    notes += [other | {"id": f"other{i}"} for i, other in enumerate(row["others"])]
    asked = [("now", row["q"]), ("before", row["q_before"]), *(("other", qa["q"]) for qa in row["others_qa"])]
    return Kept(notes, asked, {frozenset(("old", "new"))})


def of_own(name: str) -> Kept:
    notes, rng = lines(NOTES / "banks" / f"{name}.jsonl"), random.Random(name)
    for i, note in enumerate(notes):
        note |= {"id": f"note{i}", "created": str(datetime.date(2025, 1, 1) + datetime.timedelta(days=i))}
    return Kept(notes, [("own", qa["q"]) for note in notes for qa in spread(note["qa"], 2, rng)], set())


def of_bank(name: str, memories: list[dict], updates: list[dict]) -> Kept:
    notes = [note for note in memories if note["bank"] == name]
    asked = [("note", qa["q"]) for note in notes for qa in note["qa"]]
    same = set()
    for i, update in enumerate(row for row in updates if row["bank"] == name):
        old, new = update["old"] | {"id": f"old{i}"}, update["new"] | {"id": f"new{i}"}
        notes, asked = [*notes, old, new], [*asked, ("now", update["q"])]
        same.add(frozenset((old["id"], new["id"])))
    return Kept(notes, asked, same)


def collect(path: Path, number: int, source: Kept, embedder: str) -> Iterator[Pair]:
    names = ("id", "title", "text", "created")
    memories = [megart.Memory.from_dict({k: note[k] for k in names if note.get(k)}) for note in source.notes]
    with megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2") as bank:
        bank.set_state("embedder", embedder.encode())
        megart.memorize(bank, memories, later=True)
        with megart.Assistant(bank, threads=1) as assistant:
            for kind, q in source.asked:
                for values, answers, ids in assistant.on_model(lambda q=q: list(pairs_of(assistant, q))):
                    yield Pair(number, kind, q, values, answers, frozenset(ids) in source.same)


def pairs_of(
    assistant: megart.Assistant, q: str
) -> Iterator[tuple[dict[str, float], tuple[str, str], tuple[str, str]]]:
    """The features of the memory that answers *q* and each that may say the same, what is read in both, and their ids."""
    opening, reader = assistant.open_bank, assistant.runtime.reader
    opening.memories.refresh()
    encoded = opening._encode(q)
    considered = opening.consider(encoded, opening._find(encoded, EVERYTHING), None)

    def read(candidate: Candidate) -> tuple[Reading, float, str]:
        held = recall(assistant.runtime, opening, candidate.record)
        reading = reader.read(held, q, candidate.record.title)
        p = known.probability(known.features(candidate.seen, reading.odds, reading.logprob))
        return reading, p, held.text[slice(*reading.span)]

    tried = considered.candidates[: known.MOST] if considered.likely else []
    first = next((one for one in tried if read(one)[1] >= known.THRESHOLD), None)
    if first is None:
        return
    said = read(first)[2]
    for place, other in enumerate(opening.versions(first, considered, EVERYTHING)[:VERSIONS]):
        one, two = first.record, other.record
        if one.created[:10] != two.created[:10] and not versions.is_far(other.seen):
            newer = max(one, two, key=lambda record: record.created)
            reading, _, words = read(other)
            seen, odds = first.seen, reading.odds
            values = versions.features(seen, other.seen, nearest=place == 0, odds=odds, newer=newer.text)
            yield values, (said, words), (one.id, two.id)


def report(mode: str, pairs: list[Pair]) -> None:
    names = list(pairs[0].values)
    x = np.array([[pair.values[name] for name in names] for pair in pairs])
    y = np.array([float(pair.same) for pair in pairs])
    s = np.array([OF_NOTES if pair.kind in ("own", "note") else 1.0 for pair in pairs])
    folds = np.array([pair.row % FOLDS for pair in pairs])
    odds = np.array([pair.values["odds"] for pair in pairs])
    p = np.zeros(len(pairs))
    for fold in range(FOLDS):
        rest = folds != fold
        p[~rest] = 1 / (1 + np.exp(-x[~rest] @ logistic(x[rest], y[rest], s[rest])))
    now = np.array([pair.kind != "before" for pair in pairs])
    figures = np.array([versions.alike_figures(*pair.answers) for pair in pairs])
    least = np.where(figures, versions.ODDS_FROM_FIGURES, versions.ODDS_FROM)
    p = np.where(now & (odds < least), 0.0, p)
    print(f"== {mode}: {len(pairs)} pairs, {int(y.sum())} of them say the same")
    for threshold in (0.15, 0.2, 0.3, 0.4, 0.5):
        line, best = f">= {threshold}:", {}
        for pair, likely in zip(pairs, p):
            if likely >= max(threshold, best.get((pair.row, pair.q), (0.0,))[0]):
                best[pair.row, pair.q] = likely, pair
        for kind in ("now", "before", "other", "own", "note"):
            asked = {(pair.row, pair.q): pair for pair in pairs if pair.kind == kind}
            chosen = Counter(best[key][1].same for key in asked if key in best)
            line += f" {kind}: found {chosen[True]}, wrong {chosen[False]} of {len(asked)} |"
        print(line)
    weights = ", ".join(f'"{n}": {w:.2f}' for n, w in zip(names, logistic(x, y, s)))
    print(f"{{{weights}}}")


if __name__ == "__main__":
    main()
