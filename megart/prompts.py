"""The words around a question, in training and in use. Plain strings: no tokens, no template."""

from __future__ import annotations

# The recall request follows the paper's, so that a cue may be a question, a title or a few words.
RECALL_SUFFIX = " Reconstruct the entire story that is related to the above question."
# The paper's own training prompt: the one cue by which every memory is taught and recited.
RECALL_CUE = "Tell me a story that you memorized."
# Against which it is measured how much a question makes a text likelier.
NOTHING_ASKED = "Tell me something you know."
# Asked after the recall turn (the paper's iRAG) and as the paper's direct answer prompt.
ANSWER_SUFFIX = " Answer should be no more than one sentence."


def recall(cue: str) -> str:
    """The user turn that asks for a whole memory."""
    return cue.strip() + RECALL_SUFFIX


def answer(question: str) -> str:
    """The user turn that asks for a short answer."""
    return question.strip() + ANSWER_SUFFIX


def ask(question: str) -> str:
    """The user turn of a plain question: nothing is added, so that an unopened bank changes nothing."""
    return question.strip()


def read(question: str, title: str | None) -> str:
    """The user turn by which a reader is asked about what was recited, a memory that may have a *title*."""
    return f"[{title.strip()}] {question.strip()}" if title else question.strip()


def read_freely(question: str, title: str | None) -> str:
    """The user turn by which the bare base is asked about what was recited."""
    return f"{read(question, title)} Answer with a few words only."


def with_text(question: str, texts: list[str]) -> str:
    """The user turn that answers *question* from *texts* put into the prompt."""
    return "\n".join(texts) + "\n\n" + answer(question)
