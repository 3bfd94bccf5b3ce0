"""What speaks for a memory, weighed into one probability, with "none of them" among the outcomes.

A candidate's evidence is made of shares of the question (how much of its weight in words the memory
holds, in all, in one sentence, side by side), of names found whole or in part, and of likeness of the
base's states (of the whole texts, and token by token). None of it depends on the size of the bank, so
that the same weights serve one memory and ten thousand. The weights are a conditional logit model
(McFadden 1974) whose outside option is "no memory applies", fitted on rows named in the README.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .. import _core
from .words import Question

K1, B = 1.2, 0.5
# The prior counts as much as this many memories.
PRIOR_MEMORIES = 20.0
LEXICAL, DENSE = 32, 8
# Nats: a name that carries less (a year) does not stand for a memory of its own.
_NAME = 4.0
# The share of the question that a second memory must add to be needed beside the first.
PARTNER_SHARE = 0.15
PARTNER_ODDS = 9.0

# Of each candidate, in the order of the columns of ``features``.
WEIGHTS = {
    "bm25": 1.114,
    "words": 1.426,
    "sentence": 1.539,
    "pairs": 1.365,
    "tokens": 1.445,
    "dense": 1.71,
    "mass": 1.822,
    "names": 1.369,
    "strange": -1.964,
    "elsewhere": -0.39,
    "rest": 1.139,
    "full_name": 0.852,
    "broken_name": -1.979,
}
# Of the question beside its best two candidates; they raise or lower all candidates against "none".
AGAINST = {
    "always": -6.445,
    "unheard": 0.183,
    "strange_name": -1.487,
    "other_name": -0.569,
    "length": -1.067,
    "strange_person": -1.037,
}


@dataclass(frozen=True)
class Candidates:
    """The memories that may apply, best first.

    ``rows``: int64 [C], numbers of memories; ``scores``: float64 [C], log odds against "none";
    ``p``: float64 [C], the probability that each applies; ``p_none``: that none does; ``parts``:
    float64 [C, F], what each feature adds to the score; ``partner``: the place in ``rows`` of a memory
    that the question needs beside the best one, or None.
    """

    rows: np.ndarray
    scores: np.ndarray
    p: np.ndarray
    p_none: float
    parts: np.ndarray
    partner: int | None = None
    names: tuple[str, ...] = field(default=(*WEIGHTS, "against"))


NOTHING = Candidates(np.empty(0, np.int64), np.empty(0), np.empty(0), 1.0, np.empty((0, len(WEIGHTS) + 1)))


class Index:
    """All memories of a bank as the gate sees them.

    ``sequences``: words of each memory (``words.sequence``); ``keys``: float16 or float32 [N, D] of
    unit length; ``tokens(rows)``: int8 [n, d] token states of each of some memories.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray],
        keys: np.ndarray,
        tokens: Callable[[Sequence[int]], list[np.ndarray]],
    ):
        starts = np.zeros(len(sequences) + 1, np.int64)
        np.cumsum([len(s) for s in sequences], out=starts[1:])
        terms = np.concatenate(sequences) if len(sequences) else np.empty(0, np.uint32)
        self.lexicon = _core.Lexicon(np.ascontiguousarray(terms, np.uint32), starts)
        self.keys = np.ascontiguousarray(keys)
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self.lexicon)

    def find(
        self,
        question: Question,
        query: np.ndarray,
        states: np.ndarray,
        owner: np.ndarray,
        allowed: np.ndarray | None = None,
        threads: int = 1,
    ) -> Candidates:
        """The candidates for *question*.

        ``query``: float32 [D], the question's unit vector; ``states``: int8 [T, d] of its tokens;
        ``owner``: int32 [T], the term of each token, -1 for none; ``allowed``: bool [N], the memories
        that may open at all.
        """
        if not len(self) or not len(question.terms) or (allowed is not None and not allowed.any()):
            return NOTHING
        frequency = self.lexicon.df(question.terms)
        idf = self._idf(question, frequency)
        total = max(float(idf.sum()), 1e-6)
        bm25 = self.lexicon.bm25(question.terms, idf, K1, B)
        dense = _core.scores(query, self.keys, threads)
        rows = _best(bm25, dense, allowed)
        present, sentence, pairs = self.lexicon.match(question.terms, idf, question.pairs, rows)
        present = present.astype(np.float64)
        late = self._late(states, owner, idf, rows)
        covered = present @ idf
        names = _Names(question, present, idf, frequency)
        features = np.stack(
            [
                bm25[rows] / (total * (K1 + 1)),
                covered / total,
                sentence / total,
                pairs / total,
                late,
                dense[rows],
                np.minimum(covered / 10, 3),
                np.minimum(names.whole, 2.5),
                np.minimum(names.strange, 2),
                np.minimum(names.elsewhere, 2),
                covered / np.maximum(total - names.partner_gain.max(axis=1), 1e-6),
                names.full,
                names.strange > 0,
            ],
            axis=1,
        )
        parts = features * np.array([*WEIGHTS.values()])
        order = np.argsort(-parts.sum(axis=1), kind="stable")
        against = _against(question, present, idf, frequency, total, int(order[0])) @ np.array([*AGAINST.values()])
        parts = np.column_stack([parts, np.full(len(rows), against)])[order]
        scores = parts.sum(axis=1)
        top = max(float(scores[0]), 0.0)
        powers = np.exp(scores - top)
        everything = powers.sum() + np.exp(-top)
        p = powers / everything
        partner = names.partner(int(order[0]), order, p, total)
        return Candidates(rows[order], scores, p, float(np.exp(-top) / everything), parts, partner)

    def holds(self, row: int, question: Question, names: Sequence[Sequence[int]]) -> bool:
        """Does memory *row* hold a word of each of *names*?"""
        idf = np.ones(len(question.terms), np.float32)
        present, _, _ = self.lexicon.match(question.terms, idf, question.pairs, np.array([row], np.int64))
        return all(present[0][list(name)].any() for name in names)

    def _idf(self, question: Question, frequency: np.ndarray) -> np.ndarray:
        """Surprise of each word in nats: what the bank shows, and the prior while it shows little."""
        expected = (frequency + PRIOR_MEMORIES * question.prior) / (len(self) + PRIOR_MEMORIES)
        idf = -np.log(np.clip(expected, 1e-12, 1.0))
        floor = -np.log(question.prior)
        return np.where(question.asking, np.minimum(idf, floor), idf).astype(np.float32)

    def _late(self, states: np.ndarray, owner: np.ndarray, idf: np.ndarray, rows: np.ndarray) -> np.ndarray:
        counts = np.bincount(owner[owner >= 0], minlength=len(idf))
        weights = np.where(owner >= 0, (idf / np.maximum(counts, 1))[owner], 0).astype(np.float32)
        tokens = self._tokens(rows.tolist())
        starts = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(t) for t in tokens], out=starts[1:])
        return _core.late_interaction(states, weights, np.concatenate(tokens), starts)


