"""A text cut into sentences, as character spans. The one splitter of the whole package; any language.

The gate cuts finer, at clauses: the words and states that a bank keeps are cut so, and its weights were fitted to that.
"""

from __future__ import annotations

import re

# A sentence ends with its punctuation and closing quotes before white space and a beginning, with a line, or with
# the full stops of Chinese and Japanese, which no space follows.
_END = re.compile(
    r"[.!?…]+[\"')\]»”’]*(?=\s+[\"'(\[«“‘¿¡„]*[^\W_a-zß-öø-ÿа-я])|[。！？]+[」』”]*|\n+",
)
# Words before a full stop that do not end a sentence: initials, titles, "No. 7".
_ABBREVIATION = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|Hr|Fr|Mag|Ing|Capt|Lt|Col|Rev|Sgt|\w*[Ss]tr|No|Nr|vs|etc|approx|ca|z\.B|e\.g|i\.e|Mme|Mlle|Sra|Sig|Tel|tel|Art|Fig|Vol|pp?|[A-Z])\.)$"
)
# German writes ordinals so: "am 14. Mai", "im 2. Stock"; but "I am 14. My brother ..." is English.
_ORDINAL = re.compile(r"\b(?:(?<!\bI )am|vom|zum|bis|im|beim|ab|seit|der|die|das|den|dem|des|jeden) \d{1,2}\.$")
_DATE = re.compile(
    r"\b\d{1,2}\.\s+(?:Januar|Jänner|Februar|März|April|Mai|Juni|Juli|August|September|Oktober|November|Dezember)\b"
)

_CLAUSE_END = re.compile(r"(?<=[.!?;:])\s+|\n+|(?<=[。！？；])")


def spans(text: str) -> list[tuple[int, int]]:
    """Where each sentence of *text* begins and ends, in characters, without the white space around it."""
    bounds: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        if match[0].startswith(".") and _goes_on(text[start : match.start() + 1], text, match.start()):
            continue
        start = _add(bounds, text, start, match.end())
    _add(bounds, text, start, len(text))
    return bounds


def split(text: str) -> list[str]:
    """The sentences of *text*."""
    return [text[start:end] for start, end in spans(text)]


def holding(text: str, start: int, end: int) -> tuple[int, int]:
    """The whole sentences of *text* that the characters from *start* to *end* stand in."""
    touched = [(a, b) for a, b in spans(text) if a < max(end, start + 1) and b > start]
    return (touched[0][0], touched[-1][1]) if touched else (0, len(text))


def clauses(text: str) -> list[str]:
    """The sentences of *text*, cut also at semicolons and colons; some may be empty."""
    return _CLAUSE_END.split(text)


def clause_ends(text: str) -> list[int]:
    """Where the clauses of *text* end, in characters."""
    return [match.start() for match in _CLAUSE_END.finditer(text)]


def _goes_on(before: str, text: str, stop: int) -> bool:
    """Whether the full stop at *stop*, the last of *before*, ends no sentence."""
    dates = _DATE.finditer(text, max(0, stop - 2), stop + 20)
    return bool(_ABBREVIATION.search(before) or _ORDINAL.search(before)) or any(stop in range(*d.span()) for d in dates)


def _add(bounds: list[tuple[int, int]], text: str, start: int, end: int) -> int:
    piece = text[start:end]
    if piece.strip():
        bounds.append((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())))
    return end
