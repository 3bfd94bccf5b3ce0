"""Follow-up questions: when a question leans on what was said before, and on what.

What an earlier answer said stands in the memory that it came from: by that its subject is known again, whatever the
question had opened. Where no memory holds what was answered, the rule is this. A question leans on the conversation
when it has a word that points back (she, it, their, there, ...), begins with one that goes on (and, but, so, ...), or
says almost nothing by itself ("Why?"). Then its subject is that of the last question of the user that stood on its own:
what that question opens stays open. A question that names something closes it again, unless the open memory holds the
name; so does one that points back only by a word like "it" or "that" and says more than one thing, none of which is in
the open memory ("Does it rain when clouds meet?"). "There is" points at nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from .. import gate
from ..bank import Record
from ..gate.words import WORD, fold

# An answer of fewer characters may stand in any memory.
_TELLING_ANSWER = 12
_PERSONS = frozenset("he she they him her them his hers their theirs himself herself themselves".split())
# These may also stand for nothing said before: "it rains", "is it true that", "there are".
_THINGS = frozenset("it its itself this that these those there then same".split())
_GOES_ON = frozenset(["and", "but", "so", "also", "or", "then", "plus"])
# A question of fewer telling words than this stands on nothing.
_TELLING = 2
_TURNS = 8
# Words by which a question is the bank's own matter even where the gate finds nothing.
_OWN = frozenset(
    "my mine our ours i've we've mein meine meinen meinem meiner unser unsere mon notre nos mio miei mie nostro nostra "
    "meu minha nosso nossa mijn onze".split()
)
_BEFORE = frozenset(
    "before earlier previously previous formerly former until originally fruher vorher bisher zuvor bislang davor avant "
    "auparavant precedemment antes anterior prima precedente eerder vroeger voorheen tidigare раньше прежде antigamente".split()
)
_OPENER = re.compile(
    r"\s*(?:(?:by the way|btw|something else|one (?:more|other) (?:thing|question)|another (?:thing|question)|"
    r"(?:a )?different question|next question|ok(?:ay)?|thanks?(?: you)?|great|übrigens|noch etwas|andere frage|au fait|"
    r"autre chose|por cierto|otra cosa|a proposito|trouwens)[,:.!–-]+\s*)+",
    re.IGNORECASE,
)
_USED = frozenset(["used"])
_OWN_DOINGS = frozenset((verb, who) for verb in ("did", "have", "had", "was", "were") for who in ("i", "we"))
_THERE_IS = re.compile(r"\b(?:is|are|was|were|be|been|isn't|aren't) there\b|\bthere(?:'s| is| are| was| were| be)\b")


def is_follow_up(question: gate.QuestionWords) -> bool:
    """Does *question* lean on what was said before it?"""
    words = _words(question)
    if not words or words[0] in _GOES_ON or not _PERSONS.isdisjoint(words):
        return True
    pointing = _THINGS.intersection(words)
    if "there" in pointing and _THERE_IS.search(" ".join(question.words).lower()):
        pointing -= {"there"}
    return bool(pointing) or (not question.names and len(telling_words(question)) < _TELLING)


def points_weakly(question: gate.QuestionWords) -> bool:
    """Does *question* lean on what was said by words only that may also point at nothing?"""
    words = _words(question)
    return bool(words) and words[0] not in _GOES_ON and _PERSONS.isdisjoint(words)


def telling_words(question: gate.QuestionWords) -> list[int]:
    """Which words of *question* say something, and do not only make it a question or point back."""
    pointing = _PERSONS | _THINGS
    return [i for i, word in enumerate(_words(question)) if not question.asking[i] and word not in pointing]


def _words(question: gate.QuestionWords) -> list[str]:
    return [word.lower().split("'")[0].split("’")[0] for word in question.words]


def anchor(history: Sequence[Mapping[str, str]], prior: Callable[[str], float]) -> str | None:
    """The last question of the user in *history* that stood on its own."""
    said = [turn["content"] for turn in history if turn.get("role") == "user" and turn.get("content", "").strip()]
    for text in reversed(said[-_TURNS:]):
        if not is_follow_up(gate.read_question(text, prior)):
            return text
    return None


def without_opener(question: str) -> str:
    """*question* without words that only change the subject ("By the way, ..."), where a whole question is left."""
    rest = _OPENER.sub("", question, count=1).strip()
    return rest[0].upper() + rest[1:] if len(rest.split()) >= 3 and rest != question.strip() else question


def asks_before(question: str) -> bool:
    """Whether *question* is about how something was before it changed."""
    words = [fold(word) for word in WORD.findall(question)]
    return not _BEFORE.isdisjoint(words) or any(a in _USED and b == "to" for a, b in zip(words, words[1:]))


def sources(answer: str, records: Sequence[Record]) -> list[int]:
    """Which of *records* hold what *answer* says, word for word, a line at a time; none for a very short answer."""
    lines = [line.strip() for line in answer.splitlines() if len(line.strip()) >= _TELLING_ANSWER]
    return [i for i, record in enumerate(records) if any(line in record.text for line in lines)] if lines else []


def is_own(question: str) -> bool:
    """Whether *question* is about the bank's owner: one for the bank, even where the gate finds nothing."""
    words = [fold(word).replace("’", "'") for word in WORD.findall(question)]
    pairs = set(zip(words, words[1:]))
    return not _OWN.isdisjoint(words) or not _OWN_DOINGS.isdisjoint(pairs)
