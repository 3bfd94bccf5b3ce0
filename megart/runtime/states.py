"""The base itself as a text embedder: the mean of its states after some layers, read through a small adapter.

A text embedder as those of embedders.py, for bases that an adapter and a projection were trained for
(tools/train_embedder.py). It needs neither another package nor another model, and the layers that the gate's keys are of
are the first of those it computes: one pass serves both. Other languages than the base's it does not find.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources

import llama_cpp
import numpy as np

from ..errors import DependencyError
from ..gate import meaning, unit
from ..gate.words import WORD
from ..models import Model
from . import embed
from .context import Context, DecodeError
from .engine import Engine

NAME = "states"
LAYER = 7  # the eighth of 30: later ones know hardly more other words, and cost more
# The share of a question's words that are one token each. Below, wrong notes answered questions in other languages: 13 of
# 100 to five held banks, 9 with it (and 3 by words alone).
KNOWN_FROM = 0.4


class States:
    """Unit vectors by *engine*'s base, by a context that :func:`context` makes. Raises DependencyError where none was trained
    for it."""

    name, family = NAME, meaning.STATES

    def __init__(self, engine: Engine, context: Callable[[], Context]):
        self._fitted = needed(engine.model)
        self._engine, self._context = engine, context
        self.size = self._fitted.matrix.shape[1]

    def mean(self, text: str, title: str | None = None) -> np.ndarray:
        """Unit mean of the states of *text* as a user's turn, float32 [n_embd], before they are projected."""
        return mean(self._context(), text, title)

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return self._projected(self.mean(text, title), self._fitted.notes)

    def query(self, text: str) -> np.ndarray | None:
        """None where most of the question's words are none that the base knows: it is in another language."""
        return self._projected(self.mean(text), self._fitted.questions) if self._known(text) >= KNOWN_FROM else None

    def knows(self, text: str) -> float:
        """How far *text* is in its language: the share of words that are one token, from half of them on; 0 to 1."""
        return max(0.0, 2 * self._known(text) - 1)

    def _known(self, text: str) -> float:
        """The share of the words of *text* that are one token; 1 without any."""
        words = [word for word in WORD.findall(text) if word.isalpha()]
        known = sum(len(self._engine.tokenize(f" {word}", special=False)) == 1 for word in words)
        return known / len(words) if words else 1.0

    def _projected(self, mean: np.ndarray, common: np.ndarray) -> np.ndarray:
        return unit((mean - common) @ self._fitted.matrix)

    def close(self) -> None:
        """The context is its maker's."""


def fitted(base_sha256: str) -> meaning.Fitted | None:
    """The projection of a base's states; None where none was trained for it."""
    return meaning.fitted(base_sha256[:16])


def needed(model: Model) -> meaning.Fitted:
    """The projection of *model*'s states. Raises DependencyError where none was trained for it."""
    projection = fitted(model.sha256)
    if projection is None:
        raise DependencyError(
            f"the embedder {NAME} is for the base smollm2, not for {model.name}; run: megart rekey --embedder words"
        )
    return projection


def context(engine: Engine, size: int) -> Context:
    """One of *size* tokens that computes the first layers of *engine*'s base only, the upper ones with the adapter.

    It watches the layer that the gate's keys are of, which the adapter does not change, and the last one.
    Raises DependencyError where no adapter was trained for the base.
    """
    needed(engine.model)
    layers = embed.pick_layer(engine.n_layer), LAYER
    made = Context(engine, size=size, watch=[embed.tensor_name(layer) for layer in layers], stop=True)
    file = resources.files("megart.data").joinpath("meaning").joinpath(f"{engine.model.sha256[:16]}.gguf")
    with resources.as_file(file) as path:
        # llama.cpp frees it with the model.
        handle = llama_cpp.llama_adapter_lora_init(engine.handle, os.fsencode(path))
    if not handle:
        made.close()
        raise DecodeError(f"llama.cpp refused the adapter of the embedder {NAME}; install megart again")
    made.set_adapter(handle)
    return made


def mean(context: Context, text: str, title: str | None = None) -> np.ndarray:
    """Unit mean of the last layer that *context* watches, over *text* as a user's turn: float32 [n_embd]."""
    prompt = embed.text_prompt(context.engine, text, title)
    context.advance(prompt.body)
    return unit(embed.token_mean(context, prompt.span, of=1))
