"""Figures, dates and times in a text, each with what it is counted in, so that two of them can be put in order.

Plain text in, plain data out. Months, weekdays and number words in English; units as people write them in many languages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

MONEY, DATE, CLOCK, WEEKDAY, BARE = "money", "date", "clock", "weekday", "figure"


@dataclass(frozen=True)
class Quantity:
    """One in a text: where it stands, [start, end) in characters, and its ``size`` in the smallest unit of its ``kind``.

    ``kind``: MONEY, DATE (days), CLOCK (minutes), WEEKDAY, "time" (seconds), "length" (millimetres), "mass" (milligrams),
    "volume" (millilitres), "degrees", "percent", or BARE. ``unit``: what tells apart those of one kind that cannot be
    compared: a currency, or whether a date has a year.
    """

    span: tuple[int, int]
    size: float
    kind: str
    unit: str = ""

    def compares(self, other: Quantity) -> bool:
        """Whether one of the two is more than the other, and it can be said which."""
        alike = self.unit == other.unit or (self.kind == MONEY and "" in (self.unit, other.unit))
        return self.kind == other.kind and alike and self.size != other.size


_UNITS: dict[str, tuple[str, float]] = {}
for _kind, _size, _spelt in (
    ("time", 1, "s sec secs second seconds sekunden secondes"),
    ("time", 60, "min mins minute minutes minuten"),
    ("time", 3600, "h hr hrs hour hours stunde stunden heure heures"),
    ("time", 86400, "day days tag tage jours"),
    ("time", 604800, "week weeks woche wochen semaines"),
    ("time", 2629800, "month months monat monate mois"),
    ("time", 31557600, "year years jahr jahre ans"),
    ("length", 1, "mm"),
    ("length", 10, "cm"),
    ("length", 1000, "m metre metres meter meters"),
    ("length", 1e6, "km"),
    ("mass", 1, "mg"),
    ("mass", 1e3, "g"),
    ("mass", 1e6, "kg kilo kilos"),
    ("volume", 1, "ml"),
    ("volume", 10, "cl"),
    ("volume", 1000, "l litre litres liter liters"),
    ("degrees", 1, "° °c degrees degree"),
    ("percent", 1, "% percent"),
):
    _UNITS |= dict.fromkeys(_spelt.split(), (_kind, float(_size)))
_CURRENCIES = {"€": "€", "eur": "€", "euro": "€", "euros": "€", "£": "£", "gbp": "£", "pound": "£", "pounds": "£", "$": "$"} | {
    name: name for name in "usd dollars chf kr sek dkk nok zł pln kč czk ft huf yen ¥ rub руб".split()
}
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()  # fmt: skip
_WORDS = {word: float(i) for i, word in enumerate(_ONES)} | {
    word: 10.0 * i for i, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}
_MONTHS = "january february march april may june july august september october november december".split()
_MONTH = "|".join(f"{month[:3]}(?:{month[3:]})?" for month in _MONTHS)
_DATE = re.compile(
    rf"\b(?:(?P<m1>{_MONTH})\.? (?P<d1>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y1>\d{{4}})"
    rf"|(?P<d2>\d{{1,2}})(?:st|nd|rd|th)? (?P<m2>{_MONTH})\.?(?:,? (?P<y2>\d{{4}}))?"
    rf"|(?P<y3>\d{{4}})-(?P<n3>\d{{2}})-(?P<d3>\d{{2}})"
    rf"|(?P<m4>{_MONTH})\.? (?P<y4>\d{{4}})|(?<![.:/-])(?P<y5>[12]\d{{3}})(?![.:/-]\d))\b",
    re.IGNORECASE,
)
_CLOCK = re.compile(r"(?<![\w.:])(?P<h>\d{1,2})(?:[:.](?P<m>[0-5]\d))?\s?(?P<half>[ap]\.?m\b\.?|o'clock|uhr)?(?!\w|[.,:]\d)", re.IGNORECASE)  # fmt: skip
_PHONE = re.compile(r"(?<!\w)\+?0\d+(?:[ /-]\d{2,})+")
_DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
_WEEKDAY = re.compile(rf"\b(?P<day>{'|'.join(_DAYS)})s?\b", re.IGNORECASE)


def _names(names: Iterable[str]) -> str:
    """A pattern of any of these, the longest first; a word ends where it ends."""
    words = sorted(names, key=len, reverse=True)
    return "|".join(re.escape(word) + (r"(?!\w)" if word[-1].isalpha() else "") for word in words)


_FIGURE = re.compile(
    rf"(?<![\w.,:/-])(?P<before>[€£$¥])?\s?(?P<figure>(?!0\d)\d+(?:[.,\s]\d{{3}})*(?:[.,]\d+)?|\b(?:{'|'.join(_WORDS)})(?=\s[a-z]))"
    rf"(?:\s?(?P<unit>{_names((*_UNITS, *_CURRENCIES))}))?(?![\w-]|[.,:/]\d)",
    re.IGNORECASE,
)


def dates(text: str) -> list[Quantity]:
    """The dates in *text*, in days: roughly, but enough to put them in order. Of a year alone, its first day."""
    return [_date(match) for match in _DATE.finditer(text)]


def times_of_day(text: str) -> list[Quantity]:
    """The times of a day in *text*: "8:30", "06.30", "3 pm"; no lone figure."""
    times = []
    for match in _CLOCK.finditer(text):
        if match["m"] is None and match["half"] is None:
            continue
        hour, half = int(match["h"]), (match["half"] or "").lower()
        if half[:1] in ("a", "p"):
            hour = hour % 12 + 12 * (half[0] == "p")
        if hour < 24:
            times.append(Quantity(match.span(), hour * 60.0 + int(match["m"] or 0), CLOCK))
    return times


def weekdays(text: str) -> list[Quantity]:
    """The weekdays in *text*, Monday first."""
    found = _WEEKDAY.finditer(text)
    return [Quantity(match.span(), float(_DAYS.index(match["day"].lower())), WEEKDAY) for match in found]


def figures(text: str) -> list[Quantity]:
    """The other figures in *text*: sums of money, measures, bare ones. No part of a date, a time of day, a phone number or a code."""
    taken = [one.span for one in (*_whole_dates(text), *_sure_times(text))]
    taken += [match.span() for match in _PHONE.finditer(text)]
    found = []
    for match in _FIGURE.finditer(text):
        start, end = match.span("figure")
        if any(start < last and first < end for first, last in taken):
            continue
        word, unit = match["figure"].lower(), (match["unit"] or "").lower()
        spelt = word in _WORDS
        currency = _CURRENCIES.get(match["before"] or unit)
        kind, factor = (MONEY, 1.0) if currency else _UNITS.get(unit, (BARE, 1.0))
        if spelt and kind == BARE:
            continue  # "one of them"
        size = _WORDS[word] if spelt else _number(word)
        found.append(Quantity(_trimmed(text, *match.span()), size * factor, kind, currency or ""))
    return found


def _whole_dates(text: str) -> list[Quantity]:
    """Dates that are more than a year: 1500 is also a sum."""
    return [one for one in dates(text) if not text[slice(*one.span)].isdigit()]


def _sure_times(text: str) -> list[Quantity]:
    """Times of a day that can be nothing else: 12.50 is also a sum."""
    return [one for one in times_of_day(text) if not re.fullmatch(r"\d+\.\d+", text[slice(*one.span)])]


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    words = text[start:end]
    return start + len(words) - len(words.lstrip()), end - (len(words) - len(words.rstrip()))


def _number(figure: str) -> float:
    """1,340 and 1 340 are 1340; 3,80 and 3.80 are 3.8; 1.275,50 is 1275.5."""
    figure = re.sub(r"\s", "", figure)
    last = max(figure.rfind(","), figure.rfind("."))
    whole = last < 0 or (figure[last] == "," and re.fullmatch(r"\d{1,3}(?:,\d{3})+", figure)) or figure.count(figure[last]) > 1
    digits = re.sub(r"[.,]", "", figure)
    return float(digits) if whole else float(f"{re.sub(r'[.,]', '', figure[:last])}.{figure[last + 1 :]}")


def _date(match: re.Match[str]) -> Quantity:
    """One without a year is comparable with its like only."""
    part = match.groupdict()
    year = next((int(part[k]) for k in ("y1", "y2", "y3", "y4", "y5") if part[k]), 0)
    name = next((part[k] for k in ("m1", "m2", "m4") if part[k]), None)
    month = int(part["n3"]) if part["n3"] else 1
    if name:
        month += next(i for i, m in enumerate(_MONTHS) if m[:3] == name[:3].lower())
    day = next((int(part[k]) for k in ("d1", "d2", "d3") if part[k]), 1)
    return Quantity(match.span(), year * 372.0 + month * 31 + day, DATE, "" if year else "no year")
