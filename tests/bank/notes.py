"""A note, its key, and what stands in a bank's folder."""

import numpy as np

from megart.bank import Bank, Memory

D = 8
NOTE = Memory(
    "Ada Quill keeps bees.",
    id="ada",
    title="Ada Quill",
    paraphrases=("Bees are kept by Ada Quill.",),
    questions=("What does Ada keep?",),
    metadata={"qa": [{"q": "Ü?", "a": ["bees"]}]},
)


def key(seed: int = 0, size: int = D) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


def files(bank: Bank) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bank.path / "adapters").iterdir()}
