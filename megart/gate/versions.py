"""Do two memories say the same at another time? One probability, from how near they are and whether one speaks of change.

A note that takes another's place is seldom like it: "Moved the Skoda spare to the drawer". It tells that something
changed; what changed it leaves to the note before. Fitted by tools/fit_versions.py, which says on what rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from . import meaning
from .known import Seen, clip, probability
from .words import WORD, fold


@dataclass(frozen=True)
class Likeness:
    """How alike two memories are: below ``looked_at`` the other is not looked at, from ``told`` on a user is told of it."""

    looked_at: float
    told: float


# By keys; and by families of embedders whose vectors say it, as far as was fitted. With others the keys do. Of our own
# updates a user is told of 57 %, of notes on one subject that are none 20 %, of other notes of one bank 2 % (by e5; from
# 0.84 on: 93, 75 and 50).
BY_KEYS = Likeness(0.2, 0.2)
LIKENESS = {meaning.E5_SMALL: Likeness(0.84, 0.88), meaning.E5: Likeness(0.84, 0.88)}
# Nor one that the question means less: log odds by the text embedder.
MEANT_FROM = 4.0
# The probability from which on two memories say the same; where the user asks how it was before, a lower one is enough.
SAME_FROM, SAME_FROM_BEFORE = 0.4, 0.3
# The reader's log odds from which on the other one answers too; where both answers are figures of one form, less will do.
ODDS_FROM, ODDS_FROM_FIGURES = -1.25, -2.5
WEIGHTS = {"always": -3.24, "odds": 0.29, "apart": 0.25, "nearest": 0.76, "change": 2.03}
WEIGHTS_MEANING = {"always": -1.25, "odds": 0.39, "apart": 0.34, "nearest": 1.32, "change": 2.71, "meant": 1.08}
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


def is_far(other: Seen) -> bool:
    """Whether the question means *other* too little for it to be another answer; without a text embedder never."""
    return other.meant is not None and other.meant < MEANT_FROM


def alike_figures(one: str, other: str) -> bool:
    """Whether two answers hold figures of one form, as "9 April" and "23 April"."""
    forms = [[_FIGURE.sub("0", number) for number in _NUMBER.findall(words)] for words in (one, other)]
    shorter = min(map(len, forms))
    return shorter > 0 and forms[0][:shorter] == forms[1][:shorter]


def features(first: Seen, other: Seen, *, nearest: bool, odds: float, newer: str) -> dict[str, float]:
    """Of a memory *first* that answers a question and an *other*.

    ``nearest``: no memory is more like the first; ``odds``: the reader's that the
    other one answers the question too; ``newer``: the text of the newer of the two.
    """
    values = {
        "always": 1.0,
        "odds": clip(odds, 8.0),
        "apart": clip(other.odds - first.odds, 8.0),
        "nearest": float(nearest),
        "change": float(speaks_of_change(newer)),
    }
    return values if other.meant is None else {**values, "meant": clip(other.meant / 2 - 4, 4.0)}


def same_fact(values: Mapping[str, float], answers: tuple[str, str], *, before: bool = False) -> float:
    """The probability that two memories say the same at another time, from their :func:`features`; 0 where it is too low.

    ``answers``: what the reader finds in each; ``before``: the user asks how it was before.
    """
    p = probability(values, WEIGHTS_MEANING if "meant" in values else WEIGHTS)
    if before:
        return p if p >= SAME_FROM_BEFORE else 0.0
    least = ODDS_FROM_FIGURES if alike_figures(*answers) else ODDS_FROM
    return p if p >= SAME_FROM and values["odds"] >= least else 0.0
