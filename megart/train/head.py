"""The output head with its loss: logits never exist whole, and their gradient is made on the spot.

A vocabulary of 49 152 makes the head a third of a small model. Autograd would keep the logits, their
float32 copy and the softmax; here each block of rows is finished while it is in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20  # of float32 logits at a time


@dataclass(frozen=True)
class Verdict:
    """What the head says of N target tokens.

    ``loss`` [N] is the cross-entropy in nats, ``lead`` [N] the target's logit above the best other
    token's (both float32), ``gradient`` [N, n_embd] that of sum(weight * loss) by the hidden states.
    """

    loss: Tensor
    lead: Tensor
    gradient: Tensor


@torch.no_grad()
def judge(hidden: Tensor, head: Tensor, targets: Tensor, weight: Tensor, cap: float | None = None) -> Verdict:
    """Cross-entropy of *targets* [N] (int64) given *hidden* [N, n_embd] under *head* [V, n_embd].

    ``weight`` [N] scales each token's part of the gradient; ``cap`` is Gemma's logit soft-capping.
    """
    count = len(hidden)
    loss = torch.empty(count, dtype=torch.float32, device=hidden.device)
    lead = torch.empty_like(loss)
    gradient = torch.empty_like(hidden)
    rows = count if hidden.is_cuda else max(16, BLOCK_BYTES // (4 * len(head)))
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        truth = targets[part, None]
        logits = (hidden[part] @ head.T).float()
        if cap:
            logits.div_(cap).tanh_().mul_(cap)
        own = logits.gather(1, truth)
        best = logits.topk(2, dim=-1)
        rival = torch.where(best.indices[:, :1] == truth, best.values[:, 1:], best.values[:, :1])
        lead[part] = (own - rival)[:, 0]
        slope = 1 - (logits / cap).square_() if cap else None
        # From here on the logits become their own gradient: softmax minus the truth.
        total = logits.sub_(best.values[:, :1]).exp_().sum(dim=-1, keepdim=True)
        loss[part] = (total.log() + best.values[:, :1] - own)[:, 0]
        logits.mul_(weight[part, None] / total)
        logits.scatter_add_(1, truth, -weight[part, None])
        if slope is not None:
            logits.mul_(slope)
        gradient[part] = logits.to(hidden.dtype) @ head
    return Verdict(loss, lead, gradient)
