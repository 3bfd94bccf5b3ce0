"""A text continued by the bare base, without a chat template or memories; token by token how likely it was, if asked."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import llama_cpp
import numpy as np

from ..errors import InputError
from .context import Context
from .engine import Engine
from .generate import Generation, generate
from .likelihood import log_probability
from .prefix_cache import PrefixCache
from .room import TooLongError
from .sampling import SamplingOptions
from .worker import Stream

MOST_ALTERNATIVES = 20
# Tokens whose logits are kept at a time: llama.cpp keeps room for as many rows of the whole vocabulary.
_ROWS = 64


@dataclass(frozen=True)
class ScoredToken:
    """A token: its ``id``, ``text``, and natural-log probability, None for the first one of a text.

    ``best``: the likeliest tokens there, (text, log-probability), best first.
    """

    id: int
    text: str
    logprob: float | None
    best: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """What continues a prompt of ``prompt_tokens`` tokens; ``finish`` is "stop", "length" or "cancelled".

    ``scored``: each token of the prompt (where it was to be echoed) and of the continuation, None unless asked for.
    """

    text: str
    tokens: list[int]
    prompt_tokens: int
    finish: str
    scored: list[ScoredToken] | None = None
    first_token_ms: float = 0.0
    total_ms: float = 0.0


def tokens_of(engine: Engine, prompt: str | Sequence[int]) -> list[int]:
    """A prompt as token ids, a text with what the model puts in front of one. Raises InputError."""
    if isinstance(prompt, str):
        return engine.tokenize(prompt, special=True, bos=True)
    size = llama_cpp.llama_vocab_n_tokens(engine.vocab)
    wrong = [token for token in prompt if type(token) is not int or not 0 <= token < size]
    if wrong:
        raise InputError(f"got the token {wrong[0]!r}; expected ids from 0 to {size - 1}")
    return [*prompt]


def complete(
    base: Context, prefixes: PrefixCache, tokens: Sequence[int], limit: int, options: SamplingOptions,
    stream: Stream[Completion], logprobs: int | None, echo: bool,
) -> Completion:  # fmt: skip
    """Continue *tokens* by at most *limit* more; with *logprobs*, each is scored beside so many likeliest ones.

    What *base* has read for others stays in *prefixes*, and so will this text unless it is scored: who measures a
    model sends thousands, each once. On the model's thread. Raises InputError where the prompt leaves no room in the
    context.
    """
    started = time.perf_counter()
    if not tokens:
        raise InputError("got a prompt of no tokens; expected some text")
    if len(tokens) + bool(limit) > base.size:
        raise TooLongError(
            f"got a prompt of {len(tokens)} tokens; expected at most {base.size - 1}, the context's size"
        )
    scored = None if logprobs is None else [_unscored(base.engine, tokens[0])] if echo else []
    if scored:
        prefixes.advance((), keep=False)
        scored += _score(base, tokens, 1, logprobs or 0, stream)
    generation = Generation("", [], 0.0, "length")
    if limit and not stream.is_cancelled:
        prefixes.advance(tokens, keep=scored is None, logits=True)
        generation = generate(base, options, stream.put, lambda: stream.is_cancelled)
    if scored is not None:
        scored += _score(base, [*tokens, *_tokens_with_end(base, generation)], len(tokens), logprobs or 0, stream)
    now = time.perf_counter()
    return Completion(
        generation.text, generation.tokens, len(tokens), "cancelled" if stream.is_cancelled else generation.finish,
        scored, ((generation.first_token or now) - started) * 1000, (now - started) * 1000,
    )  # fmt: skip


def _tokens_with_end(base: Context, generation: Generation) -> list[int]:
    """The tokens of a continuation, also the one that ends it; without those that a stop text took away."""
    if generation.finish == "stop" and not generation.stopped:
        best = base.best()
        return [*generation.tokens, best if base.engine.is_end(best) else base.engine.end_of_turn]
    if not generation.stopped:
        return generation.tokens
    ends = base.engine.ends(generation.tokens)
    return [token for token, end in zip(generation.tokens, ends) if end <= len(generation.text)]


def _unscored(engine: Engine, token: int) -> ScoredToken:
    return ScoredToken(token, engine.piece(token).decode("utf-8", "replace"), None)


def _score(
    base: Context, tokens: Sequence[int], first: int, best: int, stream: Stream[Completion]
) -> Iterator[ScoredToken]:
    """Each of *tokens* from number *first* (at least 1) on; ends early where *stream* is cancelled."""
    if first >= len(tokens):
        return
    base.advance(tokens[: first - 1])
    for start in range(first - 1, len(tokens) - 1, _ROWS):
        if stream.is_cancelled:
            return
        part = tokens[start : min(start + _ROWS, len(tokens) - 1)]
        base.decode_every(part)
        for at, token in enumerate(tokens[start + 1 : start + 1 + len(part)]):
            yield _scored(base, at, token, best)


def _scored(base: Context, at: int, token: int, best: int) -> ScoredToken:
    logits = base.logits(at)
    nearest = np.argpartition(-logits, best)[:best].tolist() if best else []
    likely = sorted(nearest, key=lambda other: -logits[other])
    texts = ((base.engine.piece(other).decode("utf-8", "replace"), log_probability(logits, other)) for other in likely)
    return ScoredToken(
        token, base.engine.piece(token).decode("utf-8", "replace"), log_probability(logits, token), tuple(texts)
    )


def tokenizer_info(engine: Engine) -> dict[str, str | None]:
    """What programs that render chats themselves ask of a server: the template, and the texts of the control tokens."""
    return {
        "chat_template": engine.metadata("tokenizer.chat_template"),
        "bos_token": engine.token_text(llama_cpp.llama_vocab_bos(engine.vocab)) or None,
        "eos_token": engine.token_text(engine.end_of_turn),
        "pad_token": engine.token_text(llama_cpp.llama_vocab_pad(engine.vocab)) or None,
        "tokenizer_class": "llama.cpp",
    }
