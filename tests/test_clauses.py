"""Questions that hold two: how they are taken apart, and which are left whole."""

from __future__ import annotations

import pytest

from megart.runtime.clauses import bridge, clauses


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where is the key, and who painted it?", ["Where is the key?", "Who painted it?"]),
        ("What do I owe Ada and when is it due?", ["What do I owe Ada?", "When is it due?"]),
        ("When was the fair, and in which town is the inn?", ["When was the fair?", "In which town is the inn?"]),
        ("Wo liegt der Schlüssel und wer hat ihn?", ["Wo liegt der Schlüssel?", "Wer hat ihn?"]),
        ("On what date was it, and how many came to the fair?", ["On what date was it?", "How many came to the fair?"]),
        (
            "What are the numbers of the tank and of the card reader?",
            ["What are the numbers of the tank?", "What are the numbers of the card reader?"],
        ),
        ("What are the password and my login?", ["What are the password?", "What are my login?"]),
    ],
)
def test_two_questions_are_asked_apart(question: str, expected: list[str]) -> None:
    assert clauses(question) == expected


@pytest.mark.parametrize(
    "question",
    [
        "Where are salt and pepper?",
        "Ada and who?",
        "Who and what?",
        "The key and where it hangs are my secret",
        "",
        "Can you say when and where the fair is?",
    ],
)
def test_other_questions_stay_whole(question: str) -> None:
    assert clauses(question) == [question]


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("What is the number of the vet who treated the mare?", ("Who treated the mare?", "What is the number of ")),
        ("In which room is the oven that shows E-12?", ("Which oven shows E-12?", "In which room is ")),
        ("Where is the key?", None),
        ("Who painted the door that sticks, and when?", None),
        ("", None),
    ],
)
def test_a_question_about_what_another_finds(question: str, expected: tuple[str, str] | None) -> None:
    assert bridge(question) == expected
