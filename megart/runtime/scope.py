"""Which memories may open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..bank import Record


@dataclass(frozen=True)
class Scope:
    """Which memories may open at all.

    ``only`` and ``without``: ids; ``tags``: a memory must carry one of them (``Record.tags``), in upper or
    lower case. ``gates``: ids that open whatever the gate says, with these weights.
    """

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    gates: Mapping[str, float] = field(default_factory=dict)

    def allows(self, record: Record) -> bool:
        name = record.id.lower()
        return (not self.only or name in self._names[0]) and name not in self._names[1] and record.carries(self.tags)

    @cached_property
    def _names(self) -> tuple[frozenset[str], frozenset[str]]:
        """``only`` and ``without`` in lower case: a scope may name thousands."""
        return frozenset(map(str.lower, self.only)), frozenset(map(str.lower, self.without))

    @property
    def is_everything(self) -> bool:
        return not (self.only or self.without or self.tags)


EVERYTHING = Scope()
