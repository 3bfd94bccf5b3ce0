"""Slips of the keyboard in a question: a word that nobody knows, read as the word of the bank that it is one slip away from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from string import ascii_lowercase

import numpy as np

from .. import _core
from .words import WORD, QuestionWords, fold, stem, term_hash

# So many unknown words of a question are looked up; a shorter word is like too many others.
MOST, SHORTEST = 3, 5
_TEXTS = 4  # that are looked at for how a word is written


@dataclass(frozen=True, order=True)
class _Meant:
    """A word of the bank that may have been meant; the smaller the likelier.

    ``ending``: it is like what was typed but for its ending; ``less``: the negative of what a memory that has it holds of the
    rest of the question.
    """

    ending: bool
    less: float
    place: int  # among what is one slip away
    word: str
    key: int


def read_as(
    question: QuestionWords, lexicon: _core.Lexicon, held: Callable[[], np.ndarray], text: Callable[[int], str]
) -> dict[int, tuple[str, int]]:
    """The places of the slips in *question*: the word that each is read as, and its term.

    ``held()``: float32 [N], what each memory holds of the question, only asked for where a word is unknown; ``text(row)``:
    what a memory says, "" where the bank does not hold it.
    """
    unknown = np.flatnonzero(~question.known & ~question.asking & (lexicon.df(question.terms) == 0))[:MOST].tolist()
    places = [place for place in unknown if len(question.words[place]) >= SHORTEST and question.words[place].isalpha()]
    found: dict[int, tuple[str, int]] = {}
    rest = held() if places else np.empty(0)
    for place in places:
        near = typos(fold(question.words[place]))
        keys = np.array([term_hash(stem(form)) for form in near], np.uint32)
        meant = [_meant(i, near[i], int(keys[i]), lexicon, rest, text) for i in np.flatnonzero(lexicon.df(keys)).tolist()]
        best = min((one for one in meant if one is not None), default=None)
        if best is not None:
            found[place] = best.word, best.key
    return found


def typos(word: str) -> list[str]:
    """What *word* (folded) may have been meant to be: two letters swapped, one wrong, one too many, one missing."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    forms = [a + b[1] + b[0] + b[2:] for a, b in cuts if len(b) > 1]
    forms += [a + b[1:] for a, b in cuts if b]
    forms += [a + c + b[1:] for a, b in cuts if b for c in ascii_lowercase]
    forms += [a + c + b for a, b in cuts for c in ascii_lowercase]
    return [form for form in dict.fromkeys(forms) if form != word]


def _meant(
    place: int, form: str, key: int, lexicon: _core.Lexicon, rest: np.ndarray, text: Callable[[int], str]
) -> _Meant | None:
    """*form* as the bank writes it; None where no memory writes it so: a bank that says "when" does not say "whened"."""
    found = lexicon.bm25(np.array([key], np.uint32), np.ones(1, np.float32))
    rows = np.flatnonzero(found > 0)
    rows = rows[np.argsort(-rest[rows], kind="stable")]
    less, texts = -float(rest[rows[0]]), [said for row in rows[:_TEXTS].tolist() if (said := text(row))]
    if not texts:
        return _Meant(True, less, place, form, key)
    words = {fold(word) for said in texts for word in WORD.findall(said)}
    if form in words:
        return _Meant(False, less, place, form, key)
    same = sorted(word for word in words if term_hash(stem(word)) == key)
    if any(word.startswith(form) for word in same):
        return _Meant(True, less, place, form, key)
    return next((_Meant(True, less, place, word, key) for word in same if form[:-1] == word and len(word) >= SHORTEST), None)
