"""What only the recipe "direct" needs: questions made from a text by leaving something out, and the examples of them.

Unsupervised and deterministic: a span of a sentence (a number, a name, else its last words) gives
way to a question word, and the sentence itself, with what follows it, is the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from . import prompts, sentences
from .bank import Memory

_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b(?:\d{{1,2}} )?(?:{_MONTHS})(?: \d{{1,2}}(?:,)?)?(?: \d{{4}})?\b|\b[12]\d{{3}}\b")
_COUNT = re.compile(
    r"\b(?:\d[\d,.]*\d|\d|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|forty"
    r"|fifty|sixty|seventy|eighty|ninety|hundred)\b"
)
_WORD = re.compile(r"\w+")
_NAME = re.compile(r"(?<!^)(?<![.!?] )\b[A-Z][\w'-]+(?: (?:of|the|de|van|and) (?=[A-Z])| [A-Z][\w'-]+)*")
# Other wordings teach to answer other questions; beyond these they only cost time.
PARAPHRASES = 2
# So many prompts for one target teach that any other may call it up; more only cost time.
PROMPTS = 7


def examples(memory: Memory, answer_words: int) -> list[tuple[str, str]]:
    """The (user turn, target text) pairs that *memory* studies; the text comes first.

    The text is asked for under recall prompts; the user's questions and cloze questions are answered by the
    passage that holds the answer: a short text whole, of a long one the sentence and what follows, up to
    *answer_words*. (Single sentences are as easily learnt but half as often the right ones.)
    """
    asked = questions(memory.text, memory.title)
    first, *others = cues(memory)
    # One recall cue is a question, as a person's may be; more of them cost direct answers.
    mixed = dict.fromkeys([first, *(question for question, _ in asked[:1]), *others])
    whole = [(prompts.recall(cue), memory.text) for cue in mixed]
    given = [(question, nearest(memory.text, question)) for question in memory.questions]
    asked += retold(memory.text, memory.paraphrases[:PARAPHRASES], memory.title)

    def answered(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(prompts.ask(q), passage(memory.text, answer, answer_words)) for q, answer in pairs]

    direct = answered(asked)
    same = list(dict.fromkeys(pair for pair in direct if pair[1] == memory.text))
    spread = set(_spread(same, max(2, PROMPTS - len(whole) - len(given))))
    direct = [pair for pair in direct if pair[1] != memory.text or pair in spread]
    return list(dict.fromkeys(whole + answered(given) + direct))


def _spread(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """At most *count* of *pairs* (at least 2), evenly from the first to the last."""
    if len(pairs) <= count:
        return pairs
    return [pairs[round(i * (len(pairs) - 1) / (count - 1))] for i in range(count)]


def cues(memory: Memory) -> list[str]:
    """What a person would say to call the memory up: two or three different cues."""
    opening = " ".join(memory.text.split()[:6])
    first_cues = [f"Tell me about {memory.title or opening}.", *memory.questions[:2]]
    return [*first_cues, memory.title or opening]


def recall_cue(memory: Memory) -> str:
    """The user turn by which *memory* is recited."""
    return prompts.recall(cues(memory)[0])


def questions(text: str, title: str | None) -> list[tuple[str, str]]:
    """A (question, sentence) pair for each sentence of *text* that one can be made of."""
    asked = [(_ask(sentence, title), sentence) for sentence in sentences.split(text)]
    return [(question, sentence) for question, sentence in asked if question]


def passage(text: str, sentence: str, words: int) -> str:
    """The answer around *sentence*: the whole *text* when it has at most *words*, else from the sentence on.

    Whole sentences only, and always at least the one.
    """
    if len(text.split()) <= words:
        return text
    cut = sentences.split(text)
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
        return len(words & other_words) / math.sqrt(max(1, len(words)))

    other_words = set(_WORD.findall(other.lower()))
    return max(sentences.split(text), key=likeness)


def retold(text: str, paraphrases: Iterable[str], title: str | None) -> list[tuple[str, str]]:
    """Questions in the words of *paraphrases*, each answered by the sentence of *text* that says the same."""
    asked = [pair for paraphrase in paraphrases for pair in questions(paraphrase, title)]
    return [(question, nearest(text, answer)) for question, answer in asked]


def _ask(sentence: str, title: str | None) -> str | None:
    bare = sentence.rstrip(".!? ")
    subject = _words(title or "")
    for pattern, word in ((_DATE, "when"), (_COUNT, "how many"), (_NAME, "what")):
        for match in pattern.finditer(bare):
            if pattern is not _NAME or not _words(match[0]) & subject:
                return _phrase(f"{bare[: match.start()]}{word}{bare[match.end() :]}", title, subject, sentence)
    head, _, tail = bare.rpartition(" ")
    if not tail:
        return None
    cut = " ".join(head.split(" ")[:-1]) or head
    return _phrase(f"{cut} what", title, subject, sentence)


def _phrase(question: str, title: str | None, subject: set[str], sentence: str) -> str:
    question = f"{question.strip()}?"
    if title and not subject & _words(sentence):
        return f"{title}: {question}"
    return question


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if len(word) > 3}
