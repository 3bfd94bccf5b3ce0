"""ask and recall on the command line: options, output, traces."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from screen import Run, Terminal, needs_model

from megart.bank import Bank
from megart.cli import main, ui
from megart.runtime.answer import Answer, OpenedMemory, Source, Timings

ANSWER = Answer(
    "Bees,\nmany.",
    "ask",
    [OpenedMemory("ada", "Ada Quill", 0.75), OpenedMemory("mill", "mill", 0.25, pending=True)],
    Timings(10.0, 0.5, 40.0, 2.0, 3.5, 84.0, 0.0, 0.0, 100.0, 200.0, 31, 5),
    [1, 2, 3, 4, 5],
    "length",
)


@pytest.fixture
def assistant(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """In place of the Assistant: says ANSWER in two pieces; remembers how it was asked."""
    from megart.runtime import assistant as module

    asked: list[object] = []

    class Fake:
        def __init__(self, bank: Bank, **options: object):
            asked.append(options)

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None:
            asked.append("closed")

        def _say(self, verb: str, words: str, on_text: Callable[[str], None] | None = None, **limit: int) -> Answer:
            limit.pop("on_known", None)
            asked.append((verb, words, limit))
            for piece in ("Bees,\n", "many."):
                if on_text:
                    on_text(piece)
            return ANSWER

        def ask(self, words: str, **options: object) -> Answer:
            return self._say("ask", words, **options)  # type: ignore[arg-type]

        def recall(self, words: str, **options: object) -> Answer:
            return self._say("recall", words, **options)  # type: ignore[arg-type]

        def direct(self, words: str, **options: object) -> Answer:
            return self._say("direct", words, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "Assistant", Fake)
    return asked


TRACE = "[opened Ada Quill 0.75, mill 0.25 (pending); first token 100 ms; total 200 ms; cut at 5 tokens]\n"


def test_ask_streams_and_traces(run: Run, bank: Path, assistant: list[object]) -> None:
    assert run("ask", "--bank", bank, "What", "does", "Ada", "keep?")[1:] == (
        "Bees,\nmany.\n",
        TRACE,
    )
    assert run("recall", "--bank", bank, "--max-tokens", "9", "--threads", "1", "Ada")[1:] == (
        "Bees,\nmany.\n", TRACE,
    )  # fmt: skip
    run("ask", "--mix", "--bank", bank, "Ada?")
    run("ask", "--style", "short", "--strict", "--bank", bank, "Ada?")
    default = {"model": None, "threads": None}
    assert assistant == [
        default, ("ask", "What does Ada keep?", {}), "closed",
        {"model": None, "threads": 1}, ("recall", "Ada", {"max_tokens": 9}), "closed",
        {**default, "combine": "mix"}, ("direct", "Ada?", {}), "closed",
        default, ("ask", "Ada?", {"style": "short", "strict": True}), "closed",
    ]  # fmt: skip


def test_ask_passes_options_on(run: Run, bank: Path, assistant: list[object], tmp_path: Path) -> None:
    grammar, schema = tmp_path / "g.gbnf", tmp_path / "s.json"
    grammar.write_text('root ::= "x"')
    schema.write_text("{}")
    given = [
        "--temperature",
        "0.7",
        "--top-k",
        "0",
        "--top-p",
        ".9",
        "--min-p",
        "0",
        "--repeat-penalty",
        "1.1",
        "--seed",
        "7",
        "--stop",
        "a",
        "--stop",
        "b",
    ]
    run("ask", "--bank", bank, *given, "--grammar", grammar, "-ngl", "99", "Ada?")
    run("recall", "--bank", bank, "--json-schema", schema, "Ada")
    options = {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.0, "repeat_penalty": 1.1, "seed": 7}
    assert assistant[0] == {"model": None, "threads": None, "gpu_layers": 99}
    assert assistant[1] == ("ask", "Ada?", {**options, "stop": ["a", "b"], "grammar": 'root ::= "x"'})
    assert assistant[4] == ("recall", "Ada", {"json_schema": "{}"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "hot"], "got 'hot'; expected a number of at least 0"),
        (["--seed", "-1"], "--seed"),
        (["--seed", "99999999999"], "got '99999999999'; expected a whole number from 0 to 9999999999"),
        (["--grammar", "nowhere.gbnf"], "cannot read nowhere.gbnf"),
        (["--grammar", "a", "--json-schema", "b"], "not allowed with"),
    ],
)
def test_options_that_cannot_be(run: Run, bank: Path, assistant: list[object], words: list[str], said: str) -> None:
    code, out, err = run("ask", "--bank", bank, *words, "Ada?", code=1)
    assert (code, out) == (1, "") and said in err and err.count("\n") == 1 and assistant == []


def test_ask_reads_standard_input(
    run: Run, bank: Path, assistant: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["-"], []):
        monkeypatch.setattr("sys.stdin", io.StringIO("\ufeffWho?\n"))
        run("ask", "--bank", bank, *words)
    assert [a[1] for a in assistant if isinstance(a, tuple)] == ["Who?", "Who?"]


def test_ask_json(run: Run, bank: Path, assistant: list[object]) -> None:
    _, out, err = run("ask", "--bank", bank, "--json", "Ada?")
    assert err == "" and json.loads(out) == ANSWER.to_dict()


EXPLAINED = """\
{0}{0}{0}{1} 0.75  Ada Quill [ada]
{0}{1}{1}{1} 0.25  mill (pending: read from its text)

