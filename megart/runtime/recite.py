"""A memory recites its text: its adapter answers the recall cue, token by token what it was taught.

Where the bank holds the text too, one pass over it proves that greedy decoding would say just that; from the first
token on that the memory would say otherwise, it is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .context import Context
from .engine import Engine
from .generate import generate
from .sampling import SamplingOptions


@dataclass(frozen=True)
class Recital:
    """What a memory said: its text, the text's tokens, and where in the text each token ends, in characters.

    ``verbatim``: whether it is the very text that the bank holds.
    """

    text: str
    tokens: tuple[int, ...]
    ends: tuple[int, ...]
    verbatim: bool


def of_text(engine: Engine, text: str) -> Recital:
    """The recital of a memory that is read from its *text*: one that is not learnt yet."""
    tokens = engine.tokenize(text, special=False)
    return Recital(text, tuple(tokens), tuple(engine.ends(tokens, text)), True)


def recite(context: Context, text: str, limit: int, cancelled: Callable[[], bool] = lambda: False) -> Recital:
    """What the memory in *context* says after its cue, which the context holds; the bank holds *text*.

    The words stay in the cache. At most *limit* tokens are decoded one by one, and none once *cancelled* says so.
    Raises DecodeError when they do not fit.
    """

    def decoded(most: int) -> list[int]:
        return generate(context, SamplingOptions(max_tokens=max(1, most)), cancelled=cancelled).tokens

    engine = context.engine
    meant = engine.tokenize(text, special=False)
    if context.can_forget:
        before = [*context.tokens]
        agreeing = _agreeing(context, meant)
        if agreeing == len(meant) + 1:  # the end of the turn as well
            return Recital(text, tuple(meant), tuple(engine.ends(meant, text)), True)
        # The logits after the last good token are needed once more; what was decoded for the cue is under the mix too.
        good = [*before, *meant[:agreeing]]
        context.truncate(len(good) - 1)
        context.decode(good[len(context.tokens) :])
        tokens = [*meant[:agreeing], *decoded(limit - agreeing)]
    else:
        tokens = decoded(limit)
    if tokens == meant:
        return Recital(text, tuple(meant), tuple(engine.ends(meant, text)), True)
    return Recital(engine.detokenize(tokens), tuple(tokens), tuple(engine.ends(tokens)), False)


def _agreeing(context: Context, meant: Sequence[int]) -> int:
    """How many of *meant* and the end of the turn greedy decoding would choose in turn; *meant* is in the cache then."""
    wanted = [*meant, context.engine.end_of_turn]
    first, at = context.logits(), 0
    if not meant or int(first.argmax()) != wanted[0]:
        return 0
    for start in range(0, len(meant), context.batch):
        part = meant[start : start + context.batch]
        context.decode_every(part)
        for i in range(len(part)):
            at += 1
            if context.best(i) != wanted[at]:
                return at
    return at + 1
