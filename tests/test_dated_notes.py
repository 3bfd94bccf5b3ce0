"""Notes with their days, asked with the real model and the reader that ships: what is of the time asked for, and which is newer."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from megart import readers
from megart.bank import Bank, Memory
from megart.memorize import memorize
from megart.models import Model
from megart.runtime import newest
from megart.runtime.ask import NOT_KNOWN
from megart.runtime.assistant import Assistant
from megart.runtime.follow import sources
from megart.runtime.scope import Scope


@pytest.fixture(scope="module")
def dated(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    if readers.find(smollm2.sha256) is None:
        pytest.skip("no reader for this model")
    notes = [
        ("Paid the plumber 180 euros for the boiler valve.", "2025-12-09"),
        ("Paid the plumber 95 euros for the kitchen tap.", "2026-03-02"),
        ("The gutter was mended this morning by Mr Ollerton, he will be back for the downpipe.", "2025-11-02"),
    ]
    with Bank.create(tmp_path_factory.mktemp("dated") / "bank", smollm2) as bank:
        bank.set_state("embedder", b"states")
        memorize(bank, [Memory.from_dict({"text": text, "created": day}) for text, day in notes], later=True)
        with Assistant(bank) as made:
            yield made


@pytest.mark.parametrize(("near", "known"), [(-4.0, False), (1.0, None)])
def test_the_gates_score_says_whether_a_question_is_one_for_the_bank(
    dated: Assistant, monkeypatch: pytest.MonkeyPatch, near: float, known: bool | None
) -> None:
    monkeypatch.setattr("megart.gate.known.NEAR_MEANING", near)
    assert dated.ask("When did the electrician come?", strict=True).known is known


@pytest.mark.parametrize(
    ("question", "paid"),
    [
        ("What did the plumber get in December?", "180 euros"), ("What did the plumber get in March 2026?", "95 euros"),
        ("What did the plumber get in July?", None),
    ],
)  # fmt: skip
def test_a_question_for_a_time_is_answered_by_the_note_of_that_time(
    dated: Assistant, question: str, paid: str | None
) -> None:
    made = dated.ask(question, style="short", strict=True)
    assert (made.text, made.known) == ((paid, True) if paid else (NOT_KNOWN, False))
    assert not made.older  # nor has a newer one taken its place


def test_what_a_question_says_of_the_time_does_not_lack_in_a_note_of_it(dated: Assistant) -> None:
    def lacking(question: str) -> dict[str, tuple[float, bool]]:
        opening = dated.open_bank
        opening.refresh()
        encoded = opening._encode(question)
        found = opening.consider(encoded, opening._find(encoded, Scope()), None)
        return {c.record.created: (c.seen.about.lacking, c.seen.about.number) for c in found.candidates}

    share, number = dated.on_model(lambda: lacking("Who got 180 euros on 9 December?"))["2025-12-09"]
    more, another = dated.on_model(lambda: lacking("Who got 180 euros on 8 December?"))["2025-12-09"]
    assert share < more - 0.1 and (number, another) == (False, True)


def test_an_answer_that_is_seen_from_the_day_of_its_note_names_the_day(dated: Assistant) -> None:
    made = dated.ask("When was the gutter mended?")
    assert made.text.endswith(" (noted 2025-11-02)") and made.grounded
    assert "noted" not in dated.ask("Who mended the gutter?").text + dated.ask("When was the gutter mended?", style="passage").text
    assert sources(made.text, dated.open_bank.records) == [2]
    history = [{"role": "user", "content": "When was the gutter mended?"}, {"role": "assistant", "content": made.text}]
    assert dated.ask("And who did it?", history=history, style="short").text == "Mr Ollerton"


@pytest.mark.parametrize(
    ("one", "other", "ordered"),
    [
        ("2025-06-10", "2026-02-15", 1), ("2026-02-15T08:10:00", "2026-02-15T08:12:30", 1), ("2026-02-15", "2026-02-15T08:12:30", 0),
        ("2026-02-15", "2026-02-15", 0), ("2026-02-15T08:10:00", "2026-02-15T08:10:00", 0),
    ],
)  # fmt: skip
def test_nothing_says_which_of_two_notes_of_one_moment_is_newer(one: str, other: str, ordered: int) -> None:
    notes = [SimpleNamespace(id=day, created=day, metadata={}, text="") for day in (one, other)]
    assert newest._are_ordered(*notes) == newest._are_ordered(*notes[::-1]) == ordered
    seen = []
    bank = SimpleNamespace(versions=lambda first, found, scope, may_be: seen.append(may_be(notes[1])) or [])
    first = SimpleNamespace(
        candidate=SimpleNamespace(record=notes[0], version=lambda answer: None), source=SimpleNamespace(words="eight")
    )
    newest.newest(bank, SimpleNamespace(question="How often?", scope=None), first, None, lambda other: None)
    assert seen == [bool(ordered)]


@pytest.mark.parametrize(
    ("old", "new", "weeks"),
    [
        ("2025-06-10", "2026-02-15", "five"), ("2026-02-15T08:10:00+00:00", "2026-02-15T08:12:30+00:00", "five"),
        ("2026-02-15", "2026-02-15", "eight"),  # nothing says which is newer
    ],
)  # fmt: skip
def test_the_newer_of_two_notes_answers_without_a_text_embedder(
    smollm2: Model, tmp_path, old: str, new: str, weeks: str
) -> None:
    if readers.find(smollm2.sha256) is None:
        pytest.skip("no reader for this model")
    notes = [
        ("The farrier, Mr Toller, comes to Duchess every eight weeks.", old),
        ("Mr Toller looked at Duchess's cracked hoof and will come every five weeks from now on.", new),
        ("The saddle is mended every two years from now on.", "2026-02-20T08:00:00+00:00"),
    ]
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        memorize(bank, [Memory.from_dict({"text": text, "created": day}) for text, day in notes], later=True)
        with Assistant(bank) as made:
            answer = made.ask("How often does the farrier come to Duchess?")
            assert f"every {weeks} weeks" in answer.text and len(answer.older) == (weeks == "five")
