"""OpenAI's Responses API as plain dicts, as far as it is about text. Nothing of a conversation is kept."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from ..errors import InputError
from ..runtime.answer import Answer
from . import wire

_NAMED = {"max_output_tokens": "max_tokens"}


def ask_of(body: Mapping[str, Any], task: str | None = None) -> wire.Ask:
    """A request to /v1/responses. Raises InputError."""
    if body.get("previous_response_id") or body.get("conversation"):
        raise InputError("this server keeps no conversations; send their earlier messages as input")
    head = [{"role": "system", "content": body["instructions"]}] if body.get("instructions") else []
    given = {_NAMED.get(name, name): value for name, value in body.items()}
    text = body.get("text")
    form = text.get("format") if isinstance(text, Mapping) else None
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        given["response_format"] = {"type": "json_schema", "json_schema": form}
    elif isinstance(form, Mapping):
        given["response_format"] = form
    return wire.chat({**given, "n": 1, "messages": [*head, *_messages(body.get("input"))]}, task)


def _messages(given: object) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, Mapping) for item in given):
        raise InputError("got no input; expected a text or a list of messages")
    # What is no message, as calls of tools and what they gave, is passed over.
    return [
        {"role": item["role"], "content": item.get("content")}
        for item in given
        if item.get("type", "message") == "message" and "role" in item
    ]


def made(id: str, model: str, body: Mapping[str, Any], answer: Answer | None, item: str) -> dict[str, Any]:
    """The response; without *answer* it is still on its way. *item*: the id of its one message."""
    cut = answer is not None and wire.finish(answer) == "length"
    status = "in_progress" if answer is None else "incomplete" if cut else "completed"
    response: dict[str, Any] = {
        "id": id,
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata") or {},
        "model": model,
        "output": [] if answer is None else [message(item, answer.text, "incomplete" if cut else "completed")],
        "parallel_tool_calls": False,
        "previous_response_id": None,
        "store": False,
        "temperature": body.get("temperature"),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": "none",
        "tools": [],
        "top_p": body.get("top_p"),
        "truncation": "disabled",
        "usage": None,
    }
    if answer is not None:
        counts = wire.usage([answer])
        response["usage"] = {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": counts["total_tokens"],
        }
        response["megart"] = wire.ours(answer)
    return response


def message(item: str, text: str | None, status: str) -> dict[str, Any]:
    parts = [] if text is None else [part(text)]
    return {"id": item, "type": "message", "status": status, "role": "assistant", "content": parts}


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


class Events:
    """The events of one streamed response, in the order in which clients expect them."""

    def __init__(self, id: str, model: str, body: Mapping[str, Any]):
        self._id, self._model, self._body = id, model, body
        self._item, self._numbers = wire.new_id("msg"), count()

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def begin(self) -> Iterator[dict[str, Any]]:
        now = made(self._id, self._model, self._body, None, self._item)
        yield self._event("response.created", response=now)
        yield self._event("response.in_progress", response=now)
        yield self._event("response.output_item.added", output_index=0, item=message(self._item, None, "in_progress"))
        yield self._event("response.content_part.added", **self._place, part=part(""))

    def delta(self, text: str) -> dict[str, Any]:
        return self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])

    def end(self, answer: Answer) -> Iterator[dict[str, Any]]:
        whole = made(self._id, self._model, self._body, answer, self._item)
        yield self._event("response.output_text.done", **self._place, text=answer.text, logprobs=[])
        yield self._event("response.content_part.done", **self._place, part=part(answer.text))
        yield self._event("response.output_item.done", output_index=0, item=whole["output"][0])
        yield self._event(f"response.{whole['status']}", response=whole)

    def failed(self, error: Mapping[str, Any]) -> dict[str, Any]:
        return self._event("error", code=error.get("code"), message=error.get("message"), param=None)

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item, "output_index": 0, "content_index": 0}
