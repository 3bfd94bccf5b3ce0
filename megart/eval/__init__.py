"""Evaluation: named suites over data files, resumable, with results.json and report.html.

Never changes a bank that it was not given (``--bank``) or did not make itself in its work folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from . import report
from .run import EvalOptions, Run, Tick
from .suites import SUITES, module
from .tables import learning

__all__ = ["SUITES", "EvalOptions", "Tick", "estimate", "evaluate"]


def evaluate(
    options: EvalOptions, on_tick: Callable[[Tick], None] | None = None, *, measure: bool = True
) -> tuple[Path, Path]:
    """Run a suite (what the work folder does not hold yet) and write its report: (results.json, report.html).

    Without ``measure`` the report is written of what the work folder holds, complete or not.

    Raises InputError, DependencyError (a package of the extra ``eval`` is missing), BankError.
    """
    started = time.perf_counter()
    run = Run(options, on_tick)
    try:
        suite = _suite(options.suite)
        units = suite.units(run)
        if measure:
            run.do(units)
        rows = [dict(row) for row in run.rows(units)]
        run.close_desk()
        embedder = report.add_cosines(rows, options.work)
        sections = [*suite.sections(rows, run), *learning(rows)]
        return report.write(run, sections, rows, embedder, time.perf_counter() - started)
    finally:
        run.close()


def estimate(options: EvalOptions) -> tuple[int, float]:
    """Units left to do and the seconds they will take, at rates measured before where there are any."""
    run = Run(options)
    try:
        units = _suite(options.suite).units(run)
        return len(units), run.estimate(units)
    finally:
        run.close()


def _suite(name: str):  # type: ignore[no-untyped-def]
    if name not in SUITES:
        raise InputError(f"got the suite {name!r}; expected one of {', '.join(SUITES)}")
    return module(name)
