"""Embedding by the base's own hidden states: the one space of context keys and queries.

Paper: the token mean of an internal activation of the base model. Here a shallow layer, because it
tells subjects apart and is known early in the prefill; position 0 never takes part (the attention
sink would drown the mean). Means are centred, texts and questions each by their own centre, and
whitened by the covariance of the base's token states over a small shipped corpus.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from importlib import resources

import numpy as np

from ..bank import Bank
from ..errors import BankError
from ..gate import unit
from .context import Context
from .engine import Engine, Prompt

DEFAULT_LAYER = 2
# Share of the mean eigenvalue added to each one, so that directions the corpus never shows stay small.
RIDGE = 0.1
_STATE = "whitening"


def pick_layer(n_layer: int) -> int:
    """The layer to read: the default, or less in a model so shallow that it would be the last one.

    llama.cpp computes the last block only for the tokens whose logits were asked for.
    """
    return max(0, min(DEFAULT_LAYER, n_layer - 2))


def tensor_name(layer: int) -> str:
    """llama.cpp's name for the output of block *layer*."""
    return f"l_out-{layer}"


def token_mean(context: Context, span: tuple[int, int]) -> np.ndarray:
    """Mean hidden state of the cached tokens in *span*, without position 0: float32 [n_embd]."""
    first, last = max(1, span[0]), span[1]
    if last <= first:
        first, last = max(0, len(context.tokens) - 1), len(context.tokens)
    return context.states(first, last).mean(axis=0, dtype=np.float32)


def advance(context: Context, tokens: tuple[int, ...]) -> int:
    """Make *context* hold exactly *tokens*, reusing the shared prefix; returns how many were decoded."""
    return context.advance(tokens)


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

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        half = self.matrix.astype(np.float16)
        np.savez(buffer, layer=self.layer, text=self.text, question=self.question, matrix=half)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Whitening:
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as kept:
                matrix = kept["matrix"].astype(np.float32)
                return cls(int(kept["layer"]), kept["text"], kept["question"], matrix)
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise BankError(f"the bank's whitening is damaged ({error}); make the bank anew") from error


def text_prompt(engine: Engine, text: str, title: str | None = None) -> Prompt:
    """The prompt under which a memory's key is read: its title and text as a user's turn."""
    content = f"{title}. {text}" if title else text
    return engine.prompt([{"role": "user", "content": content}])


def memory_key(context: Context, text: str, title: str | None = None) -> np.ndarray:
    """The context key of a memory before whitening: float32 [n_embd]."""
    prompt = text_prompt(context.engine, text, title)
    advance(context, prompt.body)
    return token_mean(context, prompt.span)


def learn_whitening(context: Context) -> Whitening:
    """Measure the base's states over the shipped corpus; *context* watches the layer to read."""
    engine = context.engine
    layer = pick_layer(engine.n_layer)
    means: dict[str, list[np.ndarray]] = {"text": [], "question": []}
    tokens = []
    for kind, line in corpus():
        prompt = text_prompt(engine, line)
        advance(context, prompt.body)
        means[kind].append(token_mean(context, prompt.span))
        if kind == "text":
            tokens.append(context.states(max(1, prompt.span[0]), prompt.span[1]))
    values, vectors = np.linalg.eigh(np.cov(np.concatenate(tokens).T.astype(np.float64)))
    matrix = vectors / np.sqrt(values.clip(0) + RIDGE * values.mean())
    # Stored as float16: brought to a scale where that loses nothing.
    matrix /= np.abs(matrix).max()
    centres = {kind: np.mean(rows, axis=0, dtype=np.float32) for kind, rows in means.items()}
    half = matrix.astype(np.float16).astype(np.float32)
    return Whitening(layer, centres["text"], centres["question"], half)


def corpus() -> list[tuple[str, str]]:
    """The shipped calibration lines: ("text" | "question", line)."""
    source = resources.files("megart").joinpath("data/calibration.jsonl")
    rows = [json.loads(line) for line in source.read_text("utf-8").splitlines() if line.strip()]
    return [(kind, row[kind]) for row in rows for kind in ("text", "question") if kind in row]


def bank_whitening(bank: Bank, context: Context) -> Whitening:
    """The whitening that belongs to *bank*, measured and stored when it has none yet."""
    kept = bank.get_state(_STATE)
    if kept is None:
        made = learn_whitening(context)
        bank.set_state(_STATE, made.to_bytes())
        return made
    return Whitening.from_bytes(kept)
