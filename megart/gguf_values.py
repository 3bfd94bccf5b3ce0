"""Values of a GGUF file, read one after the other out of bytes that nobody vouches for."""

from __future__ import annotations

import mmap
import struct
from typing import Any

# GGUF's numbers of its types, and of those of a fixed size how struct reads them.
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


class Cursor:
    """Reads little-endian values from ``at`` on; past the end struct.error or ValueError, and nothing is allocated."""

    def __init__(self, data: mmap.mmap | bytes, at: int = 0) -> None:
        self.data, self.at, self.end = data, at, len(data)

    def take(self, layout: str) -> Any:
        """The value, or the tuple of values, of struct's *layout*."""
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values[0] if len(values) == 1 else values

    def text(self, most: int | None = None, errors: str = "strict") -> str:
        """A string of at most *most* bytes."""
        size = self.take("Q")
        if size > self.end - self.at or (most is not None and size > most):
            raise ValueError(f"a string of {size} bytes reaches past the end; the file is cut short or damaged")
        self.at += size
        return self.data[self.at - size : self.at].decode(errors=errors)

    def pass_texts(self, count: int) -> None:
        """Up to a million words of a vocabulary, of which no text is made."""
        size_of, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        for _ in range(count):
            at += 8 + size_of(data, at)[0]
            if at > self.end:
                raise ValueError("a string reaches past the end; the file is cut short or damaged")
        self.at = at
