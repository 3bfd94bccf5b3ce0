"""Do two memories say the same at another time? One probability, from what they have in common and whether one speaks of
change.

A note that takes another's place names what it is about and tells that something changed: "Mr Toller will come every five
weeks from now on". Before the reader has seen it, the probability says whether it is worth reading; then, whether its
answer is the same at another time. Fitted by tools/fit_versions.py, which says on what rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from . import meaning
from .known import Seen, clip, probability
from .words import WORD, fold, term

# Families of embedders whose cosines of two memories say how alike they are.
SAY_ALIKE = frozenset((meaning.E5_SMALL, meaning.E5))
# The probability from which on a user is told that a new note may update an old one.
TOLD_FROM = 0.2
# Of a new note and an old one, by whether an embedder says how alike they are.
WEIGHTS_OF_NOTES: dict[bool, dict[str, float]] = {
    False: {"always": -6.81, "change": 1.62, "shared": 2.14, "cover": 5.31, "long": -5.55},
    True: {
        "always": -7.16, "change": 2.12, "shared": 0.35, "cover": 2.91, "long": -3.46, "alike": 3.06, "nearest": 2.41,
    },
}  # fmt: skip
# The probability from which on another memory is read, and from which on it says the same; a lower one where the user asks
# how it was before.
READ_FROM, SAME_FROM, SAME_FROM_BEFORE = 0.02, 0.3, 0.2
# The same of two memories of one day, of which only the time of the day says which is newer.
READ_FROM_OF_ONE_DAY, SAME_FROM_OF_ONE_DAY = 0.15, 0.5
# The reader's log odds from which on the other one answers too; where both answers are figures of one form, less will do.
ODDS_FROM, ODDS_FROM_FIGURES = -1.25, -2.5
# By whether an embedder says how alike they are, and whether the other one was read.
WEIGHTS: dict[tuple[bool, bool], dict[str, float]] = {
    (False, False): {
        "always": -6.2, "change": 1.65, "shared": 0.99, "cover": 3.6, "long": -4.86, "apart": 0.28, "asked": 1.59,
        "second": 0.72, "third": 0.68, "nearest": 0.83,
    },
    (False, True): {
        "always": -6.33, "change": 1.62, "shared": 0.68, "cover": 3.47, "long": -4.56, "apart": 0.22, "asked": 1.81,
        "second": 0.47, "third": 0.52, "nearest": 0.66, "odds": 0.34, "figures": 1.23, "told": 0.63,
        "unchanged": -0.53,
    },
    (True, False): {
        "always": -4.76, "change": 2.35, "shared": -0.07, "cover": 2.02, "long": -4.33, "apart": 0.26, "asked": 0.78,
        "second": 0.77, "third": 0.32, "nearest": 0.77, "alike": 2.87, "meant": 0.57,
    },
    (True, True): {
        "always": -5.16, "change": 2.4, "shared": -0.45, "cover": 1.88, "long": -3.89, "apart": 0.2, "asked": 0.83,
        "second": 0.83, "third": 0.18, "nearest": 1.01, "alike": 2.48, "meant": 0.59, "odds": 0.37, "figures": 0.74,
        "told": 1.69, "unchanged": -2.19,
    },
}
# What a word says less than this tells nothing; tens of nats that two memories share, at most; words of a short memory.
_PLAIN_NATS, _MOST_SHARED, _SHORT = 5.0, 5.0, 25
_NUMBER, _FIGURE = re.compile(r"\d+(?:[.,:/-]\d+)*"), re.compile(r"\d+(?:[.,]\d+)?")
# Words of a note that something is not as it was, in many languages. Folded.
_CHANGE = frozenset(
    fold(word)
    for word in (
        "now new newly changed changes change moved moves instead longer anymore correction corrected actually wrong "
        "wrongly mistake misread misheard updated update replaced replaces replacing switched raised increased lowered "
        "reduced cancelled canceled postponed rescheduled shifted became become becomes retired resigned since again "
        "different stopped died broke took taken over today "
        "jetzt neu neue neuer neues neuen neuem geändert ändert verschoben verlegt umgezogen nun stattdessen mehr "
        "korrektur falsch irrtum versehen ersetzt gewechselt erhöht gesenkt abgesagt inzwischen mittlerweile ab seit "
        "heute nachfolger "
        "maintenant désormais nouveau nouvelle nouveaux changé déplacé déménagé dorénavant plus erreur remplacé "
        "augmenté baissé reporté annulé finalement aujourd "
        "ahora nuevo nueva cambiado cambió cambia trasladado mudado ya error corrección sustituido subido bajado "
        "aplazado cancelado partir hoy jubilado "
        "ora adesso nuovo nuova cambiato spostato trasferito più errore correzione sostituito aumentato rinviato "
        "annullato oggi agora novo nova mudou alterado correção substituído aumentou adiado hoje "
        "nu nieuw nieuwe gewijzigd verplaatst verhuisd voortaan vanaf meer fout correctie vervangen verhoogd "
        "uitgesteld geannuleerd afgezegd vandaag ny nya nytt ändrat flyttat istället längre fel rättelse idag "
        "teraz nowy nowa nowe zmieniony zmiana przeniesiony zamiast dziś "
        "теперь сейчас новый новая новое новые изменён изменился перенесён вместо больше ошибка исправление сегодня"
    ).split()
)


def speaks_of_change(text: str) -> bool:
    """Whether *text* says that something is not as it was."""
    return not _CHANGE.isdisjoint(fold(word) for word in WORD.findall(text))


def alike_figures(one: str, other: str) -> bool:
    """Whether two answers hold figures of one form, as "9 April" and "23 April"."""
    forms = [[_FIGURE.sub("0", number) for number in _NUMBER.findall(words)] for words in (one, other)]
    shorter = min(map(len, forms))
    return shorter > 0 and forms[0][:shorter] == forms[1][:shorter]


@dataclass(frozen=True)
class Version:
    """One of two memories: its ``text`` with the title, the day it was ``created`` on, and what the gate ``seen`` of it.

    ``rank``: its place among what the question may be about. ``answer``, ``odds``: what the reader finds in it, and its log
    odds; None before it is read. ``alike``: how alike an embedder finds it to the first, a cosine, None where none says so.
    ``nearest``: no memory is more like the first.
    """

    text: str
    created: str
    seen: Seen
    rank: int = 0
    answer: str = ""
    odds: float | None = None
    alike: float | None = None
    nearest: bool = False

    def read(self, answer: str, odds: float) -> Version:
        """The same once the reader has seen it."""
        return replace(self, answer=answer, odds=odds)


def features(question: str, first: Version, other: Version, prior: Callable[[str], float]) -> dict[str, float]:
    """Of a memory *first* that answers *question*, and an *other*. ``prior``: the share of texts that hold a word."""
    newer, older = (other, first) if other.created > first.created else (first, other)
    mine, others, asked = (_telling(text, prior) for text in (first.text, other.text, question))
    named = {word: nats for word, nats in asked.items() if word in mine}
    values = {
        **_in_common(newer.text, mine, others),
        "apart": clip(other.seen.odds - first.seen.odds, 8.0),
        "asked": sum(nats for word, nats in named.items() if word in others) / max(1.0, sum(named.values())),
        "second": float(other.rank <= 1),
        "third": float(other.rank <= 2),
        "nearest": float(other.nearest),
    }
    if other.alike is not None:
        meant = other.seen.meant
        values |= {"alike": _alike(other.alike), "meant": -4.0 if meant is None else clip(meant / 2 - 4, 4.0)}
    if other.odds is not None:
        values |= {
            "odds": clip(other.odds, 8.0),
            "figures": float(alike_figures(first.answer, other.answer)),
            "told": float(_holds(newer.text, older.answer)),
            "unchanged": float(_words(first.answer) == _words(other.answer)),
        }
    return values


def likely(values: Mapping[str, float]) -> float:
    """The probability that two memories say the same at another time, from their :func:`features`."""
    return probability(values, WEIGHTS["alike" in values, "odds" in values])


def is_worth_reading(p: float, *, one_day: bool = False) -> bool:
    """Whether a memory that was not read is likely enough, by its :func:`likely`; ``one_day``: both are of one day."""
    return p >= (READ_FROM_OF_ONE_DAY if one_day else READ_FROM)


def same_fact(values: Mapping[str, float], *, before: bool = False, one_day: bool = False) -> float:
    """:func:`likely` of two that were read, 0 where it is too low.

    ``before``: the user asks how it was before; ``one_day``: both are of one day.
    """
    p = likely(values)
    if one_day and p < SAME_FROM_OF_ONE_DAY:
        return 0.0
    if before:
        return p if p >= SAME_FROM_BEFORE else 0.0
    least = ODDS_FROM_FIGURES if values["figures"] else ODDS_FROM
    return p if p >= SAME_FROM and values["odds"] >= least else 0.0


def note_features(
    new: str, old: str, prior: Callable[[str], float], alike: float | None = None, *, nearest: bool = False
) -> dict[str, float]:
    """Of the text of a *new* note and an *old* one, with their titles; the other arguments as in :class:`Version`."""
    values = _in_common(new, _telling(new, prior), _telling(old, prior))
    return values if alike is None else values | {"alike": _alike(alike), "nearest": float(nearest)}


def updates(values: Mapping[str, float]) -> float:
    """The probability that a new note says the same as an old one at another time, from their :func:`note_features`."""
    return probability(values, WEIGHTS_OF_NOTES["alike" in values])


def _in_common(newer: str, one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    shared = sum(min(nats, other[word]) for word, nats in one.items() if word in other)
    return {
        "always": 1.0,
        "change": float(speaks_of_change(newer)),
        "shared": min(shared / 10, _MOST_SHARED),
        "cover": shared / max(1.0, min(sum(one.values()), sum(other.values()))),
        # Long texts of one subject share much, and one of them speaks of change somewhere.
        "long": math.log(max(1.0, min(len(one), len(other)) / _SHORT)),
    }


def _alike(cosine: float) -> float:
    return 10 * (cosine - 0.85)


def _telling(text: str, prior: Callable[[str], float]) -> dict[str, float]:
    """The terms of *text* and what each tells, in nats beyond what any word does."""
    return {term(word): max(0.0, -math.log(prior(word)) - _PLAIN_NATS) for word in WORD.findall(text)}


def _holds(text: str, words: str) -> bool:
    return bool(words) and f" {_words(words)} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(map(fold, WORD.findall(text)))
