"""Embedding by the base's own hidden states: the one space of context keys and queries.

Paper: the token mean of an internal activation of the base model. Here a shallow layer, because it
tells subjects apart and is known early in the prefill; position 0 never takes part (the attention
sink would drown the mean). Means are centred, texts and questions each by their own centre, and
whitened by the covariance of the base's token states over a small shipped corpus.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np

from .. import sentences
from ..bank import Bank
from ..errors import BankError
from ..gate import QuestionWords, read_question, unit
from ..gate.words import WORD
from ..models import user_cache_dir
from ..whole_file import whole_file
from .context import Context
from .engine import Engine, Prompt

DEFAULT_LAYER = 2
# Share of the mean eigenvalue added to each one, so that directions the corpus never shows stay small.
RIDGE = 0.1
_STATE = "whitening"
# To be raised when `learn_whitening` measures otherwise: what users have in their caches is then measured anew.
_MEASURE = 1
# Token states keep the directions in which the base's states differ most.
TOKEN_WIDTH = 64
# Words that stand in more texts than this leave no token states, and a memory keeps so many at most.
TOKEN_COMMON = 0.08
TOKENS_KEPT = 256


def pick_layer(n_layer: int) -> int:
    """The layer to read: the default, or less in a model so shallow that it would be the last one.

    llama.cpp computes the last block only for the tokens whose logits were asked for.
    """
    return max(0, min(DEFAULT_LAYER, n_layer - 2))


def tensor_name(layer: int) -> str:
    """llama.cpp's name for the output of block *layer*."""
    return f"l_out-{layer}"


def token_mean(context: Context, span: tuple[int, int], of: int = 0) -> np.ndarray:
    """Mean hidden state of the cached tokens in *span*, without position 0: float32 [n_embd].

    ``of``: the number of the layer among those that *context* watches.
    """
    return context.states(*_inside(context, span), of).mean(axis=0, dtype=np.float32)


@dataclass(frozen=True)
class Whitening:
    """Centres and matrix that turn token means into the gate's unit vectors.

    ``text`` and ``question``: float32 [n_embd]; ``matrix``: float32 [n_embd, n_embd].
    """

    layer: int
    text: np.ndarray
    question: np.ndarray
    matrix: np.ndarray

    def keys(self, means: np.ndarray) -> np.ndarray:
        """Unit key vectors [N, n_embd] of the token means of texts."""
        return unit((means - self.text) @ self.matrix)

    def query(self, mean: np.ndarray) -> np.ndarray:
        """Unit query vector [n_embd] of the token mean of a question."""
        return unit((mean - self.question) @ self.matrix)

    @property
    def token_width(self) -> int:
        """Columns of a token's state."""
        return min(TOKEN_WIDTH, self.matrix.shape[1])

    def tokens(self, states: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Token states as int8 [n, token_width]: whitened, each scaled so that its largest entry is 127."""
        # eigh sorts by growing variance: the last columns are the leading directions.
        white = (states - centre) @ self.matrix[:, -self.token_width :]
        largest = np.maximum(np.abs(white).max(axis=1, keepdims=True), 1e-12)
        return np.round(white * (127 / largest)).astype(np.int8)

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        half = self.matrix.astype(np.float16)
        np.savez(buffer, layer=self.layer, text=self.text, question=self.question, matrix=half)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Whitening:
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                matrix = arrays["matrix"].astype(np.float32)
                return cls(int(arrays["layer"]), arrays["text"], arrays["question"], matrix)
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BankError(f"the bank's whitening is damaged ({error}); make the bank anew") from error


def text_prompt(engine: Engine, text: str, title: str | None = None) -> Prompt:
    """The prompt under which a memory's key is read: its title and text as a user's turn."""
    content = f"{title}. {text}" if title else text
    return engine.prompt([{"role": "user", "content": content}])


def memory_key(context: Context, text: str, title: str | None = None) -> np.ndarray:
    """The context key of a memory before whitening: float32 [n_embd]."""
    prompt = text_prompt(context.engine, text, title)
    context.advance(prompt.body)
    return token_mean(context, prompt.span)


def learn_whitening(context: Context) -> Whitening:
    """Measure the base's states over the shipped corpus; *context* watches the layer to read."""
    engine = context.engine
    layer = pick_layer(engine.n_layer)
    means: dict[str, list[np.ndarray]] = {"text": [], "question": []}
    tokens = []
    for kind, line in corpus():
        prompt = text_prompt(engine, line)
        context.advance(prompt.body)
        means[kind].append(token_mean(context, prompt.span))
        if kind == "text":
            tokens.append(context.states(max(1, prompt.span[0]), prompt.span[1]))
    values, vectors = np.linalg.eigh(np.cov(np.concatenate(tokens).T.astype(np.float64)))
    matrix = vectors / np.sqrt(values.clip(0) + RIDGE * values.mean())
    # Stored as float16: brought to a scale where that loses nothing.
    matrix /= np.abs(matrix).max()
    centres = {kind: np.asarray(np.mean(rows, axis=0, dtype=np.float32)) for kind, rows in means.items()}
    half = matrix.astype(np.float16).astype(np.float32)
    return Whitening(layer, centres["text"], centres["question"], half)


def corpus() -> list[tuple[str, str]]:
    """The shipped calibration lines: ("text" | "question", line)."""
    source = resources.files("megart").joinpath("data/calibration.jsonl")
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines() if line.strip()]
    return [(kind, row[kind]) for row in rows for kind in ("text", "question") if kind in row]


