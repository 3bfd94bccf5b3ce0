"""Questions of our own to held banks, which no reader is trained on: two memories at once, attributes asked by name,
yes or no, and in everyday words.

    python tools/bench_held.py WORK [--embedder e5+states] [--kinds compare,whether,...] [--all]

The rows are those of tools/reader_notes/pairs.dev (compare, chain, both), attributes.dev (attribute, near) and
everyday.dev (whether, everyday, everyday-near); the banks (tools/reader_notes/banks) are made in WORK, pending.
Right: the answer, of one or two sentences, holds what is meant ("both": both of it), and is known; for "compare",
"chain" and "both" also how often both memories are its sources. Rows of "near" and "everyday-near" should not be
answered: the share that is. Rows that fail are printed, with --all every row.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import megart
from megart.gate.words import WORD, fold

NOTES = Path(__file__).parent / "reader_notes"
FILES = ("pairs.dev", "attributes.dev", "everyday.dev")
KINDS = "compare,chain,both,attribute,near,whether,everyday,everyday-near"


def words(text: str) -> str:
    return f" {' '.join(map(fold, WORD.findall(text)))} "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--embedder", default="states")
    parser.add_argument("--kinds", default=KINDS)
    parser.add_argument("--all", action="store_true")
    args = parser.parse_args()
    lines = [line for name in FILES for line in (NOTES / name).read_text("utf-8").splitlines()]
    rows = [row for row in map(json.loads, lines) if row["kind"] in args.kinds.split(",")]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for name in dict.fromkeys(row["bank"] for row in rows):
        with held(args.work / name, name, args.embedder) as bank, megart.Assistant(bank) as assistant:
            for row in (row for row in rows if row["bank"] == name):
                answer = assistant.ask(row["q"], strict=True)
                right, both = judged(row, answer)
                for place, share in enumerate((right, both, True)):
                    counts[row["kind"]][place] += share
                if args.all or right == (not row["a"]):
                    print(f"{row['kind']}: {row['q']} -> {answer.text!r}", flush=True)
    for kind, (right, both, count) in counts.items():
        said = "answered" if kind.endswith("near") else "right"
        print(f"{kind}: {said} {right} of {count}" + (f", from both {both}" if kind in ("compare", "chain", "both") else ""))


def judged(row: dict, answer: megart.Answer) -> tuple[bool, bool]:
    """Whether it is right (a near one: answered at all), and whether it comes from all the memories that it should."""
    heard, sources = words(answer.text), {source.id for source in answer.sources}
    held = [words(gold) in heard or fold(gold) in fold(answer.text) for gold in row["a"]]
    enough = not row["a"] or (all(held) if row["kind"] == "both" else any(held))
    return answer.known is True and enough, set(row.get("memories", ["?"])) <= sources


def held(path: Path, name: str, embedder: str) -> megart.Bank:
    made = path.exists()
    bank = megart.Bank.open(path) if made else megart.Bank.create(path, model="smollm2")
    if not made:
        bank.set_state("embedder", embedder.encode())
        notes = map(json.loads, (NOTES / "banks" / f"{name}.jsonl").read_text("utf-8").splitlines())
        megart.memorize(bank, [megart.Memory(n["text"], title=n.get("title"), id=n["id"]) for n in notes], later=True)
    return bank


if __name__ == "__main__":
    main()
