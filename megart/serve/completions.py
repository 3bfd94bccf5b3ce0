"""/v1/completions, and the tokenizer: what editors and evaluation harnesses ask."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ..errors import InputError
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
        if text.question and desk.find(text.model)[2]:
            ask = wire.chat({**body, "messages": [{"role": "user", "content": text.prompts[0]}]})
            if text.stream:
                return stream_of(id, model, text, desk.start(ask))
            found = [await answers.whole(desk.start(ask), request) for _ in range(text.choices)]
            return JSONResponse(texts.made(id, text, model, [*map(texts.as_completion, found)], wire.ours(found[0])))
        if text.stream:
            if len(text.prompts) * text.choices > 1:
                raise InputError("a stream goes on with one prompt, once; leave stream out, or ask for one")
            return stream_of(id, model, text, desk.complete(text, text.prompts[0]))
        made = []
        for prompt in text.prompts:
            for _ in range(text.choices):
                made.append(await answers.whole(desk.complete(text, prompt), request))
        return JSONResponse(texts.made(id, text, model, made, None))


def stream_of(id: str, model: str, text: texts.CompletionRequest, stream: Stream[Any]) -> Response:
    async def events() -> AsyncIterator[dict[str, str]]:
        if text.echo and isinstance(text.prompts[0], str):
            yield answers.event(texts.chunk(id, model, 0, text.prompts[0]))
        async for part in answers.parts(stream):
            yield answers.event(texts.chunk(id, model, 0, part))
        end = stream.answer if isinstance(stream.answer, Completion) else texts.as_completion(stream.answer)
        yield answers.event(texts.chunk(id, model, 0, "", end))
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
