"""Which of two is more, or was earlier: the reader finds each memory's figure or date, and arithmetic compares them.

A small model reads well and reckons badly. Only questions in English that offer two things with "or" are taken.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..gate.words import WORD, fold

_MORE = frozenset("more most higher highest later latest newer newest younger youngest bigger biggest larger largest longer longest greater greatest heavier taller dearer last".split())  # fmt: skip
_LESS = frozenset("less least fewer fewest lower lowest earlier earliest older oldest smaller smallest shorter shortest cheaper cheapest lighter first sooner".split())  # fmt: skip
_OF_TIME = frozenset(
    "earlier earliest later latest older oldest younger youngest newer newest first last sooner".split()
)
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS)
_DATE = re.compile(
    rf"\b(?:(?P<m1>{_MONTH})\.? (?P<d1>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y1>\d{{4}})"
    rf"|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)? (?P<m2>{_MONTH})\.?(?:,? (?P<y2>\d{{4}}))?"
    rf"|(?P<y3>\d{{4}})-(?P<n3>\d{{2}})-(?P<d3>\d{{2}})"
    rf"|(?P<m4>{_MONTH})\.? (?P<y4>\d{{4}})|(?P<y5>[12]\d{{3}}))\b",
    re.IGNORECASE,
)
_FIGURE = re.compile(
    r"(?<![\w.-])(?P<figure>\d[\d,]*(?:\.\d+)?)\s?"
    r"(?P<unit>(?:km|mm|cm|kg|mg|ml|g|l|m|minutes?|hours?|days?|weeks?|months?|years?)\b)?(?![\w-])"
)
_OPTIONS = re.compile(r"[,:]\s*(?P<one>[^,:?]+?),? or (?P<other>[^,?]+?)\s*\?*$")


@dataclass(frozen=True)
class Value:
    """A date or figure in a text: where it stands, in characters, its size, and what it is counted in."""

    span: tuple[int, int]
    size: float
    unit: str


@dataclass(frozen=True)
class Comparison:
    """A question that compares: its two ``options``, whether the greater one is asked for, and whether of times."""

    options: tuple[str, str]
    greater: bool
    of_time: bool

    def values(self, text: str) -> list[Value]:
        """The dates or figures in *text*; those that the options name ("level 2") only where there are no others."""
        if self.of_time:
            values = [_date(match) for match in _DATE.finditer(text)]
        else:
            figures = [(m, float(m["figure"].replace(",", ""))) for m in _FIGURE.finditer(text)]
            values = [Value(m.span("figure"), size, (m["unit"] or "").rstrip("s")) for m, size in figures]
        named = set(WORD.findall(" ".join(self.options)))
        others = [value for value in values if not set(WORD.findall(text[slice(*value.span)])) <= named]
        return others or values

    def option_of(self, text: str) -> int | None:
        """Which option *text* is about: the one of whose words it has more; None where it has as many of both."""
        held = {fold(word) for word in WORD.findall(text)}
        shares = [len(words & held) / max(1, len(words)) for words in self._words]
        return None if shares[0] == shares[1] else int(shares[1] > shares[0])

    def is_named(self, option: int, text: str) -> bool:
        """Whether all words that tell *option* from the other one stand in *text*."""
        return self._words[option] <= {fold(word) for word in WORD.findall(text)}

    def best(self, values: tuple[Value, Value]) -> int | None:
        """The option that wins by its value; None where both are equal or are counted in different units."""
        first, second = values
        if first.size == second.size or first.unit != second.unit:
            return None
        return int((second.size > first.size) == self.greater)

    @property
    def _words(self) -> list[set[str]]:
        first, second = ({fold(word) for word in WORD.findall(option)} for option in self.options)
        return [first - second or first, second - first or second]


def comparison(question: str) -> Comparison | None:
    """*question* as a comparison of two things, None where it is none."""
    options = _OPTIONS.search(question.strip())
    if options is None:
        return None
    before = [fold(word) for word in WORD.findall(question[: options.start()])]
    more, less = _MORE.intersection(before), _LESS.intersection(before)
    if bool(more) == bool(less) or not before or before[0] not in ("which", "who", "what"):
        return None
    if "," in question[: options.start()] or not all(WORD.search(options[name]) for name in ("one", "other")):
        return None  # three things, or none
    texts = (options["one"].strip(), options["other"].strip())
    return Comparison(texts, greater=bool(more), of_time=bool((more | less) & _OF_TIME))


def _date(match: re.Match[str]) -> Value:
    """A date as days, roughly: enough to put dates in order. One without a year is comparable with its like only."""
    part = match.groupdict()
    year = next((int(part[k]) for k in ("y1", "y2", "y3", "y4", "y5") if part[k]), 0)
    name = next((part[k] for k in ("m1", "m2", "m4") if part[k]), None)
    month = int(part["n3"]) if part["n3"] else 1
    if name:
        month += next(i for i, m in enumerate(_MONTHS) if m[:3] == name[:3].lower())
    day = next((int(part[k]) for k in ("d1", "d2", "d3") if part[k]), 1)
    return Value(match.span(), year * 372.0 + month * 31 + day, "date" if year else "day of a year")
