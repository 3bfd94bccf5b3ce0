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

from . import shapes
from .words import WORD, fold, term, term_hash, terms

# The best memory's log odds, without and with a text embedder: below, none is read. Generous: with an embedder any is read
# for 96 of 100 questions in other words than our held notes', and for 54 of 100 general ones (89 and 32 from -3.6 on).
READ_FROM, READ_FROM_MEANING = -7.0, -5.0
# The same from where on a question that nothing answers is one for the bank: 192 of 200 near questions to six held banks,
# farm and clinic are, 9 of 92 general ones and 15 of 72 lines of talk (by words alone 177, 9 and 17).
NEAR, NEAR_MEANING = -5.5, -1.5
# Read one after the other until one answers with at least this probability; of two that answer the likelier does.
MOST, SURE = 2, 0.6
# The probability from which on a memory that was read answers; a question that leans on what was said names less.
THRESHOLD, THRESHOLD_TALK = 0.35, 0.2
# The reader's log odds below which nothing else makes up for its doubt. Both were chosen on four held banks, farm and
# clinic with the reader before the one that ships: of near questions to the held banks 21 of 100 are answered (26 at 0.3 and -1.6),
# plain ones 94 (95), in other words 47 (48; 14 from a wrong note, 15).
ODDS_FROM = -1.2
# The log odds of a memory that the user opened by hand.
CERTAIN = 8.0
WEIGHTS = {
    "always": 0.086,
    "gate": -0.058,
    "reader": 0.724,
    "span": 0.517,
    "lacking": -2.538,
    "lacking_number": -1.155,
    "lacking_name": -0.638,
    "margin": 0.414,
    "subject": 0.500,
}
WEIGHTS_MEANING = {
    "always": -1.892,
    "gate": -0.139,
    "reader": 0.633,
    "span": 0.734,
    "lacking": -2.245,
    "lacking_number": -0.651,
    "lacking_name": -0.449,
    "margin": 0.376,
    "subject": 1.500,
    "meant": 0.566,
}
_NUMBER = re.compile(r"[\w.:/-]*\d[\w.:/-]*")
_DATE_OR_TIME = re.compile(
    r"\d{1,2}[./-]\d{1,2}[./-]\d{4}|\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}/\d{1,2}/\d{2}|"
    r"(?:1\d|20)\d\d(?:[-/–]\d{2,4})?|\d{1,2}[:.]\d\d(?:[:.]\d\d)?|\d+[.,]\d{1,2}"
)
_SIZE = re.compile(r"\d+(?:[.,]\d+)*[^\W\d_]{1,4}")  # 250g, 10th, 1980s
_VERSION = re.compile(r"\d+\.\d+\.\d+(?:\.\d+)*")
_LETTER_BEFORE, _LETTER_AFTER = re.compile(r"\b[A-Z]{1,4}[ -]$"), re.compile(r"[ -][A-Z]\b(?!')")
_PLAIN = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Subject:
    """What of a question stands in a memory.

    ``lacking``: the share of the question's weight in telling words that the memory lacks, 0 to 1; ``name``: the same
    of the words of its names; ``number``: whether a number or identifier of the question is not there; ``identifier``:
    whether an identifier is not (a part number, a long number, a version): then the memory is about something else;
    ``shape``: whether what is asked for can be none of what is there (no e-mail address without "@").
    """

    lacking: float = 0.0
    name: float = 0.0
    number: bool = False
    identifier: bool = False
    shape: bool = False

    @property
    def is_another(self) -> bool:
        """Whether the memory cannot answer, whatever else speaks for it."""
        return self.identifier or self.shape


@dataclass(frozen=True)
class Seen:
    """What the gate saw of a candidate.

    ``odds``: log odds by words and states; ``margin``: of its whole score above the best other one's; ``meant``: log
    odds by the text embedder, None without one; ``subject``: how far the question leans on this memory by what was said
    before, 0 to 1.
    """

    odds: float
    margin: float = 0.0
    meant: float | None = None
    about: Subject = Subject()
    subject: float = 0.0


