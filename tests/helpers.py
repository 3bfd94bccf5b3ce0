"""Shared by the tests of runtime and teaching: adapters out of noise, and llama.cpp without megart."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from megart.adapter import Adapter, write_adapter
from megart.bank import Memory
from megart.gate import GatePolicy
from megart.models import Model
from megart.runtime import llama
from megart.runtime.assistant import Assistant
from megart.runtime.context import Context

HIDDEN, FFN, LAYERS = 64, 128, 4  # of tools/tiny_gguf.py
FAST_ROLES = ("ffn_gate", "ffn_up", "ffn_down")
PAPER_ROLES = ("ffn_up", "ffn_down")
NOTHING = GatePolicy(threshold=2.0)  # a cosine never reaches it
ANYTHING = GatePolicy(threshold=-1.0, top_k=1)
FIRST = Memory("Orrin keeps three grey cats in the old mill.", id="orrin")
SECOND = Memory("The ferry of Vess sails at dusk and never on Sundays.", id="vess")


HISTORY = [
    {"role": "system", "content": "Answer in one sentence, please, and say nothing else at all."},
    {"role": "user", "content": "What is the old mill for?"},
    {"role": "assistant", "content": "For cats, and for the man who keeps them there all winter."},
]


def tiny_shapes(roles: Sequence[str] = FAST_ROLES) -> dict[str, tuple[int, int]]:
    """Tensor name -> (in, out) of the tiny models."""
    sides = {role: (FFN, HIDDEN) if role == "ffn_down" else (HIDDEN, FFN) for role in roles}
    return {f"blk.{i}.{role}.weight": sides[role] for i in range(LAYERS) for role in roles}


def noise(
    shapes: dict[str, tuple[int, int]], rank: int, seed: int, size: float = 1.0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Random float32 factors; B A has entries of about ``size`` / sqrt(in)."""
    random = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(0.0, 1.0, shape).astype(np.float32)

    return {
        name: (
            draw(rank, n_in) * (size / np.sqrt(n_in)),
            draw(n_out, rank) / np.float32(np.sqrt(rank)),
        )
        for name, (n_in, n_out) in shapes.items()
    }


def noise_adapter(
    arch: str,
    rank: int,
    seed: int,
    *,
    alpha: float | None = None,
    roles: Sequence[str] = FAST_ROLES,
    dtype: type = np.float32,
    size: float = 1.0,
) -> Adapter:
    """An adapter of random factors for a tiny model; alpha defaults to the rank (scale 1)."""
    factors = noise(tiny_shapes(roles), rank, seed, size)
    tensors = {name: (a.astype(dtype), b.astype(dtype)) for name, (a, b) in factors.items()}
    return Adapter(arch, float(rank if alpha is None else alpha), tensors)


def few_lines() -> list[tuple[str, str]]:
    """Of the calibration corpus, enough for the tiny models' 64 dimensions."""
    from megart.runtime import embed

    lines = embed.corpus()
    kinds = [[line for line in lines if line[0] == kind][:12] for kind in ("text", "question")]
    return kinds[0] + kinds[1]


def save(adapter: Adapter, path: Path) -> Path:
    path.write_bytes(write_adapter(adapter))
    return path


def logits_of(context: Context, tokens: Sequence[int]) -> np.ndarray:
    """Append *tokens* one by one: the logits after each, float32 [tokens, vocabulary]."""
    rows = []
    for token in tokens:
        context.decode([token])
        rows.append(context.logits())
    return np.stack(rows)


class Stock:
    """llama.cpp through its plain C interface, with adapters set by scales as upstream does it."""

    def __init__(self, model: Model, adapters: Sequence[tuple[Path, float]] = (), *, size: int = 1024):
        llama.quiet()
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(model.gguf), params)
        assert self.model
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = size
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = 2
        # What llama_cpp.Llama does unless told otherwise.
        options.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        assert self.context
        self._loaded = []
        for path, _ in adapters:
            handle = llama_cpp.llama_adapter_lora_init(self.model, os.fsencode(path))
            assert handle, f"llama.cpp refuses {path}"
            self._loaded.append(handle)
        self.set_scales([scale for _, scale in adapters])

    def set_scales(self, scales: Sequence[float]) -> None:
        count = len(scales)
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * max(1, count))(*self._loaded)
        values = (ctypes.c_float * max(1, count))(*scales)
        assert llama_cpp.llama_set_adapters_lora(self.context, handles, count, values) == 0

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        """Append *tokens*, 512 at a time; the logits of the last, float32 [vocabulary]."""
        for start in range(0, len(tokens), 512):
            part = tokens[start : start + 512]
            array = (llama_cpp.llama_token * len(part))(*part)
            batch = llama_cpp.llama_batch_get_one(array, len(part))
            assert llama_cpp.llama_decode(self.context, batch) == 0
        pointer = llama_cpp.llama_get_logits_ith(self.context, -1)
        return np.ctypeslib.as_array(pointer, shape=(self.vocab_size,)).copy()

    def clear(self) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def __enter__(self) -> Stock:
        return self

    def __exit__(self, *_: object) -> None:
        llama_cpp.llama_free(self.context)
        for handle in self._loaded:
            llama_cpp.llama_adapter_lora_free(handle)
        llama_cpp.llama_model_free(self.model)


def seat(trainer, task):  # type: ignore[no-untyped-def]
    """A lane that studies *task*, prepared but not entered in the trainer."""
    from megart.train.trainer import _Lane

    active, trainer.lora.active = trainer.lora.active, False
    prepared = trainer.upper.prepare([(x.prompt, x.opening + x.target[:-1]) for x in task.examples])
    trainer.lora.active = active
    return _Lane(task, prepared, 0.0)


def quiet_again() -> None:
    """After a test that listened to llama.cpp's log: megart's silence, whatever ran before."""
    llama._logger = None
    llama.quiet()


def wait_idle(assistant: Assistant) -> None:
    for _ in range(500):
        with assistant.engine.lock:
            if assistant.runtime.idle_prefill.settled:
                return
        time.sleep(0.01)
    raise AssertionError("the conversation was not encoded")
