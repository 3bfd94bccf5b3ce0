"""Reading ahead: what the base must have read before the next turn of a conversation can be answered.

A memory answers under its own weights, so nobody has encoded its words with the base's yet. That is done in the
moments in which nobody asks and, within a conversation, along with the answer: guessing (see draft.py) saves about
as much time as reading takes, so such an answer comes as fast as the bare model's and the next turn need not wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .context import Context

# Tokens of one idle moment: who asks meanwhile waits for no more than these.
IDLE_TOKENS = 32
# Tokens read for each one guessed: where three of four are guessed, all is read when the answer ends.
ALONG = 1.5


class ParallelPrefill:
    """Lets *base* read an answer to the prompt *before*, of which it holds the first *body* tokens, while it is given."""

    def __init__(self, base: Context, before: Sequence[int], body: int):
        self._base, self._before, self._body = base, list(before), body
        self._guessed = 0

    def __call__(self, tokens: Sequence[int], guessed: int) -> None:
        """Read on: *tokens* are the answer so far, *guessed* of them guessed."""
        allowed = self._body + int(ALONG * (self._guessed + guessed))
        upto = min(len(self._before) + len(tokens), allowed, self._base.size)
        done = len(self._base.tokens)
        if not self._body <= done <= upto - 2:  # never one token alone, see Context.decode
            return
        whole = [*self._before, *tokens]
        if self._base.match(whole, self._base.computes) == done:
            self._base.decode(whole[done:upto])

    def then(self, tokens: Sequence[int], guessed: int) -> None:
        """Another memory goes on, after these *tokens*."""
        self._before += tokens
        self._guessed += guessed


class IdlePrefill:
    """Lets *base* read what was said while nobody asks; *advance* makes it hold the tokens it is given."""

    def __init__(self, base: Context, advance: Callable[[Sequence[int]], int]):
        self._base, self._advance = base, advance
        self._render: Callable[[], tuple[int, ...]] | None = None
        self._coming: tuple[int, ...] = ()

    def expect(self, render: Callable[[], tuple[int, ...]] | None) -> None:
        """What *render* gives will stand at the beginning of the next prompt; None: nothing is known of it."""
        self._render, self._coming = render, ()

    @property
    def settled(self) -> bool:
        """Whether there is nothing to do."""
        return self._render is None and self._left() < 2

    def _left(self) -> int:
        return len(self._coming) - self._base.match(self._coming, self._base.computes)

    def read(self) -> bool:
        """Read some; whether there is more to do. Raises what rendering raises."""
        if self._render is not None:
            render, self._render = self._render, None
            tokens = render()
            self._coming = tokens if len(tokens) <= self._base.size else ()
        left = self._left()
        if left < 2:  # never one token alone, see Context.decode
            return False
        upto = len(self._coming) - (left - IDLE_TOKENS if left >= 2 * IDLE_TOKENS else 0)
        self._advance(self._coming[:upto])
        return upto < len(self._coming)
