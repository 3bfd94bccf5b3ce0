"""The paper's table: bare base, MEGa, iRAG, RAG and what fine-tuning does, on the same memories."""

from __future__ import annotations

from .. import general, methods
from ..baselines import LABELS as BASELINES
from ..baselines import units as baseline_units
from ..data import Item, Question
from ..judge import Judge
from ..ledger import Row
from ..plots import bars
from ..run import Run, Unit
from ..tables import Column, Section, Table, by, examples

PAPER_QA = {
    "base": (0.13, 8.17), "rag": (82.57, 88.83), "seq-full": (12.60, 17.90), "seq-full-l2": (25.47, 31.33),
    "seq-full-ewc": (14.10, 21.43), "batch-full": (54.77, 76.87), "seq-lora": (0.80, 0.53),
    "seq-lora-l2": (12.27, 18.20), "mega": (72.53, 78.03), "irag": (80.67, 84.70), "mega-right": (89.60, 81.07),
}  # fmt: skip
_RECALLERS = ("base", "mega", "mega-right", "rag")


def units(run: Run) -> list[Unit]:
    todo = []
    for part in run.data.partitions.values():
        stage = len(part.items)
        for item in part.items:
            todo += _memory(run, part.name, stage, item)
        for composite in part.composites:
            todo += asked(run, part.name, stage, composite.question, composite.memories)
        tried = [m for m in ("base", "mega") if run.wants(m)]
        todo += general.units(run, part.name, stage, tried)
    for part in run.data.partitions.values():
        todo += baseline_units(run, part)
    return todo


def _memory(run: Run, partition: str, stage: int, item: Item) -> list[Unit]:
    todo = []
    cue = item.questions[0].q if item.questions else _title_cue(item)
    for method in filter(run.wants, _RECALLERS):
        todo.append(_recall(run, partition, stage, method, item, "recall", cue))
    if item.memory.title and run.wants("mega"):
        todo.append(_recall(run, partition, stage, "mega", item, "title", _title_cue(item)))
    for question in item.questions:
        todo += asked(run, partition, stage, question, (item.id,))
    return todo


def _title_cue(item: Item) -> str:
    return f"Tell me about {item.memory.title or ' '.join(item.memory.text.split()[:6])}."


def _recall(run: Run, partition: str, stage: int, method: str, item: Item, name: str, cue: str) -> Unit:
    def work() -> Row:
        return methods.recall(run.taught(partition), method, item.id, cue, item.memory.text)

    return Unit(partition, stage, method, f"{item.id}/{name}", "recall", work)


def asked(run: Run, partition: str, stage: int, question: Question, memories: tuple[str, ...]) -> list[Unit]:
    """The gate's ranking and every method's answer to one question."""
    judge = Judge(run.options.judge, run.options.judge_model) if run.options.judge else None
    todo = []
    if run.wants("mega"):
        todo.append(
            Unit(
                partition, stage, "gate", question.id, "gate",
                lambda: methods.gate(run.taught(partition), question, memories),
            )
        )  # fmt: skip
    for method in filter(run.wants, methods.LABELS):

        def work(method: str = method) -> Row:
            taught = run.taught(partition)
            return methods.ask(taught, method, question, memories, run.options.max_tokens, judge=judge)

        todo.append(Unit(partition, stage, method, question.id, methods.kind(method), work))
    return todo


# -- reading ------------------------------------------------------------------------------------

LABELS = {**methods.LABELS, **BASELINES}


def is_answer(row: Row) -> bool:
    return "correct" in row and row.get("memory") is not None


def is_composite(row: Row) -> bool:
    return "correct" in row and row.get("memory") is None


def _compares(row: Row) -> bool:
    return str(row.get("sort", "")).startswith("compare")


COLUMNS = [
    Column("QA, contained", "correct", is_answer),
    Column("QA, in one sentence", "one_sentence", is_answer),
    Column("QA, judged", "judge", is_answer),
    Column("exact match", "exact", is_answer),
    Column("F1", "f1", is_answer),
    Column("log p of the answer, per token", "logprob", is_answer, percent=False),
    Column("recall, verbatim", "verbatim", lambda r: r["item"].endswith("/recall")),
    Column("recall, cosine", "cosine", lambda r: r["item"].endswith("/recall"), percent=False),
    Column("recall by title, verbatim", "verbatim", lambda r: r["item"].endswith("/title")),
    Column("two facts at once", "correct", lambda r: is_composite(r) and not _compares(r)),
    Column("which of two", "correct", lambda r: is_composite(r) and _compares(r)),
]


