"""One thread that owns the model: questions queue, stream their text, and can be cancelled.

Knows nothing of models or banks: it runs functions one after the other.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ..errors import MegartError
from ..openmp import release_team

T = TypeVar("T")
IDLE_AFTER = 0.05
MOST_WAITING = 256


class CancelledError(MegartError):
    """The question was cancelled before its answer was whole."""


class BusyError(MegartError):
    """More questions wait than are let in."""


class Stream(Generic[T]):
    """An answer on its way: iterate over its text as it is decoded, then read ``answer``.

    Iteration raises what answering raised. Leaving a ``with`` block early, or :meth:`cancel`, ends
    the answer at the next token. One reader at a time.
    """

    def __init__(self, run: Callable[[Stream[T]], T]):
        self._run = run
        self._parts: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._done = threading.Event()
        self._cancelled = threading.Event()
        self._answer: T | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[str]:
        while not self._done.is_set() or not self._parts.empty():
            part = self._parts.get()
            if part is None:
                break
            yield part
        if self._error:
            raise self._error

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    @property
    def answer(self) -> T:
        """The whole answer, waited for. Raises CancelledError if it was cancelled while queueing."""
        self._done.wait()
        if self._error:
            raise self._error
        return self._answer  # type: ignore[return-value]

    def wait(self, on_text: Callable[[str], None] | None = None) -> T:
        """The whole answer; *on_text* receives its text as it comes, in the caller's thread.

        An exception in *on_text*, or Ctrl-C, cancels the answer.
        """
        try:
            for part in self:
                if on_text:
                    on_text(part)
            return self.answer
        finally:
            self.cancel()
            self._done.wait()

    def cancel(self) -> None:
        """End the answer at the next token; without effect once it is whole."""
        self._cancelled.set()

    @property
    def is_done(self) -> bool:
        """Whether the answer, or what it failed with, is there."""
        return self._done.is_set()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def muted(self) -> Stream[T]:
        """For the worker: a stream that nobody reads, cancelled with this one."""
        other: Stream[T] = Stream(self._run)
        other._cancelled = self._cancelled
        return other

    def put(self, part: str) -> None:
        """For the worker: text that was decoded."""
        self._parts.put(part)

    def work(self, then: Callable[[], None]) -> None:
        """For the worker: make the answer, and do *then* before it is handed over."""
        try:
            if self.is_cancelled:
                raise CancelledError("cancelled before it was begun")
            self._answer = self._run(self)
        except BaseException as error:  # carried to the asker
            self._error = error
        then()
        self._done.set()
        self._parts.put(None)


class Worker:
    """Runs streams one after the other, first come first served, on a thread of its own.

    ``idle`` is called when nothing has come for ``IDLE_AFTER`` seconds; it does a little work and says whether
    there is more. Who asks at once, or closes, does not wait for it. ``most``: streams that are not done; more are
    refused.
    """

    def __init__(self, idle: Callable[[], bool] = lambda: False, most: int = MOST_WAITING):
        self._queue: queue.SimpleQueue[Stream | None] = queue.SimpleQueue()
        self._idle, self._most = idle, most
        self._streams: list[Stream] = []
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._process = os.getpid()

    def submit(self, run: Callable[[Stream[T]], T], *, bounded: bool = True) -> Stream[T]:
        """Queue *run*; it gets its stream to put text into.

        Raises BusyError when too many wait, if *bounded*, and MegartError after close.
        """
        if os.getpid() != self._process:
            raise MegartError("this assistant belongs to the process that forked this one; make a new one here")
        stream: Stream[T] = Stream(run)
        release_team()
        with self._lock:
            if self._closed:
                raise MegartError("the assistant is closed; make a new one")
            if bounded and self._wanted() >= self._most:
                raise BusyError(f"{self._most} questions wait already; try again in a few seconds")
            self._streams.append(stream)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="megart-worker", daemon=True)
                self._thread.start()
            self._queue.put(stream)
        return stream

    @property
    def waiting(self) -> int:
        """Streams that are not done and still wanted, the one at work among them."""
        with self._lock:
            return self._wanted()

    def _wanted(self) -> int:
        self._streams = [stream for stream in self._streams if not (stream.is_done or stream.is_cancelled)]
        return len(self._streams)

    def call(self, work: Callable[[], T]) -> T:
        """Run *work* on the thread, in its turn, and wait for what it returns; never refused. Raises MegartError after
        close."""
        if threading.current_thread() is self._thread:
            return work()
        return self.submit(lambda _: work(), bounded=False).wait()

    def _work(self) -> None:
        wait: float | None = None
        while True:
            try:
                stream = self._queue.get(timeout=wait)
            except queue.Empty:
                wait = 0.0 if self._idle_work() else None
                if wait is None:
                    release_team()
                continue
            if stream is None:
                return
            stream.work(release_team)
            wait = IDLE_AFTER

    def _idle_work(self) -> bool:
        """What fails while nobody asks is nobody's answer, and the next question has to find the thread alive."""
        try:
            return self._idle()
        except Exception:
            return False

    def close(self) -> None:
        """Finish what is queued, then stop. Idempotent."""
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
            self._queue.put(None)
        if thread:
            thread.join()
