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
        return versions.same_fact(versions.features(first, other, nearest=nearest, odds=0.0, newer=newer))

    assert p("Moved the key to the drawer") > p("Moved the key to the drawer", nearest=False) > 0
    assert p("The tin is blue", nearest=False) == 0


def test_what_the_reader_finds_no_answer_in_takes_nobodys_place() -> None:
    first, other = known.Seen(2.0, meant=10.0), known.Seen(2.0, meant=10.0)
    values = versions.features(first, other, nearest=True, odds=-2.0, newer="Moved to the drawer")
    assert versions.same_fact(values) == 0 and versions.same_fact(values, before=True) >= versions.SAME_FROM_BEFORE
    assert versions.same_fact(values | {"odds": 0.0}) >= versions.SAME_FROM


def test_what_the_question_hardly_means_is_far() -> None:
    assert versions.is_far(known.Seen(2.0, meant=3.0)) and not versions.is_far(known.Seen(2.0, meant=5.0))
    assert not versions.is_far(known.Seen(-8.0))  # without a text embedder nothing says so
