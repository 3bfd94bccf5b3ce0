"""Long sources become memories of sensible size, and nothing of the source is lost."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from megart.bank import Memory, read_memories
from megart.cli import main
from megart.errors import InputError
from megart.split import MOST_WORDS, PIECE_WORDS, Piece, split_markdown, split_text, words

ROOT = Path(__file__).resolve().parent.parent


def in_order(needles: list[str], haystack: list[str]) -> bool:
    rest = iter(haystack)
    return all(needle in rest for needle in needles)


def said(pieces: list[Piece]) -> list[str]:
    """Every run of letters and digits of the pieces, titles first."""
    return re.findall(r"\w+", "\n".join(f"{piece.title or ''}\n{piece.text}" for piece in pieces))


def without_headings(text: str) -> str:
    """*text* without its headings: one with nothing below it makes no memory."""
    text = re.sub(r"\r\n?|\f|\v", "\n", text)
    tokens = MarkdownIt("commonmark", {"maxNesting": 50}).enable("table").parse(text)
    gone = {line for t in tokens if t.type == "heading_open" and t.level == 0 and t.map for line in range(*t.map)}
    return "\n".join(line for number, line in enumerate(text.split("\n")) if number not in gone)


word = st.text(st.characters(categories=("L", "N")), min_size=1, max_size=12)
sentence = st.lists(word, min_size=1, max_size=30).map(lambda ws: " ".join(ws) + ".")
paragraph = st.lists(sentence, min_size=1, max_size=12).map(" ".join)
items = st.lists(sentence, min_size=1, max_size=12)
block = st.one_of(
    paragraph,
    st.tuples(st.sampled_from(("- ", "1. ", "* ")), items).map(lambda p: "\n".join(p[0] + i for i in p[1])),
    items.map(lambda rows: "| a | b |\n|---|---|\n" + "\n".join(f"| {r} | x |" for r in rows)),
    items.map(lambda rows: "```py\n" + "\n".join(rows) + "\n```"),
    items.map(lambda rows: "\n".join("> " + r for r in rows)),
    st.tuples(st.integers(1, 6), sentence, sentence).map(lambda p: "#" * p[0] + f" {p[1]}\n\n{p[2]}"),
    st.tuples(sentence, sentence).map(lambda p: f"{p[0]}\n===\n\n{p[1]}"),
    st.just("---"),
    st.just("[link]: https://example.org/a/long/address"),
)
document = st.lists(block, min_size=1, max_size=14).map("\n\n".join)
any_text = st.text(st.sampled_from("ab \n#-|`>.:[]()*_\\~!<\t1é漢。"), max_size=300)


@given(document, st.integers(20, PIECE_WORDS))
def test_no_word_of_markdown_is_lost_and_no_piece_is_too_long(text: str, most: int) -> None:
    pieces = split_markdown(text, "notes", most)
    assert all(piece.text.strip() and words(piece.text) <= most for piece in pieces)
    assert in_order(re.findall(r"\w+", text), said(pieces))


@given(any_text, st.integers(1, 40))
def test_nothing_breaks_it(text: str, most: int) -> None:
    """Not even half-made Markdown: unclosed fences, tables without rows, lone markers."""
    assert in_order(
        re.findall(r"[^\W_]+", without_headings(text)),
        re.findall(r"[^\W_]+", " ".join(said(split_markdown(text, None, most)))),
    )
    pieces = split_text(text, None, most)
    assert "".join("".join(p.text.split()) for p in pieces) == "".join(text.split())
    assert all(words(p.text) <= most for p in pieces)


@given(st.lists(paragraph, min_size=1, max_size=8).map("\n\n".join), st.integers(20, PIECE_WORDS))
def test_plain_text_is_only_cut(text: str, most: int) -> None:
    pieces = split_text(text, "T", most)
    assert " ".join(p.text for p in pieces).split() == text.split()
    assert all(words(p.text) <= most for p in pieces)
    if len(pieces) > 1:
        assert [p.title for p in pieces] == [f"T ({n})" for n in range(1, len(pieces) + 1)]


def test_headings_make_the_titles() -> None:
    text = """Before.

# Pump *manual* ##

Bees.

## Empty

### Oil & water
Use `SAE 30`.
~~~sh
# not a heading
~~~
#tag

## Nothing here

