"""The teaching loop: M memories study side by side, each for as long as it needs.

A example is token ids; this file knows nothing about text, templates, files or banks.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import cores
from .base import FrozenBase
from .head import Field, Verdict, judge
from .lora import LaneAdam, StackedLora
from .upper import Prepared, UpperLayers


@dataclass(frozen=True)
class Example:
    """One (prompt, target) pair as token ids.

    The base alone encodes ``prompt``; the adapter is active on ``opening`` (the generation prompt)
    and on ``target``, whose tokens alone carry loss. An adapter that is to see the whole prompt
    has an empty ``prompt`` and all of it in ``opening``.
    """

    prompt: tuple[int, ...]
    opening: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """What one memory has to study; ``seed`` fixes its initial factors, ``steps`` its own length of study, if any."""

    id: str
    examples: tuple[Example, ...]
    seed: int
    steps: int | None = None


@dataclass(frozen=True)
class TrainConfig:
    """How to study. Rates are Adam's learning rates; ``margin`` is in logits."""

    rank: int
    scale: float  # multiplies B A in training; the exporter writes it so that llama.cpp does too
    roles: tuple[str, ...]  # GGUF roles: ffn_gate, ffn_up, ffn_down
    rate: float
    max_steps: int = 80  # of a task that has no ``steps`` of its own
    examples_per_step: int = 2
    stop: bool = True  # leave as soon as every target is top-1 with the margin; else take all examples in turn
    margin: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    lanes: int = 4
    cut: int = 0  # the first layer that learns; those below run once per example
    decay: bool = False  # linear decay of the rate to zero over a task's steps (of a fixed length)


@dataclass
class Result:
    """What became of a task: its factors and how it went."""

    id: str
    factors: dict[str, tuple[np.ndarray, np.ndarray]]
    learnt: bool
    steps: int
    seconds: float  # wall time this task spent in a lane
    loss: float
    margin: float  # smallest margin, in logits, of a target token over the next best


@dataclass
class _Lane:
    task: Task
    prepared: list[Prepared]
    started: float
    step: int = 0
    loss: float = math.inf
    margins: list[float] = field(default_factory=list)  # per example: its smallest margin when last seen
    rivals: Field | None = None  # the part of the vocabulary it is about, once that is known

    def __post_init__(self) -> None:
        self.margins = [-math.inf] * len(self.task.examples)

    @property
    def margin(self) -> float:
        return min(self.margins)

    def picks(self, config: TrainConfig) -> list[int]:
        """The examples of the next step: those known least well, or in turn where the length is fixed."""
        count = config.examples_per_step
        if not config.stop:
            return [(self.step * count + j) % len(self.margins) for j in range(count)]
        worst = sorted(range(len(self.margins)), key=self.margins.__getitem__)
        return [worst[j % len(worst)] for j in range(count)]


# A smaller vocabulary is not worth narrowing.
NARROW_FROM = 8192
# Beyond these the processor is busy anyway: measured on 2 cores; on a GPU launches are hidden by then.
MOST_LANES = {"cpu": 8, "mps": 8, "cuda": 64}


