"""How many cores there are to compute with, and how many of them other programs leave."""

from __future__ import annotations

import os
import time

_STAT = "/proc/stat"
# Seconds between looks: our own OpenMP threads stop spinning within that time (see openmp.py).
_PAUSE = 0.0005
_LOOKS = 2


def available() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free() -> int:
    """Cores to use now: :func:`available`, less what programs that are running would take from it; at least 1.

    Looks twice, half a millisecond apart, so that a program that runs for a moment does not count. Only
    Linux says how many are running; elsewhere all cores are free.
    """
    most = available()
    if most == 1:
        return 1
    others = most
    for _ in range(_LOOKS):
        time.sleep(_PAUSE)
        others = min(others, _running() - 1)  # without this thread
        if others <= 0:
            return most
    # Programs may as well run on cores that are not ours.
    return max(1, min(most, (os.cpu_count() or most) - others))


def _running() -> int:
    """Threads that run or wait for a core now, this one included."""
    try:
        with open(_STAT, "rb") as file:
            for line in file:
                if line.startswith(b"procs_running"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 1
