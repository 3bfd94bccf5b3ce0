"""The output head with its loss: logits never exist whole, and their gradient is made on the spot.

A vocabulary of 49 152 makes the head a third of a small model. Autograd would keep the logits, their
float32 copy and the softmax; here each block of rows is finished while it is in the cache. And of the
vocabulary only some tokens ever come near a memory's targets: see :class:`Field`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK_BYTES = 16 << 20  # of float32 logits at a time


@dataclass(frozen=True)
class Verdict:
    """What the head says of N target tokens.

    ``loss`` [N] is the cross-entropy in nats, ``margin`` [N] the target's logit above the best other
    token's (both float32), ``near`` [N, k] (int64) the k tokens of the largest logits, best first, and
    ``gradient`` [N, n_embd] that of sum(weight * loss) by the hidden states (None without weights).
    """

    loss: Tensor
    margin: Tensor
    near: Tensor
    gradient: Tensor | None


@torch.no_grad()
def judge(
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    cap: float | None = None,
    near: int = 2,
) -> Verdict:
    """Cross-entropy of *targets* [N] (int64) given *hidden* [N, n_embd] under *head* [V, n_embd].

    ``weight`` [N] scales each token's part of the gradient; ``cap`` is Gemma's logit soft-capping;
    ``near`` (at least 2, at most V) is how many of the leading tokens are named.
    """
    count = len(hidden)
    loss = torch.empty(count, dtype=torch.float32, device=hidden.device)
    margin = torch.empty_like(loss)
    nearest = torch.empty((count, near), dtype=torch.long, device=hidden.device)
    gradient = None if weight is None else torch.empty_like(hidden)
    rows = count if hidden.is_cuda else max(16, BLOCK_BYTES // (4 * len(head)))
    for start in range(0, count, rows):
        part = slice(start, start + rows)
        truth = targets[part, None]
        logits = (hidden[part] @ head.T).float()
        if cap:
            logits.div_(cap).tanh_().mul_(cap)
        own = logits.gather(1, truth)
        best = logits.topk(near, dim=-1)
        nearest[part] = best.indices
        rival = torch.where(best.indices[:, :1] == truth, best.values[:, 1:2], best.values[:, :1])
        margin[part] = (own - rival)[:, 0]
        slope = 1 - (logits / cap).square_() if cap and weight is not None else None
        # From here on the logits become their own gradient: softmax minus the truth.
        total = logits.sub_(best.values[:, :1]).exp_().sum(dim=-1, keepdim=True)
        loss[part] = (total.log() + best.values[:, :1] - own)[:, 0]
        if weight is None or gradient is None:
            continue
        logits.mul_(weight[part, None] / total)
        logits.scatter_add_(1, truth, -weight[part, None])
        if slope is not None:
            logits.mul_(slope)
        gradient[part] = logits.to(hidden.dtype) @ head
    return Verdict(loss, margin, nearest, gradient)


class Field:
    """The part of the vocabulary that one memory's study looks at: its targets and their rivals.

    The rivals are the tokens that the bare base puts first at each target, and later whatever an
    examination by the whole head finds ahead. That a memory is learnt is only ever said by the
    whole head.
    """

    RIVALS = 64  # of each target token

    def __init__(self, head: Tensor, targets: Tensor, rivals: Tensor):
        """*head* [V, n_embd]; *targets* and *rivals* are token ids (int64) of any shape."""
        self._head = head
        self.tokens = torch.empty(0, dtype=torch.long, device=head.device)
        self.add(torch.cat([targets.flatten(), rivals.flatten()]))

    def add(self, tokens: Tensor) -> None:
        """Take *tokens* in as well."""
        self.tokens = torch.cat([self.tokens, tokens]).unique()  # sorted
        self._rows = self._head[self.tokens]

    def judge(self, hidden: Tensor, targets: Tensor, weight: Tensor, cap: float | None = None) -> Verdict:
        """:func:`judge` with the softmax over this field's tokens; ``near`` are token ids all the same."""
        verdict = judge(hidden, self._rows, torch.searchsorted(self.tokens, targets), weight, cap)
        return Verdict(verdict.loss, verdict.margin, self.tokens[verdict.near], verdict.gradient)
