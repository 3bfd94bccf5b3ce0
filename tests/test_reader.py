"""The reader answers by spans of what was recited, keeps recitals, and never answers from another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from helpers import noise_adapter
from numpy import float16

from megart import readers, train_reader
from megart.errors import AdapterError
from megart.models import Model
from megart.runtime import items
from megart.runtime.engine import Engine
from megart.runtime.reader import SPAN_TOKENS, Reader, Reading, spoken_of, trimmed
from megart.runtime.recite import Recital, of_text

TEXTS = ("The key hangs behind the boiler, 3.50 a turn.", "Ada met Boro at dusk in the mill of Vess.")


@pytest.fixture
def engine(tiny) -> Iterator[Engine]:
    made = Engine(tiny("llama"))
    yield made
    made.close()


@pytest.fixture
def reader(engine: Engine) -> Iterator[Reader]:
    made = Reader(engine, noise_adapter("llama", 8, 4, dtype=float16), 512, "noise")
    yield made
    made.close()


def hold(reader: Reader, text: str) -> Recital:
    def make(context) -> Recital:
        recital = of_text(reader.engine, text)
        context.truncate(0)
        context.decode([*train_reader.before(reader.engine), *recital.tokens])
        return recital

    return reader.hold(text, make)


def read(reader: Reader, text: str, question: str = "Where is it?") -> Reading:
    return reader.read(hold(reader, text), question, None)


def test_an_answer_is_a_span_of_whole_words(reader: Reader) -> None:
    for text in TEXTS:
        for question in ("Where is it?", "Who?", "a b c", "<|im_end|>"):
            start, end = read(reader, text, question).span
            assert 0 <= start <= end <= len(text)
            for edge in (start, end):
                assert edge in (0, len(text)) or not (text[edge - 1].isalnum() and text[edge].isalnum())
            assert len(reader.engine.tokenize(text[start:end], special=False)) <= SPAN_TOKENS + 1


def test_a_recital_that_is_kept_reads_as_one_that_is_new(reader: Reader, engine: Engine, monkeypatch) -> None:
    alone = {}
    for text in TEXTS:
        fresh = Reader(engine, noise_adapter("llama", 8, 4, dtype=float16), 512, "noise")
        alone[text] = read(fresh, text)
        fresh.close()
    for text in (TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0], TEXTS[1]):
        assert read(reader, text) == alone[text]
    monkeypatch.setattr("megart.runtime.reader.KEPT_BYTES", 1)
    read(reader, "Another text puts both out.")
    assert len(reader._recitals) == 1
    for text in (*TEXTS, *TEXTS):
        assert read(reader, text) == alone[text]


PHONES = "Numbers\n- Plumber Gerd Lautner: 0721 558 2093\n- Aunt Rosalind: +44 1865 559120\n- Vet clinic: 0721 904417"


@pytest.mark.parametrize(
    "text, question, expected",
    [
        (PHONES, "How do I reach Rosalind?", "- Aunt Rosalind: +44 1865 559120"),
        (PHONES, "Which number does the plumber have?", "- Plumber Gerd Lautner: 0721 558 2093"),
        (PHONES, "What are the numbers of Gerd and Rosalind?", None),
        (PHONES, "Which numbers do I have?", None),
        ("Wifi: otter-58\nPIN of the alarm: 4471\n", "What is the alarm's PIN?", "PIN of the alarm: 4471"),
        ("1. Wake Ada.\n2) Feed the cat.", "When is the cat fed?", "2) Feed the cat."),
        ("| Ada | 14 |\n| Bo | 9 |", "How old is Bo?", "| Bo | 9 |"),
        ("Rosalind is my aunt.\nHer number is 559120.", "What is Rosalind's number?", None),
        ("- Rosalind: 559120", "What is Rosalind's number?", None),
    ],
)
def test_the_item_of_a_list_is_the_one_that_is_named(text: str, question: str, expected: str | None) -> None:
    place = items.named(text, question)
    assert (place and text[slice(*place)]) == expected


def test_a_list_is_answered_from_the_item_that_is_named(reader: Reader) -> None:
    spans = {who: read(reader, PHONES, f"What is the number of {who}?").span for who in ("Gerd", "Rosalind", "the vet")}
    lines = [PHONES[: start].count("\n") for start, _ in spans.values()]
    assert lines == [1, 2, 3]


def test_choosing_is_among_the_spans_given(reader: Reader) -> None:
    text = "Tea costs 3 crowns, cake 14 crowns and soup 9 crowns."
    spans = [(text.index(n), text.index(n) + len(n)) for n in ("3", "14", "9")]
    recital = hold(reader, text)
    assert reader.choose(recital, "What costs most?", None, spans) in (0, 1, 2)
    hold(reader, text)
    assert reader.choose(recital, "What costs most?", None, spans[1:2]) == 0


def test_without_a_reader_the_base_answers_and_the_span_is_what_it_said(engine: Engine) -> None:
    bare = Reader(engine, None, 512)
    try:
        reading = read(bare, TEXTS[0])
        assert reading.odds == 0.0 and 0 <= reading.span[0] <= reading.span[1] <= len(TEXTS[0])
    finally:
        bare.close()


def test_what_was_said_is_found_in_the_text() -> None:
    text = "The key hangs low. Ines painted it green."
    assert text[slice(*spoken_of(text, "Painted it GREEN."))] == "painted it green"
    assert text[slice(*spoken_of(text, "It was Ines."))] == "Ines painted it green."
    assert spoken_of(text, "...") == spoken_of(text, "Nobody knows.") == (0, 0)
    assert spoken_of("Invoice 2025. It cost 5 crowns.", "5") == (22, 23)


def test_edges_lose_punctuation_but_no_sign() -> None:
    text = ' ("-5 °C"), '
    assert text[slice(*trimmed(text, 0, len(text)))] == "-5 °C"
    assert trimmed("...", 0, 3) == (3, 3)
    assert trimmed("<|im_start|> 4711.<|im_end|>", 0, 28) == (13, 17)


def test_answers_to_train_on_begin_and_end_with_tokens(engine: Engine) -> None:
    text = "Fuse 15 amp, under the seat."
    tokens = engine.tokenize(text, special=False)
    ends = engine.ends(tokens)
    start = text.index("under")
    place = readers.covering(text, ends, start, start + len("under the seat"))
    assert place is not None and "under the seat" in engine.detokenize(tokens[slice(*place)])
    inside = readers.covering(text, [len(text)], start, start + 5)
    assert inside is None


def test_a_reader_of_the_users_own_is_found_and_checked(tiny) -> None:
    base: Model = tiny("llama")
    assert readers.find(base.sha256) is None
    adapter = noise_adapter("llama", 8, 4, dtype=float16)
    meant = {readers.KIND_KEY: readers.KIND, readers.BASE_KEY: base.sha256}
    from megart.adapter import write_adapter

    path = readers.keep(write_adapter(replace(adapter, metadata=meant)), readers.own_path(base.sha256))
    found = readers.find(base.sha256)
    assert found is not None and found.rank == adapter.rank and [*path.parent.iterdir()] == [path]
    readers.keep(write_adapter(replace(adapter, metadata={**meant, readers.BASE_KEY: "0" * 64})), path)
    with pytest.raises(AdapterError, match="no reader for the base.*reader train"):
        readers.find(base.sha256)
