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

SPAN_SHARE = 0.7  # how much a choice's answer counts beside the choice
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
class ChoosingTask:
    """One question to several passages: a pair each, of which only the first has an answer; none has where none answers."""

    readings: tuple[ReadingTask, ...]

    @property
    def answers(self) -> bool:
        return bool(self.readings[0].pairs[0][1])


@dataclass(frozen=True)
class Step:
    """``number`` of ``total`` steps are done; ``loss`` is the last one's cross-entropy per token, of choices per question, nats."""

    number: int
    total: int
    loss: float


def train(
    base: FrozenBase,
    before: Sequence[int],
    readings: Sequence[ReadingTask],
    config: ReaderConfig,
    *,
    choices: Sequence[ChoosingTask] = (),
    nothing: int = 0,
    start: Factors | None = None,
    progress: Callable[[Step], None] = lambda _: None,
    resume: Path | None = None,
) -> Factors:
    """Train a reader on *readings* and *choices*; factors as :meth:`StackedLora.factors` gives them.

    ``nothing``: the first token of the answer that says that the passage holds none; choices need it. ``start``: go on
    from these factors of a reader, of the same rank and layers. ``resume``: a file that keeps the state now and then;
    where it exists already, training goes on from it.
    """
    first = base.n_layer - max(1, round(config.layers * base.n_layer))
    targets = [t for t in find_targets(base.network, base.architecture, ALL_ROLES) if t.layer >= first]
    lora = StackedLora(base, targets, 1, config.rank, config.scale)
    lora.reset_lane(0, config.seed)
    if start is not None:
        lora.load_lane(0, start)
    optimizer = LaneAdam(lora, (0.9, 0.98))
    steps = [batch for epoch in range(config.epochs) for batch in _batches(readings, choices, config, config.seed + epoch)]
    first_weight = None if start is None else float(next(iter(start.values()))[0].flat[0])
    fingerprint = hashlib.sha256(repr((config, before, steps, first_weight)).encode()).hexdigest()
    done = _restore(resume, lora, optimizer, fingerprint)
    batches = _Batches(base, before)
    with lora.attached(base.network):
        for number, batch in enumerate(steps[done:], start=done + 1):
            if isinstance(batch[0], ChoosingTask):
                loss = _choose(base, lora, batches, batch, nothing)
            else:
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


Batch = list[Any]  # of ReadingTask, or of ChoosingTask


def _batches(
    readings: Sequence[ReadingTask], choices: Sequence[ChoosingTask], config: ReaderConfig, seed: int
) -> list[Batch]:
    """*readings*, and *choices*, of like length together, so that little is padded, in random order."""
    rng = random.Random(seed)
    batch: list[ReadingTask] = []
    batches: list[Batch] = []
    for reading in sorted(readings, key=lambda r: len(r.passage) + rng.random() * 8):
        if batch and sum(len(r.pairs) for r in [*batch, reading]) > config.questions:
            batches.append(batch)
            batch = []
        batch.append(reading)
    if batch:
        batches.append(batch)
    ordered = sorted(choices, key=lambda c: len(c.readings[0].pairs[0][0]) + rng.random() * 8)
    batches += [ordered[i : i + config.choices] for i in range(0, len(ordered), config.choices)]
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
    pairs, hidden = _read(base, lora, batches, batch)
    taught, truth = _said(pairs, hidden)
    weight = torch.tensor([1 / (len(answer) * len(pairs)) for _, answer in pairs for _ in answer], device=device)
    head = base.network.get_output_embeddings().weight
    verdict = judge(taught.detach(), head, truth, weight, _cap(base))
    taught.backward(verdict.gradient)
    return float((verdict.loss * weight).sum())


def _choose(
    base: FrozenBase, lora: StackedLora, batches: _Batches, batch: Sequence[ChoosingTask], nothing: int
) -> float:
    """As :func:`_learn`, of choices: the mean of the cross-entropy of the right passage among them, and of its answer.

    A passage scores the reader's log odds that it answers, as ``runtime.reader`` takes them; that none does scores 0.
    """
    pairs, hidden = _read(base, lora, batches, [reading for task in batch for reading in task.readings])
    last = hidden[torch.arange(len(pairs)), torch.tensor([len(question) - 1 for question, _ in pairs])]
    logits = _logits(base, last)
    scores = torch.logsumexp(_without(logits, nothing), 1) - logits[:, nothing]
    each = scores.split([len(task.readings) for task in batch])
    rights = [0 if task.answers else len(own) for task, own in zip(batch, each, strict=True)]
    chosen = [torch.cat([own, own.new_zeros(1)]).log_softmax(0)[right] for own, right in zip(each, rights, strict=True)]
    loss = -torch.stack(chosen).mean()
    answers = [answer for _, answer in pairs if answer]
    if answers:
        taught, truth = _said(pairs, hidden)
        logits = _logits(base, taught)
        begins = torch.tensor([place == 0 for answer in answers for place in range(len(answer))], device=base.device)
        # That there is an answer is the choice's to say: its first word is taught given that there is one.
        logits = torch.where(begins[:, None], _without(logits, nothing), logits)
        weight = torch.tensor([1 / (len(answer) * len(answers)) for answer in answers for _ in answer], device=base.device)
        loss = loss + SPAN_SHARE * (torch.nn.functional.cross_entropy(logits, truth, reduction="none") * weight).sum()
    loss.backward()
    return loss.item()


Pairs = list[tuple[tuple[int, ...], tuple[int, ...]]]


def _read(
    base: FrozenBase, lora: StackedLora, batches: _Batches, batch: Sequence[ReadingTask]
) -> tuple[Pairs, Tensor]:
    """The pairs of *batch*, and the last hidden states of each pair's tokens [pairs, longest, n_embd]."""
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
    return pairs, hidden


def _said(pairs: Pairs, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """The states from which the answers' tokens follow [tokens, n_embd], and these tokens [tokens]."""
    rows = [i for i, (_, answer) in enumerate(pairs) for _ in answer]
    columns = [len(q) - 1 + j for q, answer in pairs for j in range(len(answer))]
    truth = torch.tensor([token for _, answer in pairs for token in answer], device=hidden.device)
    return hidden[torch.tensor(rows, device=hidden.device), torch.tensor(columns, device=hidden.device)], truth


def _cap(base: FrozenBase) -> float | None:
    return getattr(base.network.config.get_text_config(), "final_logit_softcapping", None)


def _logits(base: FrozenBase, hidden: Tensor) -> Tensor:
    """Float32 [N, V] of *hidden* [N, n_embd]."""
    logits = (hidden @ base.network.get_output_embeddings().weight.T).float()
    cap = _cap(base)
    return (logits / cap).tanh() * cap if cap else logits


def _without(logits: Tensor, token: int) -> Tensor:
    """*logits* [N, V] with *token* out of the question."""
    return logits.index_fill(1, torch.tensor([token], device=logits.device), -torch.inf)


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
