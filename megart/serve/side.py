"""Requests that a client makes for itself: titles, tags, suggestions, completions while somebody types.

They are nobody's question to the memory, so none opens. Told by a header or by how the client's own prompt begins.
"""

from __future__ import annotations

import re

TOKENS = 128  # the most that such a request gets
# Open WebUI's prompts all begin so, also the one that puts documents before a person's own question.
_OPEN_WEBUI = re.compile(r"### Task:\s*(?P<documents>Respond to the user query)?")
_OTHERS = re.compile(
    r"""<task>
    | (please\s+)? (generate|provide|write|create) \s a \s (concise|short|brief) [^\n]{0,60} \b (title|summary) \b   #
    LibreChat
    | summarize \s in \s a \s \d+-word \s title                                                                    # Jan
    | given \s the \s following [^\n]{0,40} please \s reply \s with \s a \s title                                   # Continue
    | your \s task \s is \s to \s reflect \s the \s speaker's \s likely \s facial \s expression                    # Open WebUI
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Marks of a text with a hole in it, for a model to fill in: no question, whatever the words say.
_HOLE = re.compile(
    r"<\|?(fim|fim_)[ _-]?(prefix|suffix|middle|begin|hole|end)|<｜fim▁|<PRE>|\[SUFFIX\]|<\|code_(prefix|suffix)\|>"
)


def is_side(text: str, task: str | None = None) -> bool:
    """Whether the last message, *text*, is a client's own; *task*: what Open WebUI's header says it is for."""
    match = _OPEN_WEBUI.match(text.lstrip())
    return bool(task or (match and not match["documents"]) or _OTHERS.match(text.lstrip()))


def has_documents(text: str) -> bool:
    """Whether *text* is a person's question among documents that Open WebUI has looked up: they answer it, no memory."""
    match = _OPEN_WEBUI.match(text.lstrip())
    return bool(match and match["documents"])


def has_hole(text: str) -> bool:
    """Whether *text* is code or prose with a hole that the model is to fill in."""
    return bool(_HOLE.search(text))
