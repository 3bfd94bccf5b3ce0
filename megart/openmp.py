"""The threads of OpenMP (llama.cpp's, PyTorch's) and of NumPy's BLAS: how they wait, and one team of them at a time.

The settings must be in the environment before any OpenMP runtime, or NumPy's OpenBLAS, is loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")
_MAPS = "/proc/self/maps"
_SOFT = 1  # omp_pause_soft: as if the thread had not computed yet


def spin_briefly() -> None:
    """Let idle OpenMP threads spin for microseconds only, then sleep.

    Threads that spin for long starve a busy neighbour (torch beside llama.cpp, or another program:
    a prefill went from 121 to 1713 ms); threads that sleep at once slow torch's many small parallel
    regions by a quarter. OpenBLAS's own threads spin for 2^26 cycles after every product, while llama.cpp
    decodes: encoding a memory after the whitening of the one before took 74 ms instead of 24. What the user
    has set is kept. In a program that loads NumPy before megart it comes too late: see :func:`one_blas_thread`.
    """
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # as a power of 2; the least there is
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def release_team() -> None:
    """Let the calling thread's team go; the next computation makes a new one in 0.1 ms.

    GNU OpenMP keeps a team for every thread that ever computed. While all teams together are more threads than
    cores, they sleep at every barrier instead of spinning, of which a token has hundreds: on two cores decoding
    took 12 to 18 ms instead of 9 once another thread had computed (llama.cpp's or PyTorch's work alike). So
    whoever hands work to another thread, or has finished, lets its team go. Nothing happens where no GNU OpenMP
    is loaded.
    """
    for library in _libraries("torch" in sys.modules):
        library.omp_pause_resource_all(_SOFT)


def one_blas_thread(work: Callable[P, T]) -> Callable[P, T]:
    """*work* with NumPy's products on the calling thread alone.

    For small products before llama.cpp computes: the threads of OpenBLAS would spin on beside it. A question then took
    330 ms instead of 270 (SmolLM2, two cores), where NumPy was loaded before megart.
    """

    @functools.wraps(work)
    def alone(*args: P.args, **kwargs: P.kwargs) -> T:
        with _ONE:
            return work(*args, **kwargs)

    return alone


class _OneBlasThread:
    """A limit of the whole process: the first thread that enters sets it, the last that leaves lifts it."""

    def __init__(self) -> None:
        self._lock, self._inside, self._limit = threading.Lock(), 0, contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._limit.enter_context(_blas().limit(limits=1))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.close()


_ONE = _OneBlasThread()


@lru_cache
def _blas() -> ThreadpoolController:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(user_api="blas")


@lru_cache
def _libraries(_after_torch: bool) -> list[ctypes.CDLL]:
    """The libgomp of this process; more than one where PyTorch brings its own under another name."""
    libraries = []
    # Linux only: the OpenMPs of macOS and Windows are others and keep no such count.
    with contextlib.suppress(OSError):
        with open(_MAPS, encoding="utf-8", errors="surrogateescape") as file:
            paths = {line.split(maxsplit=5)[-1].rstrip("\n") for line in file if "libgomp" in line}
        for path in sorted(paths):
            with contextlib.suppress(OSError):
                library = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
                if hasattr(library, "omp_pause_resource_all"):  # OpenMP 5, GCC 9
                    libraries.append(library)
    return libraries
