"""Where a sentence begins and ends, whatever the language, and which sentences a span stands in."""

from __future__ import annotations

import pytest

from megart import sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Ama Boru moved in 1931. She kept herons.", ["Dr. Ama Boru moved in 1931.", "She kept herons."]),
        (
            'Ines said, "Keep it dry." Then (it rained.) She left.',
            ['Ines said, "Keep it dry."', "Then (it rained.)", "She left."],
        ),
        ("Milk: 2 l\nBread: rye\n\nNo. 7 is shut.", ["Milk: 2 l", "Bread: rye", "No. 7 is shut."]),
        ("Version 2.4.10 costs 3.50. Then?", ["Version 2.4.10 costs 3.50.", "Then?"]),
        ("鍵は青い缶の中。窓は閉めた。", ["鍵は青い缶の中。", "窓は閉めた。"]),
        ("Ключ у Веры. Он синий.", ["Ключ у Веры.", "Он синий."]),
        ("Der Preis ist ca. 3 Euro. Öffne um 8!", ["Der Preis ist ca. 3 Euro.", "Öffne um 8!"]),
        (
            "Oma hat am 14. Mai Geburtstag. Sie wohnt im 2. Stock der Lindenstr. 12. Frag Fr. Huber, nicht vor 3. Juni.",
            ["Oma hat am 14. Mai Geburtstag.", "Sie wohnt im 2. Stock der Lindenstr. 12.", "Frag Fr. Huber, nicht vor 3. Juni."],
        ),
        ("I am 14. Maisie is 9. Marta is 12.", ["I am 14.", "Maisie is 9.", "Marta is 12."]),
        ("no full stop", ["no full stop"]),
        ("  \n ", []),
    ],
)
def test_sentences_end_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences.split(text) == expected
    assert [text[a:b] for a, b in sentences.spans(text)] == expected


def test_a_span_is_held_by_the_sentences_it_touches() -> None:
    text = "The key hangs low. Ines painted it green. It rusts."
    at = text.index("green")
    assert text[slice(*sentences.holding(text, at, at + 5))] == "Ines painted it green."
    assert (
        text[slice(*sentences.holding(text, text.index("low"), at + 5))] == "The key hangs low. Ines painted it green."
    )
    assert sentences.holding("", 0, 0) == (0, 0)
