"""Questions that hold two: how they are taken apart, and which are left whole."""

from __future__ import annotations

import pytest

from megart.runtime.clauses import clauses, halves


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Where is the key, and who painted it?", ["Where is the key?", "Who painted it?"]),
        ("What do I owe Ada and when is it due?", ["What do I owe Ada?", "When is it due?"]),
        ("When was the fair, and in which town is the inn?", ["When was the fair?", "In which town is the inn?"]),
        ("Wo liegt der Schlüssel und wer hat ihn?", ["Wo liegt der Schlüssel?", "Wer hat ihn?"]),
        ("On what date was it, and how many came to the fair?", ["On what date was it?", "How many came to the fair?"]),
        (
            "In the race of 4 June, 2024, who came first, and which town held the fair?",
            ["In the race of 4 June, 2024, who came first?", "Which town held the fair?"],
        ),
        (
            "Which club does Ada play for, and in the season of 2024, which league is the club in?",
            ["Which club does Ada play for?", "In the season of 2024, which league is the club in?"],
        ),
        ("Where was the fair, and overall, how many came?", ["Where was the fair?", "Overall, how many came?"]),
        (
            "What are the numbers of the tank and of the card reader?",
            ["What are the numbers of the tank?", "What are the numbers of the card reader?"],
        ),
        ("What are the password and my login?", ["What are the password?", "What are my login?"]),
        ("What sizes are my boots and my shoes?", ["What sizes are my boots?", "What sizes are my shoes?"]),
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
        "Who left the podcast and was followed by Ada?",
        "When did Ada leave and come back to town?",
        "In the shed, and only there, which tools are mine?",
        "The key, which hangs by the door, and who painted it?",
        "What did Ada say about the shop, and in the end, did she buy it?",
    ],
)
def test_other_questions_stay_whole(question: str) -> None:
    assert clauses(question) == [question]


def test_two_things_in_one_question_may_be_asked_apart() -> None:
    assert halves("What is the password and the door code?") == ["What is the password?", "What is the door code?"]
    assert halves("Where is my key and my cap") == ["Where is my key?", "Where is my cap?"]
    assert halves("What is the difference between the oak and the elm?") == []
    assert halves("What is the password?") == []
