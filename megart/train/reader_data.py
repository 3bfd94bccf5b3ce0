"""What a reader is trained on: passages with questions, some answered by a span of the passage, some by nothing.

Rows are JSON objects with ``text`` and ``qa`` [{"q", "a" [str]}], perhaps ``title`` and ``unanswered`` [str], questions
that the text does not answer. More questions without an answer are made here: of a text cut down to one to three
sentences the answers to some of its questions are gone, and a question whose number or name is exchanged is about
something else.

A question may also name ``rivals`` [str], the ids of other rows that a search takes for what it asks: "qa" {"q", "a",
"rivals"}, and under ``unanswered`` {"q", "rivals"}. It is then a choice among these texts and its own.
Knows nothing of tokens, models or files.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import sentences

LONGEST_ANSWER = 12  # words; longer answers are no spans that a reader should give
LONGEST_PASSAGE = 110  # words; longer texts are always cut down
# What a question may be about: a number or identifier, or a name inside the sentence.
_SUBJECT = re.compile(r"\b[\w.-]*\d[\w.:/-]*\b|(?<=[a-zß-ÿ,] )[A-Z][\w'-]+(?: [A-Z][\w'-]+)*")


@dataclass(frozen=True)
class Asked:
    """One question; ``span`` is where in the passage its answer stands, in characters, or None."""

    question: str
    span: tuple[int, int] | None


@dataclass(frozen=True)
class Passage:
    """A text with questions about it."""

    text: str
    title: str | None
    examples: tuple[Asked, ...]


@dataclass(frozen=True)
class Choice:
    """A question put to several texts, (text, title) each: the first answers it by its ``span``; None: no text does."""

    question: str
    texts: tuple[tuple[str, str | None], ...]
    span: tuple[int, int] | None


def choices(rows: Iterable[Mapping[str, Any]]) -> list[Choice]:
    """The questions of *rows* that name rivals which are there. An answer that is no short span of its text makes none."""
    rows = list(rows)
    known = {row["id"]: (row["text"], row.get("title")) for row in rows if "id" in row}
    made = []
    for row in rows:
        for asked in [*row["qa"], *(q for q in row.get("unanswered") or () if not isinstance(q, str))]:
            others = [known[rival] for rival in asked.get("rivals") or () if rival in known]
            span = find(row["text"], asked["a"]) if "a" in asked else None
            if others and (span or "a" not in asked):
                made.append(Choice(asked["q"], ((row["text"], row.get("title")), *others), span))
    return made


def passages(rows: Iterable[Mapping[str, Any]], seed: int = 0) -> list[Passage]:
    """Passages made of *rows*, the same for the same *seed*, in random order."""
    rng = random.Random(seed)
    rows = list(rows)
    names = [match[0] for row in rows for q in row["qa"] for match in _SUBJECT.finditer(q["q"])]
    usable = []
    for row in rows:
        for start, end in _windows(row["text"], rng):
            passage = _passage(row, row["text"][start:end], names, rng)
            if passage.examples:
                usable.append(passage)
    rng.shuffle(usable)
    return usable


def _windows(text: str, rng: random.Random) -> list[tuple[int, int]]:
    """The parts of *text* to read: a short one whole, now and then a part of it; of a long one two parts."""
    cut = sentences.spans(text)
    long = len(text.split()) > LONGEST_PASSAGE
    if len(cut) < 3 or (not long and rng.random() < 0.8):
        return [(0, len(text))]
    windows = []
    for _ in range(2 if len(cut) > 3 else 1):
        size = rng.choice((1, 2, 2, 3, 4) if long else (1, 2))
        first = rng.randrange(0, max(1, len(cut) - size + 1))
        windows.append((cut[first][0], cut[min(first + size, len(cut)) - 1][1]))
    return windows


def _passage(row: Mapping[str, Any], text: str, names: Sequence[str], rng: random.Random) -> Passage:
    answered, unanswered = [], [q for q in row.get("unanswered") or () if isinstance(q, str)]
    for qa in (qa for qa in row["qa"] if not qa.get("rivals")):
        span = find(text, qa["a"])
        if span:
            answered.append(Asked(qa["q"], span))
        elif not any(a.lower() in text.lower() for a in qa["a"]):
            unanswered.append(qa["q"])
    strangers = [q for e in answered if rng.random() < 0.3 and (q := _exchanged(e.question, text, names, rng))]
    rng.shuffle(unanswered)
    most = max(1, len(answered))
    nothing = [Asked(q, None) for q in (strangers + unanswered)[:most]]
    asked = answered + nothing
    # In a conversation a question follows another one: the last one is to be answered.
    ahead = [f"{rng.choice(asked).question} " if rng.random() < 0.1 else "" for _ in asked]
    examples = [Asked(first + _typed(e.question, rng), e.span) for first, e in zip(ahead, asked)]
    rng.shuffle(examples)
    title = row.get("title")
    return Passage(text, title.replace("_", " ") if title and rng.random() < 0.7 else None, tuple(examples))


def find(text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """Where the first of *answers* that is short and stands in *text* as whole words does."""
    for answer in answers:
        if not answer.strip() or len(answer.split()) > LONGEST_ANSWER:
            continue
        pattern = re.escape(answer.strip())
        if answer.strip()[0].isascii() and answer.strip()[-1].isascii():
            pattern = rf"(?<!\w){pattern}(?!\w)"
        match = re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE)
        if match:
            return match.span()
    return None


def _exchanged(question: str, text: str, names: Sequence[str], rng: random.Random) -> str | None:
    """*question* about something else: a name or number in it that *text* has gives way to one that it lacks."""
    held = [m for m in _SUBJECT.finditer(question) if m[0].lower() in text.lower()]
    if not held or not names:
        return None
    match = rng.choice(held)
    for _ in range(8):
        other = _near(match[0], rng) if any(c.isdigit() for c in match[0]) else rng.choice(names)
        if other.lower() not in text.lower() and any(c.isdigit() for c in other) == any(c.isdigit() for c in match[0]):
            return question[: match.start()] + other + question[match.end() :]
    return None


def _near(number: str, rng: random.Random) -> str:
    """Another number or identifier of the same form."""
    places = [i for i, c in enumerate(number) if c.isdigit()]
    changed = list(number)
    for place in rng.sample(places, min(len(places), rng.choice((1, 1, 2)))):
        changed[place] = rng.choice([d for d in "0123456789" if d != changed[place]])
    return "".join(changed)


def _typed(question: str, rng: random.Random) -> str:
    """*question* as somebody in a hurry types it, now and then."""
    if rng.random() < 0.12:
        question = question.rstrip("?.! ").lower()
    if rng.random() < 0.12:
        words = question.split(" ")
        for _ in range(rng.choice((1, 2))):
            at = rng.randrange(len(words))
            words[at] = _slip(words[at], rng)
        question = " ".join(words)
    return question


def _slip(word: str, rng: random.Random) -> str:
    """*word* with two letters swapped, or one missing or doubled; numbers and short words stay."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.randrange(3)
    if kind == 0:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + word[at + 1 :] if kind == 1 else word[: at + 1] + word[at:]
