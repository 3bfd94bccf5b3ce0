"""The shipped set (or other small data) through the main suites, cut to what takes minutes."""

from __future__ import annotations

from ..ledger import Row
from ..run import Run, Unit
from ..tables import Section
from . import conflict, paper, paraphrase, unrelated

# "original" is what the suite "paper" asks already.
_SKIPPED = {"original", "polite", "typo", "rephrased2", "cue-know"}
_CONFLICTS = 2


def units(run: Run) -> list[Unit]:
    plain = dict(run.data.partitions)
    todo = [unit for unit in paper.units(run) if unit.kind != "train"]
    if run.options.methods is None:  # in a bank of eight the gate is right: this would say the same as "mega"
        todo = [unit for unit in todo if unit.method != "mega-right"]
    taken = {(unit.partition, unit.method, unit.item) for unit in todo}
    for unit in [*paraphrase.units(run), *unrelated.units(run)]:
        if unit.method in ("gate", "answer"):
            keep = True
        else:
            keep = unit.method == "mega" and not any(f"/{kind}" in unit.item for kind in _SKIPPED)
        if keep and (unit.partition, unit.method, unit.item) not in taken:
            todo.append(unit)
            taken.add((unit.partition, unit.method, unit.item))
    run.data.conflicts = run.data.conflicts[:_CONFLICTS]
    if run.data.conflicts:
        todo += conflict.units(run)
        run.data.partitions = {**plain, **run.data.partitions}
    return todo


def sections(rows: list[Row], run: Run) -> list[Section]:
    conflict_names = [name for name in run.data.partitions if name.startswith("conflict-")]
    theirs = [row for row in rows if row["partition"] in conflict_names]
    rest = [row for row in rows if row["partition"] not in conflict_names]
    run.data.partitions = {name: part for name, part in run.data.partitions.items() if name not in conflict_names}
    extra = [row for row in rest if "wording" in row or "cue_kind" in row or "about" in row]
    known = {id(row) for row in extra}
    report = paper.sections([row for row in rest if id(row) not in known], run)
    plain = [row for row in rest if row["method"] == "mega" and paper.is_answer(row) and id(row) not in known]
    original = [{**row, "wording": "original"} for row in plain]
    reworded = [s for s in paraphrase.sections([*rest, *original], run) if s.title.startswith(("Answers", "Recall"))]
    report += [Section(f"Reworded. {s.title}", s.text, s.tables, s.figures, s.values) for s in reworded]
    report += [s for s in unrelated.sections(extra, run) if s.tables[0].rows]
    if theirs:
        report += [Section(f"Contradictions. {s.title}", s.text, s.tables, s.figures, s.values)
                  for s in conflict.sections(theirs, run)]  # fmt: skip
    return report
