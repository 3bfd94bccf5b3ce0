"""BERT encoders for llama.cpp, put together once out of the weights that an installed package holds.

The GGUF file lies in the user's cache.
"""

from __future__ import annotations

import contextlib
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType

from ..adapter import scratch
from ..errors import ModelError
from ..models import user_cache_dir
from ..whole_file import whole_file

Tensor = tuple[str, np.ndarray, GGMLQuantizationType | None]  # llama.cpp's name, values, and their type unless float32


@dataclass(frozen=True)
class Shape:
    """``heads`` of attention in each of ``layers``; ``width`` of a token's state, ``inner`` of the MLP."""

    layers: int
    width: int
    inner: int
    heads: int
    tokens: int
    token_types: int
    epsilon: float


def cached(name: str) -> Path:
    """Where the file *name* of an embedder lies in the user's cache, whether it is there or not."""
    return user_cache_dir() / "embedders" / name


@contextlib.contextmanager
def making(target: Path, of: str) -> Iterator[None]:
    """Around what makes *target* of the package *of*. Raises ModelError where it fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"cannot make {target}: {error}; expected the weights of {of} and room for them") from error


def write(
    target: Path, name: str, shape: Shape, vocabulary: Callable[[GGUFWriter], None], tensors: Iterable[Tensor]
) -> None:
    """The model *name* with the mean of its tokens' states as the vector of a text. Raises OSError."""
    writer = GGUFWriter(None, "bert")
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.tokens)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    writer.add_pooling_type(PoolingType.MEAN)
    writer.add_token_type_count(shape.token_types)
    vocabulary(writer)
    for tensor, values, kind in tensors:
        writer.add_tensor(tensor, values, raw_dtype=kind)
    with scratch() as path:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with path.open("rb") as made, whole_file(target) as file:
            shutil.copyfileobj(made, file)
