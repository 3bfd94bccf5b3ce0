"""A bank's memories over HTTP: list, show, save, forget, teach, and what a question would open."""

from __future__ import annotations

from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from ..bank import Memory, Record
from ..errors import InputError
from . import answers
from .desk import Desk

_MOST_CANDIDATES = 20


def shown(record: Record) -> dict[str, Any]:
    return {
        "id": record.id, "title": record.title, "text": record.text, "state": record.state,
        "created": record.created, "tags": list(record.tags),
    }  # fmt: skip


def add_routes(app: FastAPI, desk: Desk) -> None:
    @app.get("/v1/memories")
    async def memories(model: str = "", q: str = "", limit: int = 200) -> dict[str, Any]:
        bank, _, _ = desk.find(model)
        records = await anyio.to_thread.run_sync(bank.records)
        wanted = q.casefold()
        hits = [r for r in records if wanted in f"{r.title or ''} {r.text} {r.id}".casefold()]
        return {"object": "list", "total": len(hits), "data": [shown(r) for r in hits[::-1][: max(0, limit)]]}

    @app.get("/v1/memories/{id}")
    async def memory(id: str, model: str = "") -> dict[str, Any]:
        return shown(desk.find(model)[0].get(id))

    @app.post("/v1/memories")
    async def add(request: Request) -> Response:
        body = await answers.body_of(request)
        model = str(body.pop("model", "") or "")
        new_memory = Memory.from_dict(body)
        return JSONResponse(shown(await anyio.to_thread.run_sync(desk.save, model, new_memory)), 201)

    @app.delete("/v1/memories/{id}")
    async def forget(id: str, model: str = "") -> dict[str, Any]:
        record = await anyio.to_thread.run_sync(desk.forget, model, id)
        return {"id": record.id, "deleted": True}

    @app.post("/v1/gate")
    async def gate(request: Request) -> dict[str, Any]:
        body = await answers.body_of(request)
        question = body.get("question")
        if not isinstance(question, str):
            raise InputError("got no question; expected a text")
        judged = await answers.whole(desk.gate(str(body.get("model") or ""), question), request)
        ranked = zip(judged.ids, judged.titles, judged.candidates.p.tolist(), strict=True)
        return {
            "opened": [{"id": id, "gate": weight} for id, weight in judged.opened],
            "candidates": [{"id": id, "title": title, "p": p} for id, title, p in ranked][:_MOST_CANDIDATES],
        }

    _add_lessons(app, desk)


def _add_lessons(app: FastAPI, desk: Desk) -> None:
    @app.get("/v1/learn")
    async def lessons(model: str = "") -> dict[str, Any]:
        return await anyio.to_thread.run_sync(lambda: desk.lessons(model).state())

    @app.post("/v1/learn")
    async def teach(request: Request) -> Response:
        model = str((await answers.body_of(request)).get("model") or "")

        def start() -> dict[str, Any]:
            desk.writable(model)
            desk.lessons(model).start()
            return desk.lessons(model).state()

        return JSONResponse(await anyio.to_thread.run_sync(start), 202)

    @app.delete("/v1/learn")
    async def stop(model: str = "") -> dict[str, Any]:
        def end() -> dict[str, Any]:
            desk.lessons(model).stop()
            return desk.lessons(model).state()

        return await anyio.to_thread.run_sync(end)
