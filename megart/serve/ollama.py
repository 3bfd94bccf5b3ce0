"""As much of Ollama's API as clients need to find a model and chat with it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from .. import __version__
from ..errors import MegartError
from ..runtime.answer import Answer
from . import answers, wire
from .desk import Desk


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def add_routes(app: FastAPI, desk: Desk) -> None:
    started = _now()

    def about(id: str) -> dict[str, Any]:
        details = {
            "format": "gguf",
            "family": "megart",
            "families": ["megart"],
            "parameter_size": "",
            "quantization_level": "",
        }
        return {
            "name": id,
            "model": id,
            "modified_at": started,
            "size": 0,
            "digest": "",
            "details": details,
        }

    @app.get("/api/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/api/tags")
    async def tags() -> dict[str, Any]:
        return {"models": [about(id) for id in desk.models]}

    @app.post("/api/show")
    async def show(request: Request) -> dict[str, Any]:
        body = await answers.body_of(request)
        id = str(body.get("model") or body.get("name") or "")
        desk.find(id)
        return {**about(id), "template": "", "capabilities": ["completion"], "model_info": {}}

    def to_ask(body: dict[str, Any], messages: object) -> wire.Ask:
        given = body.get("options")
        options: dict[str, Any] = given if isinstance(given, dict) else {}
        limit, form = options.get("num_predict"), body.get("format")
        if isinstance(form, dict):
            form = {"type": "json_schema", "json_schema": {"schema": form}}
        elif form:
            form = {"type": "json_object"}
        limit = None if limit in (-1, -2) else limit  # no limit, and as the context has it
        named = {**options, "max_tokens": limit, "messages": messages, "response_format": form}
        return wire.chat({**named, "model": body.get("model"), "megart": body.get("megart")})

    async def respond(request: Request, body: dict[str, Any], messages: object, name: str) -> Response:
        model = str(body.get("model") or desk.models[0])

        def line(text: str, end: Answer | None = None) -> dict[str, Any]:
            value: Any = {"role": "assistant", "content": text} if name == "message" else text
            fields = {"model": model, "created_at": _now(), name: value, "done": end is not None}
            if end is None:
                return fields
            read = wire.usage([end])
            counts = {"prompt_eval_count": read["prompt_tokens"], "eval_count": read["completion_tokens"]}
            return {**fields, "done_reason": wire.finish(end), **counts, "megart": wire.ours(end)}

        if not messages:  # how Ollama's clients have a model loaded before they ask it
            desk.find(model)
            return JSONResponse({**line(""), "done": True, "done_reason": "load"})
        ask = to_ask(body, messages)
        saved = await answers.remembered(desk, ask)
        if body.get("stream") is False or saved:
            answer = saved if saved is not None else await answers.whole(desk.start(ask), request)
            return JSONResponse(line(answer.text, answer))
        stream = desk.start(ask)

        async def lines() -> AsyncIterator[bytes]:
            try:
                async for part in answers.parts(stream):
                    yield json.dumps(line(part)).encode() + b"\n"
                yield json.dumps(line("", stream.answer)).encode() + b"\n"
            except MegartError as error:
                yield json.dumps({"error": str(error)}).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = await answers.body_of(request)
        return await respond(request, body, body.get("messages"), "message")

    @app.post("/api/generate")
    async def generate(request: Request) -> Response:
        body = await answers.body_of(request)
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        asked = [{"role": "user", "content": body["prompt"]}] if body.get("prompt") else []
        return await respond(request, body, asked and [*system, *asked], "response")
