"""All that megart draws in a terminal. Knows nothing about banks or models.

stdout carries data, stderr talk. Colours and redrawing need a terminal and no NO_COLOR; block
characters need a UTF-8 locale. Text of others loses its control characters before it is shown.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from .. import sentences

if TYPE_CHECKING:
    from ..memorize import Progress
    from ..runtime.answer import Answer, Source

_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069"
_STEERS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_NOT_TEXT = re.compile(f"[{_CONTROL}]")
_NOT_LINE = re.compile(f"[{_CONTROL}\t\n\u2028\u2029]+")
_STEPS = ("embed", "gate", "rerank", "mix", "install", "prefill", "recall", "read", "first_token", "total")
_REDRAW_SECONDS = 0.1
_MOST_LANES = 8

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
    encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
    everything, ctype, lang = (os.environ.get(n, "") for n in ("LC_ALL", "LC_CTYPE", "LANG"))
    # under LANG=C Python itself sets LC_CTYPE to one of these; the terminal still shows ASCII
    if ctype in ("C.UTF-8", "C.utf8", "UTF-8"):
        ctype = ""
    locale = everything or ctype or lang
    return encoding == "utf8" and locale not in ("C", "POSIX")


def say(text: str) -> None:
    """One line of talk."""
    print(text, file=sys.stderr, flush=True)


def put(text: str) -> None:
    """A line (or more) of data."""
    print(safe(text, sys.stdout))


def draw(text: str = "") -> None:
    """A line on stdout that may hold colours of ours; what others wrote must be `one_line` in it."""
    print(text, flush=True)


def put_json(value: object) -> None:
    print(_json(value, indent=2))


def put_json_line(value: object) -> None:
    print(_json(value), flush=True)


def _json(value: object, indent: int | None = None) -> str:
    """As JSON; what would steer a terminal is written as an escape."""
    text = json.dumps(value, indent=indent, ensure_ascii=not _is_utf8(sys.stdout))
    return _STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def stream(text: str) -> None:
    """A piece of an answer, as it comes."""
    print(safe(text, sys.stdout), end="", flush=True)


def confirm(text: str) -> bool:
    """Ask a person; only "y" and "yes" agree."""
    print(f"{one_line(text)} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_utf8(stream: TextIO | None) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"


# -- text ---------------------------------------------------------------------------------------


def safe(text: str, stream: TextIO | None) -> str:
    """`text` without what would steer a terminal; unchanged where no terminal reads."""
    return _NOT_TEXT.sub("", text) if is_terminal(stream) else text


def one_line(text: str) -> str:
    return _NOT_LINE.sub(" ", text)


def paint(text: str, code: str, stream: TextIO | None) -> str:
    """`text` in an ANSI style where the stream takes it: "1" bold, "2" dim, "32" green."""
    return f"\x1b[{code}m{text}\x1b[0m" if is_live(stream) else text


def width(text: str) -> int:
    """Columns of `text` in a terminal."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, columns: int, stream: TextIO | None) -> str:
    """`text` cut to at most `columns`, marked where it was cut."""
    if width(text) <= columns:
        return text
    mark = "…" if has_blocks(stream) else "..."
    while text and width(text) + len(mark) > columns:
        text = text[:-1]
    return text + mark[: max(columns, 0)]


def pad(text: str, columns: int, right: bool = False) -> str:
    gap = " " * (columns - width(text))
    return gap + text if right else text + gap


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
    lines = [list(heads), *([one_line(cell) for cell in row] for row in rows)]
    widths = [max(width(line[i]) for line in lines) for i in range(len(heads))]
    if shrink and is_terminal(sys.stdout):
        at = heads.index(shrink)
        over = sum(widths) + 2 * (len(heads) - 1) - shutil.get_terminal_size().columns
        widths[at] = max(len(shrink), 8, widths[at] - max(over, 0))
        for line in lines:
            line[at] = fit(line[at], widths[at], sys.stdout)
    for number, line in enumerate(lines):
        cells = (pad(cell, w, head in right) for cell, w, head in zip(line, widths, heads, strict=True))
        text = "  ".join(cells).rstrip()
        print(paint(text, "1", sys.stdout) if number == 0 else text)


