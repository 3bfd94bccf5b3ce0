"""Which memories answered, counted here and told to the bank in moments when nobody asks."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress

from ..bank import Bank
from ..errors import BankError
from .answer import Answer

EVERY = 60.0  # seconds between two times that the bank is told


class Usage:
    """Not thread-safe: used on the thread that answers. What the bank cannot be told now is told later, or never."""

    def __init__(self, bank: Bank):
        self._bank = bank
        self._opened: Counter[str] = Counter()
        self._told = time.monotonic()

    def note(self, answer: Answer) -> None:
        self._opened.update({memory.id for memory in answer.memories})

    def tell(self, *, now: bool = False) -> None:
        """Tell the bank, where the last time is long ago or it must be *now*."""
        if not self._opened or not (now or time.monotonic() - self._told >= EVERY):
            return
        self._told = time.monotonic()
        with suppress(BankError):  # a pack, a bank that can only be read, or one that another process writes to
            self._bank.note_use(self._opened)
            self._opened.clear()
