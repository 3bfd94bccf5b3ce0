"""Questions and memories as words: folded, lightly stemmed, hashed; names found by their capitals.

How common a word is comes from outside (the rank of its tokens in the base's vocabulary): a bank of
one memory has no statistics of its own.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..sentences import clauses
from .languages import function_words, language

# Chinese, Japanese and Korean are read character by character: they are written without spaces, or with particles.
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+(?:['’][^\W{CJK}]+)*")
_INSIDE_NAME = re.compile(r"[\s\-.'’]*")
# Words that make a question or hold a sentence together: they say nothing about a memory.
_QUESTION_WORDS = """a an the what which who whom whose when where why how did does do done is are was were be been
being has have had can could would should will shall may might must you your i me my mine we us our it its this that
these those there please tell give say explain describe know of in on at by for to from with as and or not about into
between than then if any some name called many much long old all more everything anything something remind remember
recall show share detail information again also just"""
# Endings of words of one family.
_ENDINGS = frozenset(
    """ational ization isation ation ition tion sion ement ment ness ance ence able ible ical ially ally ive ity ous ful
    ian ist ism al er or ic ly en an y i t""".split()
)
_LONGEST = max(map(len, _ENDINGS))
ROOT_SHIFT = 12
# A first word counts as a name only when it is rarer than this; so does any word typed without capitals.
_RARE_FIRST, _RARE_QUIET = 1e-3, 2e-4
_QUESTION_WORD = 0.5


def fold(word: str) -> str:
    """Lower case, without accents."""
    parts = unicodedata.normalize("NFKD", word.replace("’", "'"))
    return "".join(c for c in parts if not unicodedata.combining(c)).casefold()


def stem(word: str) -> str:
    """A folded word without possessive, plural, -ing and -ed: enough to match, never shown."""
    word = word.removesuffix("'s").replace("'", "")
    if not word.isalpha():
        return word
    if len(word) > 3:
        if word.endswith("ies") and len(word) > 4:
            word = word[:-3] + "y"
        elif word.endswith("sses"):
            word = word[:-2]
        elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
            word = word[:-1]
    if len(word) > 5:
        for ending in ("ing", "ed"):
            if word.endswith(ending):
                word = word[: -len(ending)]
                if word[-1] == word[-2] and word[-1] not in "lsz":
                    word = word[:-1]
                break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def term(word: str) -> str:
    """What two words must share to count as the same."""
    return stem(fold(word))


def terms(text: str) -> set[str]:
    """The terms of all words of *text*."""
    return {term(word) for word in WORD.findall(text)}


def root(term: str) -> str:
    """What a term shares with its relatives (negotiate, negotiation): without its ending, six letters at most."""
    if not term.isalpha():
        return term
    for size in range(min(_LONGEST, len(term) - 4), 0, -1):
        if term[-size:] in _ENDINGS:
            term = term[:-size]
            break
    return term[:6]


def term_hash(text: str) -> int:
    """A term's 32-bit number: 20 bits of its root, 12 of its own. 0 is kept for the end of a sentence.

    The two halves are other bits of the checksum: many a term is its own root.
    """
    own = zlib.crc32(text.encode()) & ((1 << ROOT_SHIFT) - 1)
    return (zlib.crc32(root(text).encode()) >> ROOT_SHIFT << ROOT_SHIFT | own) or 1


# What holds sentences together or asks, in Japanese (all but its nouns is Hiragana), Chinese and Korean.
_CJK_ASKING = frozenset("何誰的了吗呢么是在有我你他她它这那哪谁什怎多少几和与이가은는을를에의도로")
_ASKING = frozenset(
    [*(term(word) for word in _QUESTION_WORDS.split()), *_CJK_ASKING, *map(chr, range(0x3040, 0x30A0))]
)


def sequence(text: str, title: str | None = None) -> np.ndarray:
    """The hashed words of a memory, title first, 0 after each sentence: uint32 [n]."""
    hashes: list[int] = []
    for part in [title or "", *clauses(text)]:
        terms = [term_hash(term(word)) for word in WORD.findall(part)]
        hashes += [*terms, 0] if terms else []
    return np.array(hashes, np.uint32)


@dataclass(frozen=True)
class QuestionWords:
    """A question as words.

    ``terms``: uint32 [Q], each word once; ``words``: the same as the user wrote them; ``asking``:
    bool [Q], words that only make the question; ``prior``: float32 [Q], the share of texts that hold
    the word; ``pairs``: int32 [P, 2], words side by side; ``names``: runs of capitalised words;
    ``spans``: (first, last, term) of every word, in bytes of the UTF-8 text; ``known``: bool [Q], words that the
    language has for certain.
    """

    terms: np.ndarray
    words: tuple[str, ...]
    asking: np.ndarray
    prior: np.ndarray
    pairs: np.ndarray
    names: tuple[tuple[int, ...], ...]
    spans: tuple[tuple[int, int, int], ...]
    known: np.ndarray


def read_question(
    text: str, prior: Callable[[str], float], known: Callable[[str], bool] = lambda _: True
) -> QuestionWords:
    """Read *text*; ``prior(word)`` is the share of texts, in (0, 1), that hold a word of the language.

    ``known(word)``: whether the language has the word for certain; another may be a slip of the keyboard.
    """
    matches = list(WORD.finditer(text))
    spoken = language([fold(match.group()) for match in matches])
    foreign = frozenset() if spoken == "English" else function_words(spoken)
    asked: set[str] = set()  # terms that only make the question
    numbers: dict[str, int] = {}
    words: list[str] = []
    priors, order, spans = [], [], []
    for match in matches:
        key = term(match.group())
        if key not in numbers:
            numbers[key] = len(words)
            words.append(match.group())
            common = prior(match.group())
            # In another language "was", "on" or "no" may say something.
            asks = fold(match.group()) in foreign if foreign else key in _ASKING
            if asks:
                asked.add(key)
            priors.append(max(_QUESTION_WORD, common) if asks else common)
        order.append(numbers[key])
        first = len(text[: match.start()].encode())
        spans.append((first, first + len(match.group().encode()), numbers[key]))
    pairs = sorted({(a, b) for a, b in zip(order, order[1:]) if a != b})
    return QuestionWords(
        terms=np.array([term_hash(key) for key in numbers], np.uint32),
        words=tuple(words),
        asking=np.array([key in asked for key in numbers], bool),
        prior=np.array(priors, np.float32),
        pairs=np.array(pairs, np.int32).reshape(-1, 2),
        names=_names(text, matches, order, [*numbers], priors, asked, capitals=spoken != "German"),
        spans=tuple(spans),
        known=np.array([known(word) for word in words], bool),
    )


def _names(
    text: str,
    matches: list[re.Match[str]],
    order: list[int],
    keys: list[str],
    priors: list[float],
    asked: set[str],
    capitals: bool,
) -> tuple[tuple[int, ...], ...]:
    """Words with a capital or a digit that stand side by side; without any capitals, rare words.

    ``capitals``: whether a capital marks a name, as it does not in German.
    """
    loud = not capitals or any(match.group()[0].isupper() for match in matches[1:])
    runs: list[list[int]] = []
    end = -1
    for place, (match, number) in enumerate(zip(matches, order)):
        word = match.group()
        marked = (
            (capitals and word[0].isupper())
            or any(c.isdigit() for c in word)
            or (not loud and priors[number] < _RARE_QUIET)
        )
        if not marked or keys[number] in asked or (place == 0 and priors[number] > _RARE_FIRST):
            end = -1
            continue
        if end >= 0 and _INSIDE_NAME.fullmatch(text[end : match.start()]):
            runs[-1].append(number)
        else:
            runs.append([number])
        end = match.end()
    return tuple(tuple(sorted(set(run))) for run in runs)
