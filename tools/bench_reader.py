"""How well a reader reads: questions put to the text that answers them, and some that it does not answer.

    python tools/bench_reader.py FILE ... [--reader FILE] [--only KEY=VALUE,...] [--every K] [--rows OUT]

Each FILE holds JSON Lines with text and qa [{q, a}], perhaps title, and near or unanswered, questions that the text does
not answer. No gate: the reader is given the right text, so that what is measured is the reader alone. A line a FILE:
exact match and F1 of the short answer, whether the sentence holds the answer; and where there are questions without an
answer, the area under the curve of the reader's log odds, by kind of question.

The reader is the one that ships, or that of --reader. --only partition=3,4 takes the rows whose field is one of these;
--every K only each K-th row (of articles.jsonl and the others of reader_notes/, --every 6 are those that no reader is
trained on).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--reader", type=Path, help="the GGUF file of a reader")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--only", default="", help="KEY=VALUE,VALUE: rows of these values")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--near", type=int, default=2, help="questions without an answer of a text, at most")
    parser.add_argument("--rows", type=Path, help="write every question and answer here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder  # read before megart is imported: --reader becomes this user's own
        seen = [row for file in args.files for row in read(file, Path(folder), args)]
    if args.rows:
        args.rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in seen), "utf-8")


def read(file: Path, folder: Path, args: argparse.Namespace) -> list[dict]:
    """Every question of *file* with what the reader said; prints the figures."""
    from megart import Assistant, Bank, readers

    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    key, _, values = args.only.partition("=")
    rows = [row for row in rows if not key or str(row.get(key)) in values.split(",")]
    rows = rows[args.every - 1 :: args.every]
    with Bank.create(folder / file.stem, args.model) as bank:
        if args.reader:
            readers.keep(args.reader.read_bytes(), readers.own_path(bank.model.sha256))
        with Assistant(bank) as assistant:
            assistant.prepare()
            seen = [seen for row in rows for seen in of_row(assistant, row, args.near)]
    asked = [row for row in seen if row["gold"]]
    exact, f1, held = (100 * float(np.mean([row[name] for row in asked])) for name in ("exact", "f1", "held"))
    print(f"{file.name}: {len(asked)} questions: exact {exact:.1f} %, F1 {f1:.1f} %, in the sentence {held:.1f} %", flush=True)
    near = np.array([row["odds"] for row in seen if not row["gold"]])
    for kind in sorted({row["kind"] for row in asked}) if len(near) else ():
        odds = np.array([row["odds"] for row in asked if row["kind"] == kind])
        area = (odds[:, None] > near).mean() + 0.5 * (odds[:, None] == near).mean()
        print(f"  {kind} (n {len(odds)}) against {len(near)} without an answer: area under the curve {area:.3f}, "
              f"median of the log odds {np.median(odds):.1f} and {np.median(near):.1f}", flush=True)  # fmt: skip
    return seen


def of_row(assistant, row: dict, near: int) -> list[dict]:
    """What the reader says to each question of one text."""
    from megart.eval.metrics import contains, squad_scores
    from megart.runtime.answer import Source
    from megart.runtime.ask import said
    from megart.runtime.recite import of_text
    from megart.runtime.terse import terse

    text, title, runtime = row["text"], row.get("title"), assistant.runtime
    without = [(q, "", []) for q in [*row.get("near", []), *row.get("unanswered", [])][:near]]
    asked = [(qa["q"], qa.get("lang") or qa.get("kind") or "plain", qa["a"]) for qa in row["qa"]]

    def on_model() -> list[dict]:
        recital = runtime.hold(of_text(runtime.engine, text), runtime.reader.context)
        saved, seen = runtime.reader.context.save(), []
        for question, kind, gold in [*asked, *without]:
            runtime.reader.context.restore(saved)
            reading = runtime.reader.read(recital, question, title)
            source = Source("", "", text, terse(question, text, reading.span))
            short, golds = said(source, "short"), [gold] if isinstance(gold, str) else gold
            exact, f1 = squad_scores(short, golds) if golds else (0.0, 0.0)
            seen.append({"q": question, "kind": kind, "gold": golds, "said": short, "odds": reading.odds, "text": text})
            seen[-1] |= {"exact": exact, "f1": f1, "held": float(contains(said(source, "sentence"), golds))}
        return seen

    return assistant.on_model(on_model)


if __name__ == "__main__":
    main()
