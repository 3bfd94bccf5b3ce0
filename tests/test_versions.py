"""Whether two notes say the same at another time: what speaks for it, without a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from megart.gate import known, versions


@pytest.mark.parametrize(
    "text",
    [
        "Moved the spare key to the drawer", "Eggs cost 2.60 from today", "Sie ist umgezogen.", "Ab heute 74 Euro.",
        "Le dépôt a déménagé.", "Ahora son los viernes.", "Da oggi costa 5 euro.", "Agora é na sala 4.", "Nu in zaal 3.",
        "Теперь по средам.",
    ],
)  # fmt: skip
def test_a_note_that_takes_anothers_place_speaks_of_change(text: str) -> None:
    assert versions.speaks_of_change(text)


def prior(word: str) -> float:
    return 0.05 if word.islower() and word not in ("farrier", "hoof") or word in ("The", "How", "It", "When") else 1e-6


FARRIER = versions.Version("The farrier, Mr Toller, comes to Duchess every eight weeks.", "2025-06-10", known.Seen(6.0))
TOLLER = "Mr Toller looked at Duchess's hoof and will come every five weeks from now on."


def values(
    text: str = TOLLER, answer: str | None = "every five weeks", odds: float = 1.0, first: str = "every eight weeks",
    seen: float = 0.0, created: str = "2026-02-15", **more: Any,
) -> dict[str, float]:  # fmt: skip
    other = versions.Version(text, created, known.Seen(seen), 1, answer or "", None if answer is None else odds, **more)
    asked = "How often does the farrier come to Duchess?"
    return versions.features(asked, replace(FARRIER, answer=first), other, prior)


def test_a_newer_note_that_names_the_same_things_and_speaks_of_change_takes_the_others_place() -> None:
    assert versions.same_fact(values()) > 0
    assert versions.likely(values()) > versions.likely(values(text=TOLLER.replace("from now on", "")))
    assert versions.same_fact(values(text="The vet, Ms Ivarsson, comes to the cows every five weeks from now on.")) == 0
    assert versions.same_fact(values(text="Hay is stored in the new barn from now on.")) == 0


def test_what_shares_nothing_is_not_read() -> None:
    assert versions.likely(values(answer=None)) >= versions.READ_FROM
    assert versions.likely(values(text="The barn has a new roof.", answer=None, seen=-8.0)) < versions.READ_FROM


def test_the_same_answer_is_no_change() -> None:
    assert versions.likely(values(answer="Every eight weeks.")) < versions.likely(values(answer="every five weeks"))


def test_the_old_answer_in_the_newer_note_speaks_for_a_change() -> None:
    told = values(text=f"{TOLLER} Every eight weeks was too long.")
    assert told["told"] == 1 and values()["told"] == 0
    older = values(text="Toller comes every five weeks.", created="2024-01-01")
    assert older["told"] == 0 and values(text="x", answer="eight weeks", created="2024-01-01")["told"] == 1


def test_what_the_reader_finds_no_answer_in_takes_nobodys_place() -> None:
    doubted = values(answer="at the hoof", odds=-2.0)
    assert versions.same_fact(doubted) == 0 < versions.same_fact(doubted, before=True)
    assert versions.same_fact(values(answer="at the hoof", odds=0.0)) >= versions.SAME_FROM


def test_a_figure_takes_the_place_of_one_of_its_form_more_easily() -> None:
    assert versions.same_fact(values(first="24", answer="27", odds=-2.0)) >= versions.SAME_FROM
    assert versions.same_fact(values(first="7:30", answer="27", odds=-2.0)) == 0
    assert versions.same_fact(values(first="24", answer="27", odds=-2.6)) == 0


def test_an_embedder_that_says_how_alike_they_are_is_heard() -> None:
    near, far = (values(alike=alike, nearest=True) for alike in (0.92, 0.75))
    assert versions.likely(near) > versions.likely(far) and near.keys() - values().keys() == {"alike", "meant"}


def test_long_texts_of_one_subject_are_not_the_same_for_that() -> None:
    """Of encyclopaedic texts one speaks of change somewhere, and both name much the same."""
    words = " ".join(f"Subject{i}" for i in range(100))
    one, other = (versions.Version(f"{words} It moved in {year}.", f"20{year[:2]}-01-01", known.Seen(5.0)) for year in ("1907", "2011"))
    assert versions.features("When did Subject1 move?", one, other, prior)["shared"] == 5
    assert versions.features("When did Subject1 move?", one, other, prior)["long"] > 1 > values()["long"] == 0


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("9 April", "23 April", 1), ("4,35 €", "4,80 €", 1), ("2.5 mg", "10 mg", 1), ("01632 960 114", "01632 960 587", 1),
        ("Mondays 17:00", "Wed 7:45", 1), ("20 May", "27 May 9:20", 1), ("17:00", "31", 0), ("red", "blue", 0),
        ("in the drawer", "8 bar", 0), ("24", "Ruben", 0),
    ],
)  # fmt: skip
def test_figures_of_one_form_are_alike(one: str, other: str, alike: int) -> None:
    assert versions.alike_figures(one, other) == versions.alike_figures(other, one) == alike
