"""From which probability on a memory answers a question that leans on what was said (THRESHOLD_TALK in gate/known.py).

    python tools/bench_follow.py WORK [--notes FOLDER]

Talks are those of tools/reader_notes/dialogues.dev, each with its own bank, and, with --notes, those of the developers'
banks farm and clinic (FOLDER holds memories.jsonl and dialogues.jsonl). Banks of pending memories are made in WORK. The
turns before a question are answered by their memories; each turn that leans on them is asked with its memory there and
left out, with the text embedder e5 and without. The likelier of the memories that are read answers, if any does.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import megart
from megart.gate import known
from megart.runtime.recall import recall
from megart.runtime.request import Request
from megart.runtime.sampling import SamplingOptions
from megart.runtime.scope import EVERYTHING, Scope

DIALOGUES = Path(__file__).parent / "reader_notes" / "dialogues.dev"
BANKS = ("farm", "clinic")
MODES = {"meaning": "e5", "words": "words"}


@dataclass
class Turn:
    """A question that leans on what was said; of each memory that is read how probably it answers, and whether it does."""

    there: bool
    rows: list[tuple[float, bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--notes", type=Path)
    args = parser.parse_args()
    talks = [json.loads(line) for line in DIALOGUES.read_text(encoding="utf-8").splitlines()]
    if args.notes:
        memories, dialogues = (
            [json.loads(line) for line in (args.notes / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
            for name in ("memories", "dialogues")
        )
        for dialogue in dialogues:
            if dialogue["bank"] in BANKS:
                own = [memory for memory in memories if memory["bank"] == dialogue["bank"]]
                talks.append({"bank": own, "turns": dialogue["turns"]})
    for mode, embedder in MODES.items():
        turns = [turn for i, talk in enumerate(talks) for turn in collect(args.work / f"{mode}-{i}", talk, embedder)]
        report(mode, turns)


def collect(path: Path, talk: dict, embedder: str) -> Iterator[Turn]:
    notes = [{name: note[name] for name in ("id", "title", "text") if note.get(name)} for note in talk["bank"]]
    texts = {note["id"]: note["text"] for note in notes}
    with megart.Bank.open(path) if path.exists() else megart.Bank.create(path, model="smollm2") as bank:
        bank.set_state("embedder", embedder.encode())
        megart.memorize(bank, [megart.Memory.from_dict(note) for note in notes], later=True)
        with megart.Assistant(bank, threads=1) as assistant:
            history: list[dict[str, str]] = []
            for turn in talk["turns"]:
                for scope in (EVERYTHING, Scope(without=(turn["memory"],))) if history else ():
                    rows = assistant.on_model(lambda q=turn["q"], s=scope, h=history: look(assistant, q, h, s))
                    if rows is not None:
                        yield Turn(scope is EVERYTHING, [(p, id == turn["memory"]) for id, p in rows])
                answer = texts[turn["memory"]]
                history = [*history, {"role": "user", "content": turn["q"]}, {"role": "assistant", "content": answer}]


def look(
    assistant: megart.Assistant, q: str, history: list[dict[str, str]], scope: Scope
) -> list[tuple[str, float]] | None:
    """Each memory that is read for *q* after *history*, how probably it answers; None where *q* leans on nothing."""
    opening, reader = assistant.open_bank, assistant.runtime.reader
    opening.memories.refresh()
    request = Request("chat", q, history, SamplingOptions(), scope=scope)
    encoded = opening._encode(q)
    considered = opening.consider(encoded, opening._find(encoded, scope), opening._talk(request))
    if not considered.leans:
        return None
    rows = []
    for candidate in considered.candidates[: known.MOST]:
        held = recall(assistant.runtime, opening, candidate.record)
        reading = reader.read(held, q, candidate.record.title)
        if reading.span[1] > reading.span[0] and not candidate.seen.about.is_another:
            values = known.features(candidate.seen, reading.odds, reading.logprob)
            rows.append((candidate.record.id, known.probability(values)))
    return rows


def report(mode: str, turns: list[Turn]) -> None:
    print(f"== {mode}: {sum(t.there for t in turns)} turns, {sum(not t.there for t in turns)} with the memory left out")
    for threshold in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        count: Counter[str] = Counter()
        for turn in turns:
            best = max((row for row in turn.rows if row[0] >= threshold), default=None)
            what = "none" if best is None else "right" if best[1] else "wrong"
            count["there: " + what if turn.there else "left out: " + what] += 1
        print(f">= {threshold}:", ", ".join(f"{name} {count[name]}" for name in sorted(count)))


if __name__ == "__main__":
    main()
