"""Settings that must be in the environment before any OpenMP runtime, or NumPy's OpenBLAS, is loaded."""

from __future__ import annotations

import os


def spin_briefly() -> None:
    """Let idle OpenMP threads spin for microseconds only, then sleep.

    Threads that spin for long starve a busy neighbour (torch beside llama.cpp, or another program:
    a prefill went from 121 to 1713 ms); threads that sleep at once slow torch's many small parallel
    regions by a quarter. OpenBLAS's own threads spin for 2^26 cycles after every product, while llama.cpp
    decodes: encoding a memory after the whitening of the one before took 74 ms instead of 24. What the user
    has set is kept; a program that loads NumPy before megart sets OPENBLAS_THREAD_TIMEOUT itself.
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # as a power of 2; the least there is
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