def lanes_that_fit(base: FrozenBase, config: TrainConfig, tokens: int) -> int:
    """How many memories of at most *tokens* learning positions fit side by side, in half the free memory."""
    sizes = base.network.config.get_text_config()
    wide = base.dtype.itemsize
    chosen = [t for t in base.targets if t.role in config.roles and t.layer >= config.cut]
    factors = config.rank * sum(t.module.in_features + t.module.out_features for t in chosen)
    # Master, both moments and two temporaries in float32; the working copy and its gradient.
    state = factors * (5 * 4 + 2 * wide)
    # What autograd keeps of a layer: about 14 states, 8 of the MLP's width, and attention's weights.
    layer = 14 * sizes.hidden_size + 8 * sizes.intermediate_size + 3 * sizes.num_attention_heads * 2 * tokens
    activations = tokens * layer * wide * (base.n_layer - config.cut)
    return max(1, min(MOST_LANES[base.device.type], _free_bytes(base.device) // 2 // (state + activations)))


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # macOS and Windows do not say
        return 4 << 30


@contextlib.contextmanager
def _threads(device: torch.device) -> Iterator[Callable[[], None]]:
    """What is given fits torch's threads to the cores that other programs leave; afterwards they are as before.

    A thread that shares its core with another program holds up the others after every operation.
    """
    before = torch.get_num_threads()

    def fit() -> None:
        count = min(before, cores.free())
        if count != torch.get_num_threads():
            torch.set_num_threads(count)

    try:
        yield fit if device.type == "cpu" else lambda: None
    finally:
        torch.set_num_threads(before)


class Trainer:
    """Teaches tasks to a frozen base, as a config says."""

    def __init__(self, base: FrozenBase, config: TrainConfig):
        self.base, self.config = base, config
        chosen = [t for t in base.targets if t.role in config.roles and t.layer >= config.cut]
        self.lora = StackedLora(base, chosen, config.lanes, config.rank, config.scale)
        self.optimizer = LaneAdam(self.lora, config.betas)
        self.upper = UpperLayers(base, config.cut)
        self._head = base.network.get_output_embeddings().weight
        self._cap = getattr(base.network.config.get_text_config(), "final_logit_softcapping", None)
        # A GPU multiplies by the whole head faster than it gathers rows; a config of fixed length keeps its loss.
        self._narrow = config.stop and self._head.device.type == "cpu" and len(self._head) >= NARROW_FROM

    def run(self, tasks: Iterable[Task], progress: Callable[[str, int, float], None] | None = None) -> Iterator[Result]:
        """Yield each task's result as it is done, in the order of finishing.

        ``progress(id, step, loss)`` is called after every step of every task.
        """
        waiting = deque(tasks)
        lanes: list[_Lane] = []
        with self.lora.attached(self.base.network), _threads(self.base.device) as fit_threads:
            while waiting or lanes:
                fit_threads()
                while waiting and len(lanes) < self.config.lanes:
                    self._enrol(lanes, waiting.popleft())
                self._step(lanes)
                for lane in lanes:
                    if progress:
                        progress(lane.task.id, lane.step, lane.loss)
                for index in reversed(range(len(lanes))):
                    lane, last = lanes[index], lanes[index].step >= self._steps(lanes[index])
                    learnt = (self._learnt(lane) or last) and self._examine(index, lane)
                    if (learnt and self.config.stop) or last:
                        yield self._leave(lanes, index, learnt)

    def _enrol(self, lanes: list[_Lane], task: Task) -> None:
        started = time.perf_counter()
        self.lora.reset_lane(len(lanes), task.seed)
        self.optimizer.reset_lane(len(lanes))
        # The last target token is only ever predicted.
        prepared = self.upper.prepare([(x.prompt, x.opening + x.target[:-1]) for x in task.examples])
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
            lane.margin,
        )
        if index != last:
            self.lora.move_lane(last, index)
            self.optimizer.move_lane(last, index)
            lanes[index] = lanes[last]
        lanes.pop()
        return result

    def _learnt(self, lane: _Lane) -> bool:
        return lane.margin >= self.config.margin

    @torch.no_grad()
    def _examine(self, index: int, lane: _Lane) -> bool:
        """All examples once more with the factors as they are: what was known may have been unlearnt since."""
        with self.lora.use(1, first=index):
            lane.margins = self._pass([(lane, i) for i in range(len(lane.margins))])[1].tolist()
        return self._learnt(lane)

    def _steps(self, lane: _Lane) -> int:
        return lane.task.steps or self.config.max_steps

    def _rate(self, lane: _Lane) -> float:
        rate = self.config.rate
        return rate * (1 - lane.step / self._steps(lane)) if self.config.decay else rate

    def _step(self, lanes: list[_Lane]) -> None:
        per = self.config.examples_per_step
        chosen = [lane.picks(self.config) for lane in lanes]
        rates = [0.0] * self.config.lanes
        losses, margins = [], []
        with self.lora.use(len(lanes)):
            # One pass per column: the lanes' first examples, then their second ones. Long texts and
            # short answers so do not pad each other.
            for column in zip(*chosen, strict=True):
                loss, margin = self._pass(list(zip(lanes, column, strict=True)), 1.0 / per)
                losses.append(loss)
                margins.append(margin)
        means = torch.stack(losses).mean(dim=0).tolist()
        margins = torch.stack(margins).T.tolist()
        for row, (lane, picks) in enumerate(zip(lanes, chosen, strict=True)):
            for example, margin in zip(picks, margins[row], strict=True):
                lane.margins[example] = margin
            lane.loss = means[row]
            if not (self.config.stop and self._learnt(lane)):
                rates[row] = self._rate(lane)
            lane.step += 1
        self.optimizer.step(rates)

    def _pass(self, seats: Sequence[tuple[_Lane, int]], share: float = 1.0) -> tuple[Tensor, Tensor]:
        """Forward, and backward where gradients are on: mean loss and smallest margin, float32 [S] each.

        ``seats`` are (lane, example) pairs, lane by lane as StackedLora wants them; ``share`` weighs the
        gradient. A example's is the mean over its own tokens: neighbours do not change it.
        """
        device = self.base.device
        examples = [lane.task.examples[i] for lane, i in seats]
        rows: list[int] = []
        columns: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        for s, example in enumerate(examples):
            first, count = len(example.opening) - 1, len(example.target)
            rows += [s] * count
            columns += range(first, first + count)
            targets += example.target
            weights += [share / count] * count
        row = torch.tensor(rows, device=device)
        weight = torch.tensor(weights, device=device)
        hidden = self.upper.forward([lane.prepared[i] for lane, i in seats])
        taught = hidden[row, torch.tensor(columns, device=device)]
        verdict = self._judge(seats, taught.detach(), torch.tensor(targets, device=device), weight)
        if verdict.gradient is not None:
            taught.backward(verdict.gradient)
        mean = torch.zeros(len(examples), device=device).index_add(0, row, verdict.loss * weight) / share
        margin = torch.full((len(examples),), math.inf, device=device)
        return mean, margin.scatter_reduce(0, row, verdict.margin, reduce="amin")

    def _judge(self, seats: Sequence[tuple[_Lane, int]], taught: Tensor, targets: Tensor, weight: Tensor) -> Verdict:
        """Loss and margin of every target: in training under each memory's own rivals, else under the whole head."""
        teaching = torch.is_grad_enabled()
        if not (teaching and self._narrow):
            verdict = judge(taught, self._head, targets, weight if teaching else None, self._cap)
            if self._narrow:
                self._widen(seats, targets, verdict)
            return verdict
        parts, start = [], 0
        for lane, i in seats:
            part = slice(start, start + len(lane.task.examples[i].target))
            start = part.stop
            if lane.rivals is None:
                verdict = judge(taught[part], self._head, targets[part], weight[part], self._cap, near=Field.RIVALS)
                every = torch.tensor([token for example in lane.task.examples for token in example.target])
                lane.rivals = Field(self._head, every, verdict.near)
            else:
                verdict = lane.rivals.judge(taught[part], targets[part], weight[part], self._cap)
            parts.append(verdict)
        return Verdict(
            torch.cat([p.loss for p in parts]),
            torch.cat([p.margin for p in parts]),
            torch.cat([p.near[:, :2] for p in parts]),
            torch.cat([p.gradient for p in parts if p.gradient is not None]),
        )

    def _widen(self, seats: Sequence[tuple[_Lane, int]], targets: Tensor, verdict: Verdict) -> None:
        """Take in as rivals what an examination found near a target that does not lead by the margin."""
        start = 0
        for lane, i in seats:
            part = slice(start, start + len(lane.task.examples[i].target))
            start = part.stop
            close = verdict.near[part][verdict.margin[part] < self.config.margin]
            if lane.rivals is not None and len(close):
                lane.rivals.add(close.flatten())
