"""All that megart draws in a terminal. Knows nothing about banks or models.

stdout carries data, stderr talk. Colours and redrawing need a terminal and no NO_COLOR; block
characters need a UTF-8 locale. Text of others loses its control characters before it is shown.
Columns, wrapping and styles are rich's, which is loaded where something is drawn.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .. import sentences

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod, RenderableType

    from ..runtime.answer import Answer, Source

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_STEERS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_NOT_TEXT = re.compile(f"[{_CONTROL}]")
_NOT_LINE = re.compile(f"[{_CONTROL}\t\n\u2028\u2029]+")
_STEPS = ("embed", "gate", "rerank", "mix", "install", "prefill", "recall", "read", "first_token", "total")
_ENDLESS = 10**9  # columns of a file

# -- streams ------------------------------------------------------------------------------------


def prepare_streams() -> None:
    """Nothing that is printed can fail for its characters; piped input is strict UTF-8."""
    _fill_gaps()
    for stream in (sys.stdout, sys.stderr):
        _reconfigure(stream, errors="replace")
    if sys.stdin is not None and not sys.stdin.isatty():
        _reconfigure(sys.stdin, encoding="utf-8", errors="strict")


def _fill_gaps() -> None:
    """A stream that was closed (`2>&-`) leaves its number to the next file opened, which stray output would hit."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")


def _reconfigure(stream: Any, **how: str) -> None:
    # not there on replaced streams; refused once a stream has been read from
    with contextlib.suppress(AttributeError, OSError, ValueError):
        stream.reconfigure(**how)


def flush() -> None:
    """Write out the data printed so far, so that an error of it is met here and not at exit."""
    if sys.stdout is not None:
        sys.stdout.flush()


def abandon_stdout() -> None:
    """Point stdout away, so that the interpreter's own last flush of it cannot fail."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()


def is_live(stream: TextIO | None) -> bool:
    """Whether the stream may be redrawn and coloured."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def has_blocks(stream: TextIO | None) -> bool:
    """Whether the stream shows characters beyond ASCII."""
    everything, ctype, lang = (os.environ.get(n, "") for n in ("LC_ALL", "LC_CTYPE", "LANG"))
    # under LANG=C Python itself sets LC_CTYPE to one of these; the terminal still shows ASCII
    if ctype in ("C.UTF-8", "C.utf8", "UTF-8"):
        ctype = ""
    locale = everything or ctype or lang
    return _is_utf8(stream) and locale not in ("C", "POSIX")


def say(text: str, *, painted: bool = False) -> None:
    """One line of talk; *painted*: it has colours of ours, and what others wrote in it is `one_line`."""
    print(text if painted else _NOT_TEXT.sub(" ", text), file=sys.stderr, flush=True)


def put(text: str) -> None:
    """A line (or more) of data."""
    print(safe(text))


def draw(text: str = "") -> None:
    """A line on stdout that may hold colours of ours; what others wrote must be `one_line` in it."""
    print(text, flush=True)


def console(stream: TextIO) -> Console:
    """What draws on *stream*, as wide as the terminal; a file has no colours, and lines of any length."""
    from rich.console import Console

    terminal = is_terminal(stream)
    return Console(
        file=stream, force_terminal=terminal, color_system="auto" if is_live(stream) else None,
        width=None if terminal else _ENDLESS, highlight=False, markup=False, emoji=False,
    )  # fmt: skip


def _put(drawing: RenderableType, least: int = 0) -> None:
    """*drawing* on stdout, *least* columns wide or wider, without the blanks that end its lines."""
    out = console(sys.stdout)
    out.width = max(out.width, least)
    with out.capture() as drawn:
        out.print(drawing)
    print("\n".join(line.rstrip() for line in drawn.get().rstrip("\n").split("\n")), flush=True)


def put_json(value: object) -> None:
    print(_json(value, indent=2))


def put_json_line(value: object) -> None:
    print(_json(value), flush=True)


