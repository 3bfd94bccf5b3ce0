"""One setting that must be in the environment before any OpenMP runtime is loaded."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let idle OpenMP threads spin for microseconds only, then sleep.

    Threads that spin for long starve a busy neighbour (torch beside llama.cpp, or another program:
    a prefill went from 121 to 1713 ms); threads that sleep at once slow torch's many small parallel
    regions by a quarter. What the user has set is kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
