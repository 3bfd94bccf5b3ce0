"""Memories and questions as each gate sees them: what bench_gate.py measures and fit_gate.py fits.

Reading by the base takes minutes; `Reader` keeps what it read in a cache folder.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import llama_cpp
import numpy as np

from megart import gate
from megart.eval.metrics import sentence_embedder
from megart.models import resolve_model
from megart.runtime import embed
from megart.runtime.context import Context
from megart.runtime.engine import Engine
from megart.runtime.likelihood import Likelihood
from megart.runtime.runtime import RERANKER_BATCH, RERANKER_TOKENS


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line.strip()]


@dataclass
class Texts:
    """Memories as every method sees them: one row each."""

    means: np.ndarray
    tokens: list[np.ndarray]
    words: list[np.ndarray]
    minilm: np.ndarray
    paper: np.ndarray | None
    said: Sequence[str] = ()

    def take(self, rows: Sequence[int]) -> Texts:
        def some(values: list) -> list:
            return [values[i] for i in rows]

        paper = None if self.paper is None else self.paper[rows]
        return Texts(
            self.means[rows], some(self.tokens), some(self.words), self.minilm[rows], paper, some([*self.said])
        )


@dataclass
class Asked:
    """One question, read once."""

    reading: embed.EncodedQuestion
    minilm: np.ndarray
    paper: np.ndarray | None


class Reader:
    """Reads texts and questions by the base and by MiniLM, and remembers what it read."""

    def __init__(self, cache: Path | None):
        self.cache = cache
        self.engine = Engine(resolve_model("smollm2"))
        layer = embed.tensor_name(embed.pick_layer(self.engine.n_layer))
        self.context = Context(self.engine, size=2048, watch=[layer], stop=True)
        self.whitening = self._cached("whitening", lambda: embed.learn_whitening(self.context))
        self.prior = embed.UnigramPrior(self.engine)
        self._last: Context | None = None
        self._likelihood = Likelihood(lambda: self.small)
        self._gains: dict[tuple[str, tuple[str, ...], int], list[np.ndarray]] = self._cached("gains", dict)
        embedder = sentence_embedder()
        self._minilm = embedder[1] if embedder else (lambda lines: np.zeros((len(lines), 1), np.float32))

    def _cached(self, name: str, make: Callable[[], object]):  # type: ignore[no-untyped-def]
        path = self.cache / f"{name}.pickle" if self.cache else None
        if path and path.exists():
            return pickle.loads(path.read_bytes())
        value = make()
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pickle.dumps(value))
        return value

    @cached_property
    def small(self) -> Context:
        """What the reranker reads in."""
        return Context(self.engine, size=RERANKER_TOKENS, batch=RERANKER_BATCH)

    def _paper(self, text: str) -> np.ndarray:
        """The paper's key: the mean input of the last MLP, all positions, nothing taken away."""
        if self._last is None:
            self._last = Context(self.engine, size=2048, watch=[f"ffn_norm-{self.engine.n_layer - 1}"], stop=True)
            llama_cpp.llama_set_embeddings(self._last.handle, True)  # else the last layer has one token
        tokens = self.engine.tokenize(text, special=False, bos=True)
        self._last.truncate(0)
        self._last.decode(tokens)
        return self._last.states(0, len(tokens)).mean(axis=0)

    def texts(self, name: str, memories: list[tuple[str, str | None]], paper: bool = False) -> Texts:
        def make() -> Texts:
            means, tokens = [], []
            for text, title in memories:
                tokens.append(embed.memory_tokens(self.context, self.whitening, self.prior, text, title))
                means.append(embed.memory_key(self.context, text, title))
            lines = [f"{title}. {text}" if title else text for text, title in memories]
            old = np.stack([self._paper(line) for line in lines]) if paper else None
            return Texts(np.stack(means), tokens, [], np.asarray(self._minilm(lines)), old)

        encoded = self._cached(f"texts-{name}", make)
        words = [gate.sequence(text, title) for text, title in memories]
        return replace(encoded, words=words, said=[text for text, _ in memories])

    def gains(self, question: str, groups: Sequence[Sequence[str]], tokens: int) -> list[list[np.ndarray]]:
        """What *question* adds to the log-probability of the tokens of each group's passages, remembered."""
        keys = [(question, tuple(group), tokens) for group in groups]
        missing = [key for key in keys if key not in self._gains]
        if missing:
            self._gains.update(zip(missing, self._likelihood.gains(question, [key[1] for key in missing], tokens)))
        return [self._gains[key] for key in keys]

    def keep_gains(self) -> None:
        """Write what `gains` remembers into the cache folder."""
        if self.cache:
            (self.cache / "gains.pickle").write_bytes(pickle.dumps(self._gains))

    def questions(self, name: str, questions: list[str], paper: bool = False) -> list[Asked]:
        def make() -> list[Asked]:
            readings = []
            for text in questions:
                prompt = embed.text_prompt(self.engine, text)
                self.context.advance(prompt.body)
                readings.append(embed.read(self.context, prompt, self.whitening, self.prior))
            vectors = np.asarray(self._minilm(questions))
            old = [self._paper(text) if paper else None for text in questions]
            return [Asked(r, v, p) for r, v, p in zip(readings, vectors, old)]

        encoded = self._cached(f"questions-{name}", make)
        return [replace(asked, reading=self._worded(asked.reading)) for asked in encoded]

    def _worded(self, reading: embed.EncodedQuestion) -> embed.EncodedQuestion:
        """With its words read anew: what is kept of a question is what the base made of it."""
        question = gate.read_question(reading.text, self.prior, self.prior.knows)
        return replace(reading, question=question, parts=(question, *reading.parts[1:]))