def _json(value: object, indent: int | None = None) -> str:
    """As JSON; what would steer a terminal is written as an escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=not _is_utf8(sys.stdout))
    return _STEERS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def stream(text: str) -> None:
    """A piece of an answer, as it comes."""
    print(safe(text), end="", flush=True)


def confirm(text: str) -> bool:
    """Ask a person; only "y" and "yes" agree."""
    print(f"{one_line(text)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_utf8(stream: TextIO | None) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"


# -- text ---------------------------------------------------------------------------------------


def safe(text: str) -> str:
    """`text` without what would steer a terminal, in a pipe too, as its other end may be one; --json has all of it."""
    return _NOT_TEXT.sub("", text)


def one_line(text: str) -> str:
    return _NOT_LINE.sub(" ", text)


def paint(text: str, style: str, stream: TextIO | None) -> str:
    """`text` in one of rich's styles ("bold", "dim", "green") where the stream takes it."""
    if not is_live(stream):
        return text
    from rich.style import Style

    return Style.parse(style).render(text)


def fit(text: str, columns: int, stream: TextIO | None) -> str:
    """`text` cut to at most `columns`, marked where it was cut."""
    from rich.cells import cell_len, set_cell_size

    mark = "…" if has_blocks(stream) else "..."
    return text if cell_len(text) <= columns else set_cell_size(text, columns - len(mark)).rstrip() + mark


def bar(share: float, columns: int = 20, stream: TextIO | None = None) -> str:
    """A bar of `columns`; `share` in [0, 1]. Drawn for `stream`, default stderr."""
    full, empty = "█░" if has_blocks(stream or sys.stderr) else "#."
    count = round(min(max(share, 0.0), 1.0) * columns)
    return full * count + empty * (columns - count)


def size(bytes: int) -> str:
    if not bytes:
        return "-"
    if bytes < 1000:
        return f"{bytes} B"
    return f"{bytes / 1e3:.1f} kB" if bytes < 1e6 else f"{bytes / 1e6:.1f} MB"


def moment(iso: str) -> str:
    """A UTC time of the bank, to the minute."""
    return f"{iso[:16].replace('T', ' ')} UTC"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def put_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    shrink: str = "",
) -> None:
    """Columns two spaces apart; on a terminal the column `shrink` gives way to the line's width."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    lines = [[one_line(cell) for cell in row] for row in rows]
    least = 2 * (len(heads) - 1)
    cut: OverflowMethod = "ellipsis" if has_blocks(sys.stdout) else "crop"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for place, head in enumerate(heads):
        table.add_column(
            head, justify="right" if head in right else "left", no_wrap=head != shrink, min_width=8 * (head == shrink)
        )
        least += 8 if head == shrink else max(cell_len(line[place]) for line in [list(heads), *lines])
    for line in lines:
        table.add_row(*(Text(cell, no_wrap=True, overflow=cut) for cell in line))
    _put(table, least)


def put_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values under one another; on a terminal a long value is wrapped beside its name."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for name, value in fields:
        table.add_row(name, Text(one_line(value), overflow="fold"))
    _put(table)


# -- answers ------------------------------------------------------------------------------------


def gates(answer: Answer, stream: TextIO | None = None) -> list[str]:
    """One line for each memory that opened: its bar, gate and title."""
    out = stream or sys.stderr
    return [
        f"{paint(bar(m.gate, stream=out), 'green', out)} {m.gate:.2f}  {one_line(m.title)}"
        + (f" [{m.id}]" if m.title != m.id else "")
        + (" (pending: read from its text)" if m.pending else "")
        for m in answer.memories
    ]


def choose(question: str, choices: Sequence[str]) -> str:
    """Which of *choices* the user types, the beginning of it will do; the first one where nothing is typed."""
    while True:
        print(f"{question} ({', '.join(choices)}; Enter for {choices[0]}) ", end="", file=sys.stderr, flush=True)
        typed = sys.stdin.readline().strip().lower()
        meant = [choice for choice in choices if choice.startswith(typed or choices[0])]
        if len(meant) == 1:
            return meant[0]


def not_known(known: bool | None, nearest: Sequence[str], strict: bool = False) -> None:
    """Said of a question that no memory answers, before the bare model does; of a general one where nobody will."""
    if known is False or strict:
        say(f"Not in memory{f' (nearest: {titles(nearest)})' if nearest else ''}.")


def titles(nearest: Sequence[str]) -> str:
    return ", ".join(fit(one_line(title), 48, sys.stderr) for title in nearest)


def put_marked(answer: Answer) -> None:
    """An answer with the words in bold that its sources give it."""
    text, at = answer.text, 0
    for source in answer.sources:
        start = text.find(source.words, at) if source.words else -1
        if start >= 0:
            stream(text[at:start])
            print(paint(safe(source.words), "bold", sys.stdout), end="", flush=True)
            at = start + len(source.words)
    stream(text[at:])


def put_source(source: Source) -> None:
    """The text of a source with the answer's words in bold."""
    start, end = source.span
    before, words, after = (safe(text) for text in (source.text[:start], source.words, source.text[end:]))
    print(f"{before}{paint(words, 'bold', sys.stdout)}{after}", flush=True)


