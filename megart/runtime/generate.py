"""Token by token: greedy decoding from a context that already holds the prompt."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import llama_cpp

from .context import Context


@dataclass
class Generation:
    """The answer and how long it took: ``first_token`` is a time.perf_counter() reading."""

    text: str
    tokens: list[int]
    first_token: float
    finish: str  # "stop" (the model ended its turn) or "length"


def greedy(
    context: Context,
    limit: int,
    on_text: Callable[[str], None] | None = None,
) -> Generation:
    """Continue *context* greedily until the model ends its turn or *limit* tokens are out.

    The context's last decode must have asked for logits. ``on_text`` receives the text as it comes.
    """
    engine = context.engine
    sampler = llama_cpp.llama_sampler_init_greedy()
    decoder = engine.decoder()
    tokens: list[int] = []
    parts: list[str] = []
    first = 0.0
    finish = "length"
    limit = min(limit, context.size - len(context.tokens))
    try:
        while len(tokens) < limit:
            token = llama_cpp.llama_sampler_sample(sampler, context.handle, -1)
            first = first or time.perf_counter()
            if engine.is_end(token):
                finish = "stop"
                break
            tokens.append(token)
            part = decoder.decode(engine.piece(token))
            parts.append(part)
            if on_text and part:
                on_text(part)
            if len(tokens) < limit:
                context.decode([token])
        rest = decoder.decode(b"", final=True)
        parts.append(rest)
        if on_text and rest:
            on_text(rest)
    finally:
        llama_cpp.llama_sampler_free(sampler)
    return Generation("".join(parts), tokens, first or time.perf_counter(), finish)
