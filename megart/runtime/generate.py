"""Token by token: an answer from a context that already holds the prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .context import Context
from .draft import Draft
from .sampling import Sampler, SamplingOptions


@dataclass
class Generation:
    """The answer and how long it took.

    ``first_token`` is a time.perf_counter() reading; ``stopped``: by a stop text; ``guessed``: how many of
    ``tokens`` were guessed by a draft.
    """

    text: str
    tokens: list[int]
    first_token: float
    finish: str  # "stop" (the model ended its turn, or a stop text came), "length" or "cancelled"
    prompt_tokens: int = 0
    stopped: bool = False
    guessed: int = 0


class StopFilter:
    """Hands text on as it comes, but keeps back what may be the beginning of a stop text."""

    def __init__(self, stops: tuple[str, ...], on_text: Callable[[str], None] | None):
        self.text = ""
        self.stopped = False
        self._stops = stops
        self._on_text = on_text
        self._given = 0

    def add(self, part: str, final: bool = False) -> None:
        start = max(0, len(self.text) - max(map(len, self._stops), default=0))
        self.text += part
        places = [at for stop in self._stops if (at := self.text.find(stop, start)) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True
        upto = len(self.text) if final or self.stopped else len(self.text) - self._doubtful()
        if self._on_text and upto > self._given:
            self._on_text(self.text[self._given : upto])
            self._given = upto

    def _doubtful(self) -> int:
        """How many characters at the end could still become a stop text."""
        sizes = (n for stop in self._stops for n in range(len(stop) - 1, 0, -1) if self.text.endswith(stop[:n]))
        return max(sizes, default=0)


def greedy(context: Context, limit: int) -> Generation:
    """:func:`generate` by the likeliest token each time, at most *limit* of them."""
    return generate(context, SamplingOptions(max_tokens=limit))


def generate(
    context: Context,
    options: SamplingOptions,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    draft: Draft | None = None,
    between: Callable[[Sequence[int], int], None] | None = None,
) -> Generation:
    """Continue *context* until the model ends its turn, a stop text comes, or the length is out.

    The context's last decode must have asked for logits. ``on_text`` receives the text as it comes;
    ``cancelled`` is asked before every token. What ``draft`` guesses is decoded in one batch, and kept as far
    as the sampler then chooses the same. ``between`` is called before each decode and at the end, with the
    tokens so far and how many of them were guessed.
    """
    engine = context.engine
    decoder = engine.decoder()
    stop_filter = StopFilter(options.stop, on_text)
    tokens: list[int] = []
    first = 0.0
    finish = "length"
    limit = min(options.max_tokens, context.size - len(context.tokens))
    sampler = Sampler(context, options, context.tokens)
    guesses: Sequence[int] = ()  # decoded, but not chosen yet
    at, guessed = -1, 0
    try:
        while len(tokens) < limit:
            if cancelled():
                finish = "cancelled"
                break
            token = sampler.next(at)
            first = first or time.perf_counter()
            if token is None or engine.is_end(token):
                finish = "stop"
                break
            tokens.append(token)
            stop_filter.add(decoder.decode(engine.piece(token)))
            if stop_filter.stopped:
                finish = "stop"
                break
            if len(tokens) == limit:
                break
            if guesses and guesses[0] == token:
                at, guessed, guesses = at + 1, guessed + 1, guesses[1:]
                continue
            if between:
                between(tokens, guessed)
            _take_back(context, guesses)
            room = min(limit - len(tokens), context.batch) - 1
            guesses = draft.after(tokens)[:room] if draft and context.can_forget else ()
            if guesses:
                context.decode_every([token, *guesses])
            else:
                context.decode([token])
            at = 0 if guesses else -1
        if not stop_filter.stopped:
            stop_filter.add(decoder.decode(b"", final=True), final=True)
        if between and finish != "cancelled":
            between(tokens, guessed)
    finally:
        sampler.close()
        _take_back(context, guesses)
    first = first or time.perf_counter()
    return Generation(stop_filter.text, tokens, first, finish, stopped=stop_filter.stopped, guessed=guessed)


def _take_back(context: Context, guesses: Sequence[int]) -> None:
    """Forget the *guesses* that the sampler did not choose."""
    if guesses:
        context.truncate(len(context.tokens) - len(guesses))