def trace(answer: Answer) -> None:
    """What older notes said, and the one line of talk under an answer."""
    for source in answer.older:
        say(
            f"another note, of {source.created[:10]}: {one_line(source.text[slice(*sentences.holding(source.text, *source.span))])}"
        )
    opened = ", ".join(f"{one_line(m.title)} {m.gate:.2f}{' (pending)' if m.pending else ''}" for m in answer.memories)
    times = answer.timings
    nobody = "from the model itself" if times.prompt_tokens else "nothing is known"
    parts = [
        f"{'from' if answer.known else 'opened'} {opened}" if opened else nobody,
        f"first token {duration(times.first_token_ms / 1000)}",
        f"total {duration(times.total_ms / 1000)}",
    ]
    if answer.finish == "length":
        parts.append(f"cut at {times.completion_tokens} tokens")
    say(paint(f"[{'; '.join(parts)}]", "dim", sys.stderr), painted=True)


def explain(answer: Answer) -> None:
    """Which memories opened, and the time of each step."""
    lines = gates(answer) or ["no memory opened: the bare model answered"]
    if answer.excluded:
        others = ", ".join(f"{one_line(m.title)} {m.gate:.2f}" for m in answer.excluded)
        lines += ["", f"left out, of a kind that cannot share an answer with the best one: {others}"]
    if answer.recalled is not None:
        lines += ["", f"recalled: {one_line(answer.recalled)}"]
    if answer.truncation:
        lines += ["", f"more rank than the slot holds: recompressed, {answer.truncation:.2%} of the mix lost"]
    total = max(answer.timings.total_ms, 1e-9)
    lines.append("")
    for step in _STEPS:
        ms = getattr(answer.timings, f"{step}_ms")
        if not ms:
            continue  # not every way of answering takes every step
        lines.append(f"{step.replace('_', ' '):<11} {bar(ms / total)} {ms:>9.1f} ms")
    times = answer.timings
    if answer.token_ms:
        lines.append(f"per token   {bar(answer.token_ms / total)} {answer.token_ms:>9.1f} ms after the first")
    written = f"{times.completion_tokens} written"
    if answer.finish == "length":
        written += " (cut there)"
    if times.guessed_tokens:
        written += f", {times.guessed_tokens} of them guessed right from the memory's text"
    lines.append(f"tokens      {times.prompt_tokens} read, {written}")
    for line in lines:
        say(line, painted=True)


def put_answer(answer: Answer) -> None:
    """An answer as data: its text, what opened with bars, and the time of each step on one line."""
    from rich.padding import Padding
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        _put(Padding(Text(text, style), (0, 0, 0, 2), expand=False))

    if answer.recalled is not None:
        line(f"recalled: {one_line(answer.recalled)}")
    line(one_line(answer.text.strip()))
    for source in answer.sources:
        line(f"read from: {one_line(source.text)}", "dim")
    for opened in gates(answer, sys.stdout):
        draw(f"  {opened}")
    times = answer.timings
    steps = [(step, getattr(times, f"{step}_ms")) for step in _STEPS]
    shown = ", ".join(f"{step.replace('_', ' ')} {ms:.1f}" for step, ms in steps if ms)
    line(f"{shown} ms", "dim")


def mark(good: bool) -> str:
    """A tick or a cross, for stdout."""
    sign = ("\u2713" if good else "\u2717") if has_blocks(sys.stdout) else ("ok" if good else "!!")
    return paint(sign, "green" if good else "red", sys.stdout)
