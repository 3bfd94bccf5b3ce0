"""What is asked for, where it has a shape: which questions ask for one, and where one stands."""

from __future__ import annotations

import pytest

from megart.gate import known, shapes


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("What is the plumber's phone number?", "Gethin, 07700 900318"),
        ("What is the telephone number of Fennline?", "(0161) 555-0148"),
        ("phone number Ife", "0117 555 0163"),
        ("Which mobile number does Dario have?", "+39 335 1234567"),
        ("Wie lautet die Telefonnummer vom Hausarzt?", "Tel. 0551 77 30 18"),
        ("Quel est le numéro de téléphone du serrurier ?", "01 23 45 67 89"),
        ("¿Cuál es el teléfono del fontanero?", "555-0779"),
        ("Jaki jest numer telefonu hydraulika?", "tel. 4471"),
        ("What is Maureen's e-mail address?", "maureen@lowerbrook.example"),
        ("What's the email of the tutor?", "a.b+c@d.example"),
        ("What is the URL of our domain?", "tarn-glazing.example"),
        ("What is the website for lenses?", "https://clear.example/x"),
        ("What is the IP address of the router?", "10.20.0.254"),
    ],
)
def test_a_question_for_something_of_a_shape_finds_it(question: str, told: str) -> None:
    made = shapes.asked(question)
    assert made is not None
    text = f"On 01.02.2024 he paid 640.50 for KB-5517: {told}, at 8:40."
    assert [text[slice(*span)] for span in made.shape.spans(text)] == [told.removeprefix("Gethin, ").removeprefix("Tel. ").removeprefix("tel. ")]  # fmt: skip


@pytest.mark.parametrize(
    "question",
    [
        "Whose phone number is 0117 555 0163?",
        "Where is my phone?",
        "What is the password of the e-mail account?",
        "What is the price of the phone?",
        "How many phone numbers do I have?",
        "What is the phone PIN?",
        "Which phone did I buy?",
        "What is the policy number?",
        "",
    ],
)
def test_other_questions_ask_for_none(question: str) -> None:
    assert shapes.asked(question) is None


def test_a_text_without_a_sign_of_it_cannot_answer() -> None:
    def about(question: str, text: str) -> known.Subject:
        return known.subject(question, [], {}, text)

    assert about("What is Ada's e-mail?", "Ada, 01632 960 550").is_another
    assert not about("What is Ada's e-mail?", "Ada, ada@quist.example").is_another
    assert about("What is Ada's phone number?", "Ada has 12 hens.").is_another
    assert not about("What is Ada's phone number?", "Ada: dial 112.").is_another
    assert not about("What is Ada's website?", "Ada writes a blog.").is_another


def test_what_stands_there_itself_needs_no_name() -> None:
    telling = {known.term_hash(known.term(word)): 1.0 for word in ("Ada", "phone", "number")}
    question = "What is Ada's phone number?"
    assert known.subject(question, [], telling, "Ada, 01632 960 550").lacking == 0.0
    assert known.subject(question, [], telling, "Ada, box 550").lacking == pytest.approx(2 / 3)
