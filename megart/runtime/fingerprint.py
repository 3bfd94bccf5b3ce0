"""What computed a cached token: the one rule by which a KV cache may be read again.

llama.cpp does not know which adapters produced its cache. Every token of every context carries a
fingerprint; a token is used again only under an equal one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

_numbers = itertools.count()


@dataclass(frozen=True)
class Fingerprint:
    """A state of the weights.

    ``base``: SHA-256 of the base's GGUF. ``adapters``: (SHA-256 of its file, gate) of each adapter
    in the mix, in order; none is the bare base. ``activated``: the mix was to work from the
    generation prompt on only; the tokens before it then carry the bare base's fingerprint.
    """

    base: str
    adapters: tuple[tuple[str, float], ...] = ()
    activated: bool = True

    @classmethod
    def once(cls, base: str) -> Fingerprint:
        """One that equals no other: for adapters that have no name, or a mix that failed half-way."""
        return cls(base, ((f"unnamed {next(_numbers)}", 1.0),))
