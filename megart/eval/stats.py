"""Means with their intervals. scipy does the arithmetic."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import DependencyError

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over ``n`` values and its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    def to_dict(self) -> dict[str, float]:
        return {"mean": round(self.mean, 5), "low": round(self.low, 5), "high": round(self.high, 5), "n": self.n}


def estimate(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0, *, rate: bool = True
) -> Estimate | None:
    """The mean of *values* with a percentile bootstrap over *groups* (a memory's questions belong together).

    Where every value of a ``rate`` is the same 0 or 1 a bootstrap would claim certainty: Wilson's interval
    instead. None when there are no values.
    """
    if not len(values):
        return None
    try:
        from scipy import stats as scipy_stats
    except ImportError:
        raise DependencyError("evaluation needs scipy; run: pip install 'megart[eval]'") from None
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if (array == array[0]).all():
        if rate and array[0] in (0.0, 1.0):
            wilson = scipy_stats.binomtest(int(array.sum()), len(array)).proportion_ci(method="wilson")
            return Estimate(mean, float(wilson.low), float(wilson.high), len(array))
        return Estimate(mean, mean, mean, len(array))
    _, index = np.unique(list(range(len(array))) if groups is None else _numbers(groups), return_inverse=True)
    sums, counts = np.bincount(index, array), np.bincount(index).astype(float)
    if len(sums) == 1:
        return Estimate(mean, float(array.min()), float(array.max()), len(array))
    interval = scipy_stats.bootstrap(
        (sums, counts),
        lambda s, c, axis=-1: s.sum(axis=axis) / c.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), len(array))


def _numbers(groups: Sequence[Hashable]) -> list[int]:
    seen: dict[Hashable, int] = {}
    return [seen.setdefault(group, len(seen)) for group in groups]
