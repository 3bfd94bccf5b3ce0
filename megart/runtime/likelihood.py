"""How much likelier a question makes a text, by the base's own next-token probabilities.

Pointwise mutual information, token by token: log P(token | question, what stands before it in the text) less the same
after a request that asks for nothing in particular.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from .. import prompts
from .context import Context
from .embed import text_prompt
from .engine import Engine, Prompt

# Texts whose probability after nothing in particular is remembered, each of a few hundred bytes.
KEPT = 4096
Tokens = tuple[int, ...]


class Likelihood:
    """Reads texts after questions. ``context`` gives a context of the bare base, when there is something to read."""

    def __init__(self, context: Callable[[], Context]):
        self._context = context
        self._alone: dict[Tokens, np.ndarray] = {}

    def gains(self, question: str, groups: Sequence[Sequence[str]], tokens: int) -> list[list[np.ndarray]]:
        """What *question* adds to the log-probability of each token of the texts of each group: float64 [n], nats.

        Of a group so many texts are read, in their order, as have *tokens* tokens together; of its first one no
        more than these. None are where the question leaves no room for a text, or the base's memory
        cannot be cut back to the question (a recurrent model). Raises DecodeError when llama.cpp fails.
        """
        context = self._context()
        asked = text_prompt(context.engine, question)
        if not context.can_forget or len(asked.tokens) + tokens > context.size:
            return [[] for _ in groups]
        token_groups = [_within(tokens, group, context.engine) for group in groups]
        every = list(dict.fromkeys(text for group in token_groups for text in group))
        self._read_alone(context, every)
        after = dict(zip(every, _read(context, asked, every)))
        return [[after[text] - self._alone[text] for text in group] for group in token_groups]

    def likelier(self, text: str, other: str) -> float | None:
        """How much likelier *text* is than *other*, after nothing in particular: nats.

        None where the base cannot tell, as in :meth:`gains`.
        """
        context = self._context()
        both = [tuple(context.engine.tokenize(one, special=False)) for one in (text, other)]
        prompt = text_prompt(context.engine, prompts.NOTHING_ASKED)
        if not context.can_forget or len(prompt.tokens) + max(map(len, both)) > context.size:
            return None
        self._read_alone(context, both)
        one, two = (float(self._alone[tokens].sum()) for tokens in both)
        return one - two

    def _read_alone(self, context: Context, texts: list[Tokens]) -> None:
        new = [text for text in texts if text not in self._alone]
        if len(self._alone) + len(new) > KEPT:
            self._alone.clear()
            new = texts
        if new:
            self._alone.update(zip(new, _read(context, text_prompt(context.engine, prompts.NOTHING_ASKED), new)))


def _within(limit: int, texts: Sequence[str], engine: Engine) -> list[Tokens]:
    fitting: list[Tokens] = []
    for text in texts:
        tokens = tuple(engine.tokenize(text, special=False)[:limit])
        if fitting and sum(map(len, fitting)) + len(tokens) > limit:
            break
        if tokens:
            fitting.append(tokens)
    return fitting


def _read(context: Context, prompt: Prompt, texts: Sequence[Tokens]) -> list[np.ndarray]:
    """Log-probabilities of the tokens of each of *texts* as an answer to *prompt*: float64 [n]."""
    context.advance(prompt.tokens, logits=True)
    first, end = context.logits(), len(prompt.tokens)
    log_probabilities = []
    for text in texts:
        log_probabilities.append(np.array([*map(log_probability, context.predictions(first, text), text)]))
        context.truncate(end)
    return log_probabilities


def log_probability(logits: np.ndarray, token: int) -> float:
    """Of *token* under *logits*, float32 [vocabulary]: nats."""
    top = logits.max()
    return float(logits[token] - top) - math.log(np.exp(logits - top).sum(dtype=np.float64))
