"""The recipes: what a memory studies, how hard, and when it counts as recalled. No torch here."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from . import cloze, prompts
from .bank import Memory

MLP = ("ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Recipe:
    """How memories are taught.

    ``alpha`` is LoRA's; ``rslora`` scales by alpha / sqrt(rank) instead of alpha / rank.
    ``activated``: the base encodes the prompt and the adapter works from the generation prompt on.
    ``rate``: AdamW learning rate. ``epochs`` fixes the length of study (passes over all lessons);
    without it a memory studies until it knows its text, at most ``max_steps``.
    ``recall``: share of the text's words that the runtime must recall, in order; 1.0 is verbatim.
    ``answer_words``: how much of the text, around the sentence that answers, is taught as the answer.
    ``layers``: share of the base's layers that learn, the upper ones: those below run once per lesson.
    ``precision``: of the exported factors, as GGUF names it. ``betas``: AdamW's.
    """

    name: str
    rank: int
    alpha: float
    rslora: bool
    roles: tuple[str, ...]
    activated: bool
    rate: float
    lessons_per_step: int
    max_steps: int = 60
    epochs: int | None = None
    margin: float = 1.0
    recall: float = 1.0
    answer_words: int = 60
    layers: float = 1.0
    precision: str = "f16"
    weight_decay: float = 0.0
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
        longer = {"max_steps": self.max_steps * 2} if self.epochs is None else {"epochs": self.epochs * 2}
        return replace(self, rank=rank, alpha=alpha, margin=self.margin * 2, **longer)


FAST = Recipe(
    name="fast", rank=4, alpha=16.0, rslora=False, roles=("ffn_up", "ffn_down"), activated=True,
    rate=4e-3, lessons_per_step=1, margin=1.5, layers=0.4, precision="q8_0",
    # Gradients shrink a hundredfold while a memory is learnt: old momentum would drown the new ones.
    betas=(0.5, 0.99),
)  # fmt: skip
# Learning rate: the paper's 3e-5 is for an 8B model; a 135M one needs more (see README).
PAPER = Recipe(
    name="paper", rank=128, alpha=128.0, rslora=True, roles=("ffn_up", "ffn_down"), activated=False,
    rate=3e-4, lessons_per_step=1, epochs=10, recall=0.5,
)  # fmt: skip
RECIPES = {recipe.name: recipe for recipe in (FAST, PAPER)}


# Other wordings teach to answer other questions; beyond these they only cost time.
PARAPHRASES = 2
# So many prompts for one target teach that any other may call it up; more only cost time.
PROMPTS = 7


def cut(recipe: Recipe, n_layer: int) -> int:
    """The first of *n_layer* layers that learns under *recipe*."""
    return n_layer - max(1, math.ceil(recipe.layers * n_layer))


def lessons(memory: Memory, recipe: Recipe) -> list[tuple[str, str]]:
    """The (user turn, target text) pairs that *memory* studies under *recipe*; the text comes first.

    The fast recipe asks for the text under recall prompts, and adds the user's questions and cloze
    questions, answered by the passage that holds the answer: a short text whole, of a long one the
    sentence and what follows. (Single sentences are as easily learnt but half as often the right ones.)
    """
    if recipe.name == "paper":
        return [(prompts.PAPER_TRAINING, text) for text in (memory.text, *memory.paraphrases)]
    asked = cloze.questions(memory.text, memory.title, per_sentence=1)
    first, *others = cues(memory)
    # One recall cue is a question, as a person's may be; more of them cost direct answers.
    mixed = dict.fromkeys([first, *(question for question, _ in asked[:1]), *others])
    whole = [(prompts.recall(cue), memory.text) for cue in mixed]
    given = [(question, cloze.nearest(memory.text, question)) for question in memory.questions]
    asked += cloze.retold(memory.text, memory.paraphrases[:PARAPHRASES], memory.title)

    def answered(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(prompts.ask(q), cloze.passage(memory.text, answer, recipe.answer_words)) for q, answer in pairs]

    direct = answered(asked)
    same = list(dict.fromkeys(pair for pair in direct if pair[1] == memory.text))
    kept = set(_spread(same, max(2, PROMPTS - len(whole) - len(given))))
    direct = [pair for pair in direct if pair[1] != memory.text or pair in kept]
    return list(dict.fromkeys(whole + answered(given) + direct))


def _spread(pairs: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """At most *count* of *pairs* (at least 2), evenly from the first to the last."""
    if len(pairs) <= count:
        return pairs
    return [pairs[round(i * (len(pairs) - 1) / (count - 1))] for i in range(count)]


def cues(memory: Memory) -> list[str]:
    """What a person would say to call the memory up: two or three different cues."""
    opening = " ".join(memory.text.split()[:6])
    found = [f"Tell me about {memory.title or opening}.", *memory.questions[:2]]
    return [*found, memory.title or opening]


def check_cue(memory: Memory) -> str:
    """The cue of the acceptance check."""
    return cues(memory)[0]
