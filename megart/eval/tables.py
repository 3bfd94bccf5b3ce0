"""Rows into tables of estimates. Knows nothing about HTML or suites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .ledger import Row
from .stats import Estimate, estimate


@dataclass
class Table:
    """Cells as text, a caption above and a note below."""

    heads: list[str]
    rows: list[list[str]]
    caption: str = ""
    note: str = ""


@dataclass
class Section:
    """A part of the report; ``values`` holds the same figures for programs, by name."""

    title: str
    text: str = ""
    tables: list[Table] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)  # SVG
    values: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "text": self.text,
            "tables": [asdict(table) for table in self.tables],
            "values": self.values,
        }


@dataclass(frozen=True)
class Column:
    """A figure of a table: the rows that count (``of``), the field, and how it is shown."""

    head: str
    field: str
    of: Callable[[Row], bool] = lambda row: True
    percent: bool = True

    def over(self, rows: Iterable[Row], seed: int = 0) -> Estimate | None:
        picked = [row for row in rows if self.of(row) and row.get(self.field) is not None]
        groups = [row.get("memory") or row["item"] for row in picked]
        return estimate([float(row[self.field]) for row in picked], groups, seed, rate=self.percent)


def show(value: Estimate | None, percent: bool = True) -> str:
    """An estimate as a table cell: mean [low, high] n."""
    if value is None:
        return "–"
    if percent:
        mean, low, high = (f"{100 * x:.1f}" for x in (value.mean, value.low, value.high))
        return f"{mean} % [{low}, {high}] n={value.n}"
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}] n={value.n}"


def by(
    rows: Sequence[Row], key: str, names: dict[Any, str], columns: Sequence[Column], head: str, seed: int = 0
) -> tuple[Table, dict[str, Any]]:
    """One line per value of *key* (in the order of *names*, absent ones left out), one column per figure."""
    lines, values = [], {}
    for name, label in names.items():
        own = [row for row in rows if row[key] == name]
        estimates = [column.over(own, seed) for column in columns]
        if not any(estimates):
            continue
        lines.append([label, *(show(f, c.percent) for f, c in zip(estimates, columns, strict=True))])
        values[str(name)] = {c.head: f.to_dict() for f, c in zip(estimates, columns, strict=True) if f}
    return Table([head, *(column.head for column in columns)], lines), values


def examples(rows: Sequence[Row], names: dict[str, str], count: int = 8) -> Table:
    """The first questions with every method's answer."""
    asked: dict[str, dict[str, Row]] = {}
    for row in rows:
        if "text" in row and "q" in row and row["method"] in names:
            asked.setdefault(row["item"], {})[row["method"]] = row
    step = max(1, len(asked) // count)
    present = [name for name in names if any(name in by_method for by_method in asked.values())]
    lines = []
    for by_method in list(asked.values())[::step][:count]:
        first = next(iter(by_method.values()))
        cells = [first["q"], " / ".join(first.get("answers", [])[:2])]
        for name in present:
            answer = by_method.get(name)
            mark = "" if answer is None or "correct" not in answer else ("✓ " if answer["correct"] else "✗ ")
            cells.append("–" if answer is None else mark + " ".join(answer["text"].split())[:160])
        lines.append(cells)
    return Table(["question", "right", *(names[name] for name in present)], lines, "Examples")


def learning(rows: Sequence[Row]) -> list[Section]:
    """What it took to learn the memories, by partition; nothing when no bank was opened."""
    lines, values = [], {}
    for name in dict.fromkeys(row["partition"] for row in rows):
        known = [r for r in rows if r["partition"] == name and r["method"] == "learnt"]
        failed = [r["item"] for r in rows if r["partition"] == name and r["method"] == "unlearnable"]
        if not known and not failed:
            continue
        size = median(r["bytes"] for r in known) if known else 0
        ranks = Counter(r["rank"] for r in known)
        steps = [r["study"]["steps"] for r in known if r["study"].get("steps") is not None]
        lines.append([
            name, f"{len(known)} of {len(known) + len(failed)}", f"{size / 1e6:.2f} MB",
            ", ".join(f"{rank}: {count}" for rank, count in sorted(ranks.items())),
            f"{median(steps):.0f}" if steps else "–", ", ".join(failed) or "–",
        ])  # fmt: skip
        values[name] = {"learnt": len(known), "failed": failed, "median_bytes": size}
    heads = ["bank", "learnt", "bytes a memory (median)", "memories by rank", "steps (median)", "not learnt"]
    return [Section("Learning", "", [Table(heads, lines)], values={"learning": values})] if lines else []
