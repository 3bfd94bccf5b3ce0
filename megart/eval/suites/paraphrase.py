"""Recall and answers under queries that were in no training prompt, beside the original wording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ... import recipes
from .. import methods
from ..data import Item, Question
from ..ledger import Row
from ..plots import bars
from ..run import Run, Unit
from ..tables import Column, Section, by, examples

KINDS = {
    "original": "as in the data",
    "rephrased": "rephrased by the data's author",
    "polite": 'wrapped: "Could you please tell me: ...?"',
    "keywords": "key words only, no function words",
    "typo": "two letters swapped in each of the two longest words",
}
CUES = {
    "title": "Tell me about ... (a studied cue)",
    "remind": "Remind me of everything on ...",
    "know": "What do you know about ...?",
    "name": "the bare title",
    "question": "a question about it",
}
_METHODS = ("base", "mega", "mega-right", "irag")
_FUNCTION = (
    "a an and are as at be by did do does for from had has have her his how in into is it its of on or she he that "
    "the their they this to was were what when where which who whom whose why will with"
)


def rewordings(question: Question) -> Iterator[tuple[str, str]]:
    """(kind, wording) pairs of a question, no wording twice."""
    body = question.q.rstrip("?").strip()
    function = set(_FUNCTION.split())
    keywords = [word for word in re.findall(r"[\w'-]+", body) if word.lower() not in function]
    pairs = [("original", question.q), *(("rephrased", words) for words in question.rephrased)]
    pairs += [
        ("polite", f"Could you please tell me: {body}?"),
        ("keywords", " ".join(keywords)),
        ("typo", typo(question.q)),
    ]
    seen: set[str] = set()
    for kind, words in pairs:
        if words and words not in seen:
            seen.add(words)
            yield kind, words


def typo(text: str) -> str:
    """*text* with two letters swapped in the middle of each of its two longest words."""
    for word in sorted(set(re.findall(r"\w{5,}", text)), key=lambda w: (-len(w), w))[:2]:
        middle = len(word) // 2
        wrong = word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]
        text = text.replace(word, wrong, 1)
    return text


def cues(item: Item) -> Iterator[tuple[str, str]]:
    """(kind, cue) pairs that call a memory up."""
    name = item.memory.title or " ".join(item.memory.text.split()[:6])
    yield "title", f"Tell me about {name}."
    yield "remind", f"Remind me of everything on {name}."
    yield "know", f"What do you know about {name}?"
    yield "name", name
    if item.questions:
        yield "question", item.questions[0].q


def studied(item: Item, recipe: str) -> set[str]:
    """The user turns that the memory is taught with."""
    return {user for user, _ in recipes.examples(item.memory, recipes.RECIPES[recipe])}


def units(run: Run) -> list[Unit]:
    todo = []
    for part in run.data.partitions.values():
        for item in part.items:
            taught = studied(item, run.options.recipe)
            for kind, cue in cues(item):
                for method in filter(run.wants, ("mega", "mega-right")):
                    todo.append(_recall(run, part.name, len(part.items), method, item, kind, cue))
            for question in item.questions:
                counts: dict[str, int] = {}
                for kind, words in rewordings(question):
                    if words in taught:
                        continue
                    number = counts[kind] = counts.get(kind, 0) + 1
                    asked = replace(question, q=words)
                    for method in filter(run.wants, _METHODS):
                        todo.append(_ask(run, part.name, len(part.items), method, item, asked, f"{kind}{number}"))
    return todo


def _recall(run: Run, partition: str, stage: int, method: str, item: Item, kind: str, cue: str) -> Unit:
    def work() -> Row:
        row = methods.recall(run.taught(partition), method, item.id, cue, item.memory.text)
        return {**row, "cue_kind": kind}

    return Unit(partition, stage, method, f"{item.id}/cue-{kind}", "recall", work)


def _ask(run: Run, partition: str, stage: int, method: str, item: Item, question: Question, name: str) -> Unit:
    def work() -> Row:
        row = methods.ask(run.taught(partition), method, question, (item.id,), run.options.max_tokens)
        return {**row, "wording": name.rstrip("0123456789")}

    return Unit(partition, stage, method, f"{question.id}/{name}", methods.kind(method), work)


def sections(rows: list[Row], run: Run) -> list[Section]:
    asked = [{**r, "right": None if "right" not in r else float(r["right"])} for r in rows if "wording" in r]
    columns = [Column("answered", "correct"), Column("F1", "f1"), Column("right memory first", "right")]
    report = []
    for method in methods.LABELS:
        own = [row for row in asked if row["method"] == method]
        if not own:
            continue
        table, values = by(own, "wording", KINDS, columns, "wording", run.options.seed)
        text = "Wordings that stand in a training prompt are left out." if method == "base" else ""
        figure = [bars(values, "answered", KINDS, "questions answered")] if method == "mega" else []
        report.append(Section(f"Answers: {methods.LABELS[method]}", text, [table], figure, {method: values}))
    called = [{**r, "right": None if "right" not in r else float(r["right"])} for r in rows if "cue_kind" in r]
    columns = [
        Column("verbatim", "verbatim"), Column("cosine", "cosine", percent=False),
        Column("right memory first", "right"),
    ]  # fmt: skip
    for method in ("mega", "mega-right"):
        own = [row for row in called if row["method"] == method]
        if own:
            table, values = by(own, "cue_kind", CUES, columns, "cue", run.options.seed)
            report.append(
                Section(f"Recall: {methods.LABELS[method]}", "", [table], values={f"recall {method}": values})
            )
    shown = [row for row in asked if row["wording"] != "original"]
    return [*report, Section("What was said", tables=[examples(shown, methods.LABELS, 12)])]
