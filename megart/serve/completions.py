"""/v1/completions, and the tokenizer: what editors and evaluation harnesses ask."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ..errors import InputError
from ..runtime.answer import Answer
from ..runtime.complete import Completion, tokenizer_info, tokens_of
from ..runtime.worker import Stream
from . import answers, texts, wire
from .desk import Desk


def add_routes(app: FastAPI, desk: Desk) -> None:
    _add_completions(app, desk)
    _add_tokenizer(app, desk)


def _add_completions(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await answers.body_of(request)
        text = texts.text_of(body)
        id, model = wire.new_id("cmpl"), text.model or desk.models[0]
        ask: wire.Ask | None = None
        if text.question and desk.find(text.model)[2]:
            ask = wire.chat({**body, "messages": [{"role": "user", "content": text.prompts[0]}]})

        def start(prompt: str | list[int]) -> Stream[Any]:
            return desk.start(ask) if ask else desk.complete(text, prompt)

        wanted = [prompt for prompt in text.prompts for _ in range(text.choices)]
        if text.stream:
            return stream_of(id, model, text, wanted, start)
        replies = [await answers.whole(start(prompt), request) for prompt in wanted]
        choices = [*map(texts.as_completion, replies)]
        return JSONResponse(texts.made(id, text, model, choices, wire.ours(replies[0]) if ask else None))


def stream_of(
    id: str, model: str, text: texts.CompletionRequest, wanted: Sequence[str | list[int]],
    start: Callable[[str | list[int]], Stream[Any]],
) -> Response:  # fmt: skip
    """What *start* makes of each of *wanted*, one after the other."""
    first = start(wanted[0])  # refused before the stream begins

    async def events() -> AsyncIterator[dict[str, str]]:
        completions: list[Completion] = []
        for index, prompt in enumerate(wanted):
            stream = start(prompt) if index else first
            if text.echo and isinstance(prompt, str):
                yield answers.event(texts.chunk(id, model, index, prompt))
            async for part in answers.parts(stream):
                yield answers.event(texts.chunk(id, model, index, part))
            completions.append(texts.as_completion(stream.answer))
            ours = {"megart": wire.ours(stream.answer)} if isinstance(stream.answer, Answer) else {}
            yield answers.event(texts.chunk(id, model, index, "", completions[-1]) | ours)
        if text.usage:
            yield answers.event(texts.counted(id, model, completions))
        yield {"data": "[DONE]"}

    return answers.event_stream(answers.telling(events()))


def _add_tokenizer(app: FastAPI, desk: Desk) -> None:
    """As vLLM's server has it, which lm-evaluation-harness asks; llama.cpp's names are taken too."""

    @app.get("/tokenizer_info")
    async def info(model: str = "") -> dict[str, Any]:
        return tokenizer_info(desk.find(model)[1].engine)

    @app.post("/tokenize")
    async def tokenize(request: Request) -> dict[str, Any]:
        body = await answers.body_of(request)
        text = body.get("prompt", body.get("content"))
        if not isinstance(text, str):
            raise InputError('got no prompt; expected {"prompt": a text}')
        assistant = desk.find(str(body.get("model") or ""))[1]
        tokens = assistant.engine.tokenize(
            text, bos=bool(body.get("add_special_tokens", body.get("add_special", False)))
        )
        return {"tokens": tokens, "count": len(tokens), "max_model_len": assistant.base.size}

    @app.post("/detokenize")
    async def detokenize(request: Request) -> dict[str, Any]:
        body = await answers.body_of(request)
        tokens = body.get("tokens")
        if not isinstance(tokens, list):
            raise InputError('got no tokens; expected {"tokens": [ids]}')
        engine = desk.find(str(body.get("model") or ""))[1].engine
        text = engine.detokenize(tokens_of(engine, tokens))
        return {"prompt": text, "content": text}
