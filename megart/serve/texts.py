"""/v1/completions as plain dicts: texts that the bare model goes on with, as they come."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..runtime.answer import Answer
from ..runtime.complete import Completion
from . import side, wire

MOST_PROMPTS = 64


@dataclass(frozen=True)
class CompletionRequest:
    """What a client wants continued: ``prompts``, each a text or token ids, each ``choices`` times.

    ``question``: the one prompt is a question in words, which a memory may answer.
    """

    model: str
    prompts: list[str | list[int]]
    options: dict[str, Any]
    logprobs: int | None
    echo: bool
    stream: bool
    usage: bool
    choices: int
    question: bool


def text_of(body: Mapping[str, Any]) -> CompletionRequest:
    """A request to /v1/completions. Raises InputError."""
    prompts = _prompts(body.get("prompt"))
    limit = body.get("max_tokens")
    options = wire.options_of({**body, "max_tokens": None if limit == 0 else limit})
    if limit == 0:
        options["max_tokens"] = 0
    holes = bool(body.get("suffix")) or any(isinstance(p, str) and side.has_hole(p) for p in prompts)
    if holes:
        options["max_tokens"] = min(options.get("max_tokens", side.TOKENS), side.TOKENS)
    logprobs = _logprobs(body.get("logprobs"))
    wants = body.get("stream_options")
    return CompletionRequest(
        model=str(body.get("model") or ""),
        prompts=prompts,
        options=options,
        logprobs=logprobs,
        echo=bool(body.get("echo")),
        stream=bool(body.get("stream")),
        usage=isinstance(wants, Mapping) and bool(wants.get("include_usage")),
        choices=wire.choices_of(body),
        question=len(prompts) == 1 and isinstance(prompts[0], str) and logprobs is None and not holes and limit != 0,
    )


def _prompts(given: object) -> list[str | list[int]]:
    if isinstance(given, str):
        given = [given]
    if isinstance(given, list) and given and all(type(item) is int for item in given):
        given = [given]
    if (
        not isinstance(given, list)
        or not 0 < len(given) <= MOST_PROMPTS
        or not all(isinstance(p, str) or (isinstance(p, list) and all(type(t) is int for t in p)) for p in given)
        or not all(p if isinstance(p, list) else p.strip() for p in given)
    ):
        raise InputError(f"got no prompt; expected a text, token ids, or a list of at most {MOST_PROMPTS} of either")
    return given


def _logprobs(given: object) -> int | None:
    if given is None or given is False:
        return None
    if given is True:
        return 1
    if not isinstance(given, int) or given < 0:
        raise InputError(f"got logprobs {given!r}; expected a whole number from 0 on")
    return given


def as_completion(answer: Answer | Completion) -> Completion:
    """A memory's answer as what continues the text that asked for it."""
    if isinstance(answer, Completion):
        return answer
    times = answer.timings
    return Completion(
        answer.text, answer.tokens, times.prompt_tokens, answer.finish, None, times.first_token_ms, times.total_ms
    )


def made(
    id: str, text: CompletionRequest, model: str, completions: Sequence[Completion], ours: dict[str, Any] | None
) -> dict[str, Any]:
    """The answer: *completions* are the choices of the first prompt, then of the second, and so on."""
    choices = []
    for number, one in enumerate(completions):
        prompt = text.prompts[number // text.choices]
        before = prompt if text.echo and isinstance(prompt, str) else ""
        choices.append(choice(number, before + one.text, one))
    return _framed(id, model, choices) | {"usage": usage(completions)} | ({"megart": ours} if ours else {})


def chunk(id: str, model: str, index: int, text: str, end: Completion | None = None) -> dict[str, Any]:
    """One event of a streamed completion; *end*: the whole that it closes."""
    if end is None:
        return _framed(id, model, [{"index": index, "text": text, "logprobs": None, "finish_reason": None}])
    return _framed(id, model, [choice(index, text, end)]) | {"usage": usage([end])}


def counted(id: str, model: str, completions: Sequence[Completion]) -> dict[str, Any]:
    """The last event of a streamed completion, where its client asked for the tokens of all *completions*."""
    return _framed(id, model, []) | {"usage": usage(completions)}


def choice(index: int, text: str, one: Completion) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": _scores(one),
        "finish_reason": "stop" if one.finish == "stop" else "length",
    }


def _scores(one: Completion) -> dict[str, Any] | None:
    if one.scored is None:
        return None
    offsets, at = [], 0
    for token in one.scored:
        offsets.append(at)
        at += len(token.text)
    return {
        "tokens": [token.text for token in one.scored],
        "token_logprobs": [token.logprob for token in one.scored],
        # The likelier of two tokens that look the same keeps its place.
        "top_logprobs": [None if t.logprob is None else dict(reversed(t.best)) for t in one.scored],
        "text_offset": offsets,
    }


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    read, written = sum(one.prompt_tokens for one in completions), sum(len(one.tokens) for one in completions)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _framed(id: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": id, "object": "text_completion", "created": int(time.time()), "model": model, "choices": choices}
