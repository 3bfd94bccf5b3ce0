"""An embedding model that llama.cpp runs: a text in, one vector out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import llama_cpp
import numpy as np

from ..architecture import check_whole_header
from ..errors import ModelError
from . import llama

_TOKENS = 512  # of a text


class TextModel:
    """The model in the GGUF file *path*. Raises ModelError where llama.cpp cannot load it.

    ``threads``: asked before each text. ``size``: numbers of a vector; ``room``: tokens of a text, those that begin and end it included.
    """

    def __init__(self, path: Path, threads: Callable[[], int]) -> None:
        check_whole_header(path)
        self._model: llama_cpp.llama_model_p | None = llama.load(path)
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = _TOKENS
        params.n_seq_max = 1  # llama.cpp keeps room for a whole vocabulary's logits of each
        params.embeddings = True
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED  # three times as long for a question
        self._threads = threads
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            llama_cpp.llama_model_free(self._model)
            raise ModelError(f"{path}: llama.cpp cannot embed by this model; expected an embedding model")
        self.size = llama_cpp.llama_model_n_embd(self._model)
        self.room = min(_TOKENS, llama_cpp.llama_model_n_ctx_train(self._model))
        self._pooled = llama_cpp.llama_pooling_type(self._context) != llama_cpp.LLAMA_POOLING_TYPE_NONE

    def tokenize(self, text: str, *, bos: bool = True) -> list[int]:
        """The ids of its tokens, with those that begin and end it where ``bos``."""
        return llama.tokenize(self._vocab, text, special=False, bos=bos)

    def piece(self, token: int) -> str:
        """A token as the vocabulary has it."""
        return llama_cpp.llama_vocab_get_text(self._vocab, token).decode("utf-8", "replace")

    def embed(self, tokens: Sequence[int]) -> np.ndarray:
        """Float32 [size], not of unit length; of a model without pooling the mean of its tokens' vectors."""
        count = self._threads()
        llama_cpp.llama_set_n_threads(self._context, count, count)
        memory = llama_cpp.llama_get_memory(self._context)
        if memory:
            llama_cpp.llama_memory_clear(memory, True)
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self._context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        if status:
            raise ModelError(f"llama.cpp could not embed {len(tokens)} tokens (status {status})")
        if self._pooled:
            return np.array(llama_cpp.llama_get_embeddings_seq(self._context, 0)[: self.size], np.float32)
        every = llama_cpp.llama_get_embeddings(self._context)[: self.size * len(tokens)]
        return np.array(every, np.float32).reshape(len(tokens), self.size).mean(axis=0)

    def close(self) -> None:
        """Idempotent."""
        if self._context:
            llama_cpp.llama_free(self._context)
            llama_cpp.llama_model_free(self._model)
            self._context = self._model = None
