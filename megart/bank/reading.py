"""Memories out of the user's files: JSON lines, plain text and Markdown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TextIO

from megart.bank.memory import Memory
from megart.errors import InputError
from megart.split import MOST_WORDS, PIECE_WORDS, Piece, split_markdown, split_text, words

_MOST_BYTES = 256 << 20
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_TEXT_SUFFIXES = (".txt", ".text")
_MARKDOWN_SUFFIXES = (".md", ".markdown")


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
    if suffix not in (*_JSON_SUFFIXES, *_TEXT_SUFFIXES, *_MARKDOWN_SUFFIXES) and path.exists():
        what = "a folder" if path.is_dir() else f"a file ending in {suffix or 'nothing'}"
        raise InputError(f"{path} is {what}; expected a .jsonl, .txt or .md file")
    text = _read(path)
    if suffix in _JSON_SUFFIXES:
        return _from_json_lines(text, str(path))
    if split and suffix in _MARKDOWN_SUFFIXES:
        pieces = split_markdown(text, title or path.stem, max_words, under=title is not None)
        return _from_pieces(pieces, str(path))
    return from_text(text, title or path.stem, str(path), split=split, max_words=max_words)


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


def _read(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > _MOST_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size >> 20} MiB; expected at most {_MOST_BYTES >> 20}; "
                "cut it into several files"
            )
        return _checked(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise InputError(f"no file {path}; expected a .jsonl, .txt or .md file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
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
