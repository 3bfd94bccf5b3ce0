"""The gate: which memories a query opens, and how far.

Scores come from ``_core``; this file holds the policy. It knows nothing about files or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import _core
from .evidence import Candidates

_SHOWN = 40


@dataclass(frozen=True)
class Gated:
    """One memory the gate has opened: row in the bank's order, score, weight in the mix."""

    index: int
    score: float
    gate: float


@dataclass(frozen=True)
class GatePolicy:
    """How evidence becomes gates.

    Nothing opens unless the probability that some memory applies reaches ``threshold``. The gates are a
    softmax of ``beta`` times the scores (at 1 they are calibrated: a gate of 0.9 is right nine times of
    ten); up to ``top_k`` memories open whose gate is at least ``min_gate``, and the gates of those that
    open are made to sum to 1. A memory that the question names beside the best one counts as much.
    ``rerank``: whether memories near each other are told apart by reading what they say (see ``gate.rerank``).
    """

    beta: float = 1.0
    threshold: float = 0.5
    top_k: int = 2
    min_gate: float = 0.15
    rerank: bool = True


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1 (float32); a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def decide(candidates: Candidates, policy: GatePolicy) -> list[Gated]:
    """Which of *candidates* open, best first."""
    if not len(candidates.rows) or 1 - candidates.p_none < policy.threshold:
        return []
    scores = candidates.scores.copy()
    if candidates.partner is not None:
        scores[candidates.partner] = scores[0]
    powers = np.exp(policy.beta * (scores - scores[0]))
    gates = powers / powers.sum()
    order = np.argsort(-gates, kind="stable")[: policy.top_k]
    places = [j for j in order if j == 0 or gates[j] >= policy.min_gate]
    total = float(sum(gates[j] for j in places))
    return [Gated(int(candidates.rows[j]), float(candidates.scores[j]), float(gates[j]) / total) for j in places]


def by_product(query: np.ndarray, keys: np.ndarray, allowed: np.ndarray | None = None) -> Candidates:
    """The paper's gate: a softmax of the inner products of *query* [D] and *keys* [N, D]; one always opens.

    ``allowed``: bool [N], the memories that may open.
    """
    rows = np.arange(len(keys)) if allowed is None else np.flatnonzero(allowed)
    if not len(rows):
        return Candidates(np.empty(0, np.int64), np.empty(0), np.empty(0), 1.0, np.empty((0, 1)))
    here = np.ascontiguousarray(keys if allowed is None else keys[rows])
    scores = _core.scores(query, here).astype(np.float64)
    powers = np.exp(scores - scores.max())
    best = np.argsort(-scores, kind="stable")[:_SHOWN]
    return Candidates(
        rows[best], scores[best], powers[best] / powers.sum(), 0.0, scores[best, None], names=("product",)
    )
