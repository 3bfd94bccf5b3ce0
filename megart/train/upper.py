"""The base cut in two: layers below the first one that learns run once per example, those above every step.

An activated adapter leaves the prompt alone, and adapters of the upper layers leave everything
below them alone. So a example is reduced, once, to what the upper layers need: the hidden state
under them at the learning positions, and the prompt's keys and values within them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from .base import FrozenBase, with_cache

# Lessons at least this long, relative to the longest of a pass, go with it.
_LIKE = 0.9
Keys = list[tuple[Tensor, Tensor]]  # per layer: keys and values [heads, length, head_dim]


@dataclass(frozen=True)
class Prepared:
    """One example as the upper layers see it.

    ``hidden`` [W, n_embd] is the input of the first upper layer at the learning positions, which
    start at position ``past``; ``keys`` holds what each upper layer remembers of the positions before.
    """

    hidden: Tensor
    keys: Keys
    past: int


class _Reached(Exception):
    """Thrown to leave the network at the cut."""


class UpperLayers:
    """Layers ``cut`` .. n_layer - 1 of *base* as a function of the hidden state under them."""

    def __init__(self, base: FrozenBase, cut: int):
        self.base, self.cut = base, cut
        self._body = base.network.base_model
        self._layers = list(self._body.layers)
        self._upper = range(cut, len(self._layers))
        self._prefixes: dict[tuple[int, ...], Keys] = {}

    @torch.no_grad()
    def prepare(self, examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Prepared]:
        """Each (prompt, learning positions) pair of token ids, those of like length in one pass.

        Tokens that every prompt starts with (the chat template's) are encoded once and kept. Call it
        with the adapters at rest.
        """
        prefix = _common([prompt for prompt, _ in examples])
        by_example: list[Prepared | None] = [None] * len(examples)
        for group in self._alike([len(prompt) + len(learn) - len(prefix) for prompt, learn in examples]):
            for i, prepared in zip(group, self._prepare([examples[i] for i in group], prefix), strict=True):
                by_example[i] = prepared
        return [prepared for prepared in by_example if prepared is not None]

    def _alike(self, lengths: Sequence[int]) -> list[list[int]]:
        """Places in *lengths*, grouped so that little is padded; a GPU takes all at once."""
        groups: list[list[int]] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if groups and (self.base.device.type != "cpu" or lengths[i] >= _LIKE * lengths[groups[-1][0]]):
                groups[-1].append(i)
            else:
                groups.append([i])
        return groups

    def _prepare(
        self, examples: Sequence[tuple[Sequence[int], Sequence[int]]], prefix: tuple[int, ...]
    ) -> list[Prepared]:
        start = len(prefix)
        rows = [list(prompt[start:]) + list(learn) for prompt, learn in examples]
        hidden, cache = self._below(rows, self._prefix(prefix))
        heads = [len(prompt) - start for prompt, _ in examples]
        if max(heads):
            self._over(hidden[:, : max(heads)], cache, start)
        prepared = []
        for s, (head, row) in enumerate(zip(heads, rows, strict=True)):
            keys: Keys = []
            if start + head:
                sides = [(cache.layers[i].keys[s], cache.layers[i].values[s]) for i in self._upper]
                keys = [(k[:, : start + head].clone(), v[:, : start + head].clone()) for k, v in sides]
            prepared.append(Prepared(hidden[s, head : len(row)].clone(), keys, start + head))
        return prepared

    def _prefix(self, tokens: tuple[int, ...]) -> Keys:
        """Keys and values of all layers for tokens that many prompts start with."""
        if tokens and tokens not in self._prefixes:
            cache: Any = DynamicCache(config=self.base.network.config)
            ids = torch.tensor([tokens], device=self.base.device)
            self._body(input_ids=ids, **with_cache(self._body, cache))
            self._prefixes[tokens] = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        return self._prefixes.get(tokens, [])

    def _below(self, rows: list[list[int]], before: Keys) -> tuple[Tensor, Any]:
        """Run the lower layers on *rows* after *before*; returns the state at the cut and the cache."""
        base, size, width = self.base, len(rows), max(map(len, rows))
        past = before[0][0].shape[1] if before else 0
        cache: Any = DynamicCache(config=base.network.config)
        for layer, (keys, values) in enumerate(before):
            cache.update(keys.expand(size, -1, -1, -1), values.expand(size, -1, -1, -1), layer)
        ids = torch.zeros((size, width), dtype=torch.long)
        for s, row in enumerate(rows):
            ids[s, : len(row)] = torch.tensor(row)
        states: list[Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[Tensor, ...], options: dict[str, Tensor]) -> None:
            states.append(inputs[0] if inputs else options["hidden_states"])
            raise _Reached

        handle = self._layers[self.cut].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._body(
                input_ids=ids.to(base.device),
                position_ids=(torch.arange(width, device=base.device) + past).expand(size, -1),
                attention_mask=self._mask(torch.full((size,), past), past, width),
                **with_cache(self._body, cache),
            )
        except _Reached:
            pass
        finally:
            handle.remove()
        return states[0], cache

    def _over(self, hidden: Tensor, cache: Any, past: int) -> Tensor:
        """The upper layers on *hidden*, all sequences at the same position *past*."""
        size, width = hidden.shape[:2]
        place = (torch.arange(width, device=hidden.device) + past).expand(size, -1)
        return self._run(hidden, place, self._mask(torch.full((size,), past), past, width), cache)

    def forward(self, examples: Sequence[Prepared]) -> Tensor:
        """Final hidden states [S, W, n_embd], shorter examples padded on the right."""
        base = self.base
        size, width = len(examples), max(len(example.hidden) for example in examples)
        past = max(example.past for example in examples)
        hidden = examples[0].hidden.new_zeros((size, width, examples[0].hidden.shape[1]))
        for s, example in enumerate(examples):
            hidden[s, : len(example.hidden)] = example.hidden
        starts = torch.tensor([example.past for example in examples])
        place = (torch.arange(width)[None] + starts[:, None]).to(base.device)
        cache: Any = self._stack(examples, past) if past else DynamicCache(config=base.network.config)
        return self._body.norm(self._run(hidden, place, self._mask(starts, past, width), cache))

    def _run(self, hidden: Tensor, place: Tensor, mask: Tensor, cache: Any) -> Tensor:
        rotary: dict[str | None, tuple[Tensor, Tensor]] = {}
        kinds = getattr(self.base.network.config.get_text_config(), "layer_types", None)
        by_kind = "layer_type" in inspect.signature(self._body.rotary_emb.forward).parameters
        goes_on = with_cache(self._layers[0], cache)
        for i in self._upper:
            kind = kinds[i] if by_kind and kinds else None
            if kind not in rotary:
                rotary[kind] = self._body.rotary_emb(hidden, place, *([kind] if kind else []))
            hidden = self._layers[i](
                hidden,
                attention_mask=mask,
                position_ids=place,
                position_embeddings=rotary[kind],
                **goes_on,
            )
        return hidden

    def _mask(self, starts: Tensor, past: int, width: int) -> Tensor:
        """Additive (transformers' eager attention adds it): *starts* positions of the past, then causal."""
        seen = torch.zeros((len(starts), 1, width, past + width), dtype=torch.bool)
        # A shorter past is padded on the left.
        seen[:, 0, :, :past] = (torch.arange(past)[None] >= past - starts[:, None])[:, None]
        seen[:, 0, :, past:] = torch.ones((width, width), dtype=torch.bool).tril()
        mask = torch.zeros(seen.shape, dtype=self.base.dtype)
        return mask.masked_fill_(~seen, torch.finfo(self.base.dtype).min).to(self.base.device)

    def _stack(self, examples: Sequence[Prepared], past: int) -> Any:
        cache: Any = DynamicCache(config=self.base.network.config)
        like = next(example for example in examples if example.past)
        for at, layer in enumerate(self._upper):
            sides = []
            for side in (0, 1):
                shape = like.keys[at][side].shape
                stacked = like.keys[at][side].new_zeros((len(examples), shape[0], past, shape[2]))
                for s, example in enumerate(examples):
                    if example.past:
                        stacked[s, :, past - example.past :] = example.keys[at][side]
                sides.append(stacked)
            cache.update(sides[0], sides[1], layer)
        return cache


def _common(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all *prompts* start with, at least one token short of the shortest."""
    shortest = min(prompts, key=len)
    length = 0
    while length < len(shortest) - 1 and all(p[length] == shortest[length] for p in prompts):
        length += 1
    return tuple(shortest[:length])