Setext
------
Wrapped
lines.

# See [the site](https://example.org)

Second.
"""
    assert split_markdown(text, "notes") == [
        Piece("notes", "Before."),
        Piece("Pump manual", "Bees."),
        Piece("Pump manual > Empty > Oil & water", "Use `SAE 30`.\n\n~~~sh\n# not a heading\n~~~\n\n#tag"),
        Piece("Pump manual > Setext", "Wrapped lines."),
        Piece("See the site", "# See [the site](https://example.org)\n\nSecond."),
    ]
    assert split_markdown("## Two\n\na", "notes") == [Piece("notes > Two", "a")]
    assert split_markdown("# One\n\na", "notes", under=True) == [Piece("notes > One", "a")]
    assert split_markdown("# " + "word " * 40 + "\n\na")[0].title == " ".join(["word"] * 16)


def test_lists_tables_and_code_stay_whole_where_they_can() -> None:
    prose = " ".join(f"w{n}" for n in range(50)) + "."
    listed = "\n".join(f"- item {n} of the list" for n in range(12))
    text = f"# T\n\n{prose} And fourteen words more, so that what announces the list would still fit in.\n\nThese are the parts:\n\n{listed}\n\n{prose}"
    pieces = split_markdown(text, None, 100)
    (holder,) = [p for p in pieces if "item 0" in p.text]
    assert f"These are the parts:\n\n{listed}" in holder.text
    rows = "\n".join(f"| {n} | a row of the table that goes on |" for n in range(40))
    table = f"| no | what |\n|---|---|\n{rows}"
    pieces = split_markdown(f"# T\n\n{table}", None, 100)
    assert len(pieces) > 2
    for piece in pieces:  # each is a table of its own
        assert piece.text.startswith("| no | what |\n|---|---|\n|")
        assert piece.text.count("| no |") == 1
    assert [line for p in pieces for line in p.text.split("\n")[2:]] == rows.split("\n")
    assert "\n".join(p.text for p in split_markdown(f"{table}\n\n{table}", None, 100)).count("| 0 |") == 2
    two = split_markdown(f"{table}\n\n{table}", None, 400)
    assert "\n\n| no | what |\n|---|---|\n| 0 |" in "\n\n".join(p.text for p in two)


def test_pieces_are_of_like_size() -> None:
    for name in ("README.md",):
        pieces = split_markdown((ROOT / name).read_text(encoding="utf-8"), "x")
        sizes = [words(p.text) for p in pieces]
        assert max(sizes) <= PIECE_WORDS and sorted(sizes)[len(sizes) // 2] > 60
        assert in_order(re.findall(r"\w+", (ROOT / name).read_text(encoding="utf-8")), said(pieces))


def test_a_run_without_spaces_counts_by_its_bytes() -> None:
    assert words("one two\nthree") == 3 and words("") == 0
    assert words("https://example.org/" + "a" * 60) == 10
    assert words("漢" * 400) == 150
    assert [len(p.text) for p in split_text("漢" * 1000)] == [360, 360, 280]
    text = "春が来た。" * 200
    assert all(p.text.endswith("。") for p in split_text(text)) and "".join(p.text for p in split_text(text)) == text


def test_front_matter_becomes_metadata(tmp_path: Path) -> None:
    path = tmp_path / "hive.md"
    path.write_text("---\ntitle: Bees\ndate: 2025-03-01\ntags:\n  - a\n  - b c\n---\n# Hive\n\nHoney.\n")
    (memory,) = read_memories(path)
    assert (memory.title, memory.text) == ("Bees > Hive", "Honey.")
    assert memory.metadata == {"date": "2025-03-01", "created": "2025-03-01", "tags": ["a", "b c"]}
    path.write_text("---\n\n# A\n\nb\n\n---\n")
    assert read_memories(path) == [Memory("b", title="A")]
    path.write_text("---\na: &x [1]\nb: *x\n---\nHoney.\n")
    with pytest.raises(InputError, match="aliases"):
        read_memories(path)
    path.write_text("---\na: [1\nb: 2\n---\nHoney.\n")
    with pytest.raises(InputError, match=r"hive\.md:\d+: its front matter is no YAML"):
        read_memories(path)


# -- files and the command line -----------------------------------------------------------------


def test_the_same_file_gives_the_same_unique_ids(tmp_path: Path) -> None:
    path = tmp_path / "guide.md"
    path.write_text("# Guide\n\n" + "\n\n".join(f"## Part\n\nSection {n} says so." for n in range(30)))
    first, again = read_memories(path), read_memories(path)
    assert first == again and len({m.default_id() for m in first}) == len(first) == 30
    assert {m.title for m in first} == {"Guide > Part"}


def test_a_row_too_long_is_named_and_nothing_is_cut_silently(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n{"text": "' + "word " * 4000 + '"}\n')
    with pytest.raises(InputError) as caught:
        read_memories(path)
    assert str(caught.value) == (
        f"{path}:2: text has 4000 words; a memory may have {MOST_WORDS}; cut it into several rows"
    )


def test_without_splitting_a_file_is_one_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# A\n\nb\n\n# C\n\nd\n")
    assert read_memories(path, split=False) == [Memory("# A\n\nb\n\n# C\n\nd", title="a")]
    path.write_text("word " * 401)
    with pytest.raises(InputError, match=r"a\.md has 401 words; a memory may have 400; let it be split"):
        read_memories(path, split=False)
    with pytest.raises(InputError, match="got 500 words"):
        read_memories(path, max_words=500)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"ab\0c")
    with pytest.raises(InputError, match="NUL"):
        read_memories(tmp_path / "a.txt")
    with pytest.raises(InputError, match="the stream holds a NUL"):
        read_memories(io.StringIO("\0"))
    with (tmp_path / "big.txt").open("wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(InputError, match="has 300 MiB; expected at most 256"):
        read_memories(tmp_path / "big.txt")


@pytest.fixture
def given_to_memorize(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny):
    """Runs `megart memorize` with teaching replaced; returns the memories that would be taught."""
    import importlib

    from megart.bank import Bank

    Bank.create(tmp_path / "bank", tiny()).close()
    taken: list[Memory] = []

    def fake(bank: Bank, memories: list[Memory], **_: object) -> list[object]:
        taken[:] = memories
        return []

    monkeypatch.setattr(importlib.import_module("megart.memorize"), "memorize", fake)

    def run(*options: str) -> list[Memory]:
        taken.clear()
        assert main(["memorize", "--bank", str(tmp_path / "bank"), *options]) == 0
        return list(taken)

    return run


def test_titles_and_sizes_from_the_command_line(given_to_memorize, tmp_path: Path, capsys) -> None:
    long = "One sentence of six words here. " * 100
    pieces = given_to_memorize("--text", long, "--title", "Log")
    assert [m.title for m in pieces] == [f"Log ({n})" for n in range(1, 6)]
    assert " ".join(m.text for m in pieces).split() == long.split()
    assert len(given_to_memorize("--text", long, "--max-words", "60")) == 10
    (tmp_path / "a.md").write_text("# A\n\nb\n\n# C\n\nd\n")
    titles = [m.title for m in given_to_memorize(str(tmp_path / "a.md"), "--title", "Book")]
    assert titles == ["Book > A", "Book > C"]
    assert [m.title for m in given_to_memorize(str(tmp_path / "a.md"), "--no-split", "--title", "Book")] == ["Book"]
    capsys.readouterr()
    for options, message in (
        (["--text", long, "--id", "x"], "--id is for one memory, got 5; leave it out, or use .jsonl"),
        (["--text", long, "--no-split"], "--text has 600 words; a memory may have 400; let it be split (leave out --no-split)"),
        (["--text", "x", "--max-words", "4"],
         "argument --max-words: got '4'; expected a whole number from 20 to 400; see: megart memorize --help"),
    ):  # fmt: skip
        assert main(["memorize", "--bank", str(tmp_path / "bank"), *options]) == 1
        assert capsys.readouterr().err == f"megart: error: {message}\n"


def test_lines_that_were_meant_as_lines_stay_lines() -> None:
    for text in ("Wifi at home: otter-58\nAlarm PIN: 4471", "Milk 1.29\nBread 3.20\nEggs 2.99"):
        assert [piece.text for piece in split_markdown(text)] == [text]
    wrapped = "The ferry leaves at 7:40 and the last one comes\nback at nine: bring a coat."
    assert [piece.text for piece in split_markdown(wrapped)] == [wrapped.replace("\n", " ")]
