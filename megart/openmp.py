"""One setting that must be in the environment before any OpenMP runtime is loaded."""

from __future__ import annotations

import os


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spinning.

    Two spinning threads beside a busy neighbour (torch beside llama.cpp, or another program) slow a
    prefill from 121 to 1713 ms. A value that the user has set is kept.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
