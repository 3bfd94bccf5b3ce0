"""The part of an answer that the question asks for: a number to "how many", a town to "which town", a year to "which
year".

A reader often says a word or two more than that. Only cuts down what it said, and only where one part is the one asked
for. English, and "how many" in some other languages.
"""

from __future__ import annotations

import re

_NUMBER_WORDS = (
    "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen|"
    "nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|no|none"
)
_HOW_MANY = re.compile(
    r"\b(?:how many|wie ?viele|combien d[e']|cuántos|cuántas|quanti|quante|quantos|quantas|hoeveel|hur många|сколько)\b",
    re.IGNORECASE,
)
_COUNT = re.compile(rf"(?P<part>\d[\d.,]*\d|\d|\b(?:{_NUMBER_WORDS})(?:-\w+)?)(?= [^\W\d_])", re.IGNORECASE)
_KINDS: list[tuple[re.Pattern[str], re.Pattern[str]]] = [
    (re.compile(r"\b(?:which|what) (?:\w+ )?(?:city|town|village)\b", re.IGNORECASE), re.compile(r"(?P<part>[^,]+), ")),
    (re.compile(r"\b(?:which|what) country\b", re.IGNORECASE), re.compile(r".*, (?P<part>[^,]+)$", re.DOTALL)),
    (re.compile(r"\b(?:which|what) (?:\w+ )?year\b", re.IGNORECASE), re.compile(r"(?<!\d)(?P<part>1\d{3}|20\d\d)(?![\d–/-])")),
    (re.compile(r"\bwhat percentage\b", re.IGNORECASE), re.compile(r"(?P<part>\d[\d.,]*\s?(?:%|per ?cent))")),
    (
        re.compile(r"\b(?:which|what) month\b", re.IGNORECASE),
        re.compile(r"(?P<part>\b(?:January|February|March|April|May|June|July|August|September|October|November|December)\b)"),
    ),
    (
        re.compile(r"\b(?:which|what) date\b", re.IGNORECASE),
        re.compile(r"(?:on )?(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day,? (?P<part>.*\d.*)$", re.DOTALL),
    ),
]  # fmt: skip
_BRACKET = re.compile(r"(?P<part>[^()]*\w)\s*\([^()]*\)?$", re.DOTALL)
_BETWEEN = re.compile(r"\b(?:between|zwischen|entre|tra|fra|tussen|mellan|między|между)\s+$", re.IGNORECASE)
_NUMBERS = re.compile(r"(?P<first>\d[\d.,:]*) (?:and|und|y|et|e|en|och|i|и) (?P<last>\d.*)", re.DOTALL)
_DAY = r"(?:\d{1,2} [A-Z][a-z]+|[A-Z][a-z]+ \d{1,2})(?:,? \d{4})?"
_DAYS = re.compile(rf"(?P<first>{_DAY}) and (?P<last>{_DAY})")


def terse(question: str, text: str, span: tuple[int, int]) -> tuple[int, int]:
    """Of *span* in *text* the part that *question* asks for, [start, end) in characters; the span itself where that is all."""
    words = text[slice(*span)]
    match = _BRACKET.match(words)
    if match:
        span = _part(match, span)
        words = text[slice(*span)]
    if _HOW_MANY.search(question):
        counted = _COUNT.match(words)
        return (
            span
            if counted is None or len(re.findall(r"\d+", words)) > len(re.findall(r"\d+", counted[0]))
            else _part(counted, span)
        )
    for asks, part in _KINDS:
        if asks.search(question):
            parts = list(part.finditer(words))
            return _part(parts[0], span) if len(parts) == 1 else span
    return span


def short(text: str, span: tuple[int, int]) -> str:
    """The words of *span* in *text* as an answer that stands alone: "4 and 10 March" after "between" is "4–10 March"."""
    words = " ".join(text[slice(*span)].split())
    if _BETWEEN.search(text[: span[0]]):
        for pattern, joined in ((_NUMBERS, "–"), (_DAYS, " to ")):
            match = pattern.fullmatch(words)
            if match:
                return f"{match['first']}{joined}{match['last']}"
    return words


def _part(match: re.Match[str], span: tuple[int, int]) -> tuple[int, int]:
    return span[0] + match.start("part"), span[0] + match.end("part")
