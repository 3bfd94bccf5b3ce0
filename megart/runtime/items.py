"""The one item of a list that a question names.

The items of a list say nothing of each other, and a small reader mixes them up: asked for the plumber's number it reads
out the vet's, two lines below. Prose is left alone, where a name may stand sentences before what is said of it.
"""

from __future__ import annotations

import re

from ..gate.languages import function_words, language
from ..gate.words import WORD, fold, term
from ..split import FIELD

# "- Vet: 0721 904417", "2) call Ada", "| Ada | 14 |", "Wifi: otter".
_ITEM = re.compile(rf"[ \t]*(?:(?:[-*•–+|]|\d{{1,2}}[.)])\s*\S|{FIELD})")


def items(text: str) -> list[tuple[int, int]]:
    """Where the items of the list *text* stand, [start, end) in characters, a heading before them left out; of prose none."""
    lines = [match for match in re.finditer(r"[^\n]+", text) if match[0].strip()]
    if lines and not _ITEM.match(lines[0][0]):
        lines = lines[1:]
    return [line.span() for line in lines] if len(lines) > 1 and all(_ITEM.match(line[0]) for line in lines) else []


def named(text: str, question: str) -> tuple[int, int] | None:
    """The item of *text* that holds words of *question* that no other holds; None where that is none, or two are."""
    places = items(text)
    if not places:
        return None
    words = [fold(word) for word in WORD.findall(question)]
    empty = function_words(language(words))
    asked = {term(word) for word in words if word not in empty}
    held = [asked & {term(word) for word in WORD.findall(text[slice(*place)])} for place in places]
    telling = [place for place, mine in zip(places, held) if any(sum(word in other for other in held) == 1 for word in mine)]
    return telling[0] if len(telling) == 1 else None
