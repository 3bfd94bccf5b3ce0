"""What a memory means, beside its words: how vectors by a text embedder are compared, and what their likeness counts.

For e5 a fitted matrix stands between the vectors and their cosine: it leaves out what all notes and all questions have
in common and says more about what other words have in common. The bank holds the embedder's own vectors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np

from .. import _core

E5_SMALL = "e5-small"  # the family of multilingual-e5-small


@dataclass(frozen=True)
class Meaning:
    """How a text embedder joins in: score = share * (what words and states say) + weight * (cosine - zero)."""

    share: float
    weight: float
    zero: float

    def odds(self, cosines: np.ndarray) -> np.ndarray:
        """Log odds that a memory applies, by its cosine alone."""
        return self.weight * (cosines - self.zero)


# By the embedder's family; "e5" is one of another size, compared by its plain vectors. A conditional logit
# (tools/fit_known.py --ranking) of notes of our own, the developers', wiki2024 partition 2 and SQuAD's even half, with
# general questions as what nothing applies to.
MEANING = {
    E5_SMALL: Meaning(0.55, 21.1, 0.066),
    "e5": Meaning(0.5, 34.5, 0.837),
    "minilm": Meaning(0.7, 9.0, 0.45),
}


@dataclass(frozen=True)
class Fitted:
    """``notes``, ``questions``: float32 [E], what the vectors of each have in common; ``matrix``: float32 [E, E]."""

    notes: np.ndarray
    questions: np.ndarray
    matrix: np.ndarray


@functools.cache
def fitted(family: str) -> Fitted | None:
    """What tools/fit_meaning.py fitted for a *family* of embedders; None where nothing was."""
    if family != E5_SMALL:
        return None
    path = resources.files("megart.data").joinpath("meaning").joinpath(f"{family}.npz")
    with resources.as_file(path) as file, np.load(file, allow_pickle=False) as stored:
        return Fitted(*(stored[name].astype(np.float32) for name in ("notes", "questions", "matrix")))


class Vectors:
    """Of all memories of a bank: float16 or float32 [N, E] of unit length, as an embedder of *family* made them."""

    def __init__(self, vectors: np.ndarray, family: str):
        self.own = np.ascontiguousarray(vectors)
        self.weighs = MEANING.get(family, MEANING["minilm"])
        self._fitted = fitted(family)
        if self._fitted is not None and self._fitted.matrix.shape[0] != self.own.shape[1]:
            self._fitted = None

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        """Of each memory's vector less what all have in common: float32 [N]."""
        assert self._fitted is not None
        centre = self._fitted.notes
        squares = 1 + centre @ centre - 2 * _core.scores(centre, self.own)
        return np.asarray(np.sqrt(np.maximum(squares, 1e-6)), np.float32)

    def scan(self, question: np.ndarray, threads: int = 1) -> np.ndarray:
        """Float32 [N]: by what to choose the memories most like *question*, float32 [E], in one pass over all.

        The fitted cosine but for its last division: by the length before the matrix, not after it.
        """
        if self._fitted is None:
            return _core.scores(_single(question), self.own, threads)
        pulled = self._fitted.matrix @ self._mapped(question)
        return (_core.scores(pulled, self.own, threads) - pulled @ self._fitted.notes) / self._lengths

    def cosines(self, question: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of *question*, float32 [E], and the memories *rows*: float64 [len(rows)]."""
        those = self.own[rows].astype(np.float32)
        if self._fitted is None:
            return np.asarray(those @ _single(question), np.float64)
        mapped = (those - self._fitted.notes) @ self._fitted.matrix
        lengths = np.maximum(np.linalg.norm(mapped, axis=1), 1e-9)
        return np.asarray(mapped @ self._mapped(question) / lengths, np.float64)

    def _mapped(self, question: np.ndarray) -> np.ndarray:
        assert self._fitted is not None
        mapped = (question - self._fitted.questions) @ self._fitted.matrix
        return np.asarray(mapped / max(float(np.linalg.norm(mapped)), 1e-9), np.float32)


def _single(question: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(question, np.float32)
