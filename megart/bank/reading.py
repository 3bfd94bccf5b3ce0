"""Memories out of the user's files: JSON lines, plain text and Markdown."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from megart.bank.memory import Memory
from megart.errors import InputError

PIECE_WORDS = 120
_JSON_SUFFIXES = (".jsonl", ".ndjson")
_TEXT_SUFFIXES = (".txt", ".text")
_MARKDOWN_SUFFIXES = (".md", ".markdown")


def read_memories(source: str | Path | TextIO) -> list[Memory]:
    """The memories in a file, in standard input ("-") or in an open text stream.

    `.jsonl` holds one object a line; `.txt` and `.md` become one memory each, cut at paragraphs into
    pieces of about `PIECE_WORDS` words when longer; Markdown headings become titles, a text file's
    name its title. A stream whose first character is "{" is JSON lines, any other is text.
    Raises InputError that names the file, and the line for JSON lines.
    """
    if not isinstance(source, (str, Path)):
        return _from_stream(source, getattr(source, "name", None))
    if str(source) == "-":
        return _from_stream(sys.stdin, "standard input")
    path = Path(source).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (*_JSON_SUFFIXES, *_TEXT_SUFFIXES, *_MARKDOWN_SUFFIXES) and path.exists():
        what = "a folder" if path.is_dir() else f"a file ending in {suffix or 'nothing'}"
        raise InputError(f"{path} is {what}; expected a .jsonl, .txt or .md file")
    text = _read(path)
    if suffix in _JSON_SUFFIXES:
        return _from_json_lines(text, str(path))
    if suffix in _MARKDOWN_SUFFIXES:
        return _from_sections(_sections(text, path.stem), str(path))
    return _from_sections([(path.stem, text)], str(path))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"no file {path}; expected a .jsonl, .txt or .md file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not a path: {error}") from None


def _from_stream(stream: TextIO, name: object) -> list[Memory]:
    label = name if isinstance(name, str) else "the stream"
    try:
        text = stream.read()
    except UnicodeDecodeError as error:
        raise InputError(f"{label} is not UTF-8 at byte {error.start}; send it as UTF-8") from None
    except OSError as error:
        raise InputError(f"cannot read {label}: {error.strerror or error}") from error
    text = text.removeprefix("\ufeff")
    if text.lstrip().startswith("{"):
        return _from_json_lines(text, label)
    return _from_sections([(None, text)], label)


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
            raise InputError(f"{label}:{number}: {what}") from None
        except RecursionError:
            raise InputError(f"{label}:{number}: not JSON that can be read: nested too deeply") from None
        if memory.id is not None and first_line.setdefault(memory.id.lower(), number) != number:
            earlier = first_line[memory.id.lower()]
            raise InputError(f"{label}:{number}: the id {memory.id!r} stands in line {earlier} too; ids must differ")
        memories.append(memory)
    if not memories:
        raise InputError(f"{label} holds no memory; expected one JSON object a line")
    return memories


def _from_sections(sections: list[tuple[str | None, str]], label: str) -> list[Memory]:
    memories = []
    for title, body in sections:
        pieces = list(_pieces(body))
        for number, piece in enumerate(pieces, start=1):
            numbered = f"{title} ({number})" if title and len(pieces) > 1 else title
            try:
                memories.append(Memory(piece, title=numbered))
            except InputError as error:
                raise InputError(f"{label}: {error}") from None
    if not memories:
        raise InputError(f"{label} holds no text; expected at least one paragraph")
    return memories


def _sections(text: str, stem: str) -> list[tuple[str | None, str]]:
    """Markdown cut at its headings; what stands before the first heading is titled with the file's name."""
    sections: list[tuple[str | None, list[str]]] = [(stem, [])]
    fence = ""
    for line in text.split("\n"):
        mark = re.match(r" {0,3}(```+|~~~+)", line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
        heading = None if fence else re.match(r" {0,3}#{1,6}(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$", line)
        if heading:
            sections.append(((heading[1] or "").strip() or stem, []))
        else:
            sections[-1][1].append(line)
    return [(title, "\n".join(lines)) for title, lines in sections]


def _pieces(text: str) -> Iterator[str]:
    """Paragraphs joined up to `PIECE_WORDS` words; a longer paragraph is cut at sentences, then at words."""
    held: list[str] = []
    count = 0
    for paragraph in re.split(r"\n[ \t\r]*\n", text):
        for part in _parts(paragraph.strip()):
            words = len(part.split())
            if held and count + words > PIECE_WORDS:
                yield "\n\n".join(held)
                held, count = [], 0
            held.append(part)
            count += words
    if held:
        yield "\n\n".join(held)


def _parts(paragraph: str) -> Iterator[str]:
    if len(paragraph.split()) <= PIECE_WORDS * 3 // 2:
        if paragraph:
            yield paragraph
        return
    held: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", paragraph):
        words = sentence.split()
        if held and len(held) + len(words) > PIECE_WORDS:
            yield " ".join(held)
            held = []
        held.extend(words)
        while len(held) > PIECE_WORDS * 3 // 2:
            yield " ".join(held[:PIECE_WORDS])
            held = held[PIECE_WORDS:]
    if held:
        yield " ".join(held)
