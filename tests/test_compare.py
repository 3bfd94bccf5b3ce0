"""Which of two: what counts as such a question, what is asked about each of them, and who wins."""

from __future__ import annotations

import pytest

from megart.runtime.compare import comparison
from megart.runtime.quantities import BARE, CLOCK, DATE, MONEY, WEEKDAY, dates, figures, times_of_day, weekdays


@pytest.mark.parametrize(
    ("question", "options", "kind", "greater"),
    [
        ("Who was born earlier, Ada Quist or Ivo Rudd?", ("Ada Quist", "Ivo Rudd"), "time", False),
        ("Which cost more, the kettle or the drill?", ("the kettle", "the drill"), "money", True),
        ("Which is cheaper: bus 4, or the night train?", ("bus 4", "the night train"), "money", False),
        ("Who is younger, Ada or Ivo?", ("Ada", "Ivo"), "time", True),
        ("Which is longer the pole or the mast?", ("the pole", "the mast"), "size", True),
        ("Is the kettle or the drill more expensive?", ("the kettle", "the drill"), "money", True),
        ("Did the locksmith or the sweep charge more?", ("the locksmith", "the sweep"), "money", True),
        ("Do I pay less for the plot or for the water?", ("the plot", "the water"), "money", False),
        ("Does the bus or the train take longer?", ("the bus", "the train"), "size", True),
    ],
)
def test_a_question_that_compares_two_things_is_seen(question, options, kind, greater) -> None:
    made = comparison(question)
    assert made is not None and (made.options, made.kind, made.greater, made.whether) == (options, kind, greater, False)


@pytest.mark.parametrize(
    ("question", "options", "kind", "greater"),
    [
        ("Was the aerial cheaper than the sail?", ("the aerial", "the sail"), "money", False),
        ("Is the pole longer than the mast?", ("the pole", "the mast"), "size", True),
        ("Did the kettle cost more than the drill?", ("the kettle", "the drill"), "money", True),
        ("Is the regatta before the haul-out?", ("the regatta", "the haul-out"), "time", False),
    ],
)
def test_a_question_whether_one_is_more_than_the_other_is_seen(question, options, kind, greater) -> None:
    made = comparison(question)
    assert made is not None and (made.options, made.kind, made.greater, made.whether) == (options, kind, greater, True)


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
        "Can I take more than two a day?",
        "Did Anna call before Peter?",
        "Is it cheaper than that one?",
        "Do you have tea or coffee?",
    ],
)
def test_other_questions_are_not(question: str) -> None:
    assert comparison(question) is None


@pytest.mark.parametrize(
    ("question", "asks"),
    [
        ("Who was born earlier, Ada or Ivo?", ("When was Ada born?", "When was Ivo born?")),
        ("Which comes first, the jab or the test?", ("When is the jab?", "When is the test?")),
        ("Who pays more rent, Ada or Ivo?", ("What is the rent of Ada?", "What is the rent of Ivo?")),
        ("Which cost more, the cap or the hat?", ("What is the price of the cap?", "What is the price of the hat?")),
        ("Which is heavier, the cap or the hat?", ("How heavy is the cap?", "How heavy is the hat?")),
        ("Which took longer, the cap or the hat?", ("How long does the cap take?", "How long does the hat take?")),
        ("Which has more pages, the atlas or the bible?", ("How many pages does the atlas have?", "How many pages does the bible have?")),
        ("Which holds more, the tub or the pail?", ("How much does the tub hold?", "How much does the pail hold?")),
    ],
)  # fmt: skip
def test_each_of_the_two_is_asked_about_by_itself(question, asks) -> None:
    made = comparison(question)
    assert made is not None and made.asks == asks


def test_dates_are_put_in_order_however_they_are_written() -> None:
    text = "3 May 1951; May 4, 1951; 1951-06-01; June 1952; 1953"
    days = [value.size for value in dates(text)]
    assert len(days) == 5 and days == sorted(days) and len(set(days)) == 5
    assert [text[slice(*value.span)] for value in dates(text)] == text.split("; ")
    assert dates("12 marbles, 3 mayors, CX8-1951, 2.1951") == []
    march, may = dates("1 March 2026, 4 May")
    assert not march.compares(may)  # of which year?


def test_times_of_a_day_and_weekdays_are_put_in_order() -> None:
    text = "at 02:15, 8.30, 9 am, 12:00, 3 p.m., 17 Uhr; 4 of 5, v2.1.30, 25:10"
    times = times_of_day(text)
    assert [text[slice(*one.span)] for one in times] == ["02:15", "8.30", "9 am", "12:00", "3 p.m.", "17 Uhr"]
    minutes = [one.size for one in times]
    assert minutes == sorted(minutes) and minutes[0] == 135 and {one.kind for one in times} == {CLOCK}
    assert [one.size for one in weekdays("Thursdays and Monday, not mondaine")] == [3.0, 0.0]


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("Paid 1,318.40 for KB-5517, 2 of them, v2.1", [(1318.4, BARE, ""), (2.0, BARE, "")]),
        ("invoice 1188, £960 paid on 2 November", [(1188.0, BARE, ""), (960.0, MONEY, "£")]),
        ("3,80 € pièce, 1.275,50 euros, 1 340 kr, $5", [(3.8, MONEY, "€"), (1275.5, MONEY, "€"), (1340.0, MONEY, "kr"), (5.0, MONEY, "$")]),
        ("90 minutes, 2 hours, ninety seconds, one of them", [(5400.0, "time", ""), (7200.0, "time", ""), (90.0, "time", "")]),
        ("1.5 km of 8 mm rope, 2 kg, 4.5 l, 12 °C, 20 %", [(1.5e6, "length", ""), (8.0, "length", ""), (2e6, "mass", ""), (4500.0, "volume", ""), (12.0, "degrees", ""), (20.0, "percent", "")]),
        ("call 0161 555 0148 at 8:40 on 27 Feb, E0147, 2.4.10", []),
        ("the 1st of 5 A", [(5.0, BARE, "")]),
    ],
)  # fmt: skip
def test_figures_have_a_kind_and_are_no_parts_of_codes_dates_and_times(text, sizes) -> None:
    assert [(one.size, one.kind, one.unit) for one in figures(text)] == sizes


def test_money_is_compared_with_money() -> None:
    made = comparison("Which cost more, the kettle or the drill?")
    assert made is not None
    text = "two visits, £640, the first one 27 Feb"
    assert [text[slice(*one.span)] for one in made.quantities(text)] == ["£640"]
    (bare,) = made.quantities("the kettle was 63")
    (pounds,), (euros,) = made.quantities("£349"), made.quantities("349 €")
    assert made.winner(bare, pounds) == 1 and made.winner(pounds, bare) == 0
    assert made.winner(bare, bare) is None and made.winner(pounds, euros) is None


def test_what_is_earlier_is_a_date_a_time_or_a_weekday() -> None:
    made = comparison("Which comes first, the jab or the test?")
    assert made is not None
    assert {one.kind for one in made.quantities("Friday 25 October, 11:20, ring 01632 440 917")} == {DATE, CLOCK, WEEKDAY}
