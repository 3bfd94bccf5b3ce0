"""How the next token is chosen: llama.cpp's own samplers, in llama.cpp's own order."""

from __future__ import annotations

import ctypes
import json
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

from ..errors import InputError
from . import llama
from .context import Context

PENALTY_WINDOW = 64  # tokens that the repeat penalty looks back on, as in llama.cpp
_CANDIDATE = np.dtype([("id", "<i4"), ("logit", "<f4"), ("p", "<f4")])  # struct llama_token_data


@dataclass(frozen=True)
class SamplingOptions:
    """How an answer is generated. Raises InputError for values that cannot be.

    ``temperature`` 0 is greedy; above it ``top_k`` (0: all), ``top_p``, ``min_p`` and ``seed`` (None:
    another one each time) count, with llama.cpp's defaults. ``repeat_penalty`` 1 is none. ``stop``:
    texts before which the answer ends. ``grammar`` (GBNF) or ``json_schema`` (an object or its JSON
    text) bind the answer's form.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    json_schema: str | dict[str, Any] | None = None

    @classmethod
    def of(cls, default_tokens: int, given: dict[str, Any]) -> SamplingOptions:
        """Options out of keyword arguments; None means the default."""
        unknown = given.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise InputError(f"got the option {min(unknown)!r}; expected some of {', '.join(cls.__dataclass_fields__)}")
        chosen = {name: value for name, value in given.items() if value is not None}
        stop = chosen.get("stop", ())
        return cls(
            **{"max_tokens": default_tokens, **chosen, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
        )

    def __post_init__(self) -> None:
        def check(good: bool, name: str, expected: str) -> None:
            if not good:
                raise InputError(f"got {name} {getattr(self, name)!r}; expected {expected}")

        for name in ("max_tokens", "top_k"):
            check(isinstance(getattr(self, name), int), name, "a whole number")
        for name in ("temperature", "top_p", "min_p", "repeat_penalty"):
            value = getattr(self, name)
            check(isinstance(value, (int, float)) and math.isfinite(value), name, "a number")
        check(self.max_tokens >= 1, "max_tokens", "at least 1")
        check(self.top_k >= 0, "top_k", "0 (all) or more")
        check(0 <= self.temperature <= 100, "temperature", "0 (greedy) to 100")
        check(0 < self.top_p <= 1, "top_p", "more than 0, at most 1")
        check(0 <= self.min_p <= 1, "min_p", "0 to 1")
        check(0 < self.repeat_penalty <= 100, "repeat_penalty", "more than 0 (1 is none), at most 100")
        check(
            self.seed is None or (isinstance(self.seed, int) and 0 <= self.seed < 2**32),
            "seed",
            "a whole number of 32 bits",
        )
        check(self.grammar is None or isinstance(self.grammar, str), "grammar", "a text")
        check(all(isinstance(s, str) and s for s in self.stop), "stop", "texts that are not empty")
        if self.grammar is not None and self.json_schema is not None:
            raise InputError("got both a grammar and a JSON schema; expected one of them")

    @property
    def gbnf(self) -> str | None:
        """The grammar that binds the answer, None without one."""
        if self.json_schema is None:
            return self.grammar
        from llama_cpp.llama_grammar import json_schema_to_gbnf

        schema = self.json_schema if isinstance(self.json_schema, str) else json.dumps(self.json_schema)
        try:
            return json_schema_to_gbnf(schema)
        except Exception as error:  # its parser raises whatever comes to hand
            raise InputError(f"got a JSON schema that llama.cpp cannot read: {error}") from error


class Sampler:
    """Chooses tokens for one answer; close it afterwards. ``before``: the tokens of the prompt."""

    def __init__(self, context: Context, options: SamplingOptions, before: Sequence[int] = ()):
        self.context = context
        self._grammar = None
        self.chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        try:
            self._build(options, before)
        except BaseException:
            self.close()
            raise

    def _build(self, options: SamplingOptions, before: Sequence[int]) -> None:
        gbnf = options.gbnf
        if gbnf is not None:
            vocab = self.context.engine.vocab
            with llama.overheard() as lines:
                self._grammar = llama_cpp.llama_sampler_init_grammar(vocab, gbnf.encode(), b"root")
            if not self._grammar:
                why = f" ({lines[0].strip()[:120]})" if lines else ""
                raise InputError(f"got a grammar that llama.cpp cannot read{why}; expected GBNF with a rule named root")
        steps = []
        if options.repeat_penalty != 1:
            size = llama_cpp.llama_vocab_n_tokens(self.context.engine.vocab)
            penalties = llama_cpp.llama_sampler_init_penalties(size, PENALTY_WINDOW, options.repeat_penalty, 0.0, 0.0)
            for token in before[-PENALTY_WINDOW:]:
                llama_cpp.llama_sampler_accept(penalties, token)
            steps.append(penalties)
        if options.temperature:
            if options.top_k:
                steps.append(llama_cpp.llama_sampler_init_top_k(options.top_k))
            steps.append(llama_cpp.llama_sampler_init_top_p(options.top_p, 1))
            steps.append(llama_cpp.llama_sampler_init_min_p(options.min_p, 1))
            steps.append(llama_cpp.llama_sampler_init_temp(options.temperature))
            seed = secrets.randbits(32) if options.seed is None else options.seed
            steps.append(llama_cpp.llama_sampler_init_dist(seed))
        else:
            steps.append(llama_cpp.llama_sampler_init_greedy())
        for step in steps:
            llama_cpp.llama_sampler_chain_add(self.chain, step)

    def next(self, at: int = -1) -> int | None:
        """The next token after the context's logits number *at* (-1: the last); None when the grammar allows none."""
        if not self._grammar:
            return llama_cpp.llama_sampler_sample(self.chain, self.context.handle, at)
        logits = self.context.logits(at)
        token = self._chosen(logits)
        # The grammar judges one token, and the whole vocabulary only where that one is wrong.
        if not self._allowed(token):
            allowed = self._judged(np.arange(len(logits)), logits)
            if not np.isfinite(allowed).any():
                return None
            token = self._chosen(allowed)
        llama_cpp.llama_sampler_accept(self.chain, token)
        llama_cpp.llama_sampler_accept(self._grammar, token)
        return token

    def _chosen(self, logits: np.ndarray) -> int:
        array, rows = _candidates(np.arange(len(logits)), logits)
        llama_cpp.llama_sampler_apply(self.chain, ctypes.byref(array))
        return int(rows[array.selected]["id"])

    def _allowed(self, token: int) -> bool:
        return bool(np.isfinite(self._judged(np.array([token]), np.zeros(1, np.float32))[0]))

    def _judged(self, ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """*logits* with minus infinity where the grammar forbids the token."""
        array, rows = _candidates(ids, logits)
        llama_cpp.llama_sampler_apply(self._grammar, ctypes.byref(array))
        return rows["logit"].copy()

    def close(self) -> None:
        llama_cpp.llama_sampler_free(self.chain)
        if self._grammar:
            llama_cpp.llama_sampler_free(self._grammar)


def _candidates(ids: np.ndarray, logits: np.ndarray) -> tuple[llama_cpp.llama_token_data_array, np.ndarray]:
    """The array that llama.cpp's samplers work on, and its memory, which must outlive it."""
    rows = np.empty(len(ids), _CANDIDATE)
    rows["id"], rows["logit"], rows["p"] = ids, logits, 0.0
    array = llama_cpp.llama_token_data_array()
    pointer: Any = type(array.data)
    array.data = ctypes.cast(rows.ctypes.data, pointer)
    array.size, array.selected, array.sorted = len(ids), -1, False
    return array, rows
