"""Memories as their users give them: the fields, and the files they come in."""

import io
import json
from pathlib import Path

import pytest

from megart.bank import Memory, read_memories
from megart.bank.memory import first_words
from megart.errors import InputError


def test_white_space_around_is_removed() -> None:
    memory = Memory(" a b\n", title="  ", paraphrases=[" c "], questions=("d?\n",))  # type: ignore[arg-type]
    assert memory == Memory("a b", None, None, ("c",), ("d?",))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": " \n"}, "text is empty"),
        ({"text": None}, "text is null"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": "a", "id": ""}, "the id ''"),
        ({"text": "a", "id": "../b"}, "the id '../b'"),
        ({"text": "a", "id": "a\n"}, "the id"),
        ({"text": "a", "id": "x" * 65}, "the id"),
        ({"text": "a", "id": 3}, "the id 3"),
        ({"text": "a", "title": 3}, "title is of type int"),
        ({"text": "a", "paraphrases": "b"}, "paraphrases is a string; expected a list"),
        ({"text": "a", "paraphrases": ["b", ""]}, r"paraphrases\[1\] is empty"),
        ({"text": "a", "questions": {"q": 1}}, "questions is an object"),
        ({"text": "a", "metadata": {"x": float("inf")}}, "metadata is not storable as JSON"),
        ({"text": "a", "metadata": {1: 2}}, "string keys"),
    ],
)
def test_a_wrong_field_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Memory(**fields)


def test_unknown_keys_are_metadata() -> None:
    memory = Memory.from_dict(
        {
            "text": "a",
            "id": None,
            "qa": [{"q": "b?", "a": ["c"]}],
            "metadata": {"x": 1},
            "partition": 0,
        }
    )
    assert memory.metadata == {"x": 1, "qa": [{"q": "b?", "a": ["c"]}], "partition": 0}
    with pytest.raises(InputError, match='no "text"'):
        Memory.from_dict({"title": "b"})
    with pytest.raises(InputError, match="got a list"):
        Memory.from_dict([])  # type: ignore[arg-type]


def test_the_default_id_is_ascii_and_its_own() -> None:
    assert Memory("x", title="Zoë Ågård’s Tea!").default_id().startswith("zoe-agards-tea-")
    assert Memory("one two three four five six seven").default_id()[:-6] == "one-two-three-four-five-six-"
    assert Memory("東京の塔").default_id().startswith("memory-")
    assert Memory("a", title="t").default_id() != Memory("b", title="t").default_id()
    for text in ("東京", "word " * 300, "-- --", "a" * 500):
        Memory(text, id=Memory(text).default_id())


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"text": "one\u2028two", "id": "a"}, {"text": "zwei ü", "title": "T", "qa": []}]
    lines = "\r\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert read_memories(path) == [Memory.from_dict(row) for row in rows]
    assert read_memories(str(path)) == read_memories(io.StringIO(lines))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl:3: not JSON"),
        ('"text"', "a.jsonl:3: got a string"),
        ('{"text": ""}', "a.jsonl:3: text is empty"),
        ('{"text": "b", "id": "A"}', "a.jsonl:3: the id 'A' stands in line 1 too"),
        ("[" * 100_000, "a.jsonl:3: not JSON"),
        ('{"text": "a", "n": NaN}', "a.jsonl:3: metadata"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "a.jsonl:3: holds a number of more than 4300 digits; write it as"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "id": "a"}\n\n' + line)
    with pytest.raises(InputError, match=message) as caught:
        read_memories(path)
    assert "\n" not in str(caught.value)


def test_a_short_text_is_one_memory(tmp_path: Path) -> None:
    path = tmp_path / "Ada Quill.txt"
    path.write_text("Ada keeps bees.\n\nShe is old.\n", encoding="utf-8")
    assert read_memories(path) == [Memory("Ada keeps bees.\n\nShe is old.", title="Ada Quill")]


def test_a_long_text_is_cut_at_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    paragraphs = [f"{n} " + "word " * 49 for n in range(5)]
    path.write_text("\n\n".join(paragraphs))
    memories = read_memories(path)
    assert [len(memory.text.split()) for memory in memories] == [100, 100, 50]
    assert [memory.title for memory in memories] == ["long (1)", "long (2)", "long (3)"]
    assert " ".join(m.text for m in memories).split() == " ".join(paragraphs).split()


@pytest.mark.parametrize("end", [".", ""])
def test_a_long_paragraph_is_cut_too(end: str) -> None:
    words = " ".join(f"w{n}{end if n % 30 == 0 else ''}" for n in range(1000))
    memories = read_memories(io.StringIO(words))
    assert " ".join(memory.text for memory in memories).split() == words.split()
    assert all(60 <= len(memory.text.split()) <= 180 for memory in memories[:-1])


def test_markdown_headings_are_titles(tmp_path: Path) -> None:
    path = tmp_path / "notes.md"
    path.write_text(
        "Before.\n\n# Ada *Quill* ##\n\nBees.\n\n## Empty\n\n### Bo\nSails.\n```sh\n# not a heading\n```\n#tag\n"
    )
    assert read_memories(path) == [
        Memory("Before.", title="notes"),
        Memory("Bees.", title="Ada Quill"),
        Memory("Sails.\n\n```sh\n# not a heading\n```\n\n#tag", title="Ada Quill > Empty > Bo"),
    ]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Ada keeps bees.\n"))
    assert read_memories("-") == [Memory("Ada keeps bees.")]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    with pytest.raises(InputError, match="standard input is not UTF-8 at byte 0"):
        read_memories("-")


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content, message in (
        ("a.txt", b" \n", "holds no text"),
        ("a.md", b"---\n", "holds no text"),
        ("a.jsonl", b"\n", "holds no memory"),
        ("a.TXT", b"a\xffb", "not UTF-8 at byte 1"),
        ("a.pdf", b"%PDF", r"ending in .pdf; expected a .jsonl, .txt or .md"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_memories(path)
    for missing, message in (
        ("no.txt", "no file"),
        ("no", "no file"),
        (".", "is a folder"),
        ("a\0b.txt", "path"),
    ):
        with pytest.raises(InputError, match=message):
            read_memories(tmp_path / missing)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("The key hangs low.", "The key hangs low"),
        ("Shopping\nMilk and bread.", "Shopping"),
        ("The ferry of Vess sails at dusk, and never on Sundays.", "The ferry of Vess sails at dusk, and..."),
        ("x" * 50, "x" * 41 + "..."),
    ],
)
def test_what_has_no_title_is_called_by_its_first_words(text: str, expected: str) -> None:
    assert first_words(text) == expected
