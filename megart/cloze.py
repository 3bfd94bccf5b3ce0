"""Questions made from a text by leaving something out, so that a memory learns to answer directly.

Unsupervised and deterministic: a span of a sentence (a number, a name, else its last words) gives
way to a question word, and the sentence itself, with what follows it, is the answer.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator

_END = re.compile(r"(?<=[.!?])([\"')\]]*)\s+(?=[\"'(\[]?[A-Z0-9])")
# Words before a full stop that do not end a sentence.
_SHORT = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|No|Jr|Sr|vs|etc|e\.g|i\.e|[A-Z])\.)$")
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:\d{{1,2}} )?(?:{_MONTHS})(?: \d{{1,2}}(?:,)?)?(?: \d{{4}})?\b|\b[12]\d{{3}}\b")
_COUNT = re.compile(
    r"\b(?:\d[\d,.]*\d|\d|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty"
    r"|fifty|sixty|seventy|eighty|ninety|hundred)\b"
)
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<!^)(?<![.!?] )\b[A-Z][\w'-]+(?: (?:of|the|de|van|and) (?=[A-Z])| [A-Z][\w'-]+)*")


def sentences(text: str) -> list[str]:
    """*text* cut into sentences, white space at the seams dropped."""
    text = text.strip()
    ends = [*_END.finditer(text)]
    starts = [0, *(end.end() for end in ends)]
    stops = [*(end.end(1) for end in ends), len(text)]
    found: list[str] = []
    for piece in (text[start:stop] for start, stop in zip(starts, stops, strict=True)):
        if found and _SHORT.search(found[-1]):
            found[-1] = f"{found[-1]} {piece}"
        elif piece:
            found.append(piece)
    return found


def questions(text: str, title: str | None, per_sentence: int = 2) -> list[tuple[str, str]]:
    """Up to *per_sentence* (question, sentence) pairs for each sentence of *text*, first ones first."""
    cut = sentences(text)
    columns = [list(_ask(sentence, title))[:per_sentence] for sentence in cut]
    rounds = itertools.zip_longest(*columns)
    return [(q, sentence) for row in rounds for q, sentence in zip(row, cut, strict=True) if q]


def passage(text: str, sentence: str, words: int) -> str:
    """The answer around *sentence*: the whole *text* when it has at most *words*, else from the sentence on.

    Whole sentences only, and always at least the one.
    """
    if len(text.split()) <= words:
        return text
    cut = sentences(text)
    taken = [sentence]
    for following in cut[cut.index(sentence) + 1 :]:
        if len(" ".join([*taken, following]).split()) > words:
            break
        taken.append(following)
    return " ".join(taken)


def nearest(text: str, other: str) -> str:
    """The sentence of *text* that shares the most words with *other*."""

    def likeness(sentence: str) -> float:
        words = set(_WORD.findall(sentence.lower()))
        return len(words & said) / math.sqrt(max(1, len(words)))

    said = set(_WORD.findall(other.lower()))
    return max(sentences(text), key=likeness)


def retold(text: str, paraphrases: Iterable[str], title: str | None) -> list[tuple[str, str]]:
    """Questions in the words of *paraphrases*, each answered by the sentence of *text* that says the same."""
    asked = [pair for paraphrase in paraphrases for pair in questions(paraphrase, title, 1)]
    return [(question, nearest(text, answer)) for question, answer in asked]


def _ask(sentence: str, title: str | None) -> Iterator[str]:
    bare = sentence.rstrip(".!? ")
    subject = _words(title or "")
    spans = [(m.start(), m.end(), "when") for m in _DATE.finditer(bare)]
    spans += [(m.start(), m.end(), "how many") for m in _COUNT.finditer(bare)]
    spans += [(m.start(), m.end(), "what") for m in _NAME.finditer(bare) if not _words(m[0]) & subject]
    taken: list[tuple[int, int]] = []
    for start, end, word in spans:
        if all(end <= a or start >= b for a, b in taken):
            taken.append((start, end))
            yield _phrase(f"{bare[:start]}{word}{bare[end:]}", title, subject, sentence)
    head, _, tail = bare.rpartition(" ")
    if tail:
        cut = " ".join(head.split(" ")[:-1]) or head
        yield _phrase(f"{cut} what", title, subject, sentence)


def _phrase(question: str, title: str | None, subject: set[str], sentence: str) -> str:
    question = f"{question.strip()}?"
    if title and not subject & _words(sentence):
        return f"{title}: {question}"
    return question


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if len(word) > 3}
