"""Is it known? One probability that a memory answers a question, from all that was seen of it.

The gate says how well the memory fits, the reader whether the recited text answers, and the words of the question
whether what it is about stands in the memory at all. A logistic model weighs them; fitted by tools/fit_known.py, which
says on what rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .words import WORD, fold, term, term_hash

# Candidates that are less likely than this by the gate alone are not read: a question about something else.
READ_FROM = 0.03
# Read one after the other until one answers.
MOST = 2
THRESHOLD = 0.15
# The log odds of a memory that the user opened by hand.
CERTAIN = 8.0
WEIGHTS = {
    "always": -0.373,
    "gate": 0.309,
    "reader": 0.639,
    "span": 0.289,
    "lacking": -0.34,
    "lacking_number": -0.485,
    "lacking_name": -0.395,
}
_NUMBER = re.compile(r"[\w.:/-]*\d[\w.:/-]*")
_PLAIN = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Subject:
    """What of a question stands in a memory.

    ``lacking``: the share of the question's weight in telling words that the memory lacks, 0 to 1; ``name``: the same of
    the words of its names; ``number``: whether a number or identifier of the question is not there.
    """

    lacking: float = 0.0
    name: float = 0.0
    number: bool = False


def subject(question: str, names: list[str], telling: Mapping[int, float], text: str) -> Subject:
    """How much of *question* stands in *text*; ``telling``: nats of its terms by their hash, ``names``: its names' words."""
    held = {term_hash(term(word)) for word in WORD.findall(text)}
    named = {h: telling.get(h, 1.0) for h in (term_hash(term(name)) for name in names)}
    there = [n for m in _NUMBER.findall(text) if (n := _plain(m))]
    whole = _plain(text)
    numbers = [n for m in _NUMBER.findall(question) if (n := _plain(m))]
    return Subject(
        _share_lacking(telling, held),
        _share_lacking(named, held),
        any(not _stands(number, there, whole) for number in numbers),
    )


def _share_lacking(nats: Mapping[int, float], held: set[int]) -> float:
    """The share of *nats*, by the hash of a term, of terms that are not *held*."""
    total = sum(nats.values())
    return sum(n for h, n in nats.items() if h not in held) / total if total > 0 else 0.0


def features(gate: float, reader: float, logprob: float, about: Subject) -> list[float]:
    """In the order of WEIGHTS. ``gate`` and ``reader``: log odds; ``logprob``: of the reader's span, nats a token."""
    return [
        1.0,
        max(-8.0, min(8.0, gate)),
        max(-8.0, min(8.0, reader)),
        max(-3.0, logprob),
        about.lacking,
        float(about.number),
        about.name,
    ]


def probability(values: list[float], weights: Mapping[str, float] = WEIGHTS) -> float:
    """That the memory answers, from its :func:`features`."""
    return 1 / (1 + math.exp(-sum(w * x for w, x in zip(weights.values(), values, strict=True))))


def _stands(number: str, there: list[str], whole: str) -> bool:
    """Whether *number* is one of *there* or a whole part of one: 4471 of px4471b, not 447. Long ones may be spaced out."""
    part = re.compile(rf"(?<!\d){re.escape(number)}(?!\d)")
    return any(part.search(other) for other in there) or (len(number) > 4 and number in whole)


def _plain(text: str) -> str:
    """Letters and digits alone: "PX 4471 B" is PX-4471-B."""
    return _PLAIN.sub("", fold(text))


def grounded(answer: str, texts: list[str]) -> bool:
    """Whether every number, identifier and name of *answer* stands in one of *texts*."""
    there = [n for text in texts for m in _NUMBER.findall(text) if (n := _plain(m))]
    whole = "".join(map(_plain, texts))
    held = {term(word) for text in texts for word in WORD.findall(text)}
    numbers = [n for m in _NUMBER.findall(answer) if (n := _plain(m))]
    words = WORD.findall(answer)
    names = [w for w in words[1:] if w[0].isupper() and not any(c.isdigit() for c in w)]
    return all(_stands(n, there, whole) for n in numbers) and all(term(name) in held for name in names)