def put_fields(fields: Sequence[tuple[str, str]]) -> None:
    """Names and values under one another."""
    columns = max(len(name) for name, _ in fields)
    for name, value in fields:
        print(f"{paint(name.ljust(columns), '2', sys.stdout)}  {one_line(value)}")


# -- answers ------------------------------------------------------------------------------------


def gates(answer: Answer, stream: TextIO | None = None) -> list[str]:
    """One line for each memory that opened: its bar, gate and title."""
    out = stream or sys.stderr
    return [
        f"{paint(bar(m.gate, stream=out), '32', out)} {m.gate:.2f}  {one_line(m.title)}"
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


def not_known(known: bool | None, nearest: Sequence[str]) -> None:
    """Said before the bare model answers a question that no memory does."""
    if known is False:
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
            print(paint(safe(source.words, sys.stdout), "1", sys.stdout), end="", flush=True)
            at = start + len(source.words)
    stream(text[at:])


def put_source(source: Source) -> None:
    """The text of a source with the answer's words in bold."""
    start, end = source.span
    before, words, after = (safe(text, sys.stdout) for text in (source.text[:start], source.words, source.text[end:]))
    print(f"{before}{paint(words, '1', sys.stdout)}{after}", flush=True)


def trace(answer: Answer) -> None:
    """What older notes said, and the one line of talk under an answer."""
    for source in answer.older:
        say(f"another note, of {source.created[:10]}: {one_line(source.text[slice(*sentences.holding(source.text, *source.span))])}")
    opened = ", ".join(f"{one_line(m.title)} {m.gate:.2f}{' (pending)' if m.pending else ''}" for m in answer.memories)
    times = answer.timings
    nobody = "nothing is known" if answer.known is False and not times.prompt_tokens else "from the model itself"
    parts = [
        f"{'from' if answer.known else 'opened'} {opened}" if opened else nobody,
        f"first token {duration(times.first_token_ms / 1000)}",
        f"total {duration(times.total_ms / 1000)}",
    ]
    if answer.finish == "length":
        parts.append(f"cut at {times.completion_tokens} tokens")
    say(paint(f"[{'; '.join(parts)}]", "2", sys.stderr))


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
        say(line)


def put_answer(answer: Answer) -> None:
    """An answer as data: its text, what opened with bars, and the time of each step on one line."""
    out = sys.stdout
    if answer.recalled is not None:
        draw(f"  recalled: {one_line(answer.recalled)}")
    draw(f"  {one_line(answer.text.strip())}")
    for source in answer.sources:
        draw(paint(f"  read from: {one_line(source.text)}", "2", out))
    for line in gates(answer, out):
        draw(f"  {line}")
    times = answer.timings
    steps = [(step, getattr(times, f"{step}_ms")) for step in _STEPS]
    shown = ", ".join(f"{step.replace('_', ' ')} {ms:.1f}" for step, ms in steps if ms)
    draw(paint(f"  {shown} ms", "2", out))


def mark(good: bool, stream: TextIO | None = None) -> str:
    """A tick or a cross."""
    out = stream or sys.stdout
    sign = ("\u2713" if good else "\u2717") if has_blocks(out) else ("ok" if good else "!!")
    return paint(sign, "32" if good else "31", out)


# -- learning -----------------------------------------------------------------------------------


class StudyDisplay:
    """Progress of `memorize` on stderr: redrawn on a terminal, else one line per memory learnt."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream = stream or sys.stderr
        self.live = is_live(self.stream)
        self._clock = clock
        self._studying: dict[str, Progress] = {}
        self._started: float | None = None
        self._drawn = 0
        self._last = 0.0

    def __enter__(self) -> StudyDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def show(self, event: Progress) -> None:
        """Take in one event of `memorize`."""
        if event.state == "loading":
            self._print("loading the model")
            return
        now = self._clock()
        # the first event comes after a step: a memory's own seconds may begin before it
        self._started = min(now - event.seconds, now if self._started is None else self._started)
        if event.state == "studying":
            self._studying[event.id] = event
        else:
            self._studying.pop(event.id, None)
            self.clear()
            self._print(self._outcome(event))
        if self.live and (event.state != "studying" or now - self._last >= _REDRAW_SECONDS):
            self._last = now
            self._replace(self._picture(event, now))

    def clear(self) -> None:
        """Take the redrawn lines away."""
        if self._drawn:
            self.stream.write(f"\x1b[{self._drawn}A\r\x1b[J")
            self.stream.flush()
            self._drawn = 0

    def finish(self, *, learnt: int, known: int, where: str, saved: int = 0, pending: int = 0) -> None:
        """The last line: what came to the bank `where`, what was `known` to it, what is `pending` in it."""
        self.clear()
        parts = []
        if learnt and self._started is not None:
            seconds = max(self._clock() - self._started, 1e-9)
            parts.append(f"{learnt} learnt in {duration(seconds)} ({learnt * 60 / seconds:.1f} a minute)")
        if saved:
            parts.append(f"{saved} saved")
        if known:
            parts.append(f"{known} known already")
        if pending:
            parts.append(f"{pending} pending, megart learn teaches {'it' if pending == 1 else 'them'}")
        self._print(f"{'; '.join(parts) or 'nothing to learn'}; bank {where}")

    def _outcome(self, event: Progress) -> str:
        name = one_line(f"{event.title} [{event.id}]" if event.title else event.id)
        study = f"{event.step} steps, {duration(event.seconds)}"
        if event.state == "learnt":
            count = f"{event.done}/{event.total}"
            return f"{paint('learnt', '32', self.stream)} {count} {name} ({study})"
        if event.state == "saved":
            return f"saved  {event.done}/{event.total} {name} ({duration(event.seconds)})"
        if event.state == "again":
            return f"again  {name}: not recalled yet after {study}; studies once more"
        return f"failed {name}: not recalled after {study}"

    def _picture(self, event: Progress, now: float) -> list[str]:
        assert self._started is not None
        passed = now - self._started
        head = f"{bar(event.done / max(event.total, 1), 24, self.stream)} {event.done}/{event.total}"
        if event.done and passed > 0:
            left = passed / event.done * (event.total - event.done)
            head += f"  {event.done * 60 / passed:.1f} a minute  {duration(left)} left"
        else:
            head += f"  {duration(passed)}"
        names = {id: fit(one_line(e.title or id), 32, self.stream) for id, e in self._studying.items()}
        columns = max((width(name) for name in names.values()), default=0)
        lanes = [
            f"  {pad(names[id], columns)}  step {e.step:>3}  loss {e.loss:.3f}"
            for id, e in list(self._studying.items())[:_MOST_LANES]
        ]
        return [head, *lanes]

    def _replace(self, lines: list[str]) -> None:
        room = shutil.get_terminal_size().columns - 1
        text = "".join(f"{fit(line, room, self.stream)}\x1b[K\n" for line in lines)
        back = f"\x1b[{self._drawn}A\r" if self._drawn else ""
        self.stream.write(f"{back}{text}\x1b[J")
        self.stream.flush()
        self._drawn = len(lines)

    def _print(self, line: str) -> None:
        self.stream.write(f"{line}\n")
        self.stream.flush()


class Meter:
    """One line of progress on stderr: redrawn on a terminal, else a line each half minute."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream, self._clock = stream or sys.stderr, clock
        self.live, self._last = is_live(self.stream), -math.inf

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def show(self, done: int, total: int, seconds_left: float, doing: str) -> None:
        now = self._clock()
        if done < total and now - self._last < (_REDRAW_SECONDS if self.live else 30):
            return
        self._last = now
        share = bar(done / max(total, 1), 24, self.stream)
        line = one_line(f"{share} {done}/{total}  {duration(seconds_left)} left  {doing}")
        room = shutil.get_terminal_size().columns - 1
        self.stream.write(f"\r{fit(line, room, self.stream)}\x1b[K" if self.live else f"{line}\n")
        self.stream.flush()
