"""Training a reader: one adapter, shared by all memories, that answers a question by a span of what was recited.

The reader is activated: the bare base encodes the passage, and the adapter works from the end of the passage on. So
one passage's keys and values serve every question about it, here and in use. Works on token ids; knows nothing of
texts, templates or files' formats.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from ..recipes import ReaderConfig
from ..whole_file import whole_file
from .base import ALL_ROLES, FrozenBase, find_targets, with_cache
from .head import judge
from .lora import LaneAdam, StackedLora

KEEP_EVERY = 50  # steps between two states that training can go on from
Factors = dict[str, tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class ReadingTask:
    """A passage as token ids, and its (question, answer) pairs.

    ``passage`` follows the tokens that all passages share (``before`` of :func:`train`). Each question is all that
    stands between the passage and the answer, and each answer ends with the end of the turn.
    """

    passage: tuple[int, ...]
    pairs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Step:
    """``number`` of ``total`` steps are done; ``loss`` is the last one's cross-entropy per token, nats."""

    number: int
    total: int
    loss: float


def train(
    base: FrozenBase,
    before: Sequence[int],
    readings: Sequence[ReadingTask],
    config: ReaderConfig,
    *,
    start: Factors | None = None,
    progress: Callable[[Step], None] = lambda _: None,
    resume: Path | None = None,
) -> Factors:
    """Train a reader on *readings*; factors as :meth:`StackedLora.factors` gives them.

    ``start``: go on from these factors of a reader, of the same rank and layers. ``resume``: a file that keeps the
    state now and then; where it exists already, training goes on from it.
    """
    first = base.n_layer - max(1, round(config.layers * base.n_layer))
    targets = [t for t in find_targets(base.network, base.architecture, ALL_ROLES) if t.layer >= first]
    lora = StackedLora(base, targets, 1, config.rank, config.scale)
    lora.reset_lane(0, config.seed)
    if start is not None:
        lora.load_lane(0, start)
    optimizer = LaneAdam(lora, (0.9, 0.98))
    steps = [batch for epoch in range(config.epochs) for batch in _batches(readings, config, config.seed + epoch)]
    first_weight = None if start is None else float(next(iter(start.values()))[0].flat[0])
    fingerprint = hashlib.sha256(repr((config, before, steps, first_weight)).encode()).hexdigest()
    done = _restore(resume, lora, optimizer, fingerprint)
    batches = _Batches(base, before)
    with lora.attached(base.network):
        for number, batch in enumerate(steps[done:], start=done + 1):
            loss = _learn(base, lora, batches, batch)
            norm = float(lora.grad.float().norm())
            if norm > config.clip:
                lora.grad.mul_(config.clip / norm)
            rate = min(1.0, number / max(1, config.warmup)) * (1 - (number - 1) / len(steps))
            optimizer.step([config.rate * rate])
            progress(Step(number, len(steps), loss))
            if resume is not None and (number % KEEP_EVERY == 0 or number == len(steps)):
                _keep(resume, lora, optimizer, number, fingerprint)
    return lora.factors(0)


def _batches(readings: Sequence[ReadingTask], config: ReaderConfig, seed: int) -> list[list[ReadingTask]]:
    """*readings* of like length together, so that little is padded, in random order."""
    rng = random.Random(seed)
    batch: list[ReadingTask] = []
    batches: list[list[ReadingTask]] = []
    for reading in sorted(readings, key=lambda r: len(r.passage) + rng.random() * 8):
        if batch and sum(len(r.pairs) for r in [*batch, reading]) > config.questions:
            batches.append(batch)
            batch = []
        batch.append(reading)
    if batch:
        batches.append(batch)
    rng.shuffle(batches)
    return batches


