"""Whether two notes say the same at another time: what speaks for it, without a model."""

from __future__ import annotations

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


def test_what_speaks_of_change_is_likelier_the_same_at_another_time() -> None:
    first, other = known.Seen(2.0, meant=10.0), known.Seen(0.0, meant=8.0)

    def p(newer: str, nearest: bool = True) -> float:
        answers = "in the tin", "in the drawer"
        return versions.same_fact(versions.features(first, other, nearest=nearest, odds=0.0, newer=newer), answers)

    assert p("Moved the key to the drawer") > p("Moved the key to the drawer", nearest=False) > 0
    assert p("The tin is blue", nearest=False) == 0


def test_what_the_reader_finds_no_answer_in_takes_nobodys_place() -> None:
    first, other = known.Seen(2.0, meant=10.0), known.Seen(2.0, meant=10.0)
    answers = "in the tin", "in the drawer"
    values = versions.features(first, other, nearest=True, odds=-2.0, newer="Moved to the drawer")
    assert versions.same_fact(values, answers) == 0
    assert versions.same_fact(values, answers, before=True) >= versions.SAME_FROM_BEFORE
    assert versions.same_fact(values | {"odds": 0.0}, answers) >= versions.SAME_FROM


def test_a_figure_takes_the_place_of_one_of_its_form_more_easily() -> None:
    first, other = known.Seen(2.0, meant=10.0), known.Seen(2.0, meant=10.0)
    values = versions.features(first, other, nearest=True, odds=-2.0, newer="From today it is 27")
    assert versions.same_fact(values, ("24", "27")) >= versions.SAME_FROM
    assert versions.same_fact(values, ("7:30", "27")) == 0
    assert versions.same_fact(values, ("in the shed", "27")) == 0
    assert versions.same_fact(values | {"odds": -2.6}, ("24", "27")) == 0


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


def test_what_the_question_hardly_means_is_far() -> None:
    assert versions.is_far(known.Seen(2.0, meant=3.0)) and not versions.is_far(known.Seen(2.0, meant=5.0))
    assert not versions.is_far(known.Seen(-8.0))  # without a text embedder nothing says so
