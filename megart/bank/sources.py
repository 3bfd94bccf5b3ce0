"""Where a user's memories come from: files, folders, globs, Obsidian vaults, exported chats.

Every memory that is read here says so in its metadata: ``source`` {"file", "sha256" of the file} and ``created``, the
date that the file's front matter or the chat gives, else the day that the file was last changed. By that an edited file
is known again when it is read once more.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..split import PIECE_WORDS, split_text, words
from . import reading
from .memory import Memory

SUFFIXES = (*reading.JSON_SUFFIXES, *reading.TEXT_SUFFIXES, *reading.MARKDOWN_SUFFIXES)
CHATS = ".json"
_LINK = re.compile(r"!?\[\[([^\]|\n]+)(?:\|([^\]\n]+))?\]\]")
_COMMENT = re.compile(r"%%.*?%%", re.DOTALL)
_TAG = re.compile(r"(?<![\w#/])#([^\W\d][\w/-]*)")


@dataclass
class Sources:
    """What was read: the memories, the files they are from, and what was passed over, a line each."""

    memories: list[Memory] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read_sources(
    given: Sequence[str], *, title: str | None = None, split: bool = True, max_words: int = PIECE_WORDS
) -> Sources:
    """The memories in *given*: files, folders, globs that no shell has opened, "-" for standard input.

    Empty files are passed over, and of a folder or a glob those that cannot be read. Raises InputError where a file
    that was named cannot be read, or nothing is left.
    """
    read = Sources()
    for name in given:
        if name == "-":
            read.memories += reading.read_memories("-", title=title, split=split, max_words=max_words)
            continue
        paths = list(_opened(name))
        for path in paths:
            if len(paths) > 1 and path in read.files:
                continue
            if path.is_file() and not path.read_bytes().strip():
                read.skipped.append(f"{path} is empty")
                continue
            try:
                read.memories += _from_file(path, title, split, max_words)
            except InputError as error:
                if path == Path(name).expanduser():
                    raise
                read.skipped.append(str(error))
                continue
            read.files.append(path)
    if not read.memories:
        raise InputError(f"got nothing to memorize ({'; '.join(read.skipped) or 'no text'}); give files that hold text")
    return read


def _opened(name: str) -> Iterator[Path]:
    """The files that *name* stands for. Raises InputError where a folder or a glob holds none."""
    path = Path(name).expanduser()
    if path.is_dir():
        paths = sorted(
            Path(folder, file)
            for folder, folders, files in os.walk(path)
            if not folders.sort() and not _hide(folders)  # type: ignore[func-returns-value]
            for file in files
            if Path(file).suffix.lower() in (*SUFFIXES, CHATS) and not file.startswith(".")
        )
        what = "a folder"
    elif glob.has_magic(name) and not path.exists():
        paths, what = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if p.is_file()), "a pattern"
    else:
        yield path
        return
    if not paths:
        raise InputError(f"{name} is {what} without any file to read; expected {', '.join((*SUFFIXES, CHATS))}")
    yield from paths


def _hide(folders: list[str]) -> None:
    """Leave out hidden folders, such as .git, .obsidian and .trash."""
    folders[:] = [folder for folder in folders if not folder.startswith(".")]


def _from_file(path: Path, title: str | None, split: bool, max_words: int) -> list[Memory]:
    if path.suffix.lower() == CHATS:
        memories = _from_chats(path, max_words)
    else:
        memories = reading.read_memories(path, title=title, split=split, max_words=max_words)
    absolute = path.absolute()
    if path.suffix.lower() in reading.MARKDOWN_SUFFIXES and _in_vault(absolute):
        memories = [plain for memory in memories if (plain := _without_marks(memory))]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    changed = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    about = {"source": {"file": str(absolute), "sha256": digest}}
    return [replace(m, metadata={"created": changed, **m.metadata, **about}) for m in memories]


def _in_vault(path: Path) -> bool:
    return any((parent / ".obsidian").is_dir() for parent in path.parents)


def _without_marks(memory: Memory) -> Memory | None:
    """A note of an Obsidian vault: links by what they show, no comments, #tags as tags; None where nothing is left."""
    shown = _LINK.sub(lambda m: "" if m[0].startswith("!") else m[2] or m[1].split("#")[0], memory.text)
    text = _COMMENT.sub("", shown).strip()
    if not text:
        return None
    return replace(memory, text=text).tagged(list(dict.fromkeys(_TAG.findall(text))))


# -- chats --------------------------------------------------------------------------------------


def _from_chats(path: Path, max_words: int) -> list[Memory]:
    """What was said in the conversations of a JSON file: one with ``messages``, or a list of such.

    A question and its answer are one memory, cut where they are long.
    """
    try:
        given = json.loads(reading.read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    talks = given if isinstance(given, list) and not _is_message(next(iter(given), None)) else [given]
    memories: list[Memory] = []
    for talk in talks:
        messages = talk.get("messages") if isinstance(talk, dict) else talk
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise InputError(f'{path}: expected conversations with "messages" [{{"role": ..., "content": ...}}]')
        about = talk if isinstance(talk, dict) else {}
        title, when = (
            about.get("title") or about.get("name"),
            _time(about.get("created_at") or about.get("create_time")),
        )
        for exchange, at in _exchanges(messages):
            for piece in split_text(exchange, str(title) if title else None, max_words):
                created = at or when
                memories.append(Memory(piece.text, title=piece.title, metadata={"created": created} if created else {}))
    if not memories:
        raise InputError(f"{path} holds no message of a user or an assistant")
    return memories


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value


def _exchanges(messages: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str | None]]:
    """(what the user said and what was answered, when), one for each turn of the user's."""
    lines: list[str] = []
    at: str | None = None
    for message in messages:
        text, role = _text_of(message["content"]).strip(), message["role"]
        if not text or role not in ("user", "assistant"):
            continue
        if role == "user" and lines:
            yield "\n\n".join(lines), at
            lines, at = [], None
        at = at or _time(message.get("created_at") or message.get("create_time") or message.get("timestamp"))
        lines.append(text)
    if lines and words(" ".join(lines)):
        yield "\n\n".join(lines), at


def _text_of(content: object) -> str:
    """The text of a message: a string, or parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p if isinstance(p, str) else str(p.get("text", "")) for p in parts if isinstance(p, (str, dict)))


def _time(value: object) -> str | None:
    """ISO 8601 of seconds since 1970 or of an ISO 8601 text; None for anything else."""
    if isinstance(value, (int, float)) and 0 < value < 1e11:
        return datetime.fromtimestamp(value, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return value if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d", value) else None
