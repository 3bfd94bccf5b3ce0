"""When a question says that something was, and the day that a note was written on; without a model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megart.gate import dates


def note(text: str, created: str = "2025-12-20", title: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(text=text, created=created, title=title)


@pytest.mark.parametrize(
    ("question", "created", "rest"),
    [
        ("Which hive got fondant in December?", "2025-12-20", "Which hive got fondant?"),
        ("Which hive got fondant on 20 December 2025?", "2025-12-20T09:30:00+00:00", "Which hive got fondant?"),
        ("What did we buy on December 3rd, 2025?", "2025-12-03", "What did we buy?"),
        ("What was paid on 2025-12-03?", "2025-12-03", "What was paid?"),
        ("Was wurde am 3.12.2025 bezahlt?", "2025-12-03", "Was wurde bezahlt?"),
        ("What did the plumber get last October?", "2025-10-05", "What did the plumber get?"),
        ("In March, what did the plumber get?", "2026-03-05", "What did the plumber get?"),
        ("What did I weigh in 2025?", "2025-10-05", "What did I weigh?"),
        ("Quelle ruche a reçu du sirop le 20 décembre ?", "2025-12-20", "Quelle ruche a reçu du sirop?"),
        ("¿Qué colmena recibió jarabe en diciembre de 2025?", "2025-12-20", "¿Qué colmena recibió jarabe?"),
        ("В декабре какой улей получил корм?", "2025-12-20", "Какой улей получил корм?"),
        ("12月にどの巣箱に餌をやった?", "2025-12-20", "どの巣箱に餌をやった?"),
        # Of another time, of a name that only looks like one, of two times, or of nothing else.
        ("Which hive got fondant in December?", "2025-11-30", None),
        ("Which hive got fondant on 21 December?", "2025-12-20", None),
        ("May I park here, and who may march?", "2025-05-01", None),
        ("What did Jan say about room 2025?", "2025-01-05", None),
        ("How much rain fell in March and in May?", "2026-03-05", None),
        ("In December?", "2025-12-20", None),
    ],
)  # fmt: skip
def test_a_time_that_is_a_notes_own_is_left_out_of_the_question(question: str, created: str, rest: str | None) -> None:
    assert dates.without_when(question, note("Hive 5 was light, so I may feed it again.", created)) == (rest or question)


@pytest.mark.parametrize("text", ["Open in January only.", "Ab 3. März geschlossen.", "3月は休み"])
def test_a_note_that_names_a_month_is_not_of_the_one_that_it_was_written_in(text: str) -> None:
    when = dates.when("Who has the late shift in December?")
    assert when is not None and when.is_of(note("The late shift has Ilse."))
    assert not when.is_of(note(text)) and not when.is_of(note("Closed.", title=text))


def test_a_year_is_not_a_notes_own_where_it_names_one() -> None:
    when = dates.when("What did the club earn in 2025?")
    assert when is not None and when.is_of(note("The club earned 400."))
    assert not when.is_of(note("The club earned 400, in 2024 it was 300."))


@pytest.mark.parametrize(
    ("words", "alone", "inside"),
    [
        ("today", 1, 1), ("this morning", 1, 1), ("Hier soir", 1, 0), ("last week.", 1, 1), ("сегодня", 1, 1), ("昨日", 1, 1),
        ("Changed the oil yesterday", 0, 1), ("Heute Reifen gewechselt", 0, 1), ("hier rechts", 0, 0), ("at 9", 0, 0),
        ("holidays", 0, 0),
    ],
)  # fmt: skip
def test_times_that_need_the_day_they_were_written_on(words: str, alone: int, inside: int) -> None:
    assert (dates.is_relative(words), dates.is_relative(words, inside=True)) == (alone, inside)


def test_questions_for_a_time() -> None:
    assert all(map(dates.asks_when, ["When did it rain?", "Wann war das?", "¿Cuándo fue?", "on what day was it", "いつ?"]))
    assert not any(map(dates.asks_when, ["Who rang when I was out?", "What rained?", ""]))
