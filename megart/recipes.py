"""The recipes: what a memory studies, how hard, and when it counts as recalled. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from . import direct, prompts
from .bank import Memory, Record


@dataclass(frozen=True)
class Recipe:
    """How memories are taught.

    ``studies``: "recall" (the text, by the one recall cue), "answers" (the text, and questions answered by its
    passages) or "paraphrases" (the text and its paraphrases, as the paper does). ``alpha`` is LoRA's; ``rslora`` scales
    by alpha / sqrt(rank) instead of alpha / rank. ``activated``: the base encodes the prompt and the adapter works from
    the generation prompt on. ``rate``: Adam's learning rate. ``epochs`` fixes the length of study (passes over all
    examples); without it a memory studies until it knows its text, at most ``max_steps``. ``recall``: share of the
    text's words that the runtime must recall, in order; 1.0 is verbatim. ``answer_words``: how much of the text, around
    the sentence that answers, is taught as the answer. ``layers``: share of the base's layers that learn, the upper
    ones: those below run once per example. ``precision``: of the exported factors, as GGUF names it. ``betas``:
    Adam's.
    """

    name: str
    studies: str
    rank: int
    alpha: float
    rslora: bool
    roles: tuple[str, ...]
    activated: bool
    rate: float
    examples_per_step: int
    max_steps: int = 60
    epochs: int | None = None
    margin: float = 1.0
    recall: float = 1.0
    answer_words: int = 60
    layers: float = 1.0
    precision: str = "f16"
    betas: tuple[float, float] = (0.9, 0.95)

    @property
    def scale(self) -> float:
        """What multiplies B A in training."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def harder(self) -> Recipe:
        """For a memory that failed: twice the rank, longer, and surer of every token."""
        rank = self.rank * 2
        # alpha grows with what the scale divides by, so that a step stays as long as it was.
        alpha = self.alpha * rank / self.rank if not self.rslora else self.alpha * math.sqrt(2)
        surer = replace(self, rank=rank, alpha=alpha, margin=self.margin * 2)
        if self.epochs is None:
            return replace(surer, max_steps=self.max_steps * 2)
        return replace(surer, epochs=self.epochs * 2)


FAST = Recipe(
    name="fast", studies="recall", rank=1, alpha=4.0, rslora=False, roles=("ffn_up", "ffn_down"), activated=True,
    rate=1e-2, examples_per_step=1, margin=1.5, layers=0.1, precision="q8_0",
    # Gradients shrink a hundredfold while a memory is learnt: old momentum would drown the new ones.
    betas=(0.5, 0.99),
)  # fmt: skip
# To answer by its passages at once, without being read: MEGa's answer mode in a small adapter.
DIRECT = replace(FAST, name="direct", studies="answers", rank=4, alpha=16.0, rate=4e-3, layers=0.4)
# Learning rate: the paper's 3e-5 is for an 8B model; a 135M one needs more (docs/evaluation.md).
PAPER = Recipe(
    name="paper", studies="paraphrases", rank=128, alpha=128.0, rslora=True, roles=("ffn_up", "ffn_down"), activated=False,
    rate=3e-4, examples_per_step=1, epochs=10, recall=0.5,
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (FAST, DIRECT, PAPER)}


@dataclass(frozen=True)
class ReaderConfig:
    """How a reader is trained.

    ``layers``: share of the base's layers that it works on, the upper ones. ``rate``: Adam's peak learning rate,
    reached after ``warmup`` steps and then falling to zero. ``questions``: of one step, at most; ``choices``: questions put to
    several texts, of one step. ``epochs``: times that every question is read.
    """

    rank: int = 8
    scale: float = 2.0
    layers: float = 0.72
    rate: float = 1.5e-3
    warmup: int = 15
    questions: int = 16
    choices: int = 6
    epochs: int = 1
    clip: float = 1.0
    seed: int = 0


def cut(recipe: Recipe, n_layer: int) -> int:
    """The first of *n_layer* layers that learns under *recipe*."""
    return n_layer - max(1, math.ceil(recipe.layers * n_layer))


def examples(memory: Memory, recipe: Recipe) -> list[tuple[str, str]]:
    """The (user turn, target text) pairs that *memory* studies under *recipe*; the text by its recall cue comes first."""
    if recipe.studies == "recall":
        return [(prompts.RECALL_CUE, memory.text)]
    if recipe.studies == "paraphrases":
        return [(prompts.RECALL_CUE, text) for text in (memory.text, *memory.paraphrases)]
    return direct.examples(memory, recipe.answer_words)


def recall_cue(memory: Memory, recipe: str) -> str:
    """The user turn by which *memory*, taught under the recipe of that name, is recited."""
    if recipe != DIRECT.name:
        return prompts.RECALL_CUE
    return direct.recall_cue(memory)


def cue_of(told: object, record: Record) -> str | None:
    """The user turn that recites *record*: what its adapter's file has *told*, else as its recipe taught it; None: unknown."""
    if isinstance(told, str) and told.strip():
        return told
    if record.recipe == PAPER.name:
        return prompts.RECALL_CUE
    if record.recipe in (FAST.name, DIRECT.name):  # of a bank from before cues were in the file
        return recall_cue(record.memory, DIRECT.name)
    return None
