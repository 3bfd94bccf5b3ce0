"""Fit the weights by which two memories say the same at another time (megart/gate/versions.py).

    python tools/fit_versions.py WORK [--notes FOLDER] [--squad FILE] [--embedders NAME,...]

Each row of tools/reader_notes/updates.dev has an ``old`` and a ``new`` note, ``others`` like them, a question ``q``, the
same of how it was before (``q_before``), and questions about the others; it becomes a bank of pending memories in WORK.
Banks that hold no updates are asked two questions a memory; their memories get dates, a day apart: six of our own notes,
and with --squad five of 12 paragraphs at even places of SQuAD. With --notes the developers' banks farm and clinic are banks too
(FOLDER holds memories.jsonl and updates.jsonl), each with all its questions. A pair is a memory that answers a question
and another that the question may be about or that is like it; an old and its new note say the same, all other pairs do
not. Logistic models with a small penalty are fitted: whether an embedder says how alike two memories are, and before and
after the reader has seen the other one. Two more are of notes alone: which old note a new one updates, where each other
note of a bank is a new one that updates none. The figures are of rows that a model was not fitted on.
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
from megart.bank import Record
from megart.gate import known, versions
from megart.runtime.found import Candidate
from megart.runtime.newest import VERSIONS
from megart.runtime.reader import Reading
from megart.runtime.recall import recall
from megart.runtime.scope import EVERYTHING

BANKS = ("farm", "clinic")
OWN = ("boat", "garden", "office", "taxi", "flats", "workshop")
UPDATES = NOTES / "updates.dev"
FOLDS = 14
OF_NOTES = 3.0  # what a pair of notes counts that are asked about as they are: most questions are of this kind
EMBEDDERS = "e5+states,states"
PARAGRAPHS, SQUADS = 12, 5
BEFORE = ("before",)
WORTH = versions.READ_FROM / 4  # by the weights as they are, from where on a memory is read here


@dataclass
class Pair:
    """A memory that answers the question *q* of row *row*, and another: the features, and whether they say the same.

    ``read``: the features with the reader's, None where the other one is not worth reading. ``newer``: the other one is,
    and says something else: taken for an update where it is none it does harm.
    """

    row: int
    kind: str
    q: str
    unread: dict[str, float]
    read: dict[str, float] | None
    same: bool
    newer: bool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--notes", type=Path)
    parser.add_argument("--squad", type=Path)
    parser.add_argument("--embedders", default=EMBEDDERS)
    args = parser.parse_args()
    sources = [of_row(row) for row in lines(UPDATES)]
    sources += [of_texts(lines(NOTES / "banks" / f"{name}.jsonl"), name) for name in OWN]
    if args.squad:
        texts = lines(args.squad)[::2][: PARAGRAPHS * SQUADS]
        sources += [of_texts(texts[i::SQUADS], "squad") for i in range(SQUADS)]
    if args.notes:
        memories, updates = lines(args.notes / "memories.jsonl"), lines(args.notes / "updates.jsonl")
        sources += [of_bank(name, memories, updates) for name in BANKS]
    for name in args.embedders.split(","):
        report_notes(name, sources, args.work)
        pairs = [pair for i, one in enumerate(sources) for pair in collect(args.work / f"{name}-{i}", i, one, name)]
        asked = Counter(kind for source in sources for kind, _ in source.asked)
        report(name, pairs, asked)


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


def of_texts(texts: list[dict], name: str) -> Kept:
    rng = random.Random(name)
    for i, text in enumerate(texts):
        text |= {"id": f"text{i}", "created": str(datetime.date(2025, 1, 1) + datetime.timedelta(days=i))}
    kind = "squad" if name == "squad" else "own"
    return Kept(texts, [(kind, qa["q"]) for text in texts for qa in spread(text["qa"], 2, rng)], set())


def of_bank(name: str, memories: list[dict], updates: list[dict]) -> Kept:
    notes = [note for note in memories if note["bank"] == name]
    asked = [("note", qa["q"]) for note in notes for qa in note["qa"]]
    same = set()
    for i, update in enumerate(row for row in updates if row["bank"] == name):
        old, new = update["old"] | {"id": f"old{i}"}, update["new"] | {"id": f"new{i}"}
        notes, asked = [*notes, old, new], [*asked, ("now", update["q"])]
        same.add(frozenset((old["id"], new["id"])))
    return Kept(notes, asked, same)


def bank_of(path: Path, source: Kept, embedder: str) -> megart.Bank:
    """The notes of *source* as a bank of pending memories at *path*."""
    names = ("id", "title", "text", "created")
    memories = [megart.Memory.from_dict({k: note[k] for k in names if note.get(k)}) for note in source.notes]
    bank = megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2")
    bank.set_state("embedder", embedder.encode())
    megart.memorize(bank, memories, later=True)
    return bank


def collect(path: Path, number: int, source: Kept, embedder: str) -> Iterator[Pair]:
    with bank_of(path, source, embedder) as bank:
        with megart.Assistant(bank, threads=1) as assistant:
            for kind, q in source.asked:
                for *values, newer, ids in assistant.on_model(lambda q=q: list(pairs_of(assistant, q))):
                    yield Pair(number, kind, q, *values, frozenset(ids) in source.same, newer)


def pairs_of(
    assistant: megart.Assistant, q: str
) -> Iterator[tuple[dict[str, float], dict[str, float] | None, bool, tuple[str, str]]]:
    """Of the memory that answers *q* and each that may say the same the features, before and after it is read, whether
    that is a newer one with another answer, and their ids.
    """
    opening, reader = assistant.open_bank, assistant.runtime.reader
    opening.memories.refresh()
    encoded, prior = opening._encode(q), opening.memories.prior
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
    answer = first.version(answer=read(first)[2])

    def of_another_day(record: Record) -> bool:
        return record.created[:10] != first.record.created[:10]

    for other, version in opening.versions(first, considered, EVERYTHING, of_another_day):
        unread, values, newer = versions.features(q, answer, version, prior), None, False
        if versions.likely(unread) >= WORTH:
            reading, _, words = read(other)
            values = versions.features(q, answer, version.read(words, reading.odds), prior) if words else None
            newer = values is not None and other.record.created > first.record.created and not values["unchanged"]
        yield unread, values, newer, (first.record.id, other.record.id)


def report(name: str, pairs: list[Pair], asked: Counter[str]) -> None:
    y = np.array([float(pair.same) for pair in pairs])
    s = np.array([OF_NOTES if pair.kind in ("own", "note", "squad") else 1.0 for pair in pairs])
    folds = np.array([pair.row % FOLDS for pair in pairs])

    def fitted(rows: dict[int, dict[str, float]]) -> tuple[np.ndarray, dict[str, float]]:
        """Of the pairs that have features the probability by a model that was not fitted on them; and the weights of all."""
        places, names = np.array([*rows]), [*next(iter(rows.values()))]
        x = np.array([[values[name] for name in names] for values in rows.values()])
        p = np.zeros(len(pairs))
        for fold in range(FOLDS):
            rest = folds[places] != fold
            weights = logistic(x[rest], y[places][rest], s[places][rest])
            p[places[~rest]] = 1 / (1 + np.exp(-x[~rest] @ weights))
        return p, dict(zip(names, logistic(x, y[places], s[places]).round(2).tolist()))

    unread, before = fitted({i: pair.unread for i, pair in enumerate(pairs)})
    p, after = fitted({i: pair.read for i, pair in enumerate(pairs) if pair.read is not None})
    questions: dict[tuple[int, str, str], list[int]] = {}
    for i, pair in enumerate(pairs):
        questions.setdefault((pair.row, pair.kind, pair.q), []).append(i)
    print(f"== {name}: {len(pairs)} pairs, {int(y.sum())} of them say the same")
    for now, before_from in ((0.2, 0.1), (0.3, 0.2), (0.4, 0.3), (0.5, 0.4)):
        found, wrong, harm, reads = Counter(), Counter(), Counter(), Counter()
        for (_, kind, _), places in questions.items():
            worth = [i for i in sorted(places, key=lambda i: -unread[i])[:VERSIONS] if unread[i] >= versions.READ_FROM]
            reads[kind] += len(worth)
            sure = [i for i in worth if p[i] >= (before_from if kind in BEFORE else now) and _answers(pairs[i])]
            if sure:
                best = max(sure, key=lambda i: p[i])
                (found if pairs[best].same else wrong)[kind] += 1
                harm[kind] += pairs[best].newer and not pairs[best].same
        shares = (f"{k}: {found[k]}, wrong {wrong[k]} ({harm[k]} harm) of {n}, {reads[k]} read" for k, n in asked.items())
        print(f">= {now} (before: {before_from}): {' | '.join(shares)}")
    for weights in (before, after):
        print("{" + ", ".join(f'"{key}": {weight}' for key, weight in weights.items()) + "}")


def report_notes(name: str, sources: list[Kept], work: Path) -> None:
    """Fit and show which old note a new one updates: an update of its bank's old note, each other note of none."""
    rows: list[tuple[int, str, dict[str, float], bool]] = []  # source and place of the new note, its kind, features, truth
    new_notes: list[tuple[int, str, list[int]]] = []
    for number, source in enumerate(sources):
        with bank_of(work / f"{name}-{number}", source, name) as bank, megart.Assistant(bank, threads=1) as assistant:
            updated = {id for pair in source.same for id in pair}
            for note in source.notes:
                kind = "update" if note["id"].startswith("new") else source.asked[0][0].replace("now", "beside")
                if note["id"].startswith("old"):
                    continue
                places = []
                for other, values in assistant.on_model(lambda note=note: note_values(assistant, note)):
                    places.append(len(rows))
                    rows.append((number, kind, values, {other, note["id"]} <= updated and other[3:] == note["id"][3:]))
                new_notes.append((number, kind, places))
    names = list(rows[0][2])
    x = np.array([[values[name] for name in names] for _, _, values, _ in rows])
    y, folds = np.array([float(true) for *_, true in rows]), np.array([number % FOLDS for number, *_ in rows])
    p = np.zeros(len(rows))
    for fold in range(FOLDS):
        rest = folds != fold
        p[~rest] = 1 / (1 + np.exp(-x[~rest] @ logistic(x[rest], y[rest], np.ones(rest.sum()))))
    for least in (0.15, 0.2, 0.25, 0.3, 0.4):
        told: dict[str, list[bool]] = {}
        for _, kind, places in new_notes:
            best = max(places, key=lambda i: p[i])
            told.setdefault(kind, []).append(bool(p[best] >= least and (y[best] or kind != "update")))
        print(f"told from {least}: " + ", ".join(f"{kind} {sum(them)} of {len(them)}" for kind, them in told.items()))
    weights = dict(zip(names, logistic(x, y, np.ones(len(y))).round(2).tolist()))
    print("{" + ", ".join(f'"{key}": {weight}' for key, weight in weights.items()) + "}")


def note_values(assistant: megart.Assistant, note: dict) -> list[tuple[str, dict[str, float]]]:
    """The features of the new *note* and each other one of its bank, which is taken for older, by its id."""
    memories = assistant.open_bank.memories
    memories.refresh()
    row = memories.rows([note["id"]])[0]
    alike, by_vectors = memories.alike(row), memories.compares
    others = [other for other in range(len(memories.records)) if other != row]
    nearest = max(others, key=lambda other: alike[other])
    new, *old = (f"{record.title or ''}\n{record.text}" for record in (memories.records[i] for i in (row, *others)))
    return [
        (
            memories.records[other].id,
            versions.note_features(
                new, text, memories.prior, float(alike[other]) if by_vectors else None, nearest=other == nearest
            ),
        )
        for other, text in zip(others, old)
    ]


def _answers(pair: Pair) -> bool:
    if pair.read is None or pair.kind in BEFORE:
        return pair.read is not None
    return pair.read["odds"] >= (versions.ODDS_FROM_FIGURES if pair.read["figures"] else versions.ODDS_FROM)


if __name__ == "__main__":
    main()
