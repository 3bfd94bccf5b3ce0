"""Which base models can be taught, told from the header of the GGUF alone: milliseconds, no model library.

The gguf package's reader would parse the whole vocabulary first, which takes seconds.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from .errors import ModelError
from .models import Model

# Decoders whose transformers class is the plain pre-norm block with a gated MLP and whose GGUF
# tensors are the plain ffn_{gate,up,down}. Mistral's files call themselves llama.
DENSE = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3")
# transformers does not read GGUF files of these; their Hugging Face folder it does.
_ONLY_FROM_HF = ("gemma",)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Vocabularies have up to 300 000 words, in three or four arrays.
_MOST_ITEMS, _MOST_KEYS, _MOST_TENSORS = 1_600_000, 4096, 100_000

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
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _walk(data)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{path}: the header is damaged or cut short ({error}); get the file again") from error
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror or error}") from error


def check_whole_header(path: Path) -> None:
    """Raises ModelError for a header that would cost far more memory than the file has, before a library parses it.

    The gguf package makes a Python object of every item of every array.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(data, whole=True)
    except (struct.error, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{path}: the header is damaged or no model's ({error}); get the file again") from error
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {error.strerror or error}") from error


def _walk(data: mmap.mmap, *, whole: bool = False) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    at = items = 0

    def take(layout: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from("<" + layout, data, at)
        at += struct.calcsize("<" + layout)
        return value

    def text() -> str:
        nonlocal at
        size = take("Q")
        if size > len(data) - at:
            raise ValueError(f"a string of {size} bytes reaches past the end")
        at += size
        return data[at - size : at].decode("utf-8", "replace")

    at = 4
    version, tensors, count = take("I"), take("Q"), take("Q")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}, expected 2 or 3")
    if whole and (tensors > _MOST_TENSORS or count > _MOST_KEYS):
        raise ValueError(f"{tensors} tensors and {count} keys")
    for _ in range(count):
        key = text()
        architecture = keys.get("general.architecture")
        if not whole and key.startswith("tokenizer.") and f"{architecture}.block_count" in keys:
            break  # writers put what describes the network before the vocabulary
        kind = take("I")
        if kind == _STRING:
            keys[key] = text()
        elif kind == _ARRAY:
            item, length = take("I"), take("Q")
            items += length
            if length > len(data) - at or (whole and items > _MOST_ITEMS):
                raise ValueError(f"an array of {length} items")
            if item == _STRING:
                for _ in range(length):
                    text()
            else:
                at += length * struct.calcsize("<" + _SCALARS[item])
        else:
            keys[key] = take(_SCALARS[kind])
    return keys
