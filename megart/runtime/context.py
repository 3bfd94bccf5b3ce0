"""A llama.cpp context that knows which tokens its KV cache holds, and what computed each of them.

Tokens are those of sequence 0; another one is there for copying only.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import llama_cpp
import numpy as np

from .. import _core
from ..errors import MegartError
from . import llama
from .engine import Engine
from .fingerprint import Fingerprint

BATCH = 512
_SPARE = 1  # the sequence that parts of sequence 0 are copied by


class DecodeError(MegartError):
    """llama.cpp failed to decode."""


@dataclass(frozen=True)
class Saved:
    """What a cache held: its tokens, what computed each, llama.cpp's bytes of it, and the states that were watched."""

    tokens: tuple[int, ...]
    owners: tuple[Fingerprint, ...]
    data: ctypes.Array[ctypes.c_uint8]
    states: tuple[tuple[np.ndarray, ...], ...] = ()

    @property
    def nbytes(self) -> int:
        return len(self.data) + sum(state.nbytes for states in self.states for state in states)


class Context:
    """Decodes tokens one after another; ``tokens`` mirrors the KV cache.

    ``computes`` is the fingerprint of the weights as they now are: the slot changes it with the mix.
    Every token is cached under the fingerprint of its time, and found again only by that.

    With ``watch`` (names of tensors in the compute graph, "l_out-2", in the order of computation) their
    rows for every cached token are kept beside it, float32, see :meth:`states`. With ``stop`` as well the
    computation ends at the last of them: the context then only encodes, its logits mean nothing.

    ``batch``: tokens computed together at most; llama.cpp keeps room for the logits of as many.
    """

    def __init__(self, engine: Engine, *, size: int, watch: Sequence[str] = (), stop: bool = False, batch: int = BATCH):
        self.engine = engine
        self.hook = _core.EvalHook(llama.hook_functions())
        self.hook.watch(watch, stop)
        self._watched = bool(watch)
        self._states: list[tuple[np.ndarray, ...]] = []  # of each token, one of each watched tensor
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = size, min(size, batch), min(size, batch)
        #: Whether :meth:`truncate` can forget the last tokens alone: a recurrent state forgets all or nothing.
        self.can_forget = not (
            llama_cpp.llama_model_is_recurrent(engine.handle) or llama_cpp.llama_model_is_hybrid(engine.handle)
        )
        # One sequence is decoded; with a spare one that shares its cells, parts of it can be copied (`copy_to`).
        params.n_seq_max, params.kv_unified = 1 + self.can_forget, True
        # llama.cpp's flash attention computes batches of 64 tokens and more by another kernel: what a
        # prompt gives would depend on how much of it was cached. llama_cpp.Llama leaves it off too.
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.n_threads = params.n_threads_batch = engine.threads
        params.cb_eval = ctypes.cast(self.hook.callback, llama_cpp.ggml_backend_sched_eval_callback)
        params.cb_eval_user_data = self.hook.user_data
        self.handle = llama_cpp.llama_init_from_model(engine.handle, params)
        if not self.handle:
            raise DecodeError(f"llama.cpp could not make a context of {size} tokens; try a smaller --context")
        self.size = llama_cpp.llama_n_ctx(self.handle)
        self.batch = params.n_batch
        self.memory = llama_cpp.llama_get_memory(self.handle)
        self.tokens: list[int] = []
        self.bare = self.computes = Fingerprint(engine.model.sha256)
        self._owners: list[Fingerprint] = []  # of `tokens`; may lag behind those that others appended
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(engine.vocab)

    def decode(self, tokens: Sequence[int]) -> None:
        """Append *tokens* to the cache; the logits of the last one are kept.

        Raises DecodeError when they do not fit, or when llama.cpp fails; the cache then holds what
        it held before.
        """
        if len(self.tokens) + len(tokens) > self.size:
            raise DecodeError(
                f"{len(self.tokens) + len(tokens)} tokens do not fit into the context of {self.size}; "
                "shorten the question, or make the context larger (--context, context_size)"
            )
        before = len(self.tokens)
        start = 0
        while start < len(tokens):
            left = len(tokens) - start
            # A lone token goes through other kernels than a batch: it must not be left over in a prompt.
            part = tokens[start : start + self.batch - (left == self.batch + 1)]
            start += len(part)
            array = (llama_cpp.llama_token * len(part))(*part)
            with self._all_or_nothing(before):
                status = llama_cpp.llama_decode(self.handle, llama_cpp.llama_batch_get_one(array, len(part)))
                self._book(part, status)

    def decode_every(self, tokens: Sequence[int]) -> None:
        """Append *tokens* (at most ``batch``) in one pass; the logits after each are kept.

        Raises DecodeError as :meth:`decode` does.
        """
        past = len(self.tokens)
        if past + len(tokens) > self.size:
            raise DecodeError(f"{past + len(tokens)} tokens do not fit into the context of {self.size}")
        batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.logits[i] = token, past + i, 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            with self._all_or_nothing(past):
                self._book(tokens, llama_cpp.llama_decode(self.handle, batch))
        finally:
            llama_cpp.llama_batch_free(batch)

    @contextlib.contextmanager
    def _all_or_nothing(self, length: int) -> Iterator[None]:
        """Whatever stops a decode, Ctrl-C too: cache, states and their mirrors are as they were at *length* tokens."""
        try:
            yield
        except BaseException:
            self.hook.take()
            self.truncate(length)
            raise

    def _book(self, tokens: Sequence[int], status: int) -> None:
        """Note what ``llama_decode`` has put into the cache."""
        if status != 0:
            raise DecodeError(f"llama_decode returned {status}")
        if len(self._owners) < len(self.tokens):
            self._own(Fingerprint.once(""))
        self.tokens += tokens
        self._own(self.computes)
        if self._watched:
            self._states.extend(zip(*self.hook.take(), strict=True))

    def _own(self, by: Fingerprint) -> None:
        self._owners += [by] * (len(self.tokens) - len(self._owners))

    def match(self, tokens: Sequence[int], by: Fingerprint) -> int:
        """How many of *tokens* the cache holds from its beginning on, computed under *by*."""
        shared = 0
        for token, cached, owner in zip(tokens, self.tokens, self._owners):
            if token != cached or (owner is not by and owner != by):
                break
            shared += 1
        return shared

    def advance(self, tokens: Sequence[int], *, logits: bool = False) -> int:
        """Make the cache hold exactly *tokens* as the weights now are; how many were decoded.

        What matches is kept. With ``logits`` the last token is decoded in any case.
        """
        shared = self.match(tokens, self.computes)
        left = len(tokens) - shared
        # Never one token alone (see decode): what an answer is must not depend on what was cached.
        if left == 1 or (logits and left == 0):
            shared = max(0, len(tokens) - 2)
        self.truncate(shared)
        shared = len(self.tokens)  # a recurrent cache forgets everything
        self.decode(tokens[shared:])
        return len(tokens) - shared

    def logits(self, at: int = -1) -> np.ndarray:
        """Logits of the last decoded token, or of number *at* of :meth:`decode_every`: a float32 copy [vocabulary]."""
        pointer = llama_cpp.llama_get_logits_ith(self.handle, at)
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).copy()

    def best(self, at: int = -1) -> int:
        """The likeliest token by the logits that :meth:`logits` would copy."""
        pointer = llama_cpp.llama_get_logits_ith(self.handle, at)
        return int(np.ctypeslib.as_array(pointer, shape=(self._vocab_size,)).argmax())

    def predictions(self, first: np.ndarray, tokens: Sequence[int]) -> Iterator[np.ndarray]:
        """The logits, float32 [vocabulary], by which each of *tokens* is foretold, the right ones before it.

        ``first``: the logits before all of them. The tokens but the last are appended to the cache, ``batch`` in a
        pass. Raises DecodeError as :meth:`decode` does.
        """
        yield first
        for start in range(0, len(tokens) - 1, self.batch):
            part = tokens[start : min(start + self.batch, len(tokens) - 1)]
            self.decode_every(part)
            yield from (self.logits(i) for i in range(len(part)))

    def states(self, first: int, last: int, of: int = 0) -> np.ndarray:
        """Of the watched tensor number *of*, the rows for the tokens at [first, last): float32 [last - first, n_embd]."""
        return np.stack([states[of] for states in self._states[first:last]])

    def truncate(self, length: int) -> None:
        """Forget every token from position *length* on, also one that is in the cache but not yet in ``tokens``."""
        if not llama_cpp.llama_memory_seq_rm(self.memory, 0, length, -1):
            # A recurrent cache cannot forget in part: start over.
            llama_cpp.llama_memory_clear(self.memory, True)
            length = 0
        del self.tokens[length:], self._states[length:], self._owners[length:]

    def copy_to(self, other: Context) -> None:
        """Make *other* hold exactly what this context holds; what it holds already is not copied again.

        llama.cpp copies whole sequences (``llama_state_seq_get_data``): the tokens that are missing are made one.
        """
        mine, theirs = (zip(context.tokens, context._owners) for context in (self, other))
        other.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, theirs))))
        shared = len(other.tokens)  # a recurrent cache forgets everything
        if shared == len(self.tokens):
            return
        sequence = _SPARE if shared else 0
        if shared:
            llama_cpp.llama_memory_seq_cp(self.memory, 0, sequence, shared, -1)
        size = llama_cpp.llama_state_seq_get_size(self.handle, sequence)
        buffer = (ctypes.c_uint8 * size)()
        read = llama_cpp.llama_state_seq_get_data(self.handle, buffer, size, sequence)
        written = read and llama_cpp.llama_state_seq_set_data(other.handle, buffer, read, sequence)
        if shared:
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)
            llama_cpp.llama_memory_seq_cp(other.memory, sequence, 0, -1, -1)
            llama_cpp.llama_memory_seq_rm(other.memory, sequence, -1, -1)
        if not written and shared:  # there is room, but not in one piece
            other.truncate(0)
            return self.copy_to(other)
        if not written:
            raise DecodeError("llama.cpp could not copy the prompt's cache into the second context")
        other.tokens, other._owners = list(self.tokens), list(self._owners)

    def save(self) -> Saved:
        """All that the cache holds, in host memory."""
        size = llama_cpp.llama_state_seq_get_size(self.handle, 0)
        data = (ctypes.c_uint8 * size)()
        if not llama_cpp.llama_state_seq_get_data(self.handle, data, size, 0):
            raise DecodeError("llama.cpp could not copy the cache")
        return Saved(tuple(self.tokens), tuple(self._owners), data, tuple(self._states))

    def restore(self, saved: Saved) -> None:
        """Make the cache hold exactly what *saved* does; nothing is computed, and nothing copied where it does already."""
        if (*self.tokens[: len(saved.tokens)],) == saved.tokens and (
            *self._owners[: len(saved.tokens)],
        ) == saved.owners:
            self.truncate(len(saved.tokens))
            if len(self.tokens) == len(saved.tokens):
                return
        self.truncate(0)
        if not llama_cpp.llama_state_seq_set_data(self.handle, saved.data, len(saved.data), 0):
            raise DecodeError("llama.cpp could not put the cache back")
        self.tokens, self._owners, self._states = list(saved.tokens), list(saved.owners), list(saved.states)

    def set_adapter(self, adapter: Any) -> None:
        """Make *adapter* the only one of this context; None for the bare base."""
        count = 0 if adapter is None else 1
        handles = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
        scales = (ctypes.c_float * 1)(1.0)
        if llama_cpp.llama_set_adapters_lora(self.handle, handles, count, scales) != 0:
            raise DecodeError("llama.cpp refused the adapter")

    def use_threads(self, count: int) -> None:
        """Decode with *count* threads from now on; what is computed does not depend on it."""
        llama_cpp.llama_set_n_threads(self.handle, count, count)

    def synchronize(self) -> None:
        llama_cpp.llama_synchronize(self.handle)

    def close(self) -> None:
        if self.handle:
            llama_cpp.llama_free(self.handle)
            self.handle = None
