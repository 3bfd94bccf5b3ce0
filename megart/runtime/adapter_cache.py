"""Adapters kept open between questions, up to a budget of bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from ..adapter import Adapter

BUDGET = 256 << 20  # bytes of factors


class AdapterCache:
    """The adapters used last, by name (memory id, SHA-256 of the file).

    An adapter in a file is mapped: only what a mix reads is ever touched, and the system may drop those
    pages again. The budget bounds what stays mapped; one adapter is kept however large it is.
    """

    def __init__(self, budget: int = BUDGET):
        self.budget = budget
        self.nbytes = 0
        self._kept: OrderedDict[tuple[str, str | None], Adapter] = OrderedDict()

    def get(self, name: tuple[str, str | None], load: Callable[[], Adapter]) -> Adapter:
        """The adapter of that name; *load* reads it unless it is open already."""
        found = self._kept.get(name)
        if found is None:
            found = self._kept[name] = load()
            self.nbytes += found.nbytes
        self._kept.move_to_end(name)
        while self.nbytes > self.budget and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))
        return found

    def keep_only(self, names: Collection[tuple[str, str | None]]) -> None:
        """Close what the bank no longer has."""
        for name in [name for name in self._kept if name not in names]:
            self._drop(name)

    def _drop(self, name: tuple[str, str | None]) -> None:
        self.nbytes -= self._kept.pop(name).nbytes

    def __len__(self) -> int:
        return len(self._kept)
