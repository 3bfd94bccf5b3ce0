"""Memories out of the user's files: JSON lines, plain text and Markdown."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from ..errors import InputError
from ..split import MOST_WORDS, PIECE_WORDS, Piece, split_markdown, split_text, words
from .memory import Memory

_MOST_BYTES = 256 << 20
JSON_SUFFIXES = (".jsonl", ".ndjson")
TEXT_SUFFIXES = (".txt", ".text")
MARKDOWN_SUFFIXES = (".md", ".markdown")


def read_memories(
    source: str | Path | TextIO, *, title: str | None = None, split: bool = True, max_words: int = PIECE_WORDS
) -> list[Memory]:
    """The memories in a file, in standard input ("-") or in an open text stream.

    `.jsonl` holds one object a line; `.txt` and `.md` become one memory each, or several of at most
    `max_words` words when they are longer; Markdown is cut at its headings too, which become titles,
    a text file's name is its title unless `title` is given. With `split` off a file is one memory.
    A stream whose first character is "{" is JSON lines, any other is text.
    Raises InputError that names the file, and the line for JSON lines; also for a memory of more than
    `MOST_WORDS` words.
    """
    if not 1 <= max_words <= MOST_WORDS:
        raise InputError(f"got {max_words} words for the longest memory; expected 1 to {MOST_WORDS}")
    if not isinstance(source, (str, Path)):
        return _from_stream(source, getattr(source, "name", None), title, split, max_words)
    if str(source) == "-":
        return _from_stream(sys.stdin, "standard input", title, split, max_words)
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (*JSON_SUFFIXES, *TEXT_SUFFIXES, *MARKDOWN_SUFFIXES) and path.exists():
        what = "a folder" if path.is_dir() else f"a file ending in {suffix or 'nothing'}"
        raise InputError(f"{path} is {what}; expected a .jsonl, .txt or .md file")
    text = read_text(path)
    if suffix in JSON_SUFFIXES:
        return _from_json_lines(text, str(path))
    about: dict[str, Any] = {}
    if suffix in MARKDOWN_SUFFIXES:
        about, text = front_matter(text, str(path))
        title = title or about.pop("title", None)
    if split and suffix in MARKDOWN_SUFFIXES:
        pieces = split_markdown(text, title or path.stem, max_words, under=title is not None)
        memories = _from_pieces(pieces, str(path))
    else:
        memories = from_text(text, title or path.stem, str(path), split=split, max_words=max_words)
    return [replace(memory, metadata={**about, **memory.metadata}) for memory in memories] if about else memories


_FRONT = re.compile(r"---[ \t]*\n((?:[\w-]+[ \t]*:.*\n|[ \t#-].*\n|\n){1,99}?)(?:---|\.\.\.)[ \t]*(?:\n|$)")


def front_matter(text: str, label: str) -> tuple[dict[str, Any], str]:
    """The YAML between two lines of --- at the top of a Markdown file, and what stands below it.

    Plain values and lists of them are kept, all as text; "date" is also called "created". Raises InputError.
    """
    import yaml

    match = _FRONT.match(text)
    if match is None:
        return {}, text
    try:
        # Without aliases: a few lines could stand for gigabytes.
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(match[1])):
            raise InputError(f"{label}: its front matter has YAML aliases; write them out")
        read = yaml.load(match[1], Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 2
        raise InputError(f"{label}:{line}: its front matter is no YAML; mend it, or take the --- away") from None
    if not isinstance(read, dict):
        return {}, text
    about: dict[str, Any] = {}
    for key, value in read.items():
        values = [v for v in value if isinstance(v, str) and v.strip()] if isinstance(value, list) else value
        if isinstance(key, str) and values and isinstance(values, (str, list)):
            about[key] = values
    when = about.get("created") or about.get("date")
    if isinstance(when, str) and re.match(r"\d{4}-\d\d-\d\d", when):
        about["created"] = when
    if not isinstance(about.get("title", ""), str):
        del about["title"]
    return about, text[match.end() :]


def from_text(
    text: str, title: str | None, label: str, *, split: bool = True, max_words: int = PIECE_WORDS
) -> list[Memory]:
    """Plain text as one memory, or several when it is long; `label` names its origin in errors."""
    if split:
        return _from_pieces(split_text(text, title, max_words), label)
    if words(text) > MOST_WORDS:
        raise InputError(f"{label} {_too_long(text)}; let it be split (leave out --no-split)")
    return _from_pieces([Piece(title, text)] if text.strip() else [], label)


def _too_long(text: str) -> str:
    return f"has {words(text)} words; a memory may have {MOST_WORDS}"


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with its mark. Raises InputError."""
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size >> 20} MiB; expected at most {_MOST_BYTES >> 20}; "
                "cut it into several files"
            )
        data = path.read_bytes()
        encoding = "utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
        return _checked(data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n"), str(path))
    except FileNotFoundError:
        raise InputError(f"no file {path}; expected a .jsonl, .txt or .md file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not {error.encoding.upper()} at byte {error.start}; save it as UTF-8") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}") from None


def _checked(text: str, label: str) -> str:
    if "\0" in text:
        raise InputError(f"{label} holds a NUL character; expected text, not a binary file")
    return text


def _from_stream(stream: TextIO, name: object, title: str | None, split: bool, max_words: int) -> list[Memory]:
    label = name if isinstance(name, str) else "the stream"
    try:
        text = _checked(stream.read(), label)
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not UTF-8 at byte {error.start}; send it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {label}: {error.strerror or error}") from error
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        return _from_json_lines(text, label)
    return from_text(text, title, label, split=split, max_words=max_words)


def _from_json_lines(text: str, label: str) -> list[Memory]:
    memories = []
    first_line: dict[str, int] = {}
    # not splitlines(): U+2028 and its like may stand inside a JSON string
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            memory = Memory.from_dict(json.loads(line))
        except (InputError, ValueError) as error:
            what = error if isinstance(error, InputError) else f"not JSON: {error}"
            if not isinstance(error, (InputError, json.JSONDecodeError)):  # Python's own remedy is none of the user's
                what = "holds a number of more than 4300 digits; write it as a string"
            raise InputError(f"{label}:{number}: {what}") from None
        except RecursionError:
            raise InputError(f"{label}:{number}: not JSON that can be read: nested too deeply") from None
        if memory.id is not None and first_line.setdefault(memory.id.lower(), number) != number:
            earlier = first_line[memory.id.lower()]
            raise InputError(f"{label}:{number}: the id {memory.id!r} stands in line {earlier} too; ids must differ")
        if words(memory.text) > MOST_WORDS:
            raise InputError(f"{label}:{number}: text {_too_long(memory.text)}; cut it into several rows")
        memories.append(memory)
    if not memories:
        raise InputError(f"{label} holds no memory; expected one JSON object a line")
    return memories


def _from_pieces(pieces: list[Piece], label: str) -> list[Memory]:
    if not pieces:
        raise InputError(f"{label} holds no text; expected at least one paragraph")
    try:
        return [Memory(piece.text, title=piece.title) for piece in pieces]
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
