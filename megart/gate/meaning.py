"""What a memory means, beside its words: how vectors by text embedders are compared, and what their likeness counts.

For e5 a fitted matrix stands between the vectors and their cosine: it leaves out what all notes and all questions have
in common and says more about what other words have in common. The bank holds the embedder's own vectors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from importlib import resources

import numpy as np

from .. import _core

# Families of embedders: multilingual-e5-small, an e5 of another size, all-MiniLM-L6-v2, the base's own states, and several
# together, whose vectors stand one after the other.
E5_SMALL, E5, MINILM, STATES = "e5-small", "e5", "minilm", "states"
BOTH = f"{E5_SMALL}+{MINILM}"
E5_STATES, ALL = f"{E5_SMALL}+{STATES}", f"{BOTH}+{STATES}"


@dataclass(frozen=True)
class Part:
    """What the cosine of one embedder counts: weight * (cosine - zero) nats.

    ``size``: how many numbers its vectors have, where another embedder's follow them.
    """

    family: str
    weight: float
    zero: float
    size: int = 0


@dataclass(frozen=True)
class Meaning:
    """How text embedders join in where words leave it open: score = share * (what words and states say) + what the parts say."""

    share: float
    parts: tuple[Part, ...]


# By the family. How much meaning counts against words was chosen on ten of our own banks, which want more of it, and on
# TOFU's even memories and wiki2024 partitions 0 to 4, which want less; the scale and the zeros by a logit of these and the
# developers' notes with general questions as what nothing applies to (tools/fit_known.py --ranking). E5: that logit alone.
MEANING = {
    E5_SMALL: Meaning(0.65, (Part(E5_SMALL, 15.7, 0.01),)),
    E5: Meaning(0.5, (Part(E5, 34.5, 0.837),)),
    MINILM: Meaning(0.7, (Part(MINILM, 9.0, 0.45),)),
    STATES: Meaning(0.65, (Part(STATES, 10.3, -0.13),)),
    BOTH: Meaning(0.64, (Part(E5_SMALL, 14.1, -0.06, 384), Part(MINILM, 6.4, 0.5))),
    E5_STATES: Meaning(0.58, (Part(E5_SMALL, 13.8, -0.06, 384), Part(STATES, 8.05, 0.4))),
    ALL: Meaning(0.65, (Part(E5_SMALL, 11.7, -0.15, 384), Part(MINILM, 4.55, 0.56, 384), Part(STATES, 5.2, 0.22))),
}


@dataclass(frozen=True)
class Fitted:
    """``notes``, ``questions``: float32 [E], what the vectors of each have in common; ``matrix``: float32 [E, D]."""

    notes: np.ndarray
    questions: np.ndarray
    matrix: np.ndarray


@functools.cache
def fitted(family: str) -> Fitted | None:
    """What was fitted for a *family* of embedders, or for the states of a base; None where nothing was.

    By tools/fit_meaning.py and tools/train_embedder.py.
    """
    path = resources.files("megart.data").joinpath("meaning").joinpath(f"{family}.npz")
    if not path.is_file():
        return None
    with resources.as_file(path) as file, np.load(file, allow_pickle=False) as stored:
        return Fitted(*(stored[name].astype(np.float32) for name in ("notes", "questions", "matrix")))


class Vectors:
    """Of all memories of a bank: float16 or float32 [N, E], as an embedder of *family* made them.

    Those of several embedders stand one after the other, each of unit length; a question's may be shorter: then that
    embedder counts less.
    """

    def __init__(self, vectors: np.ndarray, family: str):
        weighs = MEANING.get(family, MEANING[MINILM])
        self.share, self._weighs = weighs.share, weighs.parts
        self._ends = np.cumsum([part.size for part in weighs.parts[:-1]]).tolist()
        each = np.split(vectors, self._ends, axis=1)
        self._parts = [_Vectors(own, part.family) for own, part in zip(each, weighs.parts, strict=True)]

    @property
    def own(self) -> np.ndarray:
        """The first embedder's: float16 or float32 [N, E]."""
        return self._parts[0].own

    def alike(self, vector: np.ndarray, threads: int = 1) -> np.ndarray:
        """Cosines of a text's *vector* and all memories by the first embedder: float32 [N]."""
        return _core.scores(_single(vector[: self.own.shape[1]]), self.own, threads)

    def scan(self, question: np.ndarray, threads: int = 1) -> np.ndarray:
        """Float32 [N]: by what to choose the memories most like *question*, float32 [E], in one pass over all."""
        scans = [part.scan(one, threads) * weighs.weight for part, weighs, one in self._each(question)]
        return np.asarray(sum(scans), np.float32)

    def cosines(self, question: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Of *question*, float32 [E], and the memories *rows*, by each embedder: float64 [len(rows), P]."""
        return np.stack([part.cosines(one, rows) for part, _, one in self._each(question)], axis=1)

    def odds(self, question: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Log odds that each of the memories *rows* applies, by its cosines alone: float64 [len(rows)]."""
        weights, zeros = np.array([(part.weight, part.zero) for part in self._weighs]).T
        return np.asarray((self.cosines(question, rows) - zeros * self.lengths(question)) @ weights, np.float64)

    def lengths(self, question: np.ndarray) -> np.ndarray:
        """Of *question*, float32 [E], by each embedder: float64 [P]."""
        return np.array([float(np.linalg.norm(one)) for _, _, one in self._each(question)])

    def _each(self, question: np.ndarray) -> list[tuple[_Vectors, Part, np.ndarray]]:
        return list(zip(self._parts, self._weighs, np.split(question, self._ends), strict=True))


class _Vectors:
    """By one embedder. Where none was fitted, a question's shorter vector has smaller cosines."""

    def __init__(self, vectors: np.ndarray, family: str):
        self.own = np.ascontiguousarray(vectors)
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

    def scan(self, question: np.ndarray, threads: int) -> np.ndarray:
        """The cosine; by a fitted matrix but for its last division: by the length before the matrix, not after it."""
        if self._fitted is None:
            return _core.scores(_single(question), self.own, threads)
        pulled = self._fitted.matrix @ self._mapped(question)
        return (_core.scores(pulled, self.own, threads) - pulled @ self._fitted.notes) / self._lengths

    def cosines(self, question: np.ndarray, rows: np.ndarray) -> np.ndarray:
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
