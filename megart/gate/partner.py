"""The second memory: does a question need another beside the best one?

Of the words that the best memory lacks, what another holds explains the rest of the question. A question
about one memory leaves little that another explains by more than a word or two; one about two leaves half
of itself, in words that stand side by side. A small logistic model weighs that; fitted by tools/fit_gate.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Of the candidate that explains most of the rest. The fit gives -8.8 for "always"; at -9.5 a third fewer questions
# about one memory open a second one in a bank of 492 (27 to 21 of 741), for one pair in 125 (partitions 0-4, by hand).
WEIGHTS = {
    "always": -9.5,
    "gain": 7.9,
    "side_by_side": 6.2,
    "behind": 2.2,
    "named": 3.7,
}
# Nats in a unit, and how far behind in score still counts.
_UNIT = 10.0


def features(
    best: int,
    present: np.ndarray,
    idf: np.ndarray,
    pairs: np.ndarray,
    named: np.ndarray,
    scores: np.ndarray,
) -> tuple[int, np.ndarray]:
    """The candidate that explains most of what *best* leaves, and its features, float64 [F], as in WEIGHTS.

    ``present``: float64 [C, Q], 1 for a word the candidate holds; ``idf``: float [Q], nats, 0 for words
    that only make the question; ``pairs``: int [P, 2], words side by side; ``named``: bool [C], the
    candidate holds a whole name of which *best* holds nothing; ``scores``: float64 [C].
    """
    lacking = 1 - present[best]
    gain = (present * lacking) @ idf
    first, second = pairs.T
    new = np.maximum(lacking[first], lacking[second]) * np.minimum(idf[first], idf[second])
    side = (present[:, first] * present[:, second]) @ new
    other = int((gain + side).argmax())
    behind = max(float(scores[other] - scores[best]), -_UNIT)
    return other, np.array([1.0, gain[other] / _UNIT, side[other] / _UNIT, behind / _UNIT, float(named[other])])


def needed(values: np.ndarray, weights: Mapping[str, float] = WEIGHTS) -> bool:
    """Whether a candidate with the features *values* is more likely needed than not."""
    return float(values @ np.array([*weights.values()])) > 0
