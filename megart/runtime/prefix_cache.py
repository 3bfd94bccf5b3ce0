"""What the base has read for other clients, kept in host memory until they ask again.

A client sends its whole conversation each time (as OpenAI's API has it), and two who take turns would throw out each
other's keys and values. llama.cpp's server keeps them in host memory too (``--cache-ram``).
"""

from __future__ import annotations

from collections.abc import Sequence

from .context import Context, Saved
from .engine import common

# Tokens: what is shorter is read again as fast as it is copied.
LEAST = 48


class PrefixCache:
    """The prefixes that *context* has computed last, *budget* tokens at most (None: as many as it holds). Not thread-safe."""

    def __init__(self, context: Context, budget: int | None = None):
        self._context, self.budget = context, context.size if budget is None else budget
        self._saved: list[Saved] = []  # the one used last comes last
        self._worth = True  # whether what the context holds is to be kept

    def advance(self, tokens: Sequence[int], *, keep: bool = True, logits: bool = False) -> int:
        """Make the context hold exactly *tokens*, from the longest prefix that is known; how many were decoded.

        *keep*: whether they may be wanted again after others; *logits* as :meth:`Context.advance` has it. Raises
        DecodeError when they do not fit, or when llama.cpp fails.
        """
        context = self._context
        here = context.match(tokens, context.bare)
        best = max(self._saved, key=lambda saved: self._use(saved, tokens), default=None)
        use = self._use(best, tokens) if best else 0
        if self._worth and len(context.tokens) - here >= LEAST:
            self._keep(context.save())
        self._worth = keep
        if best is not None and use >= here + LEAST:
            context.restore(best)
            self._saved = [saved for saved in self._saved if saved is not best]
        return context.advance(tokens, logits=logits)

    def _use(self, saved: Saved, tokens: Sequence[int]) -> int:
        """How many of *tokens* need not be decoded after *saved*."""
        shared = common(saved.tokens, tokens)
        # A recurrent state cannot be cut back.
        return shared if self._context.can_forget or shared == len(saved.tokens) else 0

    def _keep(self, new: Saved) -> None:
        """Keep *new* beside the others, less those that it begins with."""
        self._saved = [saved for saved in self._saved if saved.tokens != new.tokens[: len(saved.tokens)]]
        self._saved.append(new)
        while self._saved and sum(len(saved.tokens) for saved in self._saved) > self.budget:
            del self._saved[0]

    def clear(self) -> None:
        self._saved.clear()
