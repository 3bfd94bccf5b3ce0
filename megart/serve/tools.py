"""A bank as tools of the Model Context Protocol: remember, recall, ask, forget, list. Outputs are a few lines of text."""

from __future__ import annotations

import threading
from typing import Any

from mcp.server import MCPServer

from .. import __version__
from ..bank import Bank, Memory, Record
from ..errors import InputError, MemoryNotFoundError
from ..later import save_one
from ..runtime.assistant import Assistant

_INSTRUCTIONS = (
    "The user's own notes, kept on this machine. Call ask before answering anything about the user's life, work, things, "
    "people or numbers; its answer is word for word from a note, or says that no note answers. Call remember when the user "
    "tells something to keep."
)
MOST_LISTED = 20
_SHOWN = 160  # characters of a note in a list


class _Memory:
    """One bank; its model is loaded at the first call that needs it."""

    def __init__(self, bank: Bank, **how: Any):
        self.bank, self._how = bank, how
        self._assistant: Assistant | None = None
        self._lock = threading.Lock()

    @property
    def assistant(self) -> Assistant:
        with self._lock:
            if self._assistant is None:
                self._assistant = Assistant(self.bank, **self._how)
            return self._assistant

    def close(self) -> None:
        if self._assistant is not None:
            self._assistant.close()

    def ask(self, question: str) -> str:
        answer = self.assistant.ask(question, strict=True)
        if not answer.known:
            near = f" The nearest notes: {'; '.join(answer.nearest)}." if answer.nearest else ""
            return f"No note answers that.{near}"
        notes = ", ".join(f"{s.title} ({s.id}, {s.created[:10]})" for s in answer.sources)
        older = [f"An older note, of {s.created[:10]}: {s.text}" for s in answer.older]
        return "\n".join([answer.text, f"From: {notes}", *older])

    def recall(self, query: str) -> str:
        answer = self.assistant.recall(query)
        if not answer.memories:
            near = f" The nearest: {'; '.join(answer.nearest)}." if answer.nearest else ""
            return f"No note is about that.{near}"
        return answer.text

    def remember(self, text: str, title: str | None) -> str:
        return f"Remembered as {save_one(self.bank, Memory(text, title=title or None), self.assistant).id}."

    def forget(self, id: str) -> str:
        return f"Forgot {self.bank.remove(id).id}."

    def list(self, query: str) -> str:
        wanted = query.casefold()
        every = [r for r in self.bank.records() if wanted in f"{r.title or ''} {r.text} {r.id}".casefold()]
        lines = [_line(record) for record in every[::-1][:MOST_LISTED]]
        more = f"\n... and {len(every) - MOST_LISTED} more" if len(every) > MOST_LISTED else ""
        return "\n".join(lines) + more if lines else "No notes."


def _line(record: Record) -> str:
    text = " ".join(record.text.split())
    return f"{record.id} ({record.created[:10]}): {record.title + ': ' if record.title else ''}{text[:_SHOWN]}"


def _given(what: str, *values: str | None) -> str:
    """The first of *values* that is there: clients call the same argument by different names."""
    for value in values:
        if value and value.strip():
            return value.strip()
    raise InputError(f"got no {what}; expected some words")


def make_server(bank: Bank, **how: Any) -> MCPServer:
    """The server of *bank*; *how*: arguments of :class:`Assistant`."""
    memory = _Memory(bank, **how)
    server = MCPServer("megart", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING")

    def told(work: Any) -> str:
        try:
            return work()
        except (InputError, MemoryNotFoundError) as error:
            return f"error: {error}"

    @server.tool(description="Answer a question from the user's notes, word for word, with the note it is from.")
    def ask(question: str | None = None, query: str | None = None, q: str | None = None) -> str:
        return told(lambda: memory.ask(_given("question", question, query, q)))

    @server.tool(description="The whole text of the note that a question, a title or a few words are about.")
    def recall(query: str | None = None, question: str | None = None, title: str | None = None) -> str:
        return told(lambda: memory.recall(_given("query", query, question, title)))

    @server.tool(description="Keep a note for the user. It answers from now on.")
    def remember(
        text: str | None = None, title: str | None = None, content: str | None = None, note: str | None = None
    ) -> str:
        return told(lambda: memory.remember(_given("text", text, content, note), title))

    @server.tool(description="Delete a note for good, by its id (see list). Only when the user asks for it.")
    def forget(id: str | None = None, memory_id: str | None = None) -> str:
        return told(lambda: memory.forget(_given("id", id, memory_id)))

    @server.tool(name="list", description="The newest notes, a line each; or those that hold the words of a query.")
    def list_notes(query: str = "") -> str:
        return told(lambda: memory.list(query))

    server.close_memory = memory.close  # type: ignore[attr-defined]
    return server
