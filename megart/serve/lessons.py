"""Teaching a server's banks: `megart learn` in a process of its own, so that neither its memory nor its threads stay.

The bank is the only thing shared: what is learnt answers from the next question on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from ..bank import Bank
from ..errors import DependencyError

_COMMAND = (sys.executable, "-m", "megart", "learn", "--json")
QUIET_SECONDS = 3.0  # without a question, before teaching begins by itself
_LOOK_SECONDS = 0.5
_NICE = 10  # who asks while it goes on comes first


def can_teach() -> bool:
    """Whether what teaching needs is installed."""
    return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


class Lessons:
    """One bank's teaching. Safe from several threads."""

    def __init__(self, bank: Bank):
        self._bank = bank
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._waiter: threading.Thread | None = None  # for a quiet time
        self._stopped = threading.Event()
        self._done, self._total, self._error = 0, 0, ""

    def start(self, *, again: bool = True) -> None:
        """Teach all that is pending; without effect while that is being done, or where nothing is.

        Not *again*: nor where the last time failed. Raises DependencyError where torch is not installed.
        """
        if not can_teach():
            raise DependencyError("teaching needs torch; run: pip install 'megart[train]', or megart learn elsewhere")
        with self._lock:
            if self._process is not None or (self._error and not again):
                return
            pending = len(self._bank.records("pending"))
            self._done, self._total, self._error = 0, pending, ""
            if not pending:
                return
            self._process = subprocess.Popen(
                [*_COMMAND, "--bank", str(self._bank.path)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
            )  # fmt: skip
            with contextlib.suppress(OSError, AttributeError):  # Windows has none; or it has ended already
                os.setpriority(os.PRIO_PROCESS, self._process.pid, _NICE)
            self._reader = threading.Thread(target=self._watch, args=(self._process,), daemon=True)
            self._reader.start()

    def start_when(self, quiet: Callable[[], bool]) -> None:
        """Teach what is pending once *quiet* has been true for ``QUIET_SECONDS``, and no other teaching goes on."""
        with self._lock:
            if self._waiter is None:
                self._stopped.clear()
                self._waiter = threading.Thread(target=self._wait, args=(quiet,), daemon=True)
                self._waiter.start()

    def _wait(self, quiet: Callable[[], bool]) -> None:
        held = 0.0
        while held < QUIET_SECONDS and not self._stopped.wait(_LOOK_SECONDS):
            held = held + _LOOK_SECONDS if self._process is None and quiet() else 0.0
        if not self._stopped.is_set():
            self.start(again=False)
        with self._lock:
            self._waiter = None

    def _watch(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout and process.stderr
        last: list[str] = []
        listener = threading.Thread(target=_last_line, args=(process.stderr, last), daemon=True)
        listener.start()
        with process:
            for _ in process.stdout:  # a line for each memory that was learnt
                self._done += 1
            listener.join()
        code = process.returncode
        with self._lock:
            self._process = None
            self._error = "" if code == 0 else (last[0] if last else f"megart learn ended with exit code {code}")

    def stop(self) -> None:
        """End the teaching, also one that waits; what was learnt stays, the rest stays pending."""
        self._stopped.set()
        waiter = self._waiter
        if waiter is not None:
            waiter.join()
        with self._lock:
            process, reader = self._process, self._reader
        if process is not None and reader is not None:
            process.terminate()
            reader.join()
            self._error = ""

    def state(self) -> dict[str, Any]:
        """How far it is: ``done`` of ``total`` memories of this run, ``pending`` ones in the bank."""
        with self._lock:
            return {
                "can_teach": can_teach(),
                "running": self._process is not None,
                "done": self._done,
                "total": self._total,
                "pending": len(self._bank.records("pending")),
                "error": self._error or None,
            }


def _last_line(stream: IO[str], last: list[str]) -> None:
    for line in stream:
        if line.strip():
            last[:] = [line.strip()]
