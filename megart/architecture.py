"""The header of a model's GGUF: whether it is sound, and whether memories can be taught to that base.

Milliseconds, no model library; the gguf package's reader takes seconds for the vocabulary.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from .errors import ModelError
from .gguf_values import ARRAY, SCALARS, STRING, Cursor
from .models import Model

# Decoders whose transformers class is the plain pre-norm block with a gated MLP and whose GGUF
# tensors are the plain ffn_{gate,up,down}. Mistral's files call themselves llama.
DENSE = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
# transformers does not read GGUF files of these; their Hugging Face folder it does.
_ONLY_FROM_HF = ("gemma",)
# Vocabularies have up to 300 000 words, in three or four arrays.
_MOST_ITEMS, _MOST_KEYS, _MOST_TENSORS, _MOST_DIMENSIONS = 1_600_000, 4096, 100_000, 4

_COUNTS = ("block_count", "attention.head_count", "attention.head_count_kv")
_MOST_LAYERS = 4096


def check_teachable(model: Model) -> str:
    """The architecture of *model*, if memories can be taught to it. Raises ModelError that says why not."""
    keys = scalar_keys(model.gguf)
    architecture = keys.get("general.architecture")
    if not isinstance(architecture, str):
        raise ModelError(f"{model.gguf}: no general.architecture in the header; is this a GGUF model?")
    wanted = f"expected a dense {', '.join(DENSE[:-1])} or {DENSE[-1]} model"
    experts = keys.get(f"{architecture}.expert_count", 0)
    if experts or "moe" in architecture:
        count = f" of {experts} experts" if experts else ""
        raise ModelError(
            f"{model.gguf.name}: a mixture{count} ({architecture}) cannot be taught, which expert answers is "
            f"not known beforehand; {wanted}"
        )
    if architecture not in DENSE:
        raise ModelError(f"{model.gguf.name}: architecture {architecture!r} cannot be taught; {wanted}")
    if architecture in _ONLY_FROM_HF and model.hf is None:
        raise ModelError(
            f"{model.gguf.name}: transformers cannot read {architecture} from a GGUF; "
            "give the model's Hugging Face folder with --hf"
        )
    for name in _COUNTS:  # loops run so often
        count = keys.get(f"{architecture}.{name}", 1)
        if type(count) is not int or not 0 <= count <= _MOST_LAYERS:
            raise ModelError(
                f"{model.gguf}: {architecture}.{name} is {str(count)[:40]!r}; expected a number up to {_MOST_LAYERS}"
            )
    return architecture


def scalar_keys(path: Path) -> dict[str, Any]:
    """The numbers and strings in the header of a GGUF, up to its vocabulary; arrays are passed over.

    Raises ModelError when the header cannot be read.
    """
    return _header(path, whole=False)


def check_whole_header(path: Path) -> None:
    """Raises ModelError for a header whose counts or sizes no model has, before llama.cpp or gguf parses it.

    The gguf package makes a Python object of every item of every array; llama.cpp trusts the file in places, too.
    """
    _header(path, whole=True)


def _header(path: Path, *, whole: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _walk(data, whole=whole)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        state = "no model's" if whole else "cut short"
        raise ModelError(f"{path}: the header is damaged or {state} ({error}); get the file again") from error
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror or error}") from error


def _walk(data: mmap.mmap, *, whole: bool) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    items = 0
    header = Cursor(data, 4)
    version, tensors, count = header.take("I"), header.take("Q"), header.take("Q")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}, expected 2 or 3")
    if whole and (tensors > _MOST_TENSORS or count > _MOST_KEYS):
        raise ValueError(f"{tensors} tensors and {count} keys")
    for _ in range(count):
        key = header.text(errors="replace")
        architecture = keys.get("general.architecture")
        if not whole and key.startswith("tokenizer.") and f"{architecture}.block_count" in keys:
            break  # writers put what describes the network before the vocabulary
        kind = header.take("I")
        if kind == STRING:
            keys[key] = header.text(errors="replace")
        elif kind == ARRAY:
            item, length = header.take("I"), header.take("Q")
            items += length
            if length > header.end - header.at or (whole and items > _MOST_ITEMS):
                raise ValueError(f"an array of {length} items")
            if item == STRING:
                header.pass_texts(length)
            else:
                header.at += length * struct.calcsize("<" + SCALARS[item])
        else:
            keys[key] = header.take(SCALARS[kind])
    if whole:
        for _ in range(tensors):
            _check_tensor(header)
    return keys


def _check_tensor(header: Cursor) -> None:
    """Passes one tensor's entry: its name, shape, type and place."""
    name, dimensions = header.text(errors="replace")[:64], header.take("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"the tensor {name!r} has {dimensions} dimensions")
    values = math.prod(header.take("Q") for _ in range(dimensions))
    header.take("I")  # its type
    # The smallest of llama.cpp's types holds fewer than eight values in a byte.
    if values > 8 * header.end or header.take("Q") > header.end:
        raise ValueError(f"the tensor {name!r} is larger than the file")
