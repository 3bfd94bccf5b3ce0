"""One base in one process: its weights, the thread that owns it, its contexts, the slot and the reader.

Banks and clients come and go; any number of them share it. Two contexts answer: ``base`` never has an adapter, so that
whatever its KV cache holds comes from the bare base and stays valid whatever opens next; ``mix`` always has the slot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import ExitStack
from typing import Protocol, TypeVar

from .. import prompts, readers
from ..adapter import Adapter
from ..errors import InputError
from ..models import Model
from . import embed, states
from .ahead import IdlePrefill
from .context import Context
from .engine import Engine, Prompt, Tool
from .fingerprint import Fingerprint
from .generate import Generation, StopFilter
from .prefix_cache import PrefixCache
from .reader import Reader
from .recite import Recital
from .request import Message
from .sampling import SamplingOptions
from .slot import Slot
from .worker import MOST_WAITING, Stream, Worker

T = TypeVar("T")
CONTEXT_TOKENS = 2048
# A question and some of a memory; after a longer question nothing is reranked.
RERANKER_TOKENS, RERANKER_BATCH = 512, 64


class Guest(Protocol):
    """What lives on a runtime and holds some of it; both are called with the model to itself."""

    def idle(self) -> None:
        """A moment in which nobody asks."""

    def brings(self) -> bytes | None:
        """The file of a reader that it brings."""

    def close(self) -> None:
        """Free what it holds, and leave the list of guests."""


class Runtime:
    """Answers with one base; :class:`~megart.runtime.open_bank.OpenBank` says from which memories.

    ``context_size`` is in tokens, at most what the model was trained for (InputError); ``threads`` defaults to the
    cores that other programs leave free; ``gpu_layers`` is llama.cpp's n_gpu_layers. ``prefix_tokens`` of clients that
    take turns are kept in host memory (default: as many as the context holds); more than ``most_waiting`` questions are
    refused (BusyError). Raises ModelError where llama.cpp cannot load the base.

    What computes belongs on its own thread, see :meth:`call`.
    """

    def __init__(
        self,
        base: Model,
        *,
        context_size: int = CONTEXT_TOKENS,
        threads: int | None = None,
        gpu_layers: int = 0,
        prefix_tokens: int | None = None,
        most_waiting: int = MOST_WAITING,
    ):
        with ExitStack() as undo:  # contexts have to be freed before the model is
            self.engine = Engine(base, threads=threads, gpu_layers=gpu_layers)
            undo.callback(self.engine.close)
            longest = max(self.engine.context_length, CONTEXT_TOKENS)
            if not 1 <= context_size <= longest:
                raise InputError(
                    f"got a context of {context_size} tokens; expected 1 to {longest}, which {base.name} can read"
                )
            watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
            self.base = Context(self.engine, size=context_size, watch=[watch])
            undo.callback(self.base.close)
            self.mix = Context(self.engine, size=context_size)
            undo.callback(self.mix.close)
            self.slot = Slot(self.mix)
            undo.pop_all()
        self._encoder: Context | None = None
        self._deep_encoder: Context | None = None
        self._reranker: Context | None = None
        self._reader: Reader | None = None
        self.prefixes = PrefixCache(self.base, prefix_tokens)
        self.idle_prefill = IdlePrefill(self.base, self.prefixes.advance)
        #: The banks that are open on it.
        self.guests: list[Guest] = []
        self._worker = Worker(self._idle, most_waiting)

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model and what its guests hold of it, once the questions that wait are answered. Idempotent."""
        self._worker.close()
        with self.engine.lock:
            for guest in [*self.guests]:  # a context of theirs has to be freed before the model is
                guest.close()
            self.slot.close()
            if self._reader is not None:
                self._reader.close()
                self._reader = None
            for context in self._contexts:
                context.close()
            self.engine.close()

    # -- the thread that owns the model -----------------------------------------------------------

    def submit(self, run: Callable[[Stream[T]], T]) -> Stream[T]:
        """Queue *run*, with the model to itself; it gets its stream to put text into.

        Raises BusyError when too many wait, MegartError after :meth:`close`.
        """

        def locked(stream: Stream[T]) -> T:
            with self.engine.lock:
                return run(stream)

        return self._worker.submit(locked)

    def call(self, work: Callable[[], T]) -> T:
        """Run *work* on the thread that answers questions, in its turn, with the model to itself; returns its result.

        All that computes belongs there. OpenMP keeps a team of threads for every thread that ever computed, and as
        soon as these are more than the cores all of them sleep at each step: on two cores a token then takes 1.5
        times as long, for good. Raises MegartError after :meth:`close`.
        """

        def locked() -> T:
            with self.engine.lock:
                return work()

        return self._worker.call(locked)

    @property
    def waiting(self) -> int:
        """Questions that are not answered yet, the one at work among them."""
        return self._worker.waiting

    def _idle(self) -> bool:
        """Let the base read some of what will stand in the next prompt; whether there is more to do."""
        for guest in self.guests:
            guest.idle()
        with self.engine.lock:
            return self.idle_prefill.read()

    def fit_threads(self) -> None:
        """Use the cores that are free now."""
        before = self.engine.threads
        if self.engine.fit_threads() != before:
            for context in self._contexts:
                context.use_threads(self.engine.threads)

    # -- contexts, made when they are first needed --------------------------------------------------

    @property
    def encoder(self) -> Context:
        """A context that stops at the embedding layer: a tenth of a prefill, and no answers."""
        if self._encoder is None:
            watch = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
            self._encoder = Context(self.engine, size=self.base.size, watch=[watch], stop=True)
        return self._encoder

    @property
    def deep_encoder(self) -> Context:
        """The same with some more layers, for the embedder of states.py. Raises DependencyError for a base without one."""
        if self._deep_encoder is None:
            self._deep_encoder = states.context(self.engine, self.base.size)
        return self._deep_encoder

    @property
    def reranker(self) -> Context:
        """A small context of the bare base, for telling near memories apart."""
        if self._reranker is None:
            self._reranker = Context(self.engine, size=min(self.base.size, RERANKER_TOKENS), batch=RERANKER_BATCH)
        return self._reranker

    @property
    def reader(self) -> Reader:
        """What answers from a recited text."""
        if self._reader is None:
            files = (data for guest in self.guests if (data := guest.brings()) is not None)
            adapter = readers.find(self.engine.model.sha256, lambda: next(files, None))
            self._reader = Reader(self.engine, adapter, self.base.size, "reader")
        return self._reader

    def forget(self, names: Collection[Hashable]) -> None:
        """Keep nothing of the recitals of these names: their memories are forgotten."""
        if self._reader is not None and names:
            self._reader.forget(names)

    @property
    def _contexts(self) -> list[Context]:
        reading = self._reader.context if self._reader else None
        made = (self.mix, self.base, self._encoder, self._deep_encoder, self._reranker, reading)
        return [context for context in made if context]

    # -- what the stages are made of (on the model's thread) ------------------------------------------

    def prompt(
        self, content: str, span: tuple[int, int] | None = None, history: Sequence[Message] = (), tools: Sequence[Tool] = ()
    ) -> Prompt:
        """*content* as the user's turn after *history*; ``span``: where the user's own words stand in it."""
        return self.engine.prompt([*history, {"role": "user", "content": content}], span, tools)

    def hold(self, recital: Recital, into: Context) -> Recital:
        """Make *into* hold *recital* as the bare base reads it, after the recall cue."""
        tokens = (*self.prompt(prompts.RECALL_CUE).tokens, *recital.tokens)
        self.prefixes.advance(tokens, keep=False)  # the reader keeps recitals
        self.base.copy_to(into)
        return recital

    def load(
        self,
        adapters: Sequence[Adapter],
        gates: Sequence[float],
        prompt: Prompt,
        activated: bool,
        names: Sequence[str | None] = (),
    ) -> float:
        """Install the mix and bring ``mix`` to the end of the prompt; the milliseconds of the installing.

        ``names``: SHA-256 of each adapter's file, by which this mix will be known again.
        """
        started = time.perf_counter()
        mixed = None
        if names and all(names):
            mixed = Fingerprint(self.base.bare.base, tuple(zip(map(str, names), gates, strict=True)), activated)
        self.slot.install(adapters, gates, mixed)
        install_ms = ms(started)
        if activated:
            if self.mix.match(prompt.body, self.base.computes) < len(prompt.body):
                self.prefixes.advance(prompt.body)
                self.base.copy_to(self.mix)
            self.mix.truncate(len(prompt.body))
            self.mix.decode(prompt.opening)
        else:
            self.mix.advance(prompt.tokens, logits=True)
        return install_ms

    def put(self, text: str, options: SamplingOptions, on_text: Callable[[str], None] | None) -> Generation:
        """*text* as an answer, cut as *options* say; nothing is decoded."""
        tokens = self.engine.tokenize(text, special=False)
        cut = tokens[: options.max_tokens]
        if len(cut) < len(tokens):
            decoder = self.engine.decoder()
            text = "".join(decoder.decode(self.engine.piece(token)) for token in cut)
        stop_filter = StopFilter(options.stop, on_text)
        stop_filter.add(text, final=True)
        finish = "stop" if stop_filter.stopped or len(cut) == len(tokens) else "length"
        return Generation(stop_filter.text, cut, time.perf_counter(), finish, stopped=stop_filter.stopped)


def ms(start: float, end: float | None = None) -> float:
    """Milliseconds from *start* to *end*, or to now."""
    return ((end or time.perf_counter()) - start) * 1000.0
