"""One client's talk: what was said, and what the last answer was about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .answer import Answer
from .request import Message

if TYPE_CHECKING:
    from .assistant import Assistant


class Conversation:
    """Asks *assistant*, and remembers. Conversations know nothing of each other; one thread each.

    ``history``: the turns so far. Its subject is the memories that the last answer came from, not what a question
    named: a question that was not understood does not lead it astray.
    """

    def __init__(self, assistant: Assistant, history: Sequence[Message] = ()):
        self._assistant = assistant
        self.history: list[Message] = [*history]
        self._subject: tuple[str, ...] | None = None

    def ask(self, question: str, *, on_text: Callable[[str], None] | None = None, **options: Any) -> Answer:
        """As :meth:`Assistant.ask`, after all that was said. A cancelled answer is not remembered."""
        messages = [*self.history, {"role": "user", "content": question}]
        answer = self._assistant.chat(messages, on_text=on_text, subject=self._subject, **options)
        if answer.finish != "cancelled":
            self.add(question, answer)
        return answer

    def add(self, question: str, answer: Answer) -> None:
        """Remember *answer* as the one to *question*."""
        self.history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.text}]
        if answer.sources:
            self._subject = tuple(dict.fromkeys(source.id for source in answer.sources))

    def forget(self) -> None:
        """Begin anew."""
        self.history, self._subject = [], None
