"""The teaching loop: M memories study side by side, each for as long as it needs.

A lesson is token ids; this file knows nothing about text, templates, files or banks.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .base import FrozenBase
from .head import judge
from .lora import LaneAdam, StackedLora
from .upper import Prepared, UpperLayers


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

    def picks(self, step: int, count: int) -> list[int]:
        """Which lessons come at *step*: verbatim ones and others take turns, each kind round and round."""
        kinds = [[i for i, x in enumerate(self.lessons) if x.verbatim == kind] for kind in (True, False)]
        if count == 1 or not all(kinds):
            return [(step * count + j) % len(self.lessons) for j in range(count)]
        found = []
        for j in range(count):
            kind = kinds[j % 2]
            share = (count + 1 - j % 2) // 2
            found.append(kind[(step * share + j // 2) % len(kind)])
        return found


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
    cut: int = 0  # the first layer that learns; those below run once per lesson
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
    prepared: list[Prepared]
    started: float
    step: int = 0
    loss: float = math.inf
    known: dict[int, float] = field(default_factory=dict)  # lesson index -> smallest margin seen


# Beyond these the processor is busy anyway: measured on 2 cores; on a GPU launches are hidden by then.
MOST_LANES = {"cpu": 8, "cuda": 64}


def lanes_that_fit(base: FrozenBase, course: Course, tokens: int) -> int:
    """How many memories of at most *tokens* learning positions fit side by side, in half the free memory."""
    config = base.network.config.get_text_config()
    wide = base.dtype.itemsize
    chosen = [t for t in base.targets if t.role in course.roles and t.layer >= course.cut]
    factors = course.rank * sum(t.module.in_features + t.module.out_features for t in chosen)
    # Master, both moments and two temporaries in float32; the working copy and its gradient.
    state = factors * (5 * 4 + 2 * wide)
    # What autograd keeps of a layer: about 14 states, 8 of the MLP's width, and attention's weights.
    layer = 14 * config.hidden_size + 8 * config.intermediate_size + 3 * config.num_attention_heads * 2 * tokens
    kept = tokens * layer * wide * (base.n_layer - course.cut)
    return max(1, min(MOST_LANES[base.device.type], _free_bytes(base.device) // 2 // (state + kept)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # macOS and Windows do not say
        return 4 << 30


class Classroom:
    """Runs a course over a frozen base."""

    def __init__(self, base: FrozenBase, course: Course):
        self.base, self.course = base, course
        chosen = [t for t in base.targets if t.role in course.roles and t.layer >= course.cut]
        self.lora = StackedLora(base, chosen, course.lanes, course.rank, course.scale)
        self.optimizer = LaneAdam(self.lora, weight_decay=course.weight_decay)
        self.upper = UpperLayers(base, course.cut)
        self._head = base.network.get_output_embeddings().weight
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
        started = time.perf_counter()
        self.lora.reset_lane(len(lanes), task.seed)
        self.optimizer.reset_lane(len(lanes))
        # The last target token is only ever predicted.
        prepared = self.upper.prepare([(x.prompt, x.opening + x.target[:-1]) for x in task.lessons])
        lanes.append(_Lane(task, prepared, started))

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
        chosen = [lane.task.picks(lane.step, per) for lane in lanes]
        rates = [0.0] * self.course.lanes
        losses, leads = [], []
        with self.lora.use(len(lanes)):
            # One pass per column: the lanes' first lessons, then their second ones. Long texts and
            # short answers so do not pad each other.
            for column in zip(*chosen, strict=True):
                loss, lead = self._pass(lanes, column, 1.0 / per)
                losses.append(loss)
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

    def _pass(self, lanes: Sequence[_Lane], picks: Sequence[int], share: float) -> tuple[Tensor, Tensor]:
        """One lesson of each lane, forward and backward: mean loss and smallest lead, float32 [S] each.

        ``share`` weighs the gradient. A lane's is the mean over its own tokens: neighbours do not change it.
        """
        device = self.base.device
        lessons = [lane.task.lessons[i] for lane, i in zip(lanes, picks, strict=True)]
        rows, columns, targets, weights = [], [], [], []
        for s, lesson in enumerate(lessons):
            first, count = len(lesson.opening) - 1, len(lesson.target)
            rows += [s] * count
            columns += range(first, first + count)
            targets += lesson.target
            weights += [share / count] * count
        row = torch.tensor(rows, device=device)
        weight = torch.tensor(weights, device=device)
        hidden = self.upper.forward([lane.prepared[i] for lane, i in zip(lanes, picks, strict=True)])
        taught = hidden[row, torch.tensor(columns, device=device)]
        verdict = judge(taught.detach(), self._head, torch.tensor(targets, device=device), weight, self._cap)
        if taught.requires_grad:
            taught.backward(verdict.gradient)
        mean = torch.zeros(len(lessons), device=device).index_add(0, row, verdict.loss * weight) / share
        lead = torch.full((len(lessons),), math.inf, device=device)
        return mean, lead.scatter_reduce(0, row, verdict.lead, reduce="amin")
