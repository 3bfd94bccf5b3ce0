"""The first memories after each further one: does what was learnt stay?

The bank grows one memory at a time. A memory's adapter does not depend on the others, so it is taught once
and its file copied into the growing bank.
"""

from __future__ import annotations

from functools import partial

from .. import methods
from ..baselines import LABELS as BASELINES
from ..baselines import Tuned
from ..data import Item, Partition, Question
from ..growing import copy_memory
from ..ledger import Row
from ..plots import lines
from ..run import PartitionBank, Run, Unit
from ..tables import Column, Section, by

_DEFAULT = ("base", "mega")
_NAMES = {"base": "bare base model", "mega": "MEGa", "irag": "MEGa + iRAG", **BASELINES}


def units(run: Run) -> list[Unit]:
    todo = []
    for part in run.data.partitions.values():
        grown = _Growing(run, part)
        firsts = part.items[: run.options.first]
        for stage in range(1, len(part.items) + 1):
            for item in firsts[:stage]:
                for method in _methods(run):
                    if method == "base" and stage != len(firsts):
                        continue  # the base does not change: asked once
                    todo += _item(run, part, grown, stage, method, item)
        for method in BASELINES:
            # Fine-tuning takes minutes a memory: only on request.
            if run.options.methods and method in run.options.methods and method.startswith("seq"):
                todo.append(_baseline(run, part, method, firsts))
    return todo


def _methods(run: Run) -> list[str]:
    chosen = run.options.methods or _DEFAULT
    return [method for method in ("base", "mega", "irag") if method in chosen]


class _Growing:
    """The growing bank of a partition and an Assistant on it, opened at the first question."""

    def __init__(self, run: Run, part: Partition):
        self.run, self.part = run, part
        self._taught: PartitionBank | None = None

    def at(self, stage: int) -> PartitionBank:
        """A bank that holds exactly the first *stage* memories (fewer where some could not be learnt)."""
        source = self.run.taught(self.part.name)
        if self._taught is None or self.run.side is not self._taught:
            self._taught = self.run.open_side(self.part, "growing")
        wanted = [item.id for item in self.part.items[:stage]]
        for record in self._taught.bank.records():
            if record.id not in wanted:
                self._taught.bank.remove(record.id)
        for id in wanted:
            if source.bank.find(id) is not None:
                copy_memory(source, self._taught.bank, id)
        return self._taught


def _item(run: Run, part: Partition, grown: _Growing, stage: int, method: str, item: Item) -> list[Unit]:
    cue = item.questions[0].q if item.questions else f"Tell me about {item.memory.title}."
    todo = []
    if method != "irag":
        todo.append(
            Unit(
                part.name, stage, method, f"{item.id}/recall", "recall",
                lambda: methods.recall(grown.at(stage), method, item.id, cue, item.memory.text),
            )
        )  # fmt: skip

    def asked(question: Question) -> Row:
        return methods.ask(grown.at(stage), method, question, (item.id,), run.options.max_tokens)

    for question in item.questions:
        todo.append(
            Unit(
                part.name, stage, method, question.id, methods.kind(method),
                partial(asked, question),
            )
        )  # fmt: skip
    return todo


def _baseline(run: Run, part: Partition, method: str, firsts: list[Item]) -> Unit:
    """Fine-tuning through all memories in one go, asked after each (``stage`` in the row)."""

    def work() -> dict[tuple[str, str], Row]:
        network = Tuned(run, run.taught(part.name).assistant.engine, method)
        rows = {}
        for stage, item in enumerate(part.items[: run.options.baseline_memories], 1):
            network.learn([item])
            for (name, key), row in network.answers(firsts[:stage]).items():
                rows[name, f"{key}@{stage}"] = {**row, "after": stage}
        return rows

    return Unit(part.name, len(part.items), method, "one after another", "train", work, many=True)


def sections(rows: list[Row], run: Run) -> list[Section]:
    rows = [{**row, "after": row.get("after", row["stage"])} for row in rows]
    answers = [row for row in rows if "correct" in row]
    recalls = [row for row in rows if "verbatim" in row]
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"answered": {}, "verbatim": {}}
    values: dict[str, dict] = {}
    for method, label in _NAMES.items():
        for name, own, field in (("answered", answers, "correct"), ("verbatim", recalls, "verbatim")):
            chosen = [row for row in own if row["method"] == method]
            if not chosen:
                continue
            stages = sorted({row["after"] for row in chosen})
            _, by_stage = by(chosen, "after", {s: str(s) for s in stages}, [Column(name, field)], "memories")
            points = [(s, by_stage[str(s)][name]["mean"]) for s in stages]
            if method == "base":
                points = [(1, points[0][1]), (max(r["after"] for r in rows), points[0][1])]
            curves[name][label] = points
            values.setdefault(method, {})[name] = by_stage
    first = run.options.first
    titles = {
        "answered": "Questions about the first memories",
        "verbatim": "Recall of the first memories, word for word",
    }
    report = []
    for name, title in titles.items():
        figure = lines(curves[name], "memories in the bank", name, percent=True)
        own = [r for r in (answers if name == "answered" else recalls) if r["method"] == "mega"]
        names = {s: str(s) for s in sorted({r["after"] for r in own})}
        columns = [Column("answered", "correct"), Column("F1", "f1")] if name == "answered" else [Column(name, name)]
        table, _ = by(own, "after", names, columns, "memories in the bank", run.options.seed)
        table.caption = "MEGa"
        text = f"The first {first} memories, asked after each further one. Until they are all in, as many as there are."
        by_method = {m: v[name] for m, v in values.items() if name in v}
        report.append(Section(title, text, [table], [figure], {name: by_method}))
    return report
