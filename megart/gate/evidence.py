"""What speaks for a memory, weighed into one probability, with "none of them" among the outcomes.

A candidate's evidence is made of shares of the question (how much of its weight in words the memory
holds, in all, side by side, by words of the same root), of names found whole or in part,
and of likeness of the base's states (of the whole texts, and token by token). The same weights serve one
memory and ten thousand; but among more memories more hold words of a question by chance, so their number
speaks against all of them, and more so where the question names nothing. The weights are a conditional logit model
(McFadden 1974) whose outside option is "no memory applies"; each may only speak in its own direction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from .. import _core
from . import partner, slips
from .meaning import Vectors
from .words import QuestionWords

K1, B = 1.2, 0.5
# What a word of the same root counts.
KIN = 0.8
# Nats: of a question that says less, what a memory holds counts as a share of this.
LEAST = 6.0
# How the index marks a word that stands in a memory itself.
_ITSELF = 2
# Up to so many memories, their number does not speak against them.
SMALL = 50
# The prior counts as much as this many memories.
PRIOR_MEMORIES = 20.0
LEXICAL, DENSE, MEANT = 32, 8, 16
# Nats: a name that carries less (a year) does not stand for a memory of its own.
_NAME = 4.0
# Meaning counts less where words alone say that a memory applies, by up to this share: what memories on one subject
# mean is near each other, and their words tell them apart. Chosen on what meaning.MEANING was.
WORDS_SETTLE = 0.8
# Of each candidate, in the order of the columns of ``features``; fitted by tools/fit_gate.py.
WEIGHTS = {
    "bm25": 6.406,
    "pairs": 1.938,
    "related": 2.204,
    "tokens": 4.034,
    "new_tokens": 6.22,
    "token_squares": 4.329,
    "dense": 4.657,
    "mass": 0.659,
    "names": 0.988,
    "rest": 1.8,
    "elsewhere": -0.892,
    "broken_name": -4.144,
}
# Of the question beside its best two candidates; they raise or lower all candidates against "none".
AGAINST = {
    "always": -11.506,
    "strange_name": -2.308,
    "other_name": -3.463,
    "strange_person": -1.149,
    "size": -0.372,
    "nameless": -0.523,
    "paired": 1.029,
}


@dataclass(frozen=True)
class Candidates:
    """The memories that may apply, best first.

    ``rows``: int64 [C], numbers of memories; ``scores``: float64 [C], log odds against "none";
    ``p``: float64 [C], the probability that each applies; ``p_none``: that none does; ``parts``:
    float64 [C, F], what each feature adds to the score; ``partner``: the place in ``rows`` of a memory
    that the question needs beside the best one, or None; ``read_as``: words of the question that were
    taken for typos, and for what; ``telling``: nats of the question's terms, by their hash;
    ``meant``: float64 [C], log odds by the text embedder alone, None without one; ``alone``: float64 [C], the scores by
    words and states alone, None where they are the ``scores``.
    """

    rows: np.ndarray
    scores: np.ndarray
    p: np.ndarray
    p_none: float
    parts: np.ndarray
    partner: int | None = None
    names: tuple[str, ...] = field(default=(*WEIGHTS, "against"))
    read_as: Mapping[str, str] = field(default_factory=dict)
    telling: Mapping[int, float] = field(default_factory=dict)
    meant: np.ndarray | None = None
    alone: np.ndarray | None = None


NOTHING = Candidates(np.empty(0, np.int64), np.empty(0), np.empty(0), 1.0, np.empty((0, len(WEIGHTS) + 1)))


class Index:
    """All memories of a bank as the gate sees them.

    Keys are compared by an exact scan, whose cost grows with the bank; the README says up to which size.

    ``sequences``: words of each memory (``words.sequence``), or all in one array and where each begins, int64 [N + 1];
    ``keys``: float16 or float32 [N, D] of unit length; ``tokens(rows)``: int8 [n, d] token states of each of some
    memories; ``vectors``: by the text embedder, None without one; ``text(row)``: what a memory says, with its title, ""
    where the bank does not hold it.
    """

    def __init__(
        self,
        sequences: Sequence[np.ndarray] | tuple[np.ndarray, np.ndarray],
        keys: np.ndarray,
        tokens: Callable[[Sequence[int]], list[np.ndarray]],
        vectors: Vectors | None = None,
        text: Callable[[int], str] = lambda _: "",
    ):
        terms, starts = sequences if isinstance(sequences, tuple) else _flat(sequences)
        self.lexicon = _core.Lexicon(np.ascontiguousarray(terms, np.uint32), starts)
        self.keys = np.ascontiguousarray(keys)
        self._tokens, self._text = tokens, text
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.lexicon)

    def find(
        self,
        question: QuestionWords,
        query: np.ndarray,
        states: np.ndarray,
        owner: np.ndarray,
        allowed: np.ndarray | None = None,
        threads: int = 1,
        meaning: np.ndarray | None = None,
    ) -> Candidates:
        """The candidates for *question*.

        ``query``: float32 [D], the question's unit vector; ``states``: int8 [T, d] of its tokens;
        ``owner``: int32 [T], the term of each token, -1 for none; ``allowed``: bool [N], the memories
        that may open at all; ``meaning``: float32 [E], the question's vector by the text embedder.
        """
        evidence = self.evidence(question, query, states, owner, allowed, threads, meaning)
        return NOTHING if evidence is None else evidence.weighed(WEIGHTS, AGAINST)

    def evidence(
        self,
        question: QuestionWords,
        query: np.ndarray,
        states: np.ndarray,
        owner: np.ndarray,
        allowed: np.ndarray | None = None,
        threads: int = 1,
        meaning: np.ndarray | None = None,
    ) -> Evidence | None:
        """What speaks for each memory that may apply, not yet weighed; None where nothing can."""
        if not len(self) or question.asking.all() or (allowed is not None and not allowed.any()):
            return None
        question, read_as = self.corrected(question)
        frequency = self.lexicon.df(question.terms)
        idf = self._idf(question, frequency)
        total = max(float(idf.sum()), LEAST)
        bm25 = self.lexicon.bm25(question.terms, idf, K1, B)
        dense = _core.scores(query, self.keys, threads)
        vectors = self.vectors if meaning is not None else None
        meant = vectors.scan(meaning, threads) if vectors is not None and meaning is not None else None
        rows = _best(bm25, dense, meant, allowed)
        matches, shares = self.lexicon.match(question.terms, idf, question.pairs, rows, KIN)
        present = (matches == _ITSELF).astype(np.float64)
        _, pairs, related = shares.T / total
        covered = present @ idf
        names = _Names(question, present, idf, frequency)
        features = np.stack(
            [
                bm25[rows] / (total * (K1 + 1)),
                pairs,
                related,
                *self._likeness(states, owner, idf, present, rows).T,
                dense[rows],
                np.minimum(covered / 10, 3),
                np.minimum(names.whole, 2.5),
                covered / np.maximum(total - names.partner_gain.max(axis=1), 1e-6),
                np.minimum(names.elsewhere, 2),
                names.broken,
            ],
            axis=1,
        )
        count = len(self) if allowed is None else int(allowed.sum())
        return Evidence(
            rows, features, question, present, idf, frequency, total, names, count, read_as,
            None if vectors is None or meaning is None else vectors.odds(meaning, rows),
            1.0 if vectors is None else vectors.share,
        )  # fmt: skip

    def holds(self, row: int, question: QuestionWords, names: Sequence[Sequence[int]]) -> bool:
        """Does memory *row* hold a word of each of *names*?"""
        question, _ = self.corrected(question)
        idf = np.ones(len(question.terms), np.float32)
        matches, _ = self.lexicon.match(question.terms, idf, question.pairs, np.array([row], np.int64))
        return all((matches[0][list(name)] == _ITSELF).any() for name in names)

    def corrected(self, question: QuestionWords) -> tuple[QuestionWords, dict[str, str]]:
        """*question* with its slips of the keyboard read as words of the bank, and which as what."""
        idf = self._idf(question, self.lexicon.df(question.terms))
        read_as = slips.read_as(question, self.lexicon, lambda: self.lexicon.bm25(question.terms, idf, K1, B), self._text)
        terms = question.terms.copy()
        for place, (_, key) in read_as.items():
            terms[place] = key
        return replace(question, terms=terms), {question.words[place]: word for place, (word, _) in read_as.items()}

    def _idf(self, question: QuestionWords, frequency: np.ndarray) -> np.ndarray:
        """Surprise of each word in nats: what the bank shows, and the prior while it shows little."""
        expected = (frequency + PRIOR_MEMORIES * question.prior) / (len(self) + PRIOR_MEMORIES)
        idf = -np.log(np.clip(expected, 1e-12, 1.0))
        floor = -np.log(question.prior)
        return np.where(question.asking, np.minimum(idf, floor), idf).astype(np.float32)

    def _likeness(
        self, states: np.ndarray, owner: np.ndarray, idf: np.ndarray, present: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        counts = np.bincount(owner[owner >= 0], minlength=len(idf))
        weights = np.where(owner >= 0, (idf / np.maximum(counts, 1))[owner], 0).astype(np.float32)
        tokens = self._tokens(rows.tolist())
        starts = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum([len(t) for t in tokens], out=starts[1:])
        known = np.ascontiguousarray(present[:, owner].astype(np.uint8))
        likeness = _core.late_interaction(states, weights, known, np.concatenate(tokens), starts)
        return likeness * min(1.0, float(idf.sum()) / LEAST)


@dataclass(frozen=True)
class Evidence:
    """What speaks for each candidate: ``features``: float64 [C, F], in the order of WEIGHTS.

    ``count``: of how many memories the candidates are; ``meant``: float64 [C], log odds by the text embedder, None
    without one; ``share``: what words and states count beside it.
    """

    rows: np.ndarray
    features: np.ndarray
    question: QuestionWords
    present: np.ndarray
    idf: np.ndarray
    frequency: np.ndarray
    total: float
    names: _Names
    count: int
    read_as: Mapping[str, str]
    meant: np.ndarray | None = None
    share: float = 1.0

    def against(self, scores: np.ndarray) -> np.ndarray:
        """Float64 [A], in the order of AGAINST, where the candidates have *scores*, float64 [C]."""
        best = int(scores.argmax())
        return self._against(best, partner.needed(self.partner(best, scores)[1]))

    def _against(self, best: int, paired: bool) -> np.ndarray:
        return np.array(
            [*_against(self.question, self.present, self.idf, self.frequency, best, self.count), paired], float
        )

    def partner(self, best: int, scores: np.ndarray) -> tuple[int, np.ndarray]:
        """The candidate that explains most of what *best* leaves of the question: see ``partner.features``."""
        telling = np.where(self.question.asking, 0, self.idf)
        named = self.names.partner_gain[best] > 0
        return partner.features(best, self.present, telling, self.question.pairs, named, scores)

    def weighed(self, weights: Mapping[str, float], against: Mapping[str, float]) -> Candidates:
        """The candidates by their scores, best first."""
        parts, names = self.features * np.array([*weights.values()]), [*weights]
        alone = parts.sum(axis=1)
        none = np.array([*against.values()])
        share = 1.0
        if self.meant is not None:
            best = float(alone.max()) + float(self.against(alone) @ none)
            left_open = 1 - WORDS_SETTLE / (1 + np.exp(-best))
            share = 1 - left_open * (1 - self.share)
            parts, names = np.column_stack([parts * share, self.meant * left_open]), [*names, "meaning"]
        order = np.argsort(-parts.sum(axis=1), kind="stable")
        other, features = self.partner(int(order[0]), alone)
        paired = partner.needed(features)
        nothing = float(self._against(int(order[0]), paired) @ none)
        parts = np.column_stack([parts, np.full(len(parts), share * nothing)])[order]
        scores = parts.sum(axis=1)
        top = max(float(scores[0]), 0.0)
        powers = np.exp(scores - top)
        everything = powers.sum() + np.exp(-top)
        p = powers / everything
        place = int(np.flatnonzero(order == other)[0]) if paired else None
        p_none = float(np.exp(-top) / everything)
        tells = ~self.question.asking
        telling = dict(zip(self.question.terms[tells].tolist(), self.idf[tells].tolist()))
        return Candidates(
            self.rows[order], scores, p, p_none, parts, place, (*names, "against"), self.read_as, telling,
            None if self.meant is None else self.meant[order],
            None if self.meant is None else (alone + nothing)[order],
        )  # fmt: skip


def _flat(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.zeros(len(sequences) + 1, np.int64)
    np.cumsum([len(s) for s in sequences], out=starts[1:])
    return np.concatenate(sequences) if len(sequences) else np.empty(0, np.uint32), starts


def _best(bm25: np.ndarray, dense: np.ndarray, meant: np.ndarray | None, allowed: np.ndarray | None) -> np.ndarray:
    """The rows that lead by words, by states or by meaning, each once: int64."""
    kinds = [(bm25, LEXICAL), (dense, DENSE), *([] if meant is None else [(meant, MEANT)])]
    if allowed is not None:
        kinds = [(np.where(allowed, scores, -np.inf), k) for scores, k in kinds]
    picks = [row for scores, k in kinds for row in _top(scores, k)]
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
    """What of the question's names each candidate holds, in units of 10 nats.

    ``whole``: of names it holds; ``elsewhere``: of words it lacks of names it holds in part, when another
    memory has them; ``broken``: 1 when no memory has such a word.
    """

    def __init__(self, question: QuestionWords, present: np.ndarray, idf: np.ndarray, frequency: np.ndarray):
        count = len(present)
        self.whole, self.elsewhere, self.broken = (np.zeros(count) for _ in range(3))
        complete, touched = np.zeros((count, len(question.names))), np.zeros((count, len(question.names)))
        for i, name in enumerate(map(list, question.names)):
            mass = idf[name].astype(np.float64)
            here: np.ndarray = present[:, name]
            whole, some = np.asarray(here.all(axis=1)), np.asarray(here.any(axis=1))
            self.whole += whole * mass.sum() / 10
            lacking = (1 - here) * (some & ~whole)[:, None]
            unknown = frequency[name] == 0
            self.broken = np.maximum(self.broken, lacking @ unknown > 0)
            self.elsewhere += lacking @ (mass * ~unknown) / 10
            complete[:, i], touched[:, i] = whole & (mass.sum() > _NAME), some
        # [i, j]: j holds a whole name of which i holds nothing
        self._partners = (complete @ (1 - touched).T).T > 0
        self.partner_gain = ((1 - present) @ (present * idf).T) * self._partners


def _against(
    question: QuestionWords, present: np.ndarray, idf: np.ndarray, frequency: np.ndarray, best: int, count: int
) -> np.ndarray:
    """The features of "none applies", from what the best candidate and its best complement leave open."""
    beyond = ((1 - present[best]) * present) @ idf
    pair = np.maximum(present[best], present[int(beyond.argmax())])
    strange = other = person = 0.0
    for name in map(list, question.names):
        if pair[name].any():
            continue
        unknown = frequency[name] == 0
        strange += float((idf[name] * unknown).sum()) / 10
        other += float((idf[name] * ~unknown).sum()) / 10
        if len(name) > 1 and unknown.any():
            person = 1.0
    size = max(0.0, float(np.log(count / SMALL)))
    nameless = 0.0 if question.names else size
    return np.array([1.0, min(strange, 2), min(other, 2), person, size, nameless])
