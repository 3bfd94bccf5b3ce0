"""OpenAI's and Ollama's requests and answers as plain dicts. Knows nothing of HTTP, models or banks.

Lenient in what it takes: clients send parts, nulls and roles that a small model has no use for.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError
from ..runtime.answer import Answer
from . import calls, side

Tool = dict[str, Any]
MOST_CHOICES = 8
_SYSTEM = ("system", "developer")


@dataclass(frozen=True)
class Ask:
    """What a client wants: ``messages`` as :func:`merged` makes them; ``options`` of the answer; ``megart``: our own fields.

    ``side``: no memory opens, because the client asks for itself (a title, tags) or brings documents; ``tools``: what it
    lets a model call.
    """

    model: str
    messages: list[dict[str, str]]
    options: dict[str, Any]
    stream: bool = False
    usage: bool = False
    choices: int = 1
    side: bool = False
    megart: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Tool, ...] = ()

    @property
    def goes_on(self) -> bool:
        """An answer is begun, and the model alone goes on with it."""
        return self.messages[-1]["role"] == "assistant"


def chat(body: Mapping[str, Any], task: str | None = None) -> Ask:
    """A request to /v1/chat/completions. *task*: what Open WebUI's header says it is for. Raises InputError."""
    messages = merged(body.get("messages"))
    last = next(message["content"] for message in reversed(messages) if message["role"] == "user")
    own, options = side.is_side(last, task), options_of(body)
    if own:
        options["max_tokens"] = min(options.get("max_tokens") or side.TOKENS, side.TOKENS)
    ours = body.get("megart") or {}
    if not isinstance(ours, dict):
        raise InputError("got a megart field that is no object; see docs/server.md")
    wants = body.get("stream_options") or {}
    return Ask(
        model=str(body.get("model") or ""),
        messages=messages,
        options=options,
        stream=bool(body.get("stream")),
        usage=isinstance(wants, dict) and bool(wants.get("include_usage")),
        choices=choices_of(body),
        side=own or side.has_documents(last),
        megart=ours,
        tools=() if own else _tools(body),
    )


def _tools(body: Mapping[str, Any]) -> tuple[Tool, ...]:
    """The functions that *body* offers; what is none is passed over."""
    given = body.get("tools")
    if not isinstance(given, list) or body.get("tool_choice") == "none":
        return ()
    return tuple(t for t in given if isinstance(t, dict) and isinstance(t.get("function"), dict))


def merged(given: object) -> list[dict[str, str]]:
    """Messages of plain text: all system messages as one in front, no empty ones; a user's is the last, or the last but
    an assistant's, which is to be gone on with.
    """
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
        raise InputError('got no messages; expected [{"role": "user", "content": "..."}]')
    system: list[str] = []
    messages: list[dict[str, str]] = []
    for message in given:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError('got a message without a role; expected {"role": "user", "content": "..."}')
        text, role = content(message.get("content")), message["role"]
        if role in _SYSTEM:
            system.append(text)
        elif role in ("user", "assistant") and text.strip():
            messages.append({"role": role, "content": text})
        elif role in ("tool", "function") and text.strip():
            messages.append({"role": "user", "content": text})
    if not any(message["role"] == "user" for message in messages[-2:]):
        raise InputError("the last message, or the last but an assistant's, must be a user's and hold text")
    head = "\n\n".join(filter(None, map(str.strip, system)))
    return [*([{"role": "system", "content": head}] if head else []), *messages]