def _best(bm25: np.ndarray, dense: np.ndarray, allowed: np.ndarray | None) -> np.ndarray:
    """The rows that lead by words or by states, each once: int64."""
    if allowed is not None:
        bm25, dense = (np.where(allowed, scores, -np.inf) for scores in (bm25, dense))
    picks = [row for scores, k in ((bm25, LEXICAL), (dense, DENSE)) for row in _top(scores, k)]
    return np.array(list(dict.fromkeys(picks)), np.int64)


def _top(scores: np.ndarray, k: int) -> list[int]:
    """Places of the k largest finite scores, ties to the lower place."""
    if len(scores) > 4 * k:
        edge = np.partition(scores, len(scores) - k)[len(scores) - k]
        above, level = np.flatnonzero(scores > edge), np.flatnonzero(scores == edge)
        places = np.concatenate([above, level[: k - len(above)]])
    else:
        places = np.arange(len(scores))
    places = places[np.isfinite(scores[places])]
    return places[np.argsort(-scores[places], kind="stable")][:k].tolist()


class _Names:
    """What of the question's names each candidate holds; masses in units of 10 nats."""

    def __init__(self, question: Question, present: np.ndarray, idf: np.ndarray, frequency: np.ndarray):
        count = len(present)
        self.whole, self.strange, self.elsewhere, self.full = (np.zeros(count) for _ in range(4))
        complete, touched = np.zeros((count, len(question.names))), np.zeros((count, len(question.names)))
        for i, name in enumerate(map(list, question.names)):
            mass = idf[name].astype(np.float64)
            here = present[:, name]
            whole, some = here.all(axis=1), here.any(axis=1)
            self.whole += whole * mass.sum() / 10
            lacking = (1 - here) * (some & ~whole)[:, None]
            unknown = frequency[name] == 0
            self.strange += lacking @ (mass * unknown) / 10
            self.elsewhere += lacking @ (mass * ~unknown) / 10
            complete[:, i], touched[:, i] = whole & (mass.sum() > _NAME), some
            if len(name) > 1:
                self.full = np.maximum(self.full, complete[:, i])
        # [i, j]: j holds a whole name of which i holds nothing
        self._partners = (complete @ (1 - touched).T).T > 0
        gain = (1 - present) @ (present * idf).T
        self.partner_gain = gain * self._partners

    def partner(self, best: int, order: np.ndarray, p: np.ndarray, total: float) -> int | None:
        """The place in *order* of the candidate that the question needs beside *best*."""
        gains = self.partner_gain[best][order]
        near = p >= p[0] * np.exp(-PARTNER_ODDS)
        gains = np.where(near, gains, 0)
        place = int(gains.argmax())
        return place if gains[place] >= PARTNER_SHARE * total else None


def _against(
    question: Question, present: np.ndarray, idf: np.ndarray, frequency: np.ndarray, total: float, best: int
) -> np.ndarray:
    """The features of "none applies", from what the best candidate and its best complement leave open."""
    beyond = ((1 - present[best]) * present) @ idf
    pair = np.maximum(present[best], present[int(beyond.argmax())])
    unheard = float((1 - pair) @ idf) / total
    strange = other = person = 0.0
    for name in map(list, question.names):
        if pair[name].any():
            continue
        unknown = frequency[name] == 0
        strange += float((idf[name] * unknown).sum()) / 10
        other += float((idf[name] * ~unknown).sum()) / 10
        if len(name) > 1 and unknown.any():
            person = 1.0
    return np.array([1.0, unheard, min(strange, 2), min(other, 2), min(total / 20, 3), person])