def joined(first: Texts, second: Texts) -> Texts:
    """The memories of both, without the paper's keys."""
    return Texts(
        np.concatenate([first.means, second.means]),
        first.tokens + second.tokens,
        first.words + second.words,
        np.concatenate([first.minilm, second.minilm]),
        None,
        [*first.said, *second.said],
    )


class Bank:
    """Some memories under every method."""

    def __init__(self, texts: Texts, reader: Reader):
        self.texts, self._reader = texts, reader
        keys = reader.whitening.keys(texts.means).astype(np.float16)
        self.index = gate.Index(texts.words, keys, lambda rows: [texts.tokens[i] for i in rows])

    def scores(self, asked: Asked, method: str) -> np.ndarray:
        """Of every memory, by one of the methods that score all of them."""
        question, query, _, _ = asked.reading.parts
        if method == "paper":
            assert self.texts.paper is not None and asked.paper is not None
            return self.texts.paper @ asked.paper
        if method == "dense":
            return self.index.keys.astype(np.float32) @ query
        if method == "minilm":
            return self.texts.minilm @ asked.minilm
        count, frequencies = len(self.index), self.index.lexicon.df(question.terms)
        idf = np.log((count - frequencies + 0.5) / (frequencies + 0.5) + 1).astype(np.float32)
        bm25 = self.index.lexicon.bm25(question.terms, idf)
        return bm25 if method == "bm25" else _standard(bm25) + _standard(self.texts.minilm @ asked.minilm)

    def find_once(self, asked: Asked) -> gate.Candidates:
        """The default gate's candidates before the reranker."""
        return self.index.find(*asked.reading.parts)

    def find(self, asked: Asked) -> gate.Candidates:
        """The default gate's candidates, as an Assistant would have them."""
        candidates = self.find_once(asked)
        gains = partial(self._reader.gains, asked.reading.text)
        return gate.rerank.rerank(candidates, gate.GatePolicy(), self.texts.said.__getitem__, gains)

    def top(self, asked: Asked, method: str) -> tuple[list[int], float]:
        """The two best memories and how sure the method is that one applies (more is surer)."""
        if method == "default":
            candidates = self.find(asked)
            return candidates.rows[:2].tolist(), 1 - candidates.p_none
        scores = self.scores(asked, method)
        order = np.argsort(-scores, kind="stable")[:2]
        return order.tolist(), float(scores[order[0]])


def _standard(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean()) / max(float(scores.std()), 1e-9)