def bank_whitening(bank: Bank, context: Context) -> Whitening:
    """The whitening that belongs to *bank*; one that has none yet gets the base's (seconds, once per base and user)."""
    data = bank.get_state(_STATE)
    if data is None:
        whitening = _base_whitening(context)
        bank.set_state(_STATE, whitening.to_bytes())
        return whitening
    return Whitening.from_bytes(data)


def ready_keys(bank: Bank) -> Callable[[np.ndarray], np.ndarray] | None:
    """What makes keys as *bank* stores them, f32 [N, D], those that its gate compares, f16; None where it has no whitening."""
    data = bank.get_state(_STATE)
    if data is None or bank.get_state("embedder") == b"paper":  # the paper's keys are compared as they are
        return None
    whitening = Whitening.from_bytes(data)
    return lambda means: whitening.keys(means).astype(np.float16)


def _base_whitening(context: Context) -> Whitening:
    """The base's own, out of the user's cache; measured, and kept there where that can be written."""
    corpus_hash = hashlib.sha256(repr(corpus()).encode()).hexdigest()
    name = f"{context.engine.model.sha256[:32]}-{corpus_hash[:8]}-{_MEASURE}.npz"
    path = user_cache_dir() / "whitenings" / name
    try:
        return Whitening.from_bytes(path.read_bytes())
    except (OSError, BankError):  # none yet, or damaged
        whitening = learn_whitening(context)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(whitening.to_bytes())
    except OSError:
        pass
    return whitening


class UnigramPrior:
    """The share of texts that hold a word, guessed from the base's vocabulary alone.

    Byte-pair merges are learnt in the order of frequency: the later a word's token, the rarer the word
    (Zipf's law), and a word of several tokens is rarer still. Of the ways to write it the commonest counts.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._known: dict[str, float] = {}

    def __call__(self, word: str) -> float:
        lower = word.casefold()
        if lower not in self._known:
            self._known[lower] = max(self._share(form) for form in {lower, lower.capitalize(), word})
        return self._known[lower]

    def knows(self, word: str) -> bool:
        """Is *word*, however it is written, one token of the vocabulary?"""
        forms = {word, word.lower(), word.capitalize()}
        return any(len(self._engine.tokenize(f" {form}", special=False)) == 1 for form in forms)

    def _share(self, form: str) -> float:
        tokens = self._engine.tokenize(f" {form}", special=False)
        if not tokens:
            return 0.5
        # The first tokens are control tokens and single bytes.
        rank = max(1, max(tokens) - 260)
        return float(min(0.9, max(1e-9, (20 / rank) ** 1.2 * 0.2 ** (len(tokens) - 1))))


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as the gate takes it; ``parts`` are the arguments of ``gate.Index.find``."""

    text: str
    question: QuestionWords
    parts: tuple[QuestionWords, np.ndarray, np.ndarray, np.ndarray]


def read(context: Context, prompt: Prompt, whitening: Whitening, prior: UnigramPrior) -> EncodedQuestion:
    """Read the question in *prompt*, which *context* holds, as words and states."""
    first, last = _inside(context, prompt.span)
    text, owner_of = _pieces(context, first, last)
    question = read_question(text, prior, prior.knows)
    owner = owner_of([(a, b, term) for a, b, term in question.spans])
    states = whitening.tokens(context.states(first, last), whitening.question)
    query = whitening.query(token_mean(context, prompt.span))
    return EncodedQuestion(text, question, (question, query, states, owner))


def memory_tokens(
    context: Context, whitening: Whitening, prior: UnigramPrior, text: str, title: str | None = None
) -> np.ndarray:
    """The states of a memory's telling tokens: int8 [n, token_width], a row of zeros where a sentence ends."""
    prompt = text_prompt(context.engine, text, title)
    context.advance(prompt.body)
    first, last = _inside(context, prompt.span)
    span_text, owner_of = _pieces(context, first, last)
    words = [(m.start(), m.end(), m.group()) for m in WORD.finditer(span_text)]
    spans = [
        (len(span_text[:a].encode()), len(span_text[:b].encode()), i)
        for i, (a, b, word) in enumerate(words)
        if prior(word) < TOKEN_COMMON
    ]
    owner = owner_of(spans)
    telling = np.flatnonzero(owner >= 0)[:TOKENS_KEPT]
    states = whitening.tokens(context.states(first, last)[telling], whitening.text)
    numbers = np.searchsorted(sentences.clause_ends(span_text), [words[i][0] for i in owner[telling]])
    # Also before the first token, when the first sentence has none.
    breaks = np.flatnonzero(np.diff(numbers, prepend=0))
    return np.insert(states, breaks, 0, axis=0)


def _inside(context: Context, span: tuple[int, int]) -> tuple[int, int]:
    """The span without position 0; the last token where nothing else is left."""
    first, last = max(1, span[0]), span[1]
    return (first, last) if last > first else (max(0, len(context.tokens) - 1), len(context.tokens))


def _pieces(
    context: Context, first: int, last: int
) -> tuple[str, Callable[[Sequence[tuple[int, int, int]]], np.ndarray]]:
    """The text of some cached tokens, and what finds the owner of each among spans (bytes, number)."""
    pieces = [context.engine.piece(token) for token in context.tokens[first:last]]
    text = b"".join(pieces).decode("utf-8", "replace")

    def owner_of(spans: Sequence[tuple[int, int, int]]) -> np.ndarray:
        owner, at, i = np.full(len(pieces), -1, np.int32), 0, 0
        for place, piece in enumerate(pieces):
            end = at + len(piece)
            while i < len(spans) and spans[i][1] <= at:
                i += 1
            if i < len(spans) and spans[i][0] < end:
                owner[place] = spans[i][2]
            at = end
        return owner

    return text, owner_of
