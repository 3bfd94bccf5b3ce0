"""What speaks for an answer being known: the question's own subject in the memory, figures and names in an answer."""

from __future__ import annotations

import pytest

from megart.gate import known
from megart.gate.words import term, term_hash


def telling(**nats: float) -> dict[int, float]:
    return {term_hash(term(word)): value for word, value in nats.items()}


def test_a_subject_that_stands_in_the_memory_lacks_nothing() -> None:
    about = known.subject("Where is PX 4471 B?", [], telling(PX=6.0, key=2.0), "The keys of PX-4471-B hang low.")
    assert (about.lacking, about.number, about.name) == (0.0, False, 0.0)


def test_what_the_memory_lacks_is_weighed() -> None:
    about = known.subject("What did Bosun cost?", ["Bosun"], telling(Bosun=9.0, cost=3.0), "Hiring it cost 120.")
    assert about.lacking == pytest.approx(0.75) and about.name == 1.0


@pytest.mark.parametrize(
    ("question", "text", "missing"),
    [
        ("What does E0147 mean?", "E0174 is the fan.", True),
        ("What does E0147 mean?", "Code E0147: the fan.", False),
        ("drawing 442", "Drawing 4420 is in the safe.", True),
        ("version 2.4.10?", "We run 2.4.10.", False),
        ("version 2.4.1?", "We run 2.4.10.", True),
        ("call 01632 960218", "Phone 01632 960 218.", False),
        ("room 4", "Room 14 is free.", True),
    ],
)
def test_an_identifier_counts_as_itself(question: str, text: str, missing: bool) -> None:
    assert known.subject(question, [], {}, text).number is missing


def test_an_answer_is_grounded_when_its_figures_and_names_are_recited() -> None:
    texts = ["Paid Orlow 318.40 for the tyres, invoice OS-22719."]
    assert known.grounded("Orlow was paid 318.40.", texts)
    assert not known.grounded("It was 318.50.", texts) and not known.grounded("They paid Harlan.", texts)
    assert known.grounded("Yes.", texts)


def test_a_reader_that_doubts_is_believed_where_it_was_asked_in_part_only() -> None:
    doubt = known.ODDS_FROM - 0.01
    assert known.answers(known.THRESHOLD, known.ODDS_FROM)
    assert not known.answers(0.99, doubt) and not known.answers(known.THRESHOLD - 0.01, 8.0)
    assert known.answers(known.THRESHOLD_TALK, doubt, leans=True) and known.answers(known.THRESHOLD, doubt, part=True)


def test_each_feature_may_only_speak_in_its_own_direction() -> None:
    signs = {"reader": 1, "span": 1, "lacking": -1, "lacking_number": -1, "margin": 1}
    for name, sign in signs.items():
        assert known.WEIGHTS[name] * sign >= 0, name
    assert known.WEIGHTS_MEANING["meant"] > 0
    best = known.features(known.Seen(8.0, margin=6.0), 8, 0)
    worst = known.features(known.Seen(-8.0, about=known.Subject(1, 1, True)), -8, -3)
    assert known.probability(best) > 0.95 and known.probability(worst) < 0.01
