"""How many cores there are to compute with, and how many of them other programs leave."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

_STAT, _OWN, _INFO = "/proc/stat", "/proc/self/task", "/proc/cpuinfo"
_PAUSE = 0.0005
_LOOKS = 2


def available() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> tuple[str, set[str]]:
    """Its name and features, where Linux tells them."""
    try:
        lines = Path(_INFO).read_text("utf-8", "replace").splitlines()
    except OSError:
        return "", set()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return fields.get("model name", ""), set((fields.get("flags") or fields.get("Features") or "").split())


def have_amx() -> bool:
    """Whether they multiply matrices by Intel's AMX. Only Linux tells."""
    return "amx_tile" in processor()[1]


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
        others = min(others, _running() - _own())
        if others <= 0:
            return most
    # Programs may as well run on cores that are not ours.
    return max(1, min(most, (os.cpu_count() or most) - others))


def _running() -> int:
    """Threads that run or wait for a core now, of all programs."""
    try:
        with open(_STAT, "rb") as file:
            for line in file:
                if line.startswith(b"procs_running"):
                    return int(line.split()[1])
    except (OSError, ValueError, IndexError):
        pass
    return 0


def _own() -> int:
    """Those of them that are ours: OpenMP's threads spin for a while after their work."""
    count = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(_OWN):
            with contextlib.suppress(OSError), open(f"{_OWN}/{thread}/stat", "rb") as file:
                # The name stands in parentheses and may hold anything; the state follows it.
                count += file.read().rpartition(b")")[2].split()[:1] == [b"R"]
    return count
