"""How an answer is generated: chance, stop texts, grammars, and options that cannot be."""

from __future__ import annotations

import json

import pytest
from helpers import ANYTHING, FIRST, NOTHING

from megart.errors import InputError


def test_a_seed_makes_chance_repeat(ready) -> None:
    assistant = ready(policy=NOTHING)

    def said(**options: object) -> list[int]:
        return assistant.direct("Why?", **{"max_tokens": 12, **options}).tokens

    assert said(temperature=1.5, seed=7) == said(temperature=1.5, seed=7)
    assert len({tuple(said(temperature=1.5, seed=seed)) for seed in range(4)}) > 1
    assert len({tuple(said(temperature=1.5)) for _ in range(4)}) > 1
    assert said(temperature=1.5, top_k=1) == said() == said(temperature=2.0, top_p=1e-6, top_k=0)
    assert said(temperature=2.0, min_p=1.0, top_k=0, top_p=1.0) == said()
    repeated = said(max_tokens=40)
    punished = said(max_tokens=40, repeat_penalty=100.0)
    assert len(set(punished)) == len(punished) and len(set(repeated)) < len(repeated)


def test_an_answer_ends_before_a_stop_text_and_never_shows_its_beginning(ready) -> None:
    assistant = ready(policy=ANYTHING)
    whole = assistant.direct(FIRST.text, max_tokens=30).text
    stop = whole[9:13]
    parts: list[str] = []
    answer = assistant.direct(FIRST.text, max_tokens=30, stop=[stop, "never said"], on_text=parts.append)
    assert answer.text == whole[: whole.index(stop)] == "".join(parts) and answer.finish == "stop"
    assert assistant.direct(FIRST.text, max_tokens=30, stop=whole[-3:] + "!").text == whole


def test_a_grammar_binds_the_answer(ready) -> None:
    assistant = ready(policy=ANYTHING)
    grammar = 'root ::= ("cat" | "dog") ", " [0-9] [0-9]'
    for options in ({}, {"temperature": 2.0, "seed": 3}):
        answer = assistant.direct(FIRST.text, grammar=grammar, **options)
        assert answer.text[:5] in ("cat, ", "dog, ") and answer.text[5:].isdigit() and len(answer.text) == 7
        assert answer.finish == "stop"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "b": {"type": "boolean"}}}
    schema["required"] = ["n", "b"]
    for given in (schema, json.dumps(schema)):
        made = json.loads(assistant.direct(FIRST.text, json_schema=given, temperature=1.0, seed=1, max_tokens=60).text)
        assert isinstance(made["n"], int) and isinstance(made["b"], bool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens 0; expected at least 1"),
        ({"temperature": -1.0}, "temperature -1.0; expected 0"),
        ({"temperature": float("nan")}, "temperature nan"),
        ({"top_p": 0.0}, "top_p 0.0"),
        ({"top_k": -1}, "top_k -1"),
        ({"min_p": 1.5}, "min_p 1.5"),
        ({"repeat_penalty": 0.0}, "repeat_penalty 0.0"),
        ({"seed": -1}, "seed -1"),
        ({"stop": [""]}, "stop"),
        ({"heat": 1.0}, "the option 'heat'"),
        ({"grammar": 'roof ::= "x"'}, "GBNF"),
        ({"grammar": 'root ::= "x'}, r"cannot read \(parse: .*\); expected GBNF"),
        ({"json_schema": "{"}, "JSON schema"),
        ({"json_schema": "{}", "grammar": "x"}, "both"),
    ],
)
def test_options_that_cannot_be_are_one_line(ready, capfd, options: dict, message: str) -> None:
    assistant = ready(policy=NOTHING)
    capfd.readouterr()
    with pytest.raises(InputError, match=message) as caught:
        assistant.direct("Why?", **options)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # llama.cpp's parser of grammars prints past its logger
    assert assistant.direct("Why?", max_tokens=2).tokens


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_size": 10**9}, "got a context of 1000000000 tokens; expected 1 to 2048"),
        ({"context_size": 0}, "got a context of 0 tokens"),
        ({"threads": 99_999}, "got 99999 threads; expected 1 to 512"),
        ({"threads": -1}, "got -1 threads"),
    ],
)
def test_sizes_that_would_end_the_process_are_refused(ready, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ready(**options)
