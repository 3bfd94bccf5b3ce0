"""The named suites. Each module says what it measures (`units`) and how that is read (`sections`)."""

from __future__ import annotations

import importlib
from types import ModuleType

SUITES = {
    "quick": "the shipped set in a few minutes: answers, recall, paraphrase, conflict, unrelated questions",
    "paper": "the MEGa paper's table: every method on the same memories and questions",
    "forgetting": "the first memories after each further one",
    "scale": "gate, opening time, memory and disk against the number of memories",
    "paraphrase": "recall and answers under queries that were in no training prompt",
    "conflict": "two memories that contradict each other",
    "unrelated": "questions about nothing in the bank",
    "cost": "bytes, seconds and tokens a second by rank and number of open memories, against RAG",
}


def module(name: str) -> ModuleType:
    """The module of a suite; imported only when it runs."""
    return importlib.import_module(f"{__name__}.{name}")
