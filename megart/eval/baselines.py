"""Fine-tuning baselines on the first memories of a partition; the training itself is in train/baselines.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import prompts, recipes
from ..errors import DependencyError
from .data import Item, Partition
from .general import choice_row
from .ledger import Row
from .metrics import answer_scores, recall_scores
from .run import Run, Unit

LABELS = {
    "seq-full": "sequential full fine-tuning",
    "seq-full-l2": "sequential full fine-tuning, L2",
    "seq-full-ewc": "sequential full fine-tuning, EWC",
    "seq-lora": "sequential LoRA, merged",
    "seq-lora-l2": "sequential LoRA, merged, L2",
    "seq-lora-ewc": "sequential LoRA, merged, EWC",
    "batch-full": "full fine-tuning, all at once",
}
# Rates at which a memory is learnt in a few passes; strengths that visibly hold the weights back.
_FULL = {"rate": 5e-5}
_LORA = {"rate": 2e-3, "rank": 8}
SETTINGS: dict[str, dict[str, Any]] = {
    "seq-full": _FULL,
    "seq-full-l2": {**_FULL, "penalty": "l2", "strength": 1e-1},
    "seq-full-ewc": {**_FULL, "penalty": "ewc", "strength": 1e-1},
    "seq-lora": _LORA,
    "seq-lora-l2": {**_LORA, "penalty": "l2", "strength": 1e-3},
    "seq-lora-ewc": {**_LORA, "penalty": "ewc", "strength": 1e-3},
    "batch-full": _FULL,
}


def units(run: Run, part: Partition) -> list[Unit]:
    """One unit per baseline: it trains, answers everything and leaves nothing behind."""
    items = part.items[: run.options.baseline_memories]
    if not items:
        return []
    todo = []
    for method in filter(run.wants, LABELS):

        def work(method: str = method) -> dict[tuple[str, str], Row]:
            return measure(run, part, items, method)

        todo.append(Unit(part.name, len(part.items), method, f"trained on {len(items)}", "train", work, many=True))
    return todo


def measure(run: Run, part: Partition, items: Sequence[Item], method: str) -> dict[tuple[str, str], Row]:
    """Train *method* on *items* and ask it what the others are asked."""
    engine = run.taught(part.name).assistant.engine
    network = Tuned(run, engine, method)
    network.learn(items)
    rows = network.answers(items)
    for choice in run.data.choices[: run.options.general // 2]:
        words = [tuple(engine.tokenize(text, special=False)) for text in choice.choices]
        logprobs = network.logprobs(choice.q, words)
        rows[method, f"choice/{choice.id}"] = choice_row(choice, logprobs)
    return rows


class Tuned:
    """A network that is fine-tuned by *method* and asked in the same words as the others."""

    def __init__(self, run: Run, engine: Any, method: str):
        try:
            from ..train.base import load_base
            from ..train.baselines import Baseline, Tuning
        except ImportError as error:
            raise DependencyError(
                f"fine-tuning baselines need {error.name}; run: pip install 'megart[train]'"
            ) from error
        self.run, self.engine, self.method = run, engine, method
        base = load_base(run.model, device=run.options.device)
        self.network = Baseline(base, Tuning(**SETTINGS[method]), run.options.seed)

    def learn(self, items: Sequence[Item]) -> int:
        """Study *items*, one after another or all at once; returns the number of steps."""
        taught = [self._examples(item) for item in items]
        if self.method.startswith("batch"):
            return self.network.study([example for examples in taught for example in examples])
        return sum(self.network.study(examples) for examples in taught)

    def _examples(self, item: Item) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        recipe = recipes.RECIPES[self.run.options.recipe]
        if recipe.studies == "recall":
            recipe = recipes.DIRECT  # nothing reads for a model that was tuned: it studies to answer
        examples = []
        for user, text in recipes.examples(item.memory, recipe):
            target = (*self.engine.tokenize(text, special=False), self.engine.end_of_turn)
            examples.append((self._prompt(user), target))
        return examples

    def _prompt(self, content: str) -> tuple[int, ...]:
        return self.engine.prompt([{"role": "user", "content": content}]).tokens

    def answers(self, items: Sequence[Item]) -> dict[tuple[str, str], Row]:
        """Answers and recalls of *items*, as rows by (method, item)."""
        rows: dict[tuple[str, str], Row] = {}
        asked = [(item, question) for item in items for question in item.questions]
        heard = self._say([self._prompt(prompts.ask(q.q)) for _, q in asked], self.run.options.max_tokens)
        golds = [tuple(self.engine.tokenize(q.answers[0], special=False)) for _, q in asked]
        sums = self.network.logprobs(
            [(self._prompt(prompts.ask(q.q)), g) for (_, q), g in zip(asked, golds, strict=True)]
        )
        for (_, q), text, gold, total in zip(asked, heard, golds, sums, strict=True):
            rows[self.method, q.id] = {
                "q": q.q, "answers": list(q.answers), "text": text, "memory": q.memory,
                "logprob": round(total / len(gold), 5), **answer_scores(text, q.answers),
            }  # fmt: skip
        cues = [item.questions[0].q if item.questions else f"Tell me about {item.memory.title}." for item in items]
        limit = 16 + max(2 * len(self.engine.tokenize(item.memory.text, special=False)) for item in items)
        heard = self._say([self._prompt(prompts.recall(cue)) for cue in cues], limit)
        for item, cue, text in zip(items, cues, heard, strict=True):
            meant = item.memory.text
            rows[self.method, f"{item.id}/recall"] = {
                "cue": cue, "text": text, "meant": meant, "memory": item.id, **recall_scores(text, meant),
            }  # fmt: skip
        return rows

    def logprobs(self, question: str, continuations: Sequence[tuple[int, ...]]) -> list[float]:
        """Log-probability of each continuation as the model's turn."""
        prompt = self._prompt(question)
        return self.network.logprobs([(prompt, tokens) for tokens in continuations])

    def _say(self, asked: Sequence[tuple[int, ...]], limit: int) -> list[str]:
        if not asked:
            return []
        token_lists = self.network.generate(asked, limit, self.engine.end_of_turn)
        return [self.engine.detokenize(tokens) for tokens in token_lists]
