"""What the base has read for other clients, kept in host memory until they ask again.

A client sends its whole conversation each time (as OpenAI's API has it), and two who take turns would throw out each
other's keys and values. llama.cpp's server keeps them in host memory too (``--cache-ram``).
"""

from __future__ import annotations

from collections.abc import Sequence

from .context import Context, Saved

BUDGET = 128 << 20  # bytes
# Tokens: what is shorter is read again as fast as it is copied.
LEAST = 48


class PrefixCache:
    """The prefixes that *context* has computed last, up to *budget* bytes. Not thread-safe."""

    def __init__(self, context: Context, budget: int = BUDGET):
        self._context, self.budget = context, budget
        self._kept: list[Saved] = []  # the one used last comes last

    def advance(self, tokens: Sequence[int]) -> int:
        """Make the context hold exactly *tokens*, from the longest prefix that is known; how many were decoded.

        Raises DecodeError when they do not fit, or when llama.cpp fails.
        """
        context = self._context
        here = context.match(tokens, context.bare)
        best = max(self._kept, key=lambda saved: self._use(saved, tokens), default=None)
        use = self._use(best, tokens) if best else 0
        if len(context.tokens) - here >= LEAST:
            self._keep(context.save())
        if best is not None and use >= here + LEAST:
            context.restore(best)
            self._kept = [saved for saved in self._kept if saved is not best]
        return context.advance(tokens)

    def _use(self, saved: Saved, tokens: Sequence[int]) -> int:
        """How many of *tokens* need not be decoded after *saved*."""
        shared = common(saved.tokens, tokens)
        # A recurrent state cannot be cut back.
        return shared if self._context.can_forget or shared == len(saved.tokens) else 0

    def _keep(self, new: Saved) -> None:
        """Keep *new* beside the others, less those that it begins with."""
        self._kept = [saved for saved in self._kept if saved.tokens != new.tokens[: len(saved.tokens)]]
        self._kept.append(new)
        while self._kept and sum(saved.nbytes for saved in self._kept) > self.budget:
            del self._kept[0]

    def clear(self) -> None:
        self._kept.clear()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
