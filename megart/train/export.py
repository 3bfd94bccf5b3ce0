"""From trained factors to a LoRA GGUF that llama.cpp applies exactly as trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..adapter import Adapter


def to_adapter(
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    *,
    architecture: str,
    scale: float,
    invocation_tokens: Sequence[int] = (),
    metadata: Mapping[str, str] | None = None,
    dtype: type = np.float16,
) -> Adapter:
    """Factors (A [r, in], B [out, r], float32) as an adapter of *dtype*.

    llama.cpp multiplies B A by alpha / rank whatever the training called its alpha, so the file
    carries alpha = scale * rank: an rsLoRA adapter written with its plain alpha would act sqrt(r)
    times too weakly.
    """
    rank = next(iter(factors.values()))[0].shape[0]
    tensors: dict[str, tuple[np.ndarray, np.ndarray]] = {
        name: (a.astype(dtype), b.astype(dtype)) for name, (a, b) in factors.items()
    }
    return Adapter(architecture, scale * rank, tensors, list(invocation_tokens), dict(metadata or {}))
