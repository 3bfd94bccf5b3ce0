"""Two memories that contradict each other: what opens, what is answered, and is it ever a blend."""

from __future__ import annotations

from dataclasses import replace

from ...bank import Bank, Memory
from .. import methods
from ..data import Contradiction, Item, Partition, Question
from ..growing import copy_memory
from ..ledger import Row
from ..metrics import contains, normalised
from ..run import PartitionBank, Run, Unit
from ..tables import Column, Section, Table, by

WORLDS = {
    "both": "both kept, the older one learnt first",
    "replaced": "the new text under the old one's id (memorize --replace)",
}
BOTH = "conflict-both"
ANSWERS = ("new", "old", "both", "neither")
_COMMON = 3  # words shorter than this tell nothing apart


def worlds(run: Run) -> dict[str, Partition]:
    """The partitions that the suite makes of the data's conflicts."""
    both, replaced = [], []
    for conflict in run.data.conflicts:
        both += [_item(conflict, "old", conflict.old), _item(conflict, "new", conflict.new)]
        replaced.append(_item(conflict, "old", conflict.new))
    return {"both": Partition(BOTH, both), "replaced": Partition("conflict-replaced", replaced)}


def _item(conflict: Contradiction, which: str, text: str) -> Item:
    memory = Memory(text, f"{conflict.id}-{which}"[:64], conflict.title)
    return Item(memory, (Question(f"{memory.id}/q0", conflict.q, memory=memory.id),))


def units(run: Run) -> list[Unit]:
    partitions = worlds(run)
    run.data.partitions = {part.name: part for part in partitions.values()}
    todo = []
    for world, part in partitions.items():
        for conflict in run.data.conflicts:
            for method in filter(run.wants, ("mega", "irag")):
                todo.append(_ask(run, world, part, conflict, method))
            todo.append(_recall(run, world, part, conflict))
    return todo


def _taught(run: Run, part: Partition) -> PartitionBank:
    """The bank of a world. An adapter depends on its text alone: what "both" has learnt is not taught again."""
    if part.name == BOTH or run.missing(part) == 0:
        return run.taught(part.name)
    source = run.taught(BOTH)
    with Bank.create(run.bank_folder(part.name), run.model, exist_ok=True) as bank:
        for item in part.items:
            twin = f"{item.id.removesuffix('-old')}-new"
            if bank.find(item.id) is None and source.bank.find(twin) is not None:
                copy_memory(source, bank, twin, item.id)
    return run.taught(part.name)


def _ids(conflict: Contradiction) -> dict[str, str]:
    return {f"{conflict.id}-{which}"[:64]: which for which in ("old", "new")}


def _ask(run: Run, world: str, part: Partition, conflict: Contradiction, method: str) -> Unit:
    def work() -> Row:
        taught = _taught(run, part)
        question = Question(conflict.id, conflict.q)
        row = methods.ask(taught, method, question, list(_ids(conflict)), run.options.max_tokens)
        return {**row, **judged(row["text"], conflict), **_opened(row, conflict), "world": world}

    return Unit(part.name, len(part.items), method, f"{world}/{conflict.id}", methods.kind(method), work)


def _recall(run: Run, world: str, part: Partition, conflict: Contradiction) -> Unit:
    def work() -> Row:
        taught = _taught(run, part)
        row = methods.recall(taught, "mega", conflict.id, conflict.q, conflict.new)
        texts = {"new": conflict.new, "old": conflict.old}
        says = next((name for name, text in texts.items() if row["text"].split() == text.split()), "neither")
        return {**row, "says": says, "world": world, **{f"is_{name}": float(says == name) for name in ANSWERS}}

    return Unit(part.name, len(part.items), "recall", f"{world}/{conflict.id}/recall", "recall", work)


def _opened(row: Row, conflict: Contradiction) -> Row:
    names = _ids(conflict)
    which = sorted({names.get(id, "other") for id in row.get("opened", [])})
    return {
        "which": "+".join(which) or "nothing",
        "opens_both": float({"old", "new"} <= set(which)),
        "opens_none": float(not which),
    }


def judged(text: str, conflict: Contradiction) -> Row:
    """Whose answer *text* is. Without short answers: by the words that only one of the texts has."""
    if conflict.old_answers and conflict.new_answers:
        old, new = contains(text, conflict.old_answers), contains(text, conflict.new_answers)
    else:
        sides = [set(normalised(t).split()) for t in (conflict.old, conflict.new)]
        words = set(normalised(text).split())
        old, new = (_share(words, own - other) >= 0.5 for own, other in (sides, sides[::-1]))
    says = "both" if old and new else "old" if old else "new" if new else "neither"
    return {"says": says, **{f"is_{name}": float(says == name) for name in ANSWERS}}


def _share(words: set[str], own: set[str]) -> float:
    telling = {word for word in own if len(word) >= _COMMON or word.isdigit()}
    return len(words & telling) / len(telling) if telling else 0.0


def sections(rows: list[Row], run: Run) -> list[Section]:
    report = []
    columns = [Column(f"says the {name} answer" if name in ("new", "old") else f"says {name}", f"is_{name}")
               for name in ANSWERS]  # fmt: skip
    columns += [Column("both memories open", "opens_both"), Column("nothing opens", "opens_none")]
    titles = {"mega": "Answers", "irag": "Answers through iRAG", "recall": "Recall"}
    for method, title in titles.items():
        own = [row for row in rows if row["method"] == method and "world" in row]
        if own:
            used = columns if method != "recall" else columns[:4]
            table, values = by([replace_memory(r) for r in own], "world", WORLDS, used, "bank", run.options.seed)
            report.append(Section(title, tables=[table], values={method: values}))
    report[:1] = [replace(report[0], text=_TEXT)] if report else []
    lines = []
    for conflict in run.data.conflicts[:12]:
        for row in rows:
            if row.get("q") == conflict.q and row["method"] in ("mega", "irag"):
                words = " ".join(row["text"].split())[:160]
                lines.append(
                    [conflict.q, WORLDS[row["world"]], methods.LABELS[row["method"]], row["which"], row["says"], words]
                )
    heads = ["question", "bank", "method", "opened", "says", "answer"]
    return [*report, Section("What was said", tables=[Table(heads, lines)])]


_TEXT = (
    'An answer "says both" when it holds what only the old text says and what only the new one says: a blend. '
    '"Neither" holds the answer of none; it may be a blend of another kind, so the answers stand below.'
)


def replace_memory(row: Row) -> Row:
    """Each pair counts as one group in the bootstrap."""
    return {**row, "memory": row["item"].split("/")[1]}
