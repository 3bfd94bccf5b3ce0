"""Stacked LoRA: M adapters side by side on one frozen base, trained in one pass.

Lane m owns rows m of every stacked factor. Whatever trains in the other lanes, a lane's arithmetic
touches its own rows only. Knows nothing about text, prompts or stopping.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from .base import FrozenBase, Target


class StackedLora:
    """Factors of M adapters: per target A [M, r, in] and B [M, out, r], y += scale * B A x.

    ``master`` is one float32 tensor [M, P] holding every factor of every lane, P being the number
    of parameters of one adapter; ``work`` is the copy in the base's dtype that the forward pass
    reads, and ``grad`` gathers its gradient. One flat block each, so that an optimizer step is a
    handful of large kernels instead of hundreds of small ones.
    """

    def __init__(self, base: FrozenBase, targets: list[Target], lanes: int, rank: int, scale: float):
        self.lanes, self.rank, self.scale = lanes, rank, scale
        self.targets = targets
        shapes = [(rank, t.module.in_features) for t in targets]
        shapes += [(t.module.out_features, rank) for t in targets]
        self.size = sum(a * b for a, b in shapes)
        # Layout: per factor one contiguous block [M, rows, cols], so that bmm needs no copy.
        blocks = [lanes * a * b for a, b in shapes]
        self.master = torch.zeros(sum(blocks), dtype=torch.float32, device=base.device)
        self.work = torch.zeros(sum(blocks), dtype=base.dtype, device=base.device)
        self.grad = torch.zeros(sum(blocks), dtype=base.dtype, device=base.device)
        self._shapes, self._starts = shapes, np.cumsum([0, *blocks]).tolist()
        leaves = [self._view(self.work, i).requires_grad_() for i in range(len(shapes))]
        for i, leaf in enumerate(leaves):
            leaf.grad = self._view(self.grad, i)
        count = len(targets)
        self.a, self.b = leaves[:count], leaves[count:]
        self.active = False
        self._taking_part = slice(0, lanes)  # lanes of the current pass

    def _view(self, flat: Tensor, index: int) -> Tensor:
        rows, cols = self._shapes[index]
        block = flat[self._starts[index] : self._starts[index + 1]]
        return block.view(self.lanes, rows, cols)

    def views(self, flat: Tensor) -> list[Tensor]:
        """*flat* (laid out like ``master``) as its factors: all A, then all B, each [M, ., .]."""
        return [self._view(flat, i) for i in range(len(self._shapes))]

    def reset_lane(self, lane: int, seed: int) -> None:
        """Start lane anew: A uniform as PEFT draws it (Kaiming, a = sqrt 5), B zero."""
        generator = torch.Generator().manual_seed(seed)
        for index, view in enumerate(self.views(self.master)):
            rows, cols = self._shapes[index]
            if index < len(self.targets):
                bound = 1.0 / math.sqrt(cols)
                draw = torch.rand((rows, cols), generator=generator) * (2 * bound) - bound
                view[lane].copy_(draw)
            else:
                view[lane].zero_()
        self.sync()

    def sync(self) -> None:
        """Bring ``work`` up to date with ``master``."""
        with torch.no_grad():
            self.work.copy_(self.master)

    def factors(self, lane: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Float32 copies of one lane: target name -> (A [r, in], B [out, r])."""
        views = [v[lane].detach().float().cpu().numpy().copy() for v in self.views(self.master)]
        count = len(self.targets)
        return {t.name: (views[i], views[count + i]) for i, t in enumerate(self.targets)}

    def load_lane(self, lane: int, factors: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """The inverse of :meth:`factors`; shapes must agree."""
        views, count = self.views(self.master), len(self.targets)
        for i, target in enumerate(self.targets):
            for view, factor in zip((views[i], views[count + i]), factors[target.name], strict=True):
                view[lane].copy_(torch.from_numpy(np.asarray(factor, np.float32)))
        self.sync()

    def move_lane(self, source: int, to: int) -> None:
        for view in self.views(self.master):
            view[to].copy_(view[source])
        self.sync()

    def _delta(self, index: int, x: Tensor) -> Tensor:
        a, b = self.a[index][self._taking_part], self.b[index][self._taking_part]
        flat = x.reshape(len(a), -1, x.shape[-1])
        low = torch.bmm(flat, a.transpose(1, 2))
        out = torch.bmm(low, b.transpose(1, 2))
        return out.view(*x.shape[:-1], out.shape[-1])

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        """Within the block, the targets add their lanes' adapters when ``active`` is True.

        The batch must be laid out lane by lane: sequences [0:S/M) belong to lane 0, and so on.
        """
        handles = []
        for index, target in enumerate(self.targets):

            def hook(_module: nn.Module, inputs: tuple[Tensor], output: Tensor, i: int = index) -> Tensor:
                if not self.active:
                    return output
                return torch.add(output, self._delta(i, inputs[0]), alpha=self.scale)

            handles.append(target.module.register_forward_hook(hook))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def use(self, lanes: int, first: int = 0) -> Iterator[None]:
        """Let *lanes* lanes from *first* on act in passes within the block."""
        self.active, self._taking_part = True, slice(first, first + lanes)
        try:
            yield
        finally:
            self.active = False


class LaneAdam:
    """Adam over stacked factors, with a step count and a learning rate per lane."""

    def __init__(self, lora: StackedLora, betas: tuple[float, float] = (0.9, 0.95)):
        self.lora, self.betas = lora, betas
        self.m = torch.zeros_like(lora.master)
        self.v = torch.zeros_like(lora.master)
        self.steps = [0] * lora.lanes
        self._views = [lora.views(t) for t in (lora.master, self.m, self.v, lora.grad)]

    def reset_lane(self, lane: int) -> None:
        self.steps[lane] = 0
        for views in (self._views[1], self._views[2]):
            for view in views:
                view[lane].zero_()

    def move_lane(self, source: int, to: int) -> None:
        self.steps[to] = self.steps[source]
        for views in (self._views[1], self._views[2]):
            for view in views:
                view[to].copy_(view[source])

    @torch.no_grad()
    def step(self, rates: list[float]) -> None:
        """One step of every lane at its own rate (0: the lane rests), then clears the gradient."""
        lora, (beta1, beta2) = self.lora, self.betas
        for lane, rate in enumerate(rates):
            self.steps[lane] += rate > 0
        device = lora.master.device
        count = torch.tensor([max(1, s) for s in self.steps], device=device, dtype=torch.float32)
        each = torch.tensor(rates, device=device, dtype=torch.float32)
        size = (each * (1 - beta2**count).sqrt() / (1 - beta1**count)).view(-1, 1, 1)
        eps = (1e-8 * (1 - beta2**count).sqrt()).view(-1, 1, 1)
        grad = lora.grad.float()
        resting = [lane for lane, r in enumerate(rates) if not r and self.steps[lane]]
        moments = [(view, lane, view[lane].clone()) for views in self._views[1:3] for view in views for lane in resting]
        self.m.lerp_(grad, 1 - beta1)
        self.v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        for p, m, v, _ in zip(*self._views, strict=True):
            p.addcdiv_(m * size, v.sqrt() + eps, value=-1.0)
        for view, lane, moment in moments:
            view[lane].copy_(moment)
        lora.grad.zero_()
        lora.sync()
