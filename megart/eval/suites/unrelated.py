"""Questions about nothing in the bank: how often something opens, and what that changes."""

from __future__ import annotations

from collections.abc import Iterator

from ...runtime import score
from .. import general
from ..data import Question, sample
from ..ledger import Row
from ..run import Run, Unit
from ..tables import Column, Section, Table, by
from .paper import general_section

KINDS = {
    "unrelated": "questions about nothing (rows with q alone)",
    "general": "general knowledge (multiple-choice questions)",
    "neighbour": "the right kind of question about somebody of another partition",
    "text": "plain text",
}


def strangers(run: Run, partition: str) -> Iterator[tuple[str, Question]]:
    """(kind, question) pairs that no memory of *partition* is about."""
    for question in run.data.unrelated:
        yield "unrelated", question
    for choice in run.data.choices:
        yield "general", Question(choice.id, choice.q)
    others = [q for name, part in run.data.partitions.items() if name != partition for q in part.questions]
    for question in sample(others, run.options.general, run.options.seed):
        yield "neighbour", question


def units(run: Run) -> list[Unit]:
    todo = []
    for part in run.data.partitions.values():
        name, stage = part.name, len(part.items)
        for kind, question in strangers(run, name):
            todo.append(_gate(run, name, stage, kind, question))
        for number, (kind, question) in enumerate(strangers(run, name)):
            # An answer costs fifty times a gate: a third of them shows whether the words stay the same.
            if number % 3 == 0:
                todo.append(_answer(run, name, stage, kind, question))
        todo += general.units(run, name, stage, [m for m in ("base", "mega") if run.wants(m)])
    return todo


def _gate(run: Run, partition: str, stage: int, kind: str, question: Question) -> Unit:
    def work() -> Row:
        ranking = score.rank(run.taught(partition).assistant, question.q)
        best = round(ranking.scores[0], 5) if ranking.scores else None
        return {"q": question.q, "about": kind, "opened": ranking.opened, "false_open": float(bool(ranking.opened)),
                "best": best}  # fmt: skip

    return Unit(partition, stage, "gate", f"{kind}/{question.id}", "gate", work)


def _answer(run: Run, partition: str, stage: int, kind: str, question: Question) -> Unit:
    def work() -> Row:
        assistant = run.taught(partition).assistant
        bare = assistant.bare(question.q, max_tokens=run.options.max_tokens)
        answer = assistant.ask(question.q, max_tokens=run.options.max_tokens)
        return {"q": question.q, "about": kind, "base": bare.text, "mega_text": answer.text,
                "opened": [m.id for m in answer.memories], "same": float(bare.tokens == answer.tokens),
                "same_unopened": None if answer.memories else float(bare.tokens == answer.tokens)}  # fmt: skip

    return Unit(partition, stage, "answer", f"{kind}/{question.id}", "irag", work)


def sections(rows: list[Row], run: Run) -> list[Section]:
    columns = [
        Column("false opens", "false_open"),
        Column("answer the same as the bare base's, token for token", "same"),
        Column("the same where nothing opened", "same_unopened"),
    ]
    about = [row for row in rows if "about" in row]
    table, values = by(about, "about", KINDS, columns, "questions", run.options.seed)
    total, whole = by([{**r, "all": "all"} for r in about], "all", {"all": "all"}, columns, "", run.options.seed)
    table.rows += total.rows
    stages = ", ".join(f"{name}: {len(part.items)}" for name, part in run.data.partitions.items())
    opened = [row for row in about if row.get("false_open")]
    names = {item.id: item.memory.title or item.id for part in run.data.partitions.values() for item in part.items}
    lines = [
        [r["q"][:160], KINDS[r["about"]].split(" (")[0], ", ".join(names.get(id, id) for id in r["opened"]),
         f"{r['best']:.3f}"]
        for r in sorted(opened, key=lambda r: -r["best"])[:15]
    ]  # fmt: skip
    return [
        Section("False opens", f"Memories in the bank: {stages}.", [table], values={"unrelated": {**values, **whole}}),
        *general_section(rows, run),
        Section("What opened wrongly", tables=[Table(["question", "kind", "opened", "gate score"], lines)]),
    ]
