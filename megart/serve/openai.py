"""OpenAI's API over a desk: models, chat, responses, embeddings."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ..errors import InputError, MegartError
from ..runtime.answer import Answer
from . import answers, responses, wire
from .desk import Desk

MOST_INPUTS = 1024  # texts of one request for vectors, each some 10 to 50 ms


def add_routes(app: FastAPI, desk: Desk) -> None:
    _add_models(app, desk)
    _add_chat(app, desk)
    _add_responses(app, desk)


def _add_models(app: FastAPI, desk: Desk) -> None:
    def shown(id: str) -> dict[str, Any]:
        return {"id": id, "object": "model", "created": 0, "owned_by": "megart", "megart": desk.about(id)}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [shown(id) for id in desk.models]}

    @app.get("/v1/models/{id:path}")
    async def model(id: str) -> dict[str, Any]:
        return shown(id)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await answers.body_of(request)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise InputError("got no input; expected a text or a list of texts")
        if len(texts) > MOST_INPUTS:
            raise InputError(f"got {len(texts)} texts; expected at most {MOST_INPUTS} at a time")
        vectors = await answers.whole(desk.embed(str(body.get("model") or ""), texts), request)
        rows = [
            {"object": "embedding", "index": n, "embedding": wire.vector(v, body.get("encoding_format"))}
            for n, v in enumerate(vectors)
        ]
        return JSONResponse({"object": "list", "data": rows, "model": body.get("model"), "usage": wire.usage([])})


def _add_chat(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        ask = wire.chat(await answers.body_of(request), request.headers.get("x-openwebui-task"))
        id, model = wire.new_id("chatcmpl"), ask.model or desk.models[0]
        saved = await answers.remembered(desk, ask)
        tools = () if saved else desk.tools(ask)
        if not ask.stream:
            replies = [saved] if saved else [await answers.whole(desk.start(ask), request) for _ in range(ask.choices)]
            return JSONResponse(wire.whole(id, model, replies, tools))
        first = None if saved else desk.start(ask)  # refused before the stream begins

        async def events() -> AsyncIterator[dict[str, str]]:
            replies: list[Answer] = []
            for index in range(1 if saved else ask.choices):
                yield answers.event(wire.chunk(id, model, {"role": "assistant", "content": ""}, index=index))
                if saved:
                    yield answers.event(wire.chunk(id, model, {"content": saved.text}))
                    replies.append(saved)
                else:
                    stream = first if index == 0 and first else desk.start(ask)
                    async for part in answers.parts(stream):
                        if not tools:
                            yield answers.event(wire.chunk(id, model, {"content": part}, index=index))
                    replies.append(stream.answer)
                    if tools:  # a call is told from a text when it is whole
                        yield answers.event(wire.chunk(id, model, wire.delta(stream.answer, tools), index=index))
                yield answers.event(wire.chunk(id, model, index=index, end=replies[-1], tools=tools))
            if ask.usage:
                counts = {"usage": wire.usage(replies), "timings": wire.timings(replies)}
                yield answers.event({**wire.chunk(id, model), "choices": [], **counts})
            yield {"data": "[DONE]"}

        return answers.event_stream(answers.telling(events()))


def _add_responses(app: FastAPI, desk: Desk) -> None:
    @app.post("/v1/responses")
    async def respond(request: Request) -> Response:
        body = await answers.body_of(request)
        ask = responses.ask_of(body, request.headers.get("x-openwebui-task"))
        id, model = wire.new_id("resp"), ask.model or desk.models[0]
        saved = await answers.remembered(desk, ask)
        if not ask.stream:
            answer = saved if saved is not None else await answers.whole(desk.start(ask), request)
            return JSONResponse(responses.made(id, model, body, answer, wire.new_id("msg")))
        stream = None if saved else desk.start(ask)

        async def events() -> AsyncIterator[dict[str, str]]:
            builder = responses.Events(id, model, body)
            try:
                for event in builder.begin():
                    yield named(event)
                if stream is None:
                    assert saved is not None
                    yield named(builder.delta(saved.text))
                else:
                    async for part in answers.parts(stream):
                        yield named(builder.delta(part))
                for event in builder.end(saved or stream.answer):  # type: ignore[union-attr]
                    yield named(event)
            except MegartError as error:
                yield named(builder.failed(json.loads(bytes(answers.failed(error).body))["error"]))

        return answers.event_stream(events())

    def named(event: dict[str, Any]) -> dict[str, str]:
        return {"event": event["type"], **answers.event(event)}
