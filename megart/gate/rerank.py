"""The reranker: where a few memories are near each other, what they say is read after the question.

Words and shallow states tell what a memory is about, not whether it answers. The base itself knows more of that: a
passage that answers a question is likelier after it than after nothing in particular. What it gains, in nats, is the
pointwise mutual information of question and passage, and is added to the score. This moves probability among the
memories that were looked at; whether any memory applies is not decided here. The constants were chosen on SQuAD's and
TOFU's memories at even places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..sentences import clauses
from .evidence import Candidates
from .policy import GatePolicy
from .words import WORD, term, term_hash

# Looked at: so many candidates at most, each of at least this share of the best one's probability.
CANDIDATES, SHARE = 3, 0.4
# Of each memory so many tokens are read, in at most so many sentences.
TOKENS, SENTENCES = 48, 3
# Tokens in a row that count once more where they gain most, and what a nat of gain adds to the score.
WINDOW, WEIGHT = 10, 0.11
# Of each list of passages, the first so many (int) tokens: what a question adds to the log-probability of each token
# of each passage, float [n]. Passages that begin beyond that are left out.
Gains = Callable[[Sequence[Sequence[str]], int], Sequence[Sequence[np.ndarray]]]


def rerank(candidates: Candidates, policy: GatePolicy, text_of: Callable[[int], str], gains: Gains) -> Candidates:
    """*candidates*, those near each other told apart; ``text_of(row)``: the text of a memory."""
    places = near(candidates, policy)
    if not places:
        return candidates
    return reranked(candidates, places, looks(candidates, places, text_of, gains))


def looks(candidates: Candidates, places: Sequence[int], text_of: Callable[[int], str], gains: Gains) -> list[float]:
    """Nats that the question lends each of the candidates at *places*: those of the passage that it lends most."""
    groups = [passages(text_of(int(candidates.rows[place])), candidates.telling) for place in places]
    return [max(map(gain, nats), default=0.0) for nats in gains(groups, TOKENS)]


def near(candidates: Candidates, policy: GatePolicy) -> list[int]:
    """The places of the best candidate and of those near it.

    None where there is nothing to tell apart: nothing is near, nothing opens, or the question needs two.
    """
    if not policy.rerank or 1 - candidates.p_none < policy.threshold or candidates.partner is not None:
        return []
    shares = np.exp(candidates.scores[:CANDIDATES] - candidates.scores[:1])
    places = np.flatnonzero(shares >= SHARE)
    return places.tolist() if len(places) > 1 else []


def passages(text: str, telling: Mapping[int, float]) -> list[str]:
    """The sentences of *text* that hold most of the question; ``telling``: nats of its terms, by their hash."""
    sentences = [sentence.strip() for sentence in clauses(text) if sentence.strip()]
    held = [sum(telling.get(h, 0.0) for h in {term_hash(term(word)) for word in WORD.findall(s)}) for s in sentences]
    return [sentences[i] for i in sorted(range(len(sentences)), key=lambda i: -held[i])[:SENTENCES]]


def gain(nats: np.ndarray) -> float:
    """What a passage gains whose tokens gain *nats*, float [n]: the mean of all of them and of the best in a row."""
    sums = np.concatenate([[0.0], np.cumsum(nats, dtype=np.float64)])
    width = min(WINDOW, len(nats))
    return float(sums[-1] + (sums[width:] - sums[: len(sums) - width]).max()) / 2


def reranked(
    candidates: Candidates, places: Sequence[int], gains: Sequence[float], weight: float = WEIGHT
) -> Candidates:
    """*candidates* after reading those at *places*, whose passages gained so many nats."""
    scores, parts = candidates.scores.copy(), candidates.parts
    looked = np.asarray(places)
    before = scores[looked]
    after = before + weight * np.asarray(gains, float)
    # They share what they had together.
    after += np.logaddexp.reduce(before) - np.logaddexp.reduce(after)
    added = np.zeros(len(scores))
    added[looked] = after - before
    order = np.argsort(-(scores + added), kind="stable")
    scores = (scores + added)[order]
    p = (candidates.p * np.exp(added))[order]
    parts = np.column_stack([parts, added])[order]
    return replace(
        candidates, rows=candidates.rows[order], scores=scores, p=p, parts=parts, names=(*candidates.names, "reading")
    )
