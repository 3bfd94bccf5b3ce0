"""The gate: which memories a query opens, and how far.

Scores come from ``_core``; this file holds the policy. It knows nothing about files or models.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import _core


@dataclass(frozen=True)
class Opened:
    """One memory the gate has opened: row of the key matrix, cosine score, softmax weight."""

    index: int
    score: float
    gate: float


@dataclass(frozen=True)
class GatePolicy:
    """How scores become gates.

    ``beta`` sharpens the softmax over all memories (paper, section on the gate; keys are centred
    and of unit length here, so scores are cosines). Nothing opens unless the best score reaches
    ``threshold``; with it open up to ``top_k`` memories whose gate is at least ``min_gate``, and the
    gates of those that open are renormalised to sum to 1.
    """

    beta: float = 40.0
    threshold: float = 0.35
    top_k: int = 2
    min_gate: float = 0.2


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1 (float32); a zero row stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)


def choose(query: np.ndarray, keys: np.ndarray, policy: GatePolicy, threads: int = 1) -> list[Opened]:
    """The memories that *query* [D] opens among *keys* [N, D] (float32, unit length), best first."""
    if not len(keys):
        return []
    indices, scores, weights = _core.gate(query, keys, policy.top_k, policy.beta, threads)
    if scores[0] < policy.threshold:
        return []
    kept = [j for j in range(len(indices)) if j == 0 or weights[j] >= policy.min_gate]
    total = float(sum(weights[j] for j in kept))
    return [Opened(int(indices[j]), float(scores[j]), float(weights[j]) / total) for j in kept]