def subject(question: str, names: list[str], telling: Mapping[int, float], text: str) -> Subject:
    """How much of *question* stands in *text*; ``telling``: nats of its terms by their hash, ``names``: its names' words."""
    held = set(map(term_hash, terms(text)))
    asked = shapes.asked(question)
    if asked is not None and asked.shape.spans(text):  # the thing stands there itself, for the words that name it
        held |= set(map(term_hash, asked.terms))
    named = {h: telling.get(h, 1.0) for h in (term_hash(term(name)) for name in names)}
    there = [n for m in _NUMBER.findall(text) if (n := _plain(m))]
    whole = _plain(text)
    numbers = [n for m in _NUMBER.findall(question) if (n := _plain(m))]
    return Subject(
        _share_lacking(telling, held),
        _share_lacking(named, held),
        any(not _stands(number, there, whole) for number in numbers),
        any(not _stands(_plain(name), there, whole) for name in identifiers(question)),
        asked is not None and asked.shape.is_missing(text),
    )


def identifiers(text: str) -> list[str]:
    """What in *text* names one thing only: part numbers, long numbers, versions; no dates, times, prices or sizes."""
    return [match[0] for match in _NUMBER.finditer(text) if _is_identifier(match[0].strip(".:/-"), match, text)]


def _is_identifier(name: str, match: re.Match[str], text: str) -> bool:
    if _DATE_OR_TIME.fullmatch(name) or _SIZE.fullmatch(name):
        return False
    digits = sum(c.isdigit() for c in name)
    if any(c.isalpha() for c in name):
        return digits >= 3
    if _VERSION.fullmatch(name):
        return True
    # A number of four figures beside a letter: PX 4471 B.
    beside = _LETTER_BEFORE.search(text[: match.start()]) or _LETTER_AFTER.match(text[match.end() :])
    return name.isdigit() and digits >= (4 if beside else 5)


def _share_lacking(nats: Mapping[int, float], held: set[int]) -> float:
    """The share of *nats*, by the hash of a term, of terms that are not *held*."""
    total = sum(nats.values())
    return sum(n for h, n in nats.items() if h not in held) / total if total > 0 else 0.0


def features(seen: Seen, reader: float, logprob: float) -> dict[str, float]:
    """``reader``: log odds that the text answers; ``logprob``: of the reader's span, nats a token."""
    values = {
        "always": 1.0,
        "gate": clip(seen.odds, 8.0),
        "reader": clip(reader, 8.0),
        "span": max(-3.0, logprob),
        "lacking": seen.about.lacking,
        "lacking_number": float(seen.about.number),
        "lacking_name": seen.about.name,
        "margin": clip(seen.margin, 6.0),
        "subject": seen.subject,
    }
    return values if seen.meant is None else {**values, "meant": clip(seen.meant / 2, 4.0)}


def probability(values: Mapping[str, float], weights: Mapping[str, float] | None = None) -> float:
    """That the memory answers, from its :func:`features`; of other values by their own *weights*."""
    if weights is None:
        weights = WEIGHTS_MEANING if "meant" in values else WEIGHTS
    return 1 / (1 + math.exp(-sum(weights[name] * value for name, value in values.items())))


def answers(p: float, reader: float, *, leans: bool = False, part: bool = False) -> bool:
    """Whether a memory that was read answers.

    ``p``: its :func:`probability`; ``reader``: the reader's log odds, which are low for good reason where the question
    ``leans`` on what was said, or where the memory need answer ``part`` of it only.
    """
    least = THRESHOLD_TALK if leans else THRESHOLD
    return p >= least and (leans or part or reader >= ODDS_FROM)


def clip(value: float, most: float) -> float:
    """*value*, but from -most to most."""
    return max(-most, min(most, value))


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
