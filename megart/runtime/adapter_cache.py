"""Adapters kept open between questions, up to a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection

from cachetools import LRUCache

from ..adapter import Adapter

BUDGET = 256 << 20  # bytes of factors


class AdapterCache:
    """The adapters used last, by name (memory id, SHA-256 of the file).

    An adapter in a file is mapped: only what a mix reads is ever touched, and the system may drop those
    pages again. The budget bounds what stays mapped; one adapter is kept however large it is.
    """

    def __init__(self, budget: int | None = None):
        budget = BUDGET if budget is None else budget
        self._adapters: LRUCache[tuple[str, str | None], Adapter] = LRUCache(
            budget, lambda one: min(one.nbytes, budget)
        )

    def get(self, name: tuple[str, str | None], load: Callable[[], Adapter]) -> Adapter:
        """The adapter of that name; *load* reads it unless it is open already."""
        if name not in self._adapters:
            self._adapters[name] = load()
        return self._adapters[name]

    def keep_only(self, names: Collection[tuple[str, str | None]]) -> None:
        """Close what the bank no longer has."""
        for name in [name for name in self._adapters if name not in names]:
            del self._adapters[name]

    def __len__(self) -> int:
        return len(self._adapters)
