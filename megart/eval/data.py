"""Evaluation data: JSON Lines (and plain text for perplexity), told apart by their keys.

A row with ``text`` is a memory (``qa``: [{``q``, ``a`` [str], ``rephrased`` or ``q_para``}]), one with
``paragraph_ids`` a question about several memories, one with ``choices`` multiple choice, one with ``old``
and ``new`` a contradiction, one with ``plain`` a text for perplexity, one with ``q`` alone a question about
nothing. Knows nothing about models.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from ..bank import Memory
from ..errors import InputError

SHIPPED = "data/quick.jsonl"


@dataclass(frozen=True)
class Question:
    """A question with every accepted answer; ``memory`` is the id of the memory it is about, if any.

    ``parts``: what an answer must hold all of, where the question asks for several things; ``wrong``: what it
    must not hold, where it asks for one of several; ``kind``: of question, as the data names it.
    """

    id: str
    q: str
    answers: tuple[str, ...] = ()
    memory: str | None = None
    rephrased: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Item:
    """A memory and the questions about it."""

    memory: Memory
    questions: tuple[Question, ...]

    @property
    def id(self) -> str:
        assert self.memory.id is not None
        return self.memory.id


@dataclass(frozen=True)
class Composite:
    """A question that needs all of ``memories``."""

    question: Question
    memories: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """Multiple choice; ``right`` is the index of the right one."""

    id: str
    q: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True)
class Contradiction:
    """An old text and a new one that contradicts it; the answers are those of each."""

    id: str
    title: str | None
    old: str
    new: str
    q: str
    old_answers: tuple[str, ...]
    new_answers: tuple[str, ...]


@dataclass
class Partition:
    """Memories that live in one bank."""

    name: str
    items: list[Item] = field(default_factory=list)
    composites: list[Composite] = field(default_factory=list)

    @property
    def questions(self) -> list[Question]:
        return [question for item in self.items for question in item.questions]


@dataclass
class Data:
    """All that was read, and from where."""

    partitions: dict[str, Partition] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    conflicts: list[Contradiction] = field(default_factory=list)
    unrelated: list[Question] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


def shipped() -> Path:
    """The small set that comes with megart, our own writing."""
    with resources.as_file(resources.files("megart").joinpath(SHIPPED)) as path:
        return path


def load(files: Iterable[str | Path], partitions: Sequence[int] | None = None) -> Data:
    """Everything in *files*; ``partitions`` keeps only the rows of those partition numbers.

    Rows without a partition number belong to partition 0 and are always kept. Raises InputError naming
    file and line.
    """
    data = Data()
    composites: list[Composite] = []
    for path in map(Path, files):
        data.files.append(path.name)
        try:
            words = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise InputError(f"{path}: {reason}; expected a JSON Lines or text file") from None
        if path.suffix in (".txt", ".md"):
            data.texts.append((path.stem, words))
            continue
        for number, line in enumerate(words.split("\n"), 1):  # not splitlines: JSON may hold U+2028
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError("expected a JSON object")
                if partitions is None or row.get("partition") is None or int(row["partition"]) in partitions:
                    _take(data, composites, path.stem, number, row)
            except (ValueError, KeyError, TypeError, InputError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else str(error)
                raise InputError(f"{path}, line {number}: {reason}") from None
    owner = {item.id: part for part in data.partitions.values() for item in part.items}
    for composite in composites:
        part = owner.get(composite.memories[0])
        if part and all(owner.get(id) is part for id in composite.memories):
            part.composites.append(_with_wrong(composite, part))
    return data


def _with_wrong(composite: Composite, part: Partition) -> Composite:
    """A comparison must name one memory's subject and not the others': a recital of all would name each."""
    asked = composite.question
    if not asked.kind.startswith("compare"):
        return composite
    titles = [item.memory.title or "" for item in part.items if item.id in composite.memories]
    names = [re.sub(r"\s*\(.*\)$", "", title) for title in titles if title and title not in asked.answers]
    return replace(composite, question=replace(asked, wrong=tuple(names)))


def _take(data: Data, composites: list[Composite], stem: str, number: int, row: dict[str, Any]) -> None:
    id = str(row.get("id") or f"{stem}-{number}")
    if "paragraph_ids" in row:
        ids = tuple(map(_id, row["paragraph_ids"]))
        parts, sort = _answers(row.get("a_parts", ())), str(row.get("kind", ""))
        composites.append(Composite(Question(id, row["q"], _answers(row["a"]), parts=parts, kind=sort), ids))
    elif "choices" in row:
        right, choices = int(row["a"]), tuple(map(str, row["choices"]))
        if not 0 <= right < len(choices):
            raise ValueError(f"a is {right}; expected the index of one of {len(choices)} choices")
        data.choices.append(Choice(id, row["q"], choices, right))
    elif "old" in row and "new" in row:
        new = row["new"][0] if isinstance(row["new"], list) else row["new"]
        old_answers, new_answers = _answers(row.get("old_a", ())), _answers(row.get("new_a", ()))
        data.conflicts.append(Contradiction(id, row.get("title"), row["old"], new, row["q"], old_answers, new_answers))
    elif "text" in row:
        name = f"{stem}-{row['partition']}" if row.get("partition") is not None else stem
        data.partitions.setdefault(name, Partition(name)).items.append(_item(row))
    elif "plain" in row:
        data.texts.append((id, row["plain"]))
    elif "q" in row:
        data.unrelated.append(Question(id, row["q"]))
    else:
        raise ValueError('expected one of the keys "text", "q", "choices", "plain", "old" and "new"')


def _id(value: Any) -> str:
    """*value* as the id of a memory: what an id may not hold becomes "-"."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", str(value))
    if plain == str(value) and len(plain) <= 64:
        return plain
    return f"{plain.lstrip('._-')[:55]}-{hashlib.sha256(str(value).encode()).hexdigest()[:8]}"


def _item(row: dict[str, Any]) -> Item:
    plain = {key: row[key] for key in ("text", "id", "title", "paraphrases") if row.get(key)}
    memory = Memory.from_dict(plain | ({"id": _id(plain["id"])} if "id" in plain else {}))
    id = memory.id or memory.default_id()
    memory = Memory(memory.text, id, memory.title, memory.paraphrases)
    asked = []
    for number, qa in enumerate(row.get("qa") or ()):
        other = qa.get("rephrased") or ([qa["q_para"]] if qa.get("q_para") else [])
        asked.append(Question(f"{id}/q{number}", qa["q"], _answers(qa["a"]), id, tuple(other)))
    return Item(memory, tuple(asked))


def _answers(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(map(str, value))


def sample(rows: Sequence[Any], count: int | None, seed: int) -> list[Any]:
    """At most *count* of *rows*, drawn with *seed* and kept in their order."""
    if count is None or count >= len(rows):
        return list(rows)
    picked = sorted(random.Random(seed).sample(range(len(rows)), count))
    return [rows[i] for i in picked]
