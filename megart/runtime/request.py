"""What is asked of an Assistant: one question and how it is to be answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import prompts
from .draft import LONGEST
from .engine import Tool
from .sampling import SamplingOptions
from .scope import EVERYTHING, Scope

Message = dict[str, str]
ANSWER_TOKENS = 128
RECALL_TOKENS = 768
#: The forms of an answer: the fewest words, the sentence that they stand in, or all that was recited.
STYLES = ("short", "sentence", "passage")
STYLE = "sentence"
COMBINE = ("turns", "mix")
# The user's turn of each mode.
MODES = {
    "ask": prompts.ask, "direct": prompts.ask, "bare": prompts.ask, "irag": prompts.ask, "recall": prompts.recall,
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One question as it waits for the worker. Without ``limited`` max_tokens is of each memory's turn.

    ``subject``: ids of the memories that the last answer came from, None where that is to be told from ``history``.
    ``combine``: "turns" or "mix"; ``draft_max``: tokens that a memory's text may guess at a time.
    ``on_known`` is told, from the model's thread, whether the question is known and the nearest titles, before the
    bare model speaks in a memory's place. ``tools``: what the client lets the bare model call. ``begun``: the answer's
    beginning, which the bare model goes on with.
    """

    mode: str
    question: str
    history: list[Message]
    options: SamplingOptions
    scope: Scope = EVERYTHING
    limited: bool = True
    in_talk: bool = False  # another turn is likely to follow
    style: str = STYLE
    strict: bool = False
    combine: str = "turns"
    draft_max: int = LONGEST
    on_known: Callable[[bool | None, list[str]], None] | None = None
    subject: tuple[str, ...] | None = None
    tools: tuple[Tool, ...] = ()
    begun: str = ""

    def worded(self) -> tuple[str, tuple[int, int]]:
        """The user's turn and where the user's own words stand in it."""
        content = MODES[self.mode](self.question).strip()
        start = max(0, content.find(self.question.strip()))
        return content, (start, start + len(self.question.strip()))
