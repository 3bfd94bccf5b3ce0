"""What fine-tuning does with the same memories: one after another, or all at once. Baselines for evaluation.

Token ids in, token ids out; knows nothing about text, banks or reports. The penalties: L2 pulls towards the
weights before the memory at hand; EWC (online form, arXiv 1805.06370) weighs that pull by the diagonal of the
Fisher information, each memory's brought to a mean of 1, summed over the memories so far. A LoRA is merged into the
weights after each memory.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .base import FrozenBase

Example = tuple[tuple[int, ...], tuple[int, ...]]  # prompt tokens, target tokens


@dataclass(frozen=True)
class Tuning:
    """How a baseline learns. ``penalty`` is "", "l2" or "ewc" with ``strength``; ``rank`` 0 tunes all weights.

    A memory (or, all at once, the whole set) is studied until the mean loss of every example in a pass is
    under ``enough``, at most ``passes`` times; ``batch`` examples a step.
    """

    penalty: str = ""
    strength: float = 0.0
    rank: int = 0
    rate: float = 5e-5
    passes: int = 12
    enough: float = 0.1
    batch: int = 4


class Baseline:
    """A copy of the base that is really changed. ``base`` itself stays as it is."""

    def __init__(self, base: FrozenBase, tuning: Tuning, seed: int = 0):
        torch.manual_seed(seed)
        self.tuning, self.device = tuning, base.device
        # Float32 weights: a step of 5e-5 is lost in bfloat16. The arithmetic still uses the base's own dtype.
        self.network = copy.deepcopy(base.network).float().eval().requires_grad_(tuning.rank == 0)
        self._dtype = base.dtype
        self._paths = [
            path for path, module in base.network.named_modules() for t in base.targets if t.module is module
        ]
        self._fisher: dict[str, Tensor] = {}

    def tuned(self) -> dict[str, nn.Parameter]:
        """The weights that learning moves, by name."""
        if self.tuning.rank:
            return {path: self.network.get_submodule(path).weight for path in self._paths}
        return dict(self.network.named_parameters())

    def study(self, examples: Sequence[Example], progress: Callable[[int, float], None] | None = None) -> int:
        """Learn *examples* until they are known; returns the number of steps."""
        steps = self._study_lora(examples, progress) if self.tuning.rank else self._study_full(examples, progress)
        if self.tuning.penalty == "ewc":
            self._measure_fisher(examples)
        return steps

    # -- training ---------------------------------------------------------------------------

    def _study_full(self, examples: Sequence[Example], progress: Callable[[int, float], None] | None) -> int:
        weights = self.tuned()
        anchor = {name: w.detach().clone() for name, w in weights.items()} if self.tuning.penalty else {}

        def pull() -> None:
            for name, start in anchor.items():
                weight = weights[name]
                if weight.grad is None:
                    continue
                away = weight.detach() - start
                if self.tuning.penalty == "ewc":
                    if name in self._fisher:
                        weight.grad.addcmul_(away, self._fisher[name], value=self.tuning.strength)
                else:
                    weight.grad.add_(away, alpha=self.tuning.strength)

        return self._loop(list(weights.values()), examples, pull, progress)

    def _study_lora(self, examples: Sequence[Example], progress: Callable[[int, float], None] | None) -> int:
        factors, hooks = {}, []
        for path in self._paths:
            module = self.network.get_submodule(path)
            a = torch.empty(self.tuning.rank, module.in_features, device=self.device)
            nn.init.kaiming_uniform_(a, a=5**0.5)
            b = torch.zeros(module.out_features, self.tuning.rank, device=self.device)
            factors[path] = (nn.Parameter(a), nn.Parameter(b))

            def hook(_m: nn.Module, x: tuple[Tensor], y: Tensor, ab: tuple[Tensor, Tensor] = factors[path]) -> Tensor:
                return y + nn.functional.linear(nn.functional.linear(x[0], ab[0]), ab[1])

            hooks.append(module.register_forward_hook(hook))

        def pull() -> None:
            if not self.tuning.penalty:
                return
            for path, (a, b) in factors.items():
                weight = torch.ones(()) if self.tuning.penalty == "l2" else self._fisher.get(path)
                if weight is not None:
                    (0.5 * self.tuning.strength * (weight * (b @ a).square()).sum()).backward()

        try:
            leaves = [leaf for pair in factors.values() for leaf in pair]
            steps = self._loop(leaves, examples, pull, progress)
        finally:
            for handle in hooks:
                handle.remove()
        with torch.no_grad():
            for path, (a, b) in factors.items():
                self.network.get_submodule(path).weight.add_(b @ a)
        return steps

    def _loop(
        self, leaves: list[nn.Parameter], examples: Sequence[Example], pull: Callable[[], None],
        progress: Callable[[int, float], None] | None,
    ) -> int:  # fmt: skip
        optimizer = torch.optim.AdamW(leaves, lr=self.tuning.rate, weight_decay=0.0)
        steps = 0
        for _ in range(self.tuning.passes):
            worst = 0.0
            for start in range(0, len(examples), self.tuning.batch):
                losses = self._losses(examples[start : start + self.tuning.batch])
                losses.mean().backward()
                losses = losses.detach()
                pull()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                steps += 1
                worst = max(worst, float(losses.max()))
                if progress:
                    progress(steps, float(losses.mean()))
            if worst < self.tuning.enough:
                break
        return steps

    def _measure_fisher(self, examples: Sequence[Example]) -> None:
        weights = self.tuned()
        before = [w.requires_grad for w in weights.values()]
        for weight in weights.values():
            weight.requires_grad_(True)
        fresh: dict[str, Tensor] = {}
        for example in examples:
            self._losses([example]).sum().backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    square = weight.grad.square()
                    fresh[name] = fresh[name].add_(square) if name in fresh else square
                    weight.grad = None
        # Where a text is known its gradients are next to nothing: only their proportions tell.
        mean = sum(float(f.sum()) for f in fresh.values()) / sum(f.numel() for f in fresh.values())
        for name, square in fresh.items():
            share = square.div_(max(mean, 1e-30))
            self._fisher[name] = self._fisher[name].add_(share) if name in self._fisher else share
        for weight, wanted in zip(weights.values(), before, strict=True):
            weight.requires_grad_(wanted)

    def _losses(self, examples: Sequence[Example]) -> Tensor:
        """Mean cross-entropy of each example's target tokens: float32 [examples]."""
        rows = [p + t for p, t in examples]
        longest = max(map(len, rows))
        ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows], device=self.device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        with self._arithmetic():
            logits = self.network(input_ids=ids, attention_mask=mask, use_cache=False).logits
        losses = []
        for i, (prompt, target) in enumerate(examples):
            own = logits[i, len(prompt) - 1 : len(prompt) - 1 + len(target)].float()
            losses.append(nn.functional.cross_entropy(own, torch.tensor(target, device=self.device)))
        return torch.stack(losses)

    @contextlib.contextmanager
    def _arithmetic(self) -> Iterator[None]:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            yield

    # -- asking -----------------------------------------------------------------------------

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], limit: int, end: int) -> list[list[int]]:
        """Greedy continuations of at most *limit* tokens, up to the token *end* (left out)."""
        longest = max(map(len, prompts))
        ids = torch.tensor([[end] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        with self._arithmetic():
            whole = self.network.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False, num_beams=1,
                eos_token_id=end, pad_token_id=end, temperature=None, top_p=None, top_k=None,
            )  # fmt: skip
        continuations = []
        for row in whole[:, longest:].tolist():
            continuations.append(row[: row.index(end)] if end in row else row)
        return continuations

    @torch.no_grad()
    def logprobs(self, examples: Sequence[Example]) -> list[float]:
        """Log-probability of each target after its prompt, summed over its tokens."""
        sums: list[float] = []
        for start in range(0, len(examples), 8):
            part = examples[start : start + 8]
            means = self._losses(part).tolist()
            sums += [-mean * len(target) for mean, (_, target) in zip(means, part, strict=True)]
        return sums
