"""A question about what another one finds: what is asked first, and what then."""

from __future__ import annotations

import pytest

from megart.runtime.steps import steps


@pytest.mark.parametrize(
    ("question", "first", "second"),
    [
        ("What is the number of the vet who came?", "Who came?", "What is the number of the vet X?"),
        ("In which room is the oven that shows E-12?", "Which oven shows E-12?", "In which room is the oven X?"),
        ("On which berth is the man who sells ice?", "Who sells ice?", "On which berth is X?"),
        ("What oil does the engine whose fan is F4 take?", "Whose fan is F4?", "What oil does the engine X take?"),
        ("How much does the cook who came charge for soup?", "Who came?", "How much does the cook X charge for soup?"),
        ("Which plot does the person have who came?", "Who came?", "Which plot does X have?"),
    ],
)
def test_a_question_about_what_another_finds(question: str, first: str, second: str) -> None:
    made = steps(question)
    assert made is not None and (made.first, made.second("X")) == (first, second)
    assert made.second("X's") == second and not made.is_one


@pytest.mark.parametrize("question", ["Where is the key?", "Who painted the door that sticks, and when?", ""])
def test_other_questions_are_asked_in_one(question: str) -> None:
    assert steps(question) is None


@pytest.mark.parametrize("question", ["Who is the man that came late?", "What is the name of the boat that leaks?"])
def test_who_it_is_needs_no_second_step(question: str) -> None:
    made = steps(question)
    assert made is not None and made.is_one