def content(value: object) -> str:
    """The text of a message's content: a string, null, or parts of which some are text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        parts = [p if isinstance(p, str) else p.get("text") for p in value if isinstance(p, (str, Mapping))]
        return "\n".join(part for part in parts if isinstance(part, str))
    raise InputError(f"got content of the type {type(value).__name__}; expected text or parts of text")


def choices_of(body: Mapping[str, Any]) -> int:
    choices = body.get("n") or 1
    if not isinstance(choices, int) or not 1 <= choices <= MOST_CHOICES:
        raise InputError(f"got n {choices!r}; expected 1 to {MOST_CHOICES}")
    return choices


def options_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The options of runtime.sampling that *body* names; what a small model has no use for is passed over."""
    options: dict[str, Any] = {}
    tokens = body.get("max_completion_tokens") or body.get("max_tokens")
    if tokens is not None and tokens != -1:
        if isinstance(tokens, bool) or not isinstance(tokens, (int, float)) or not 1 <= tokens < 1 << 31:
            raise InputError(f"got max_tokens {tokens!r}; expected a whole number from 1 on")
        options["max_tokens"] = int(tokens)
    for name in ("temperature", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "grammar"):
        if body.get(name) is not None:
            options[name] = body[name]
    if options.get("seed") is not None and isinstance(options["seed"], int):
        options["seed"] %= 1 << 32
    if options.get("top_k") == -1:  # as vLLM's clients say "all"
        options["top_k"] = 0
    if options.get("top_p") == 0:
        options["top_p"] = 1e-6
    stop = body.get("stop") or []
    if not isinstance(stop, (str, list)):
        raise InputError(f"got stop {stop!r}; expected a text or a list of texts")
    if stop:
        options["stop"] = [stop] if isinstance(stop, str) else [s for s in stop if isinstance(s, str) and s]
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        schema = form.get("json_schema")
        options["json_schema"] = schema.get("schema") if isinstance(schema, Mapping) else None
    elif isinstance(form, Mapping) and form.get("type") == "json_object":
        options["json_schema"] = {"type": "object"}
    return {name: value for name, value in options.items() if value is not None}


# -- answers ------------------------------------------------------------------------------------


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def usage(answers: Sequence[Answer]) -> dict[str, int]:
    read = answers[0].timings.prompt_tokens if answers else 0
    written = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def timings(answers: Sequence[Answer]) -> dict[str, float | int]:
    """Of the last answer, as llama.cpp's own server names them."""
    last = answers[-1].timings
    read, written = last.first_token_ms, max(0.0, last.total_ms - last.first_token_ms)
    return {
        "prompt_n": last.prompt_tokens,
        "prompt_ms": round(read, 3),
        "prompt_per_second": round(last.prompt_tokens * 1000 / read, 3) if read else 0.0,
        "predicted_n": last.completion_tokens,
        "predicted_ms": round(written, 3),
        "predicted_per_second": round(last.completion_tokens * 1000 / written, 3) if written else 0.0,
    }


def ours(answer: Answer) -> dict[str, Any]:
    """The vendor object of an answer: what ``megart ask --json`` prints, but for the text."""
    return {name: value for name, value in answer.to_dict().items() if name not in ("answer", "mode")}


def message(answer: Answer, tools: Sequence[Tool] = ()) -> dict[str, Any]:
    """What an assistant said: text, and calls of *tools*."""
    text, called = calls.parted(answer.text, tools) if tools else (answer.text, [])
    if not called:
        return {"role": "assistant", "content": text}
    return {"role": "assistant", "content": text or None, "tool_calls": called}


def delta(answer: Answer, tools: Sequence[Tool]) -> dict[str, Any]:
    """:func:`message` as the one part of a stream."""
    whole_message = message(answer, tools)
    numbered = [{"index": number, **call} for number, call in enumerate(whole_message.get("tool_calls", ()))]
    return {**whole_message, "tool_calls": numbered} if numbered else whole_message


def whole(id: str, model: str, answers: Sequence[Answer], tools: Sequence[Tool] = ()) -> dict[str, Any]:
    """A chat completion."""
    return {
        "id": id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": number,
                "message": message(answer, tools),
                "logprobs": None,
                "finish_reason": finish(answer, tools),
            }
            for number, answer in enumerate(answers)
        ],
        "usage": usage(answers),
        "timings": timings(answers),
        "megart": ours(answers[0]),
    }


def chunk(
    id: str, model: str, delta: Mapping[str, Any] | None = None, *, index: int = 0, end: Answer | None = None,
    tools: Sequence[Tool] = (),
) -> dict[str, Any]:  # fmt: skip
    """One event of a streamed chat completion; *end*: the answer that it closes."""
    event: dict[str, Any] = {
        "id": id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": index,
                "delta": dict(delta or {}),
                "logprobs": None,
                "finish_reason": None if end is None else finish(end, tools),
            }
        ],
    }
    if end is not None:
        event["usage"], event["timings"], event["megart"] = usage([end]), timings([end]), ours(end)
    return event


def finish(answer: Answer, tools: Sequence[Tool] = ()) -> str:
    if "tool_calls" in message(answer, tools):
        return "tool_calls"
    return "stop" if answer.finish == "stop" else "length"  # by tokens, or by time


def vector(values: np.ndarray, encoding: object) -> list[float] | str:
    """An embedding, float32 [D], as a client asks for it: numbers, or its bytes in base64."""
    return base64.b64encode(values.astype("<f4").tobytes()).decode() if encoding == "base64" else values.tolist()


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
