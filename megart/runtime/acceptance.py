"""What teaching asks of the runtime: what an adapter recites before it is in a bank, and what the gate finds it by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..adapter import Adapter
from .generate import greedy
from .open_bank import OpenBank
from .request import RECALL_TOKENS
from .runtime import Runtime

if TYPE_CHECKING:
    from .bank_index import IndexEntry


class Acceptance:
    """Judges candidates for the bank *bank* through *runtime*. From any thread."""

    def __init__(self, runtime: Runtime, bank: OpenBank):
        self.engine, self._runtime, self._bank = runtime.engine, runtime, bank
        #: Tokens that a cue and a text may have together.
        self.room = runtime.mix.size

    def recall(self, adapter: Adapter, cue: str, *, activated: bool, max_tokens: int = RECALL_TOKENS) -> str:
        """What *adapter* alone, at gate 1, answers to the user turn *cue*."""

        def recall() -> str:
            self._runtime.load([adapter], [1.0], self._runtime.prompt(cue), activated)
            return greedy(self._runtime.mix, max_tokens).text

        return self._runtime.call(recall)

    def margin(self, adapter: Adapter, cue: str, text: str, *, activated: bool) -> float:
        """How surely :meth:`recall` would give *text*: the smallest margin of its tokens, in logits.

        All tokens are read in one pass, each after the right ones before it: where every margin is well
        above the rounding between one pass and token by token, greedy decoding cannot leave the text.
        """

        def margin() -> float:
            self._runtime.load([adapter], [1.0], self._runtime.prompt(cue), activated)
            mix = self._runtime.mix
            meant = [*self.engine.tokenize(text, special=False), self.engine.end_of_turn]
            return min(map(_margin, mix.predictions(mix.logits(), meant), meant))

        return self._runtime.call(margin)

    def index_entry(self, text: str, title: str | None = None) -> IndexEntry:
        """What the gate finds a memory by: ``bank.add(memory, **acceptance.index_entry(text, title))``."""
        return self._runtime.call(lambda: self._bank.memories.index_entry(text, title))


def _margin(logits: np.ndarray, token: int) -> float:
    """The logit of *token* above the best other one's."""
    rivals = np.delete(logits, token)
    return float(logits[token] - rivals.max())
