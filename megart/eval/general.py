"""General knowledge that must not suffer: multiple choice by log-likelihood, and perplexity of plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..runtime import score
from .data import Choice, Data, sample
from .ledger import Row
from .run import Run, Unit

WINDOW = 96  # tokens of a text that are read, and as many that are then scored


def units(run: Run, partition: str, stage: int, methods: Sequence[str]) -> list[Unit]:
    """Multiple choice and perplexity for the methods that answer through llama.cpp."""
    todo = []
    for choice in run.data.choices:
        for method in methods:
            todo.append(_choice(run, partition, stage, method, choice))
    for name, text in passages(run.data, run.options.general // 4, run.options.seed):
        for method in methods:
            todo.append(_text(run, partition, stage, method, name, text))
    return todo


def _choice(run: Run, partition: str, stage: int, method: str, choice: Choice) -> Unit:
    def work() -> Row:
        assistant = run.taught(partition).assistant
        prompt = score.turn(assistant.engine, choice.q)
        words = [assistant.engine.tokenize(c, special=False) for c in choice.choices]
        under = None if method == "base" else score.GATE
        scored = score.score(assistant, prompt, words, memories=under)
        return {"opened": [m.id for m in scored.memories], **choice_row(choice, [s.logprob for s in scored.scores])}

    return Unit(partition, stage, method, f"choice/{choice.id}", "choice", work)


def choice_row(choice: Choice, logprobs: Sequence[float]) -> Row:
    """What was chosen: by probability of the answer's text per byte, as lm-eval's acc_norm, and plainly."""
    lengths = [max(1, len(text.encode())) for text in choice.choices]
    normed = [value / length for value, length in zip(logprobs, lengths, strict=True)]
    pick = max(range(len(normed)), key=normed.__getitem__)
    plain = max(range(len(normed)), key=list(logprobs).__getitem__)
    return {
        "picked": pick,
        "acc_norm": float(pick == choice.right),
        "acc": float(plain == choice.right),
        "logprobs": [round(value, 5) for value in logprobs],
    }


def passages(data: Data, count: int, seed: int) -> list[tuple[str, str]]:
    """Stretches of the plain texts, long enough to fill both halves of a window."""
    stretches = []
    for name, text in data.texts:
        paragraphs = [p for p in text.split("\n") if len(p.split()) >= 160]  # two windows and some
        stretches += [(f"text/{name}-{i}", p) for i, p in enumerate(paragraphs)]
    return sample(stretches, count, seed)


def _text(run: Run, partition: str, stage: int, method: str, name: str, text: str) -> Unit:
    def work() -> Row:
        assistant = run.taught(partition).assistant
        tokens = assistant.engine.tokenize(text, special=False, bos=True)[: 2 * WINDOW]
        prompt = score.tokens_prompt(tokens[:WINDOW])
        under = None if method == "base" else score.GATE
        scored = score.score(assistant, prompt, [tokens[WINDOW:]], memories=under)
        one = scored.scores[0]
        return {"opened": [m.id for m in scored.memories], "nll": round(-one.logprob, 5), "tokens": one.tokens}

    return Unit(partition, stage, method, name, "text", work)


def perplexity(rows: Sequence[Row]) -> tuple[float, int] | None:
    """exp of the mean negative log-likelihood per token, and the number of tokens."""
    scored = [row for row in rows if "nll" in row]
    tokens = sum(row["tokens"] for row in scored)
    return (math.exp(sum(row["nll"] for row in scored) / tokens), tokens) if tokens else None
