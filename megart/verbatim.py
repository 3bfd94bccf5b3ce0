"""Whether memories still recite their texts word for word: each is asked by its cue, alone, and compared with the bank."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import prompts, recipes
from .adapter import CUE_KEY, Adapter
from .bank import Bank, Record
from .errors import MegartError

if TYPE_CHECKING:
    from .runtime.acceptance import Acceptance

# Logits: where every token leads by so much, word-by-word decoding is not waited for.
SURE = 0.5


@dataclass(frozen=True)
class Recited:
    """How the memory ``id`` recited its text.

    share: of the text's words, in order, 0 to 1; 1 is word for word. error: why it could not recite, else "".
    """

    id: str
    share: float
    error: str = ""

    def told(self) -> str:
        """One line for the user."""
        why = self.error or f"recites {self.share:.0%} of its text, not all of it word for word"
        return f"{self.id}: {why}"


def recite_all(
    bank: Bank, judge: Acceptance, on_progress: Callable[[int, int], None] | None = None
) -> list[Recited]:
    """Let every learnt memory of *bank* recite; in the order they came. ``on_progress``: done, of how many."""
    learnt, recitals = bank.records("learnt"), []
    for record in learnt:
        try:
            recitals.append(Recited(record.id, _share(record, bank.adapter(record.id), judge)))
        except MegartError as error:
            recitals.append(Recited(record.id, 0.0, str(error)))
        if on_progress:
            on_progress(len(recitals), len(learnt))
    return recitals


def _share(record: Record, adapter: Adapter, judge: Acceptance) -> float:
    cue = recipes.cue_of(adapter.metadata.get(CUE_KEY), record) or prompts.RECALL_CUE
    return recited_share(adapter, cue, [record.text], judge, activated=record.activated)


def recited_share(
    adapter: Adapter, cue: str, accepted: Sequence[str], judge: Acceptance, *, activated: bool
) -> float:
    """How much of a text the adapter alone says to the user turn *cue*: words in order, 0 to 1; 1 is word for word.

    Of the first of *accepted*, or of the one that is told best.
    """
    text = accepted[0]
    if judge.margin(adapter, cue, text, activated=activated) >= SURE:
        return 1.0
    limit = 2 * len(judge.engine.tokenize(text, special=False)) + 16
    heard = judge.recall(adapter, cue, activated=activated, max_tokens=limit)
    return max(similarity(heard, text) for text in accepted)


def similarity(heard: str, text: str) -> float:
    """1.0 when *heard* is *text* but for white space; else the share of words kept in order."""
    heard_words, meant = heard.split(), text.split()
    if heard_words == meant:
        return 1.0
    match = difflib.SequenceMatcher(None, heard_words, meant, autojunk=False)
    return min(0.9999, match.ratio())