def sections(rows: list[Row], run: Run) -> list[Section]:
    whole = [row for row in rows if row["method"] in methods.LABELS]
    stages = ", ".join(f"{name}: {len(part.items)}" for name, part in run.data.partitions.items())
    columns = [c for c in COLUMNS if any(c.of(r) and r.get(c.field) is not None for r in rows)]
    table, values = by(whole, "method", LABELS, columns, "method", run.options.seed)
    table.note = (
        "Recall is called up by the memory's first question, which is in no training prompt: it opens the memory, and "
        "the memory's own cue calls up the text; by title: by that cue. What RAG recalls is the passage it retrieves. "
        "Two facts at once: the answer must hold both. Which of two: it must name the right one and not the other. "
        "Intervals: 95 %, bootstrap over memories (Wilson where all are alike)."
    )
    main = Section("Methods side by side", f"Memories in the bank: {stages}.", [table], values={"methods": values})
    main.figures.append(bars(values, "QA, contained", LABELS, "questions answered"))
    report = [main, gate_section(rows, run), *general_section(rows, run)]
    tuned = _baseline_section(rows, run, columns)
    report += tuned
    per = _partitions(whole, run)
    report.append(Section("Per partition", tables=[per]))
    fine_tuned = tuned[0].values["baselines"] if tuned else {}
    report.append(_beside_the_paper({**{m: fine_tuned[m] for m in BASELINES if m in fine_tuned}, **values}))
    report.append(Section("What was said", tables=[examples([r for r in whole if is_answer(r)], methods.LABELS)]))
    return report


def gate_section(rows: list[Row], run: Run) -> Section:
    columns = [
        Column("right memory first", "top1"),
        Column("among first five", "top5"),
        Column("something opens", "opens"),
        Column("right one opens", "right_open"),
        Column("a wrong one opens (alone or beside)", "wrong_open"),
    ]
    gates = [row for row in rows if row["method"] == "gate" and row.get("memory")]
    table, values = by(gates, "partition", {n: n for n in run.data.partitions}, columns, "partition", run.options.seed)
    lines, total = by([{**r, "all": "all"} for r in gates], "all", {"all": "all"}, columns, "", run.options.seed)
    table.rows += lines.rows
    return Section("The gate", tables=[table], values={"gate": {**values, **total}})


def general_section(rows: list[Row], run: Run) -> list[Section]:
    columns = [
        Column("multiple choice (per byte)", "acc_norm"),
        Column("multiple choice (plain)", "acc"),
        Column("something opened", "opens"),
    ]
    choices = [
        {**r, "opens": float(bool(r["opened"])) if "opened" in r else None}
        for r in rows
        if r["item"].startswith("choice/")
    ]
    if not choices and not any("nll" in row for row in rows):
        return []
    table, values = by(choices, "method", LABELS, columns, "method", run.options.seed)
    table.heads.append("perplexity")
    for method, label in LABELS.items():
        perplexity = general.perplexity([row for row in rows if row["method"] == method])
        if perplexity:
            values.setdefault(method, {})["perplexity"] = {"mean": round(perplexity[0], 3), "n": perplexity[1]}
            line = next((line for line in table.rows if line[0] == label), None)
            if line:
                line.append(f"{perplexity[0]:.2f} n={perplexity[1]} tokens")
    for line in table.rows:
        line += ["–"] * (len(table.heads) - len(line))
    text = "Multiple choice by log-likelihood of each choice's text as the model's turn; perplexity of plain text."
    return [Section("General knowledge", text, [table], values={"general": values})]


def _baseline_section(rows: list[Row], run: Run, columns: list[Column]) -> list[Section]:
    own = [row for row in rows if row["method"] in BASELINES]
    if not own:
        return []
    asked_items = {(row["partition"], row["item"]) for row in own}
    same = [r for r in rows if r["method"] in LABELS and (r["partition"], r["item"]) in asked_items]
    used_columns = [c for c in columns if c.head not in ("two facts at once", "which of two")] + [
        Column("multiple choice", "acc_norm")
    ]
    table, values = by(same, "method", LABELS, used_columns, "method", run.options.seed)
    count = run.options.baseline_memories
    text = (
        f"Fine-tuning was run on the first {count} memories of each partition only (processor time); the other methods "
        "are shown on the same questions, their banks holding the whole partition, which is harder for the gate. "
        "Trained on the same examples, from the same dequantised weights, answered in PyTorch. Multiple choice: the "
        "general knowledge that is left, on the same questions."
    )
    return [Section(f"Against fine-tuning, {count} memories", text, [table], values={"baselines": values})]


def _partitions(rows: list[Row], run: Run) -> Table:
    column = COLUMNS[0]
    names = list(run.data.partitions)
    lines = []
    for method, label in methods.LABELS.items():
        cells = []
        for name in names:
            estimate = column.over([r for r in rows if r["method"] == method and r["partition"] == name])
            cells.append("–" if estimate is None else f"{100 * estimate.mean:.1f} % n={estimate.n}")
        if any(cell != "–" for cell in cells):
            lines.append([label, *cells])
    return Table(["QA, contained", *names], lines)


def _beside_the_paper(values: dict) -> Section:
    lines = []
    for method, (fictional, wiki) in PAPER_QA.items():
        ours = values.get(method, {}).get("QA, contained")
        mine = f"{100 * ours['mean']:.1f} % (n={ours['n']})" if ours else "–"
        lines.append([LABELS[method], mine, f"{fictional:.1f} %", f"{wiki:.1f} %"])
    text = (
        "The paper: Llama-3.1-8B-Instruct, rank 128, 50 memories, answers judged by a language model, mean of 20 "
        "partitions. Here: another base, normalised containment. Read the order of the methods, not the distance."
    )
    table = Table(["method", "here", "paper, fictional", "paper, Wikipedia 2024"], lines)
    return Section("Beside the paper's own numbers", text, [table])
