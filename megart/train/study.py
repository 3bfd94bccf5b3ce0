"""The teaching loop: M memories study side by side, each for as long as it needs.

A lesson is token ids; this file knows nothing about text, templates, files or banks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from .base import FrozenBase
from .lora import LaneAdam, StackedLora


@dataclass(frozen=True)
class Lesson:
    """One (prompt, target) pair as token ids.

    The base alone encodes ``prompt``; the adapter is active on ``opening`` (the generation prompt)
    and on ``target``, whose tokens alone carry loss. An adapter that is to see the whole prompt
    has an empty ``prompt`` and all of it in ``opening``. ``verbatim`` lessons decide when a memory
    is learnt.
    """

    prompt: tuple[int, ...]
    opening: tuple[int, ...]
    target: tuple[int, ...]
    verbatim: bool = True


@dataclass(frozen=True)
class Task:
    """What one memory has to study; ``seed`` fixes its initial factors."""

    id: str
    lessons: tuple[Lesson, ...]
    seed: int


@dataclass(frozen=True)
class Course:
    """How to study. Rates are AdamW learning rates; ``margin`` is in logits."""

    rank: int
    scale: float  # multiplies B A in training; the exporter writes it so that llama.cpp does too
    roles: tuple[str, ...]  # GGUF roles: ffn_gate, ffn_up, ffn_down
    rate: float
    warmup: int = 0  # steps of linear warm-up
    max_steps: int = 80
    lessons_per_step: int = 2
    stop: bool = True  # leave as soon as every verbatim target is top-1 with the margin
    margin: float = 1.0
    weight_decay: float = 0.0
    lanes: int = 4
    decay: bool = False  # linear decay of the rate to zero over max_steps (fixed-length courses)


@dataclass
class Result:
    """What became of a task: its factors and how it went."""

    id: str
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    learnt: bool
    steps: int
    seconds: float  # wall time this task spent in a lane
    loss: float
    margin: float  # smallest lead, in logits, of a verbatim target token over the next best


@dataclass
class _Lane:
    task: Task
    started: float
    step: int = 0
    loss: float = math.inf
    known: dict[int, float] = field(default_factory=dict)  # lesson index -> smallest margin seen


Keys = list[tuple[Tensor, Tensor]]  # per layer: keys and values [heads, length, head_dim]


class Classroom:
    """Runs a course over a frozen base."""

    def __init__(self, base: FrozenBase, course: Course):
        self.base, self.course = base, course
        chosen = [t for t in base.targets if t.role in course.roles]
        self.lora = StackedLora(base, chosen, course.lanes, course.rank, course.scale)
        self.optimizer = LaneAdam(self.lora, weight_decay=course.weight_decay)
        self._prompts: dict[tuple[int, ...], Keys] = {}
        self._head = base.network.get_output_embeddings()
        self._cap = getattr(base.network.config.get_text_config(), "final_logit_softcapping", None)

    def run(self, tasks: Iterable[Task], progress: Callable[[str, int, float], None] | None = None) -> Iterator[Result]:
        """Yield each task's result as it is done, in the order of finishing.

        ``progress(id, step, loss)`` is called after every step of every task.
        """
        waiting = deque(tasks)
        lanes: list[_Lane] = []
        with self.lora.attached(self.base.network):
            while waiting or lanes:
                while waiting and len(lanes) < self.course.lanes:
                    self._enrol(lanes, waiting.popleft())
                self._step(lanes)
                for lane in lanes:
                    if progress:
                        progress(lane.task.id, lane.step, lane.loss)
                for index in reversed(range(len(lanes))):
                    lane = lanes[index]
                    learnt = self._learnt(lane)
                    if (learnt and self.course.stop) or lane.step >= self.course.max_steps:
                        yield self._leave(lanes, index, learnt)

    def _enrol(self, lanes: list[_Lane], task: Task) -> None:
        self.lora.reset_lane(len(lanes), task.seed)
        self.optimizer.reset_lane(len(lanes))
        lanes.append(_Lane(task, time.perf_counter()))

    def _leave(self, lanes: list[_Lane], index: int, learnt: bool) -> Result:
        """Take a lane out; the last lane moves into its place, so that active lanes stay first."""
        lane, last = lanes[index], len(lanes) - 1
        result = Result(
            lane.task.id,
            self.lora.factors(index),
            learnt,
            lane.step,
            time.perf_counter() - lane.started,
            lane.loss,
            min((lane.known.get(i, -math.inf) for i in self._verbatim(lane)), default=-math.inf),
        )
        if index != last:
            self.lora.move_lane(last, index)
            self.optimizer.move_lane(last, index)
            lanes[index] = lanes[last]
        lanes.pop()
        return result

    def _learnt(self, lane: _Lane) -> bool:
        return all(lane.known.get(i, -math.inf) >= self.course.margin for i in self._verbatim(lane))

    @staticmethod
    def _verbatim(lane: _Lane) -> list[int]:
        return [i for i, lesson in enumerate(lane.task.lessons) if lesson.verbatim]

    def _rate(self, step: int) -> float:
        course = self.course
        rate = course.rate * min(1.0, (step + 1) / course.warmup) if course.warmup else course.rate
        return rate * (1 - step / course.max_steps) if course.decay else rate

    def _step(self, lanes: list[_Lane]) -> None:
        per = self.course.lessons_per_step
        chosen = []
        for lane in lanes:
            count = len(lane.task.lessons)
            chosen.append([(lane.step * per + j) % count for j in range(per)])
        rates = [0.0] * self.course.lanes
        losses, leads = [], []
        with self.lora.use(len(lanes)):
            # One pass per column: the lanes' first lessons, then their second ones. Long texts and
            # short answers so do not pad each other.
            for column in zip(*chosen, strict=True):
                loss, lead = self._forward([lane.task.lessons[i] for lane, i in zip(lanes, column, strict=True)])
                # The mean over a lane's own lessons: neighbours do not change its gradient.
                (loss.sum() / per).backward()
                losses.append(loss.detach())
                leads.append(lead)
        means = torch.stack(losses).mean(dim=0).tolist()
        leads = torch.stack(leads).T.tolist()
        for row, (lane, picks) in enumerate(zip(lanes, chosen, strict=True)):
            for lesson, lead in zip(picks, leads[row], strict=True):
                lane.known[lesson] = lead
            lane.loss = means[row]
            if not (self.course.stop and self._learnt(lane)):
                rates[row] = self._rate(lane.step)
            lane.step += 1
        self.optimizer.step(rates)

    def _forward(self, lessons: list[Lesson]) -> tuple[Tensor, Tensor]:
        """Mean loss and smallest margin of each lesson: two float32 tensors [S]."""
        base = self.base
        device = base.device
        inputs = [lesson.opening + lesson.target[:-1] for lesson in lessons]
        prompts = [self._encode(lesson.prompt) for lesson in lessons]
        size, width = len(lessons), max(map(len, inputs))
        past = max(len(lesson.prompt) for lesson in lessons)
        ids = torch.zeros((size, width), dtype=torch.long)
        place = torch.zeros((size, width), dtype=torch.long)
        seen = torch.zeros((size, 1, width, past + width), dtype=torch.bool)
        causal = torch.ones((width, width), dtype=torch.bool).tril()
        rows, columns, targets = [], [], []
        for s, (lesson, tokens) in enumerate(zip(lessons, inputs, strict=True)):
            ids[s, : len(tokens)] = torch.tensor(tokens)
            place[s] = torch.arange(width) + len(lesson.prompt)
            seen[s, 0, :, past - len(lesson.prompt) : past] = True
            seen[s, 0, :, past:] = causal
            first = len(lesson.opening) - 1
            columns += range(first, first + len(lesson.target))
            rows += [s] * len(lesson.target)
            targets += lesson.target
        # Additive, because transformers' eager attention adds whatever it is given.
        mask = torch.zeros(seen.shape, dtype=base.dtype).masked_fill_(~seen, torch.finfo(base.dtype).min)
        cache = self._stack(prompts, past) if past else None
        hidden = base.network.base_model(
            input_ids=ids.to(device),
            position_ids=place.to(device),
            attention_mask=mask.to(device),
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state
        row = torch.tensor(rows, device=device)
        logits = self._head(hidden[row, torch.tensor(columns, device=device)]).float()
        if self._cap:
            logits = torch.tanh(logits / self._cap) * self._cap
        truth = torch.tensor(targets, device=device)
        loss = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        zeros = torch.zeros(size, device=device)
        lengths = zeros.index_add(0, row, torch.ones_like(loss))
        mean = zeros.index_add(0, row, loss) / lengths
        with torch.no_grad():
            best = logits.detach().topk(2, dim=-1)
            own = logits.detach().gather(1, truth[:, None])[:, 0]
            rival = torch.where(best.indices[:, 0] == truth, best.values[:, 1], best.values[:, 0])
            lead = torch.full((size,), math.inf, device=device)
            lead = lead.scatter_reduce(0, row, own - rival, reduce="amin")
        return mean, lead

    @torch.no_grad()
    def _encode(self, prompt: tuple[int, ...]) -> Keys:
        """Keys and values of a prompt under the bare base, computed once."""
        if not prompt:
            return []
        if prompt not in self._prompts:
            active, self.lora.active = self.lora.active, False
            cache = DynamicCache(config=self.base.network.config)
            ids = torch.tensor([prompt], device=self.base.device)
            self.base.network.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            self.lora.active = active
            self._prompts[prompt] = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        return self._prompts[prompt]

    def _stack(self, prompts: list[Keys], past: int) -> DynamicCache:
        """One cache over the batch, shorter prompts padded on the left (and masked there)."""
        cache = DynamicCache(config=self.base.network.config)
        layers = max(len(p) for p in prompts)
        like = next(p for p in prompts if p)
        for layer in range(layers):
            sides = []
            for side in (0, 1):
                shape = like[layer][side].shape
                stacked = like[layer][side].new_zeros((len(prompts), shape[0], past, shape[2]))
                for s, prompt in enumerate(prompts):
                    if prompt:
                        kept = prompt[layer][side]
                        stacked[s, :, past - kept.shape[1] :] = kept
                sides.append(stacked)
            cache.update(sides[0], sides[1], layer)
        return cache