class _Batches:
    """Encodes passages by the bare base; the tokens that all begin with only once."""

    def __init__(self, base: FrozenBase, before: Sequence[int]):
        self.base, self.length = base, len(before)
        self._body = base.network.base_model
        cache: Any = DynamicCache(config=base.network.config)
        with torch.no_grad():
            self._body(input_ids=torch.tensor([list(before)], device=base.device), **with_cache(self._body, cache))
        self._before = [(layer.keys, layer.values) for layer in cache.layers]

    @torch.no_grad()
    def encode(self, batch: Sequence[ReadingTask]) -> tuple[Any, Tensor, Tensor]:
        """Keys and values of each question's passage, their mask [questions, length], and its length [questions]."""
        device = self.base.device
        cache: Any = DynamicCache(config=self.base.network.config)
        for layer, (keys, values) in enumerate(self._before):
            cache.update(keys.expand(len(batch), -1, -1, -1), values.expand(len(batch), -1, -1, -1), layer)
        ids, mask = _padded([reading.passage for reading in batch])
        ahead = torch.ones((len(batch), self.length), dtype=torch.long)
        seen = torch.cat([ahead, mask], 1)
        place = (torch.arange(ids.shape[1]) + self.length).expand(len(batch), -1)
        self._body(
            input_ids=ids.to(device),
            attention_mask=seen.to(device),
            position_ids=place.to(device),
            **with_cache(self._body, cache),
        )
        rows = torch.tensor([i for i, reading in enumerate(batch) for _ in reading.pairs])
        each: Any = DynamicCache(config=self.base.network.config)
        for number, layer in enumerate(cache.layers):
            each.update(layer.keys[rows.to(device)], layer.values[rows.to(device)], number)
        return each, seen[rows], seen[rows].sum(1)


def _learn(base: FrozenBase, lora: StackedLora, batches: _Batches, batch: Sequence[ReadingTask]) -> float:
    """The gradient of one step into ``lora.grad``; the mean loss of its answers' tokens."""
    device = base.device
    cache, seen, lengths = batches.encode(batch)
    pairs = [pair for reading in batch for pair in reading.pairs]
    ids, mask = _padded([(*question, *answer[:-1]) for question, answer in pairs])
    place = lengths[:, None] + torch.arange(ids.shape[1])[None]
    with lora.use(1):
        hidden = base.network.base_model(
            input_ids=ids.to(device),
            attention_mask=torch.cat([seen, mask], 1).to(device),
            position_ids=place.to(device),
            **with_cache(base.network.base_model, cache),
        ).last_hidden_state
    rows = [i for i, (_, answer) in enumerate(pairs) for _ in answer]
    columns = [len(q) - 1 + j for q, answer in pairs for j in range(len(answer))]
    truth = torch.tensor([token for _, answer in pairs for token in answer], device=device)
    weight = torch.tensor([1 / (len(answer) * len(pairs)) for _, answer in pairs for _ in answer], device=device)
    taught = hidden[torch.tensor(rows, device=device), torch.tensor(columns, device=device)]
    head = base.network.get_output_embeddings().weight
    cap = getattr(base.network.config.get_text_config(), "final_logit_softcapping", None)
    verdict = judge(taught.detach(), head, truth, weight, cap)
    taught.backward(verdict.gradient)
    return float((verdict.loss * weight).sum())


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """*rows* padded on the right, and where they are real: int64 [rows, longest] each."""
    ids = torch.zeros((len(rows), max(map(len, rows))), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def _keep(path: Path, lora: StackedLora, optimizer: LaneAdam, number: int, fingerprint: str) -> None:
    state = {"master": lora.master, "m": optimizer.m, "v": optimizer.v, "number": number, "fingerprint": fingerprint}
    with whole_file(path) as file:
        torch.save(state, file)


def _restore(path: Path | None, lora: StackedLora, optimizer: LaneAdam, fingerprint: str) -> int:
    """How many steps are done already; a state of a training with other data or another config is passed over."""
    if path is None or not path.exists():
        return 0
    state = torch.load(path, map_location=lora.master.device, weights_only=True)
    if state.get("fingerprint") != fingerprint:
        return 0
    lora.master.copy_(state["master"])
    optimizer.m.copy_(state["m"])
    optimizer.v.copy_(state["v"])
    optimizer.steps[0] = state["number"]
    lora.sync()
    return int(state["number"])
