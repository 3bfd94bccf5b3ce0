"""How likely a text is as the continuation of a prompt, with and without memories.

Several continuations of one prompt share its KV cache. Used by evaluation; writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .answer import OpenedMemory
from .assistant import Assistant
from .context import Context
from .engine import Engine, Prompt
from .found import check_kinds
from .generate import Generation
from .generate import generate as answer_with
from .likelihood import log_probability
from .sampling import SamplingOptions

GATE = "gate"


@dataclass(frozen=True)
class Score:
    """Natural-log probability of a continuation of ``tokens`` tokens; ``greedy``: each was the likeliest."""

    logprob: float
    tokens: int
    greedy: bool

    @property
    def mean(self) -> float:
        """Log-probability per token."""
        return self.logprob / max(1, self.tokens)


@dataclass(frozen=True)
class Scores:
    """The scores of all continuations, in order, and the memories they were scored under."""

    scores: list[Score]
    memories: list[OpenedMemory] = field(default_factory=list)


def turn(engine: Engine, content: str) -> Prompt:
    """*content* as a user's turn through the chat template."""
    return engine.prompt([{"role": "user", "content": content}])


def tokens_prompt(tokens: Sequence[int]) -> Prompt:
    """Token ids as a prompt without a template, all of them the user's own words; a memory acts from the last on."""
    return Prompt(tuple(tokens[:-1]), tuple(tokens[-1:]), (0, max(0, len(tokens) - 1)))


def score(
    assistant: Assistant,
    prompt: Prompt,
    continuations: Sequence[Sequence[int]],
    *,
    memories: str | Sequence[str] | None = GATE,
) -> Scores:
    """Score each of *continuations* (token ids) after *prompt*.

    ``memories``: "gate" opens what the gate opens, a list of ids opens exactly those with equal gates,
    None leaves the bare base. Pending memories have no adapter and score as the base. Raises
    DecodeError when prompt and continuation do not fit into the context, InputError for ids of memories
    that cannot share an answer.
    """

    def run() -> Scores:
        context, opened = stand(assistant, prompt, memories)
        end = len(context.tokens)
        first = context.logits()
        scores = []
        for tokens in continuations:
            scores.append(_one(context, first, tokens))
            context.truncate(end)
        return Scores(scores, opened)

    return assistant.on_model(run)


def stand(
    assistant: Assistant, prompt: Prompt, memories: str | Sequence[str] | None
) -> tuple[Context, list[OpenedMemory]]:
    """A context that holds exactly *prompt* under those memories, its last logits fresh. On the model's thread."""
    assistant.runtime.prefixes.advance(prompt.body)
    opened: list[OpenedMemory] = []
    records = []
    if memories == GATE:
        if prompt.body:  # a lone token is about nothing
            assistant.open_bank.refresh()
            chosen = assistant.open_bank.open(assistant.base, prompt)[0]
            chosen = chosen.of_one_kind() if chosen.shown else chosen
            if not any(memory.pending for memory in chosen.shown):
                opened, records = chosen.shown, chosen.records
    elif memories is not None:
        records = [assistant.bank.get(id) for id in memories]
        check_kinds(records)
        opened = [OpenedMemory(r.id, r.heading, 1.0 / len(records)) for r in records]
    if not records:
        assistant.base.decode(prompt.opening)
        return assistant.base, []
    adapters = [assistant.open_bank.adapter(record) for record in records]
    names = [record.adapter_sha256 for record in records]
    assistant.runtime.load(adapters, [m.gate for m in opened], prompt, records[0].activated, names)
    return assistant.mix, opened


def generate(
    assistant: Assistant, prompt: Prompt, memories: str | Sequence[str] | None, limit: int, stop: Sequence[str] = ()
) -> tuple[Generation, list[OpenedMemory]]:
    """Continue *prompt* greedily under those memories, to the end of turn, *limit* tokens or one of *stop*."""

    def run() -> tuple[Generation, list[OpenedMemory]]:
        context, opened = stand(assistant, prompt, memories)
        return answer_with(context, SamplingOptions(max_tokens=limit, stop=tuple(stop))), opened

    return assistant.on_model(run)


@dataclass(frozen=True)
class Ranking:
    """The gate's candidates by their score, best first, and the ids that the policy would open."""

    ids: list[str]
    scores: list[float]
    opened: list[str]


def rank(assistant: Assistant, question: str) -> Ranking:
    """What the gate makes of *question*, by the shallow encoder: nothing is answered."""
    judged = assistant.gate(question)
    return Ranking(judged.ids, judged.candidates.scores.tolist(), [id for id, _ in judged.opened])


def _one(context: Context, first: np.ndarray, tokens: Sequence[int]) -> Score:
    total, greedy = 0.0, True
    for token, logits in zip(tokens, context.predictions(first, tokens)):
        total += log_probability(logits, token)
        greedy = greedy and int(logits.argmax()) == token
    return Score(total, len(tokens), greedy)
