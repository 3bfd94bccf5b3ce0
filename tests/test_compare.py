"""Which of two: what counts as such a question, the figures and dates that are compared, and who wins."""

from __future__ import annotations

import pytest

from megart.runtime.compare import comparison


@pytest.mark.parametrize(
    ("question", "options", "greater", "of_time"),
    [
        ("Who was born earlier, Ada Quist or Ivo Rudd?", ("Ada Quist", "Ivo Rudd"), False, True),
        ("Which cost more, the kettle or the drill?", ("the kettle", "the drill"), True, False),
        ("Which is cheaper: bus 4, or the night train?", ("bus 4", "the night train"), False, False),
        ("Who is younger, Ada or Ivo?", ("Ada", "Ivo"), True, True),
    ],
)
def test_a_question_that_compares_two_things_is_seen(question, options, greater, of_time) -> None:
    made = comparison(question)
    assert made is not None and (made.options, made.greater, made.of_time) == (options, greater, of_time)


@pytest.mark.parametrize(
    "question",
    [
        "Who was born earlier?",
        "Tea or coffee?",
        "Is it more or less, a or b?",
        "",
        "Which is it, a or b?",
        "Which is worth more, € or $?",
        "Who is oldest, Ada, Ivo or Bo?",
        "In the last meeting, did Ada or Ivo pay?",
    ],
)
def test_other_questions_are_not(question: str) -> None:
    assert comparison(question) is None


def test_dates_are_put_in_order_however_they_are_written() -> None:
    made = comparison("Who was born earlier, Ada or Ivo?")
    assert made is not None
    text = "3 May 1951; May 4, 1951; 1951-06-01; June 1952; 1953"
    days = [value.size for value in made.values(text)]
    assert len(days) == 5 and days == sorted(days) and len(set(days)) == 5
    assert [text[slice(*value.span)] for value in made.values(text)] == text.split("; ")
    assert made.values("12 marbles, 3 mayors") == []
    march, may = made.values("1 March 2026, 4 May")
    assert made.best((march, may)) is None  # of which year?


def test_figures_are_numbers_not_parts_of_codes() -> None:
    made = comparison("Which cost more, the kettle or the drill?")
    assert made is not None
    assert [v.size for v in made.values("Paid 1,318.40 for KB-5517, 2 of them, v2.1")] == [1318.4, 2.0]
    low, high, far = made.values("63 then 349 then 2 km")
    assert made.best((low, high)) == 1 and made.best((high, low)) == 0
    assert made.best((low, low)) is None and made.best((high, far)) is None
    assert made.option_of("The new drill arrived.") == 1 and made.option_of("A kettle.") == 0
    assert made.option_of("Nothing of the kind.") is None