embed       #................... {2:>9} ms
gate        .................... {3:>9} ms
rerank      ####................ {4:>9} ms
mix         .................... {5:>9} ms
install     .................... {6:>9} ms
prefill     ########............ {7:>9} ms
first token ##########.......... {8:>9} ms
total       #################### {9:>9} ms
per token   ##.................. {10:>9} ms after the first
tokens      31 read, 5 written (cut there)
""".format("#####", ".....", 10.0, 0.5, 40.0, 2.0, 3.5, 84.0, 100.0, 200.0, 25.0)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_explain(locale: str, run: Run, bank: Path, assistant: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    _, out, err = run("ask", "--bank", bank, "--explain", "Ada?")
    blocks = EXPLAINED.replace("#", "█").replace("....................", "░" * 20)
    expected = EXPLAINED if locale != "C.UTF-8" else re.sub(r"\.(?=[.█ ])|(?<=[.█])\.", "░", blocks)
    assert (out, err) == ("Bees,\nmany.\n", expected)


def test_what_is_not_known_is_said_first_with_the_nearest_titles(capsys: pytest.CaptureFixture[str]) -> None:
    ui.not_known(False, ["Ada\x1b[2J Quill", "mill"])
    ui.not_known(None, ["Ada Quill"])
    assert capsys.readouterr().err == "Not in memory (nearest: Ada [2J Quill, mill).\n"


def test_a_recall_that_finds_nothing_says_so(run: Run, bank: Path, assistant: list[object], monkeypatch) -> None:
    nothing = Answer("", "recall", nearest=["Ada Quill"])
    monkeypatch.setattr(sys.modules[__name__], "ANSWER", nothing)
    monkeypatch.setattr("megart.runtime.assistant.Assistant._say", lambda self, verb, words, on_text: nothing)
    code, out, err = run("recall", "--bank", bank, "Zebra", code=1)
    assert (code, out, err) == (1, "", "megart: no memory is about that; nearest: Ada Quill; see: megart list\n")


def test_the_words_of_an_answer_are_bold_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    text = "The key hangs low. Ines painted it green."
    at = text.index("green")
    ui.put_marked(Answer("Ines painted it green.", "ask", sources=[Source("key", "Key", text, (at, at + 5))]))
    assert terminal.getvalue() == "Ines painted it \x1b[1mgreen\x1b[0m."
    ui.put_source(Source("key", "Key", text, (at, at + 5)))
    assert terminal.getvalue().endswith("The key hangs low. Ines painted it \x1b[1mgreen\x1b[0m.\n")


def test_style_and_direct_exclude_each_other(run: Run, bank: Path, assistant: list[object]) -> None:
    code, _, err = run("ask", "--bank", bank, "--direct", "--style", "short", "Ada?", code=1)
    assert code == 1 and "expected one or the other" in err and assistant == []


def test_a_step_that_was_not_taken_is_not_explained(capsys: pytest.CaptureFixture[str]) -> None:
    ui.explain(replace(ANSWER, timings=replace(ANSWER.timings, rerank_ms=0.0)))
    shown = capsys.readouterr().err
    assert "gate  " in shown and "mix  " in shown and "rerank" not in shown


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_a_terminal_is_not_steered_by_what_it_shows(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = kind()  # or a pipe, at whose other end one may be
    monkeypatch.setattr("sys.stdout", terminal)
    ui.stream("a\x1b[2J\u202eb\n")
    ui.put("c\x9b31md")
    ui.put_fields([("title", "x\x1b]0;y\ny")])
    assert not any(steers in terminal.getvalue() for steers in ("\x1b[2J", "\u202e", "\x9b"))
    assert terminal.getvalue().endswith("x ]0;y y\n")


def test_table_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    ui.put_table(["id", "title"], [["a" * 30, "日本" * 20]], shrink="title")
    assert terminal.screen() == ["id" + " " * 30 + "title", "a" * 30 + "  " + "日本" * 6 + "日 …"]


@needs_model
def test_ask_a_real_model(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "real"
    run("init", "--bank", path)
    words = [
        "ask",
        "--bank",
        path,
        "--max-tokens",
        "4",
        "--threads",
        "1",
        "Name the capital of France.",
    ]
    _, out, err = run(*words, "--json")
    shown = json.loads(out)
    assert list(shown) == ["answer", "mode", "known", "grounded", "sources", "memories", "timings", "style"]
    assert (shown["mode"], shown["memories"], err) == ("ask", [], "")
    assert list(shown["timings"]) == [
        "embed_ms", "gate_ms", "rerank_ms", "mix_ms", "install_ms", "prefill_ms", "recall_ms", "read_ms",
        "first_token_ms", "total_ms", "prompt_tokens", "completion_tokens", "guessed_tokens",
    ]  # fmt: skip
    assert shown["timings"]["completion_tokens"] == 4
    _, out, err = run(*words)
    assert out == shown["answer"] + "\n"
    assert re.fullmatch(r"\[from the model itself; first token .*; total .*; cut at 4 tokens\]\n", err)


def test_a_history_file_may_begin_with_a_byte_order_mark_and_nests_no_deeper_than_json_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    history = tmp_path / "history.json"
    words = ["gate", "--bank", str(tmp_path / "none"), "--history", str(history), "And then?"]
    history.write_text("[]", encoding="utf-8-sig")
    assert main(words) == 1 and "error: no bank at" in capsys.readouterr().err  # the history was read
    history.write_text("[" * 100_000)
    assert main(words) == 1 and f"error: {history}: not JSON: " in capsys.readouterr().err
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"q":' + "[" * 100_000))
    assert main(["gate", "--bank", str(tmp_path / "none"), "-"]) == 1
    assert "error: standard input:1: not JSON: " in capsys.readouterr().err
