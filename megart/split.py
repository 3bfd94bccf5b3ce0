"""Long sources cut into memories of sensible size. Text in, titled pieces out; nothing is lost.

Cuts fall between blocks (a paragraph, a list, a table, a block of code), inside one only when it
alone is too long: a list at its items, a table at its rows, code at its lines, prose at its
sentences. Knows nothing of files, banks or tokens. Markdown's blocks are found by markdown-it-py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from . import sentences

# Words of a piece: aimed at, and at most. About 40 to 60 words are learnt fastest, but pieces so
# short lose what they are about.
AIM_WORDS, PIECE_WORDS = 120, 180
# The longest text that may be one memory; a recall is no longer than runtime's RECALL_TOKENS.
MOST_WORDS = 400
_LONG_WORD, _WORD_BYTES = 24, 8
_TITLE_WORDS = 16
_SENTENCE, _LINE, _WORD = "", r"\n", r"\s+"
# A line such as "Wifi: otter".
FIELD = r"[^\s:][^:\n]{0,40}:[ \t]+\S"
_SHORT_FIELD = re.compile(rf"\s*{FIELD}.{{0,80}}")
_SHORT_LINE = 40
_INLINE = {"text", "code_inline", "softbreak", "em_open", "em_close", "strong_open", "strong_close"}


@dataclass(frozen=True)
class Piece:
    """A memory to be: its title (None where the source names none) and its text."""

    title: str | None
    text: str


@dataclass(frozen=True)
class _Block:
    """Source text that stays together if it can; ``head`` is repeated when a table is cut."""

    text: str
    kind: str = "paragraph"
    cuts: tuple[str, ...] = ()  # its parts, where the block may be cut
    head: str = ""
    whole: _Block | None = None  # the block that this one is a part of


@dataclass
class _Section:
    """What stands between one heading and the next."""

    path: tuple[str, ...]
    blocks: list[_Block] = field(default_factory=list)


def words(text: str) -> int:
    """How long *text* is, in words; a run without spaces counts by its bytes (URLs, Chinese)."""
    return sum(1 if len(w) <= _LONG_WORD and w.isascii() else _long(w) for w in text.split())


def _long(word: str) -> int:
    size = len(word.encode("utf-8", "surrogatepass"))
    return 1 if size <= _LONG_WORD else math.ceil(size / _WORD_BYTES)


def split_text(text: str, title: str | None = None, max_words: int = PIECE_WORDS) -> list[Piece]:
    """Plain text as pieces of at most *max_words* words, cut at paragraphs where it can be."""
    blocks = [_Block(p) for p in re.split(r"\n[ \t\r]*\n", text) if p.strip()]
    return _numbered(title, _pack(blocks, max_words))


def split_markdown(
    text: str, name: str | None = None, max_words: int = PIECE_WORDS, *, under: bool = False
) -> list[Piece]:
    """Markdown as pieces of at most *max_words* words, each inside one section.

    The title of a piece is the path of its headings ("Guide > Setup"); *name* stands in front of it
    where there is no heading of the first level above, with *under* always. Every word of *text* is
    in a piece's text or title, but for headings with nothing below them.
    """
    pieces: list[Piece] = []
    for section in _sections(text, name, under):
        if section.blocks:  # a heading alone says nothing
            pieces += _numbered(" > ".join(section.path) or None, _pack(section.blocks, max_words))
    return pieces


def _numbered(title: str | None, texts: list[str]) -> list[Piece]:
    many = title is not None and len(texts) > 1
    return [Piece(f"{title} ({n})" if many else title, text) for n, text in enumerate(texts, start=1)]


# -- Markdown -----------------------------------------------------------------------------------


def _sections(text: str, name: str | None, under: bool) -> list[_Section]:
    from markdown_it import MarkdownIt

    # The parser counts lines by "\n" alone once these are gone.
    text = re.sub(r"\r\n?|\f|\v", "\n", text)
    lines = text.split("\n")
    tokens = MarkdownIt("commonmark", {"maxNesting": 50}).enable("table").parse(text)
    above: list[tuple[int, str]] = []
    sections = [_Section((name,) if name else ())]
    # (first line, index of the opening token) of every block at the top; what stands between two
    # of them (link definitions give no token) belongs to the first.
    tops = [(t.map[0], i) for i, t in enumerate(tokens) if t.map and t.level == 0 and t.nesting >= 0]
    if not tops or tops[0][0] > 0:
        _add(sections[-1], "\n".join(lines[: tops[0][0] if tops else None]))
    for (first, index), (after, _) in zip(tops, [*tops[1:], (len(lines), 0)], strict=False):
        token = tokens[index]
        if token.type == "hr":
            _add(sections[-1], "\n".join(lines[token.map[1] : after]))  # type: ignore[index]
            continue
        if token.type != "heading_open":
            sections[-1].blocks.append(_block(tokens, index, first, lines[first:after]))
            continue
        level = int(token.tag[1:])
        title, plain = _title(tokens[index + 1])
        above = [(depth, heading) for depth, heading in above if depth < level]
        path = tuple(t for _, t in above)
        if name and (under or not path) and (under or level > 1):
            path = (name, *path)
        raw = "\n".join(lines[first : token.map[1]]).strip()  # type: ignore[index]
        if title:
            above.append((level, title))
            path = (*path, title)
        sections.append(_Section(path))
        if not plain:  # a link, an image, a very long heading: its source stays in the text
            _add(sections[-1], raw)
        _add(sections[-1], "\n".join(lines[token.map[1] : after]))  # type: ignore[index]
    return sections


def _add(section: _Section, text: str) -> None:
    if text.strip():
        section.blocks.append(_Block(text.strip("\n")))


def _title(inline: Any) -> tuple[str, bool]:
    """A heading as a title, and whether nothing but emphasis was taken away from it."""
    children = inline.children or []
    text = " ".join("".join(" " if c.type == "softbreak" else c.content for c in children).split())
    short = text.split(" ")[:_TITLE_WORDS]
    plain = all(c.type in _INLINE for c in children) and len(text.split(" ")) <= _TITLE_WORDS and len(text) <= 160
    return " ".join(short)[:160].strip(), plain


def _is_listing(lines: list[str]) -> bool:
    """Whether lines of a paragraph were meant as lines: "Wifi: otter", or three and more shorter than prose is wrapped."""
    return all(map(_SHORT_FIELD.fullmatch, lines)) or (len(lines) > 2 and max(map(len, lines)) <= _SHORT_LINE)


def _block(tokens: list[Any], index: int, first: int, lines: list[str]) -> _Block:
    """The block that the token at *index* opens, source lines and all."""
    token = tokens[index]
    text = "\n".join(lines).strip("\n")
    at: list[int] = []
    head = ""
    if token.type in ("bullet_list_open", "ordered_list_open"):
        at = [t.map[0] - first for t in _inside(tokens, index, "list_item_open")]
        kind = "list"
    elif token.type == "table_open":
        kind, head = "table", "\n".join(lines[:2])
        at = [0, *(n for n in range(3, len(lines)))]
    elif token.type in ("fence", "code_block", "html_block"):
        kind = "code"
        at = list(range(len(lines)))
    elif token.type == "paragraph_open":
        # Lines wrapped in the source are one line; two spaces or a backslash at the end break it.
        if _is_listing(text.split("\n")):
            return _Block(text)
        return _Block(re.sub(r"(?<!  )(?<!\\)\n[ \t]*(?=\S)", " ", text))
    else:
        return _Block(text)
    parts = ["\n".join(lines[a:b]) for a, b in zip(at, [*at[1:], len(lines)], strict=True)]
    return _Block(text, kind, tuple(part for part in parts if part.strip()), head)


def _inside(tokens: list[Any], index: int, kind: str) -> Iterator[Any]:
    for token in tokens[index + 1 :]:
        if token.level == 0:
            return
        if token.level == 1 and token.type == kind:
            yield token


# -- packing ------------------------------------------------------------------------------------


def _pack(blocks: list[_Block], most: int) -> list[str]:
    """Blocks joined into texts of like size, none over *most* words."""
    units = [unit for block in _glued(blocks, most) for unit in _small(block, most)]
    sizes = [words(unit.text) for unit in units]
    if not units:
        return []
    total = sum(sizes)
    aim = total if total <= most else total / math.ceil(total / min(AIM_WORDS, most))
    groups: list[list[_Block]] = [[]]
    held = 0
    for unit, size in zip(units, sizes, strict=True):
        # full, or nearer to the aim without this one than with it
        if groups[-1] and (held + size > most or abs(held - aim) <= abs(held + size - aim)):
            groups.append([])
            held = 0
        groups[-1].append(unit)
        held += size
    if len(groups) > 1 and words(_join(groups[-1])) < aim / 2:
        last = groups[-2] + groups[-1]
        if words(_join(last)) <= most:
            groups[-2:] = [last]
    return [_join(group) for group in groups]


def _join(units: list[_Block]) -> str:
    """Parts of one list, table or listing stay on neighbouring lines, anything else is a paragraph."""
    text = units[0].text
    for before, unit in pairwise(units):
        part = unit.text
        same = unit.whole is not None and unit.whole is before.whole
        if same and unit.head:
            part = part.removeprefix(f"{unit.head}\n")
        text += ("\n" if same else "\n\n") + part
    return text


def _glued(blocks: list[_Block], most: int) -> Iterator[_Block]:
    """A paragraph that ends with a colon goes with the block it announces."""
    waiting: _Block | None = None
    for block in blocks:
        if waiting:
            both = f"{waiting.text}\n\n{block.text}"
            if words(both) <= most:
                block = _Block(both, "glued")
            else:
                yield waiting
        waiting = block if block.kind == "paragraph" and block.text.rstrip().endswith(":") else None
        if not waiting:
            yield block
    if waiting:
        yield waiting


def _small(block: _Block, most: int) -> Iterator[_Block]:
    """The block itself, or its parts when it is longer than *most* words."""
    if words(block.text) <= most:
        yield block
        return
    for number, part in enumerate(block.cuts or (block.text,)):
        headed = f"{block.head}\n{part}" if block.head and number else part
        if words(headed) <= most:
            yield _Block(headed, block.kind, head=block.head, whole=block)
        else:
            yield from (_Block(text) for text in _prose(part, most))


def _prose(text: str, most: int, ends: tuple[str, ...] = (_SENTENCE, _LINE, _WORD)) -> Iterator[str]:
    """Slices of *text* of at most *most* words, cut at the first kind of *ends* that will do."""
    if words(text) <= most:
        yield text
    elif ends:
        for part in _filled(text, _ends(text, ends[0]), min(most, AIM_WORDS)):
            yield from _prose(part, most, ends[1:])
    else:  # a run without spaces; a character has up to four bytes
        size = most * _WORD_BYTES // 4
        yield from filter(None, (text[i : i + size].strip() for i in range(0, len(text), size)))


def _ends(text: str, kind: str) -> list[int]:
    if kind != _SENTENCE:
        return [match.end() for match in re.finditer(kind, text)]
    # A line that was wrapped ends no sentence, an empty one does.
    return [end for _, end in sentences.spans(re.sub(r"\n(?![ \t]*\n)", " ", text))]


def _filled(text: str, ends: list[int], most: int) -> Iterator[str]:
    """*text* cut at some of *ends*, each slice as long as *most* words allow, or one step long."""
    start = last = size = 0
    for end in [*ends, len(text)]:
        step = words(text[last:end])
        if size and size + step > most:
            yield text[start:last].strip()
            start, size = last, 0
        last, size = end, size + step
    if text[start:].strip():
        yield text[start:].strip()
