"""Guessing how an answer goes on, from the text that it recites.

Prompt lookup decoding, as llama.cpp's `lookup` example does it, with the memory's text in the prompt's place: a
memory mostly says what it was taught. The tokens that its text has next are decoded in one batch, and those that
the model chooses itself are kept: the answer stays the model's, it only comes sooner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

# Guesses of one batch at most: longer ones are little faster and let the text come in bursts (bench_ask.py recite).
LONGEST = 15
MOST_GUESSES = 255
# Tokens that text and answer must have in common before the text may guess, unless both only begin.
ALIKE = 2


class Draft:
    """Guesses from texts, each as its tokens with the end of the turn behind them.

    ``texts`` is called when the first token is there, so that it need not wait for them.
    """

    def __init__(self, texts: Callable[[], Sequence[Sequence[int]]], longest: int = LONGEST):
        self._make, self._longest = texts, longest

    @cached_property
    def _places(self) -> dict[int, list[tuple[Sequence[int], int]]]:
        """Where each token stands: its text and the place after it."""
        places: dict[int, list[tuple[Sequence[int], int]]] = {}
        for text in self._make():
            for place, token in enumerate(text[:-1], start=1):
                places.setdefault(token, []).append((text, place))
        return places

    def after(self, tokens: Sequence[int]) -> list[int]:
        """What follows *tokens* in the text where most of its end stands; twice as many tokens as agree, at most."""
        best, after = 0, []
        for text, place in self._places.get(tokens[-1], ()) if tokens else ():
            alike = _alike(text, place, tokens)
            if alike > best and (alike >= ALIKE or alike == place == len(tokens)):
                best, after = alike, [*text[place : place + min(2 * alike, self._longest)]]
        return after


def _alike(text: Sequence[int], place: int, tokens: Sequence[int]) -> int:
    """How many tokens before *place* are the last ones of *tokens*."""
    count = 0
    while count < min(place, len(tokens)) and text[place - 1 - count] == tokens[-1 - count]:
        count += 1
    return count
