"""What is drawn on stderr while something takes long: redrawn in a terminal, else a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from .ui import bar, console, duration, is_live, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

    from ..memorize import Progress

_REDRAW_SECONDS = 0.1
_MOST_LANES = 8


class _Redrawn:
    """The last lines of a stream, *live* where they may be redrawn; what else is said stands above them."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream, self._clock, self._last = stream or sys.stderr, clock, -math.inf
        self.live = is_live(self.stream)
        self._console = console(self.stream)
        self._lines: Live | None = None

    def __enter__(self):  # type: ignore[no-untyped-def]
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Take the redrawn lines away."""
        if self._lines is not None:
            self._lines.stop()
            self._lines = None

    def _replace(self, lines: RenderableType) -> None:
        from rich.live import Live

        self._last = self._clock()
        if self._lines is None:
            self._lines = Live(console=self._console, auto_refresh=False, transient=True, redirect_stdout=False)
            self._lines.start()
            self._console.show_cursor(True)  # rich hides it, and a program that is ended at once does not bring it back
        self._lines.update(lines, refresh=True)

    def _print(self, line: str, style: str = "", styled: int = 0) -> None:
        """*line*, its first so many characters in *style*."""
        from rich.text import Text

        text = Text(line)
        text.stylize(style, 0, styled)
        self._console.print(text, soft_wrap=True)
        self.stream.flush()


class StudyDisplay(_Redrawn):
    """Progress of `memorize`: what is learnt at a time, and one line per memory learnt."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(stream, clock)
        self._studying: dict[str, Progress] = {}
        self._started: float | None = None

    def show(self, event: Progress) -> None:
        """Take in one event of `memorize`."""
        if event.state == "loading":
            return self._print("loading the model")
        now = self._clock()
        # the first event comes after a step: a memory's own seconds may begin before it
        self._started = min(now - event.seconds, now if self._started is None else self._started)
        if event.state == "studying":
            self._studying[event.id] = event
        else:
            self._studying.pop(event.id, None)
            line = self._outcome(event)
            self._print(line, "green", len("learnt") * (event.state == "learnt"))
        if self.live and (event.state != "studying" or now - self._last >= _REDRAW_SECONDS):
            self._replace(self._picture(event, now - self._started))

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
            return f"learnt {event.done}/{event.total} {name} ({study})"
        if event.state == "saved":
            return f"saved  {event.done}/{event.total} {name} ({duration(event.seconds)})"
        if event.state == "again":
            return f"again  {name}: not recalled yet after {study}; studies once more"
        return f"failed {name}: not recalled after {study}"

    def _picture(self, event: Progress, passed: float) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        head = f"{bar(event.done / max(event.total, 1), 24, self.stream)} {event.done}/{event.total}"
        if event.done and passed > 0:
            left = passed / event.done * (event.total - event.done)
            head += f"  {event.done * 60 / passed:.1f} a minute  {duration(left)} left"
        else:
            head += f"  {duration(passed)}"
        lanes = Table.grid(padding=(0, 2, 0, 0))
        lanes.add_column(no_wrap=True, max_width=32)
        for one in [*self._studying.values()][:_MOST_LANES]:
            lanes.add_row(Text(one_line(one.title or one.id)), f"step {one.step:>3}", f"loss {one.loss:.3f}")
        return Group(Text(head, no_wrap=True, overflow="ellipsis"), Padding(lanes, (0, 0, 0, 2), expand=False))


class Meter(_Redrawn):
    """One line of progress, where it is not redrawn one each half minute."""

    def show(self, done: int, total: int, seconds_left: float, doing: str) -> None:
        from rich.text import Text

        now = self._clock()
        if done < total and now - self._last < (_REDRAW_SECONDS if self.live else 30):
            return
        share = bar(done / max(total, 1), 24, self.stream)
        line = one_line(f"{share} {done}/{total}  {duration(seconds_left)} left  {doing}")
        if self.live:
            self._replace(Text(line, no_wrap=True, overflow="ellipsis"))
        else:
            self._last = now
            self._print(line)
