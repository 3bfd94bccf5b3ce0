"""Questions that hold more than one: two facts at once.

A small model answers one question at a time. "Where is A, and who keeps B?" is asked as two. Plain text in, plain text
out; question words of several European languages, but "the number of A and of B" in English only.
"""

from __future__ import annotations

import re

_ASKING = r"""who|whom|whose|what|which|where|when|why|how|wer|wen|wem|was|welche\w?|wo|wann|warum|wie|wieso|qui|que|quoi|quel\w*|où|
quand|pourquoi|comment|combien|quién\w*|qué|cuál\w*|dónde|cuándo|cómo|cuánt\w*|chi|che|quale|quali|dove|quando|perché|come|quant\w*""".replace(
    "\n", ""
)
_BEFORE = """in|on|at|for|from|to|by|with|of|into|under|since|until|during|before|after|besides|an|am|um|bei|mit|von|zu|seit|nach|vor|
während|à|de|dans|avec|pour|depuis|avant|après|con|da|per|para|por|desde|durante|antes|después|dopo|prima""".replace("\n", "")
_ASKS = rf"(?:(?:{_BEFORE})\s+)?(?:{_ASKING})\b"
# What a question may say ahead of its question word: "in the season of 2024, which club ...", "Overall, how many ...".
_SETTING = rf"(?:(?:{_BEFORE})\s[^?;]*?|\w+),\s+"
# German "was" and Italian "come" and "dove" are no question words after an English "and".
_WITH = r"\s+(?:and(?!\s+(?:was|come|dove)\b)|und|et|e|y|en|och)\s+"
_AND = re.compile(rf"[,;]?{_WITH}(?={_ASKS})|,{_WITH}(?={_SETTING}{_ASKS})", re.IGNORECASE)
_BEGINS = re.compile(rf"\W*(?:(?:\w+\s+){{0,3}}?(?:{_ASKING})\b|{_SETTING}{_ASKS})", re.IGNORECASE)
_ENDS = re.compile(rf"\b(?:{_ASKING})$", re.IGNORECASE)
_THE = r"(?:the|my|our|his|her|their)\b"
# "the numbers of A and of B", "where are A and B": each of the two is asked for by itself.
_OF_BOTH = re.compile(
    rf"(?P<head>.+\b(?P<of>of|for)\s)(?P<one>{_THE}.+?),? and (?:(?P=of)\s)?(?P<other>{_THE}.+?)\s*\?*$", re.IGNORECASE
)
_BOTH_ARE = re.compile(
    rf"(?P<asking>what|who|where|when|(?:what|which) \w+) (?P<are>are|were) (?P<one>{_THE}.+?),? and (?P<other>{_THE}.+?)\s*\?*$",
    re.IGNORECASE,
)
# "What is A and B?": one thing, or two.
_BOTH_IS = re.compile(
    rf"(?P<asking>what|who|where|when) (?P<is>is|was|['’]s) (?P<one>{_THE}(?!.*\bbetween\b).+?) and (?P<other>{_THE}.+?)\s*\?*$",
    re.IGNORECASE,
)


def clauses(question: str) -> list[str]:
    """The questions that *question* asks, each complete in itself: one, or two joined by "and"."""
    match = _AND.search(question)
    if match is None:
        return _of_two(question.strip()) or [question]
    first, second = question[: match.start()].strip(" ,;"), question[match.end() :].strip()
    if len(first.split()) < 3 or len(second.split()) < 3 or not _BEGINS.match(first) or _ENDS.search(first):
        return [question]
    return [f"{first}?", f"{second[0].upper()}{second[1:]}"]


def _of_two(question: str) -> list[str] | None:
    """One thing asked of two others, in English, as two questions."""
    if " or " in question:
        return None
    if match := _BOTH_ARE.match(question):
        return [f"{match['asking']} {match['are']} {match[name]}?" for name in ("one", "other")]
    match = _OF_BOTH.match(question)
    return match and [f"{match['head']}{match[name]}?" for name in ("one", "other")]


def halves(question: str) -> list[str]:
    """The two questions that *question* may be where it is not known as one: "what is the password and the door code?"."""
    match = _BOTH_IS.match(question.strip())
    return [f"{match['asking']} {match['is']} {match[name]}?" for name in ("one", "other")] if match else []
