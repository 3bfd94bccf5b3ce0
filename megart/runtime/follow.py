"""Follow-up questions: when a question leans on what was said before, and on what.

The rule. A question leans on the conversation when it has a word that points back (she, it, their,
there, ...), begins with one that goes on (and, but, so, ...), or says almost nothing by itself ("Why?").
Then its subject is that of the last question of the user that stood on its own: what that question
opens stays open. A question that names something closes it again, unless the open memory holds the name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .. import gate

_POINTS_BACK = frozenset(
    [
        "he",
        "she",
        "it",
        "they",
        "him",
        "her",
        "them",
        "his",
        "hers",
        "its",
        "their",
        "theirs",
        "himself",
        "herself",
        "itself",
        "themselves",
        "this",
        "that",
        "these",
        "those",
        "there",
        "then",
        "same",
    ]
)
_GOES_ON = frozenset(["and", "but", "so", "also", "or", "then", "plus"])
# A question of fewer telling words than this stands on nothing.
_TELLING = 2
_TURNS = 8


def is_follow_up(question: gate.Question) -> bool:
    """Does *question* lean on what was said before it?"""
    words = [word.lower().split("'")[0].split("’")[0] for word in question.words]
    if not words:
        return True
    if words[0] in _GOES_ON or any(word in _POINTS_BACK for word in words):
        return True
    return not question.names and sum(not asking for asking in question.asking) < _TELLING


def anchor(history: Sequence[Mapping[str, str]], prior: Callable[[str], float]) -> str | None:
    """The last question of the user in *history* that stood on its own."""
    said = [turn["content"] for turn in history if turn.get("role") == "user" and turn.get("content", "").strip()]
    for text in reversed(said[-_TURNS:]):
        if not is_follow_up(gate.read_question(text, prior)):
            return text
    return None
