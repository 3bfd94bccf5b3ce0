"""The tiny models of the other tests are whole models: for llama.cpp, for transformers, for text."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import Stock, logits_of

from megart.runtime.context import Context
from megart.runtime.engine import Engine

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3")
TEXT = "Tell me about the ünïcode story of \U0001f408 1871.\n\ttabs"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_pytorch_and_llama_cpp_compute_the_same(tiny, tiny_base, exact: None, arch: str) -> None:
    torch = pytest.importorskip("torch")
    engine = Engine(tiny(arch))
    context = Context(engine, size=256)
    try:
        tokens = engine.tokenize(TEXT)
        got = logits_of(context, tokens)
        with torch.no_grad():
            expected = tiny_base(arch).network(torch.tensor([tokens])).logits[0].numpy()
        # llama.cpp looks GELU up in a table of float16
        np.testing.assert_allclose(got, expected, atol=1e-2 if arch.startswith("gemma") else 1e-4)
        best = expected.argmax(axis=1)
        assert len(set(best)) > len(tokens) // 2  # neither constant ...
        # ... nor an echo, to which tied embeddings tend
        assert (best == tokens).mean() < (0.5 if arch.startswith("gemma") else 0.2)
        assert engine.architecture == {"mistral": "llama"}.get(arch, arch)
    finally:
        context.close()
        engine.close()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_vocabulary_encodes_any_text_and_the_template_speaks_chatml(tiny, arch: str) -> None:
    engine = Engine(tiny(arch))
    try:
        tokens = engine.tokenize(TEXT, special=False)
        assert engine.detokenize(tokens) == TEXT
        assert len(tokens) < len(TEXT.encode())  # merges work
        everything = bytes(range(256)).decode("latin-1")
        assert engine.detokenize(engine.tokenize(everything, special=False)) == everything
        prompt = engine.prompt([{"role": "user", "content": "Hi"}])
        (end,) = engine.tokenize("<|im_end|>")
        assert engine.is_end(end) and end in prompt.body
        assert engine.end_of_turn == end  # not <|endoftext|>, which llama.cpp may name first
        whole = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert list(prompt.tokens) == engine.tokenize(whole)
        assert list(prompt.opening) == engine.tokenize("<|im_start|>assistant\n")
    finally:
        engine.close()


def test_half_precision_loads_and_the_seed_decides_the_weights(tiny) -> None:
    tokens = list(range(40, 60))
    found = {}
    for key in (("f32", 0), ("f16", 0), ("f32", 1)):
        with Stock(tiny("llama", *key)) as stock:
            found[key] = stock.decode(tokens)
    assert np.isfinite(found["f16", 0]).all()
    assert 0 < abs(found["f16", 0] - found["f32", 0]).max() < 0.1
    assert abs(found["f32", 1] - found["f32", 0]).max() > 1


def test_the_command_makes_the_same_file_as_the_function(tool, tmp_path: Path) -> None:
    program = tool("tiny_gguf")
    started = time.perf_counter()
    program.make(tmp_path / "a.gguf", "qwen3", seed=3)
    assert time.perf_counter() - started < 2  # tens of milliseconds; the rest is for busy machines
    command = [
        sys.executable,
        program.__file__,
        str(tmp_path / "b.gguf"),
        "--arch",
        "qwen3",
        "--seed",
        "3",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(ValueError, match="gemma9"):
        program.make(tmp_path / "c.gguf", "gemma9")
