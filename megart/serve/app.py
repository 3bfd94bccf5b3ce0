"""The HTTP application: routes, who may ask, and how answers stream."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from sse_starlette import EventSourceResponse

from .. import __version__
from ..bank import Memory
from ..errors import InputError, MegartError, MemoryNotFoundError
from ..runtime.answer import Answer
from ..runtime.worker import BusyError, Stream
from . import wire
from .desk import Desk

MOST_BODY = 2 << 20  # bytes of a request
LOCAL = ("localhost", "127.0.0.1", "[::1]")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {"page.js": "text/javascript", "page.css": "text/css"}


def make_app(desk: Desk, *, key: str | None = None, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> FastAPI:
    """The application over *desk*, which it closes at the end.

    ``key``: what clients must send as their API key; ``hosts``: names besides this machine's own by which it may be
    called; ``origins``: whose pages may call it (CORS), none by default.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(desk.close)

    app = FastAPI(title="megart", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    allowed = {host.lower() for host in (*LOCAL, *hosts)}

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refused(request, allowed, key, origins)
        if refused is not None:
            return refused
        if request.method == "OPTIONS":
            return _cors(Response(status_code=204, headers={"Allow": "GET, POST, DELETE, OPTIONS"}), request, origins)
        return _cors(await go_on(request), request, origins)

    @app.exception_handler(MegartError)
    async def failed(_: Request, error: MegartError) -> Response:
        return _failed(error)

    _add_openai(app, desk)
    _add_ollama(app, desk)
    _add_memories(app, desk)
    _add_page(app)
    return app


# -- who may ask --------------------------------------------------------------------------------


def _refused(request: Request, hosts: set[str], key: str | None, origins: Sequence[str]) -> Response | None:
    """The refusal of *request*; None where it may go on."""
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() not in hosts:  # a foreign name that leads here: DNS rebinding
        return JSONResponse(wire.error(f"this server is not called {name!r}", "invalid_request_error"), 421)
    origin = request.headers.get("origin")
    if origin and origin not in origins and urlsplit(origin).netloc.lower() != host.lower():  # another site's page
        return JSONResponse(
            wire.error(f"pages of {origin} may not call this server (--cors)", "invalid_request_error"), 403
        )
    size = request.headers.get("content-length", "0")
    if not size.isdigit() or int(size) > MOST_BODY or "chunked" in request.headers.get("transfer-encoding", ""):
        return JSONResponse(wire.error(f"a request may have {MOST_BODY} bytes", "invalid_request_error"), 413)
    if (
        key is not None
        and request.method != "OPTIONS"
        and request.url.path not in ("/", "/health", "/page.js", "/page.css")
    ):
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), key.encode()):
            return JSONResponse(wire.error("the API key is wrong or missing", "authentication_error"), 401)
    return None


def _cors(response: Response, request: Request, origins: Sequence[str]) -> Response:
    origin = request.headers.get("origin")
    if origin and origin in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Allow-Headers"] = "authorization, content-type"
        response.headers["Access-Control-Allow-Methods"] = "GET, POST, DELETE, OPTIONS"
        response.headers["Vary"] = "Origin"
    return response


def _failed(error: MegartError) -> JSONResponse:
    if isinstance(error, BusyError):
        return JSONResponse(wire.error(str(error), "server_error", "busy"), 503, {"Retry-After": "3"})
    if isinstance(error, MemoryNotFoundError):
        return JSONResponse(wire.error(str(error), "invalid_request_error", "not_found"), 404)
    if isinstance(error, InputError):
        return JSONResponse(wire.error(str(error), "invalid_request_error"), 400)
    return JSONResponse(wire.error(str(error), "server_error"), 500)


async def _body(request: Request) -> dict[str, Any]:
    try:
        found = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError):
        raise InputError("the request is no JSON") from None
    if not isinstance(found, dict):
        raise InputError("the request is no JSON object")
    return found


# -- answers ------------------------------------------------------------------------------------


async def _answer(desk: Desk, ask: wire.Ask, request: Request) -> Answer:
    """The whole answer; cancelled when the client goes away."""
    stream = desk.start(ask)
    try:
        waiting = asyncio.ensure_future(anyio.to_thread.run_sync(lambda: stream.answer))
        while not waiting.done():
            await asyncio.wait([waiting], timeout=0.25)
            if not waiting.done() and await request.is_disconnected():
                stream.cancel()
        return waiting.result()
    finally:
        stream.cancel()


async def _parts(stream: Stream[Answer]) -> AsyncIterator[str]:
    """The text of *stream* as it comes; cancelled when nobody listens any more."""
    parts = iter(stream)
    try:
        while (part := await anyio.to_thread.run_sync(lambda: next(parts, None))) is not None:
            yield part
    finally:
        stream.cancel()


def _saved(text: str, title: str) -> Answer:
    return Answer(f"Saved: {title.rstrip('. ')}. It answers from now on.", "ask", known=None)


async def _remembered(desk: Desk, ask: wire.Ask) -> Answer | None:
    """Where the message says to remember something: done, and told."""
    text = desk.to_remember(ask)
    if text is None:
        return None
    record = await anyio.to_thread.run_sync(lambda: desk.save(ask.model, Memory(text[0].upper() + text[1:])))
    return _saved(text, record.title or record.text[:60])


def _add_openai(app: FastAPI, desk: Desk) -> None:
    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [{"id": id, "object": "model", "created": 0, "owned_by": "megart"} for id in desk.models],
        }

    @app.get("/v1/models/{id:path}")
    async def model(id: str) -> dict[str, Any]:
        desk.find(id)
        return {"id": id, "object": "model", "created": 0, "owned_by": "megart"}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        ask = wire.chat(await _body(request), request.headers.get("x-openwebui-task"))
        id, model = wire.new_id("chatcmpl"), ask.model or desk.models[0]
        saved = await _remembered(desk, ask)
        if not ask.stream:
            answers = [saved] if saved else [await _answer(desk, ask, request) for _ in range(ask.choices)]
            return JSONResponse(wire.whole(id, model, answers))
        first = None if saved else desk.start(ask)  # refused before the stream begins

        async def events() -> AsyncIterator[dict[str, str]]:
            yield _event(wire.chunk(id, model, {"role": "assistant", "content": ""}))
            stream = first
            for index in range(1 if saved else ask.choices):
                stream = stream if index == 0 else desk.start(ask)
                if stream is None:
                    assert saved is not None
                    yield _event(wire.chunk(id, model, {"content": saved.text}))
                    answer = saved
                else:
                    async for part in _parts(stream):
                        yield _event(wire.chunk(id, model, {"content": part}, index=index))
                    answer = stream.answer
                yield _event(wire.chunk(id, model, index=index, end=answer))
            if ask.usage:
                yield _event({**wire.chunk(id, model), "choices": [], "usage": wire.usage([answer])})
            yield {"data": "[DONE]"}

        return EventSourceResponse(_telling(events()), ping=15)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await _body(request)
        prompt = body.get("prompt")
        prompt = prompt[0] if isinstance(prompt, list) and len(prompt) == 1 else prompt
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError("got no prompt; expected one text")
        ask = wire.chat({**body, "messages": [{"role": "user", "content": prompt}]})
        answers = [await _answer(desk, ask, request) for _ in range(ask.choices)]
        made = wire.completion(
            wire.new_id("cmpl"), ask.model or desk.models[0], answers, prompt if body.get("echo") else ""
        )
        return JSONResponse(made)

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = await _body(request)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise InputError("got no input; expected a text or a list of texts")
        _, assistant, _ = desk.find(str(body.get("model") or ""))
        vectors = await anyio.to_thread.run_sync(lambda: [assistant.embed(text).tolist() for text in texts])
        rows = [{"object": "embedding", "index": n, "embedding": vector} for n, vector in enumerate(vectors)]
        return JSONResponse({"object": "list", "data": rows, "model": body.get("model"), "usage": wire.usage([])})


def _event(value: dict[str, Any]) -> dict[str, str]:
    return {"data": json.dumps(value)}


async def _telling(events: AsyncIterator[dict[str, str]]) -> AsyncIterator[dict[str, str]]:
    """*events*, and an error in OpenAI's shape where one comes after the stream has begun."""
    try:
        async for event in events:
            yield event
    except MegartError as error:
        yield _event(json.loads(bytes(_failed(error).body)))
        yield {"data": "[DONE]"}


# -- Ollama -------------------------------------------------------------------------------------


def _add_ollama(app: FastAPI, desk: Desk) -> None:
    """As much of Ollama's API as clients need to find a model and chat with it."""

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
            "modified_at": "1970-01-01T00:00:00Z",
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
        body = await _body(request)
        id = str(body.get("model") or body.get("name") or "")
        desk.find(id)
        return {**about(id), "template": "", "capabilities": ["completion"], "model_info": {}}

    def to_ask(body: dict[str, Any], messages: object) -> wire.Ask:
        given = body.get("options")
        options: dict[str, Any] = given if isinstance(given, dict) else {}
        named = {**options, "max_tokens": options.get("num_predict"), "messages": messages}
        return wire.chat({**named, "model": body.get("model"), "megart": body.get("megart")})

    async def respond(request: Request, body: dict[str, Any], messages: object, name: str) -> Response:
        ask = to_ask(body, messages)
        model = ask.model or desk.models[0]

        def line(text: str, end: Answer | None = None) -> dict[str, Any]:
            said: Any = {"role": "assistant", "content": text} if name == "message" else text
            made = {"model": model, "created_at": "1970-01-01T00:00:00Z", name: said, "done": end is not None}
            if end is None:
                return made
            read = wire.usage([end])
            counts = {"prompt_eval_count": read["prompt_tokens"], "eval_count": read["completion_tokens"]}
            return {**made, "done_reason": wire.finish(end), **counts, "megart": wire.ours(end)}

        saved = await _remembered(desk, ask)
        if body.get("stream") is False or saved:
            answer = saved or await _answer(desk, ask, request)
            return JSONResponse(line(answer.text, answer))
        stream = desk.start(ask)

        async def lines() -> AsyncIterator[bytes]:
            async for part in _parts(stream):
                yield json.dumps(line(part)).encode() + b"\n"
            yield json.dumps(line("", stream.answer)).encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @app.post("/api/chat")
    async def chat(request: Request) -> Response:
        body = await _body(request)
        return await respond(request, body, body.get("messages"), "message")

    @app.post("/api/generate")
    async def generate(request: Request) -> Response:
        body = await _body(request)
        system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
        return await respond(request, body, [*system, {"role": "user", "content": body.get("prompt")}], "response")


# -- memories -----------------------------------------------------------------------------------


def _add_memories(app: FastAPI, desk: Desk) -> None:
    def shown(record: Any) -> dict[str, Any]:
        return {
            "id": record.id, "title": record.title, "text": record.text, "state": record.state,
            "created": record.created, "tags": list(record.tags),
        }  # fmt: skip

    @app.get("/v1/memories")
    async def memories(model: str = "", q: str = "", limit: int = 200) -> dict[str, Any]:
        bank, _, _ = desk.find(model)
        records = await anyio.to_thread.run_sync(bank.records)
        wanted = q.casefold()
        found = [r for r in records if wanted in f"{r.title or ''} {r.text} {r.id}".casefold()]
        return {"object": "list", "total": len(found), "data": [shown(r) for r in found[::-1][: max(0, limit)]]}

    @app.get("/v1/memories/{id}")
    async def memory(id: str, model: str = "") -> dict[str, Any]:
        return shown(desk.find(model)[0].get(id))

    @app.post("/v1/memories")
    async def add(request: Request) -> Response:
        body = await _body(request)
        model = str(body.pop("model", "") or "")
        made = Memory.from_dict(body)
        record = await anyio.to_thread.run_sync(lambda: desk.save(model, made))
        return JSONResponse(shown(record), 201)

    @app.delete("/v1/memories/{id}")
    async def forget(id: str, model: str = "") -> dict[str, Any]:
        bank, _, _ = desk.find(model)
        record = await anyio.to_thread.run_sync(lambda: bank.remove(id))
        return {"id": record.id, "deleted": True}

    @app.post("/v1/gate")
    async def gate(request: Request) -> dict[str, Any]:
        body = await _body(request)
        _, assistant, _ = desk.find(str(body.get("model") or ""))
        question = body.get("question")
        if not isinstance(question, str):
            raise InputError("got no question; expected a text")
        judged = await anyio.to_thread.run_sync(lambda: assistant.gate(question))
        ranked = zip(judged.ids, judged.titles, judged.candidates.p.tolist(), strict=True)
        return {
            "opened": [{"id": id, "gate": weight} for id, weight in judged.opened],
            "candidates": [{"id": id, "title": title, "p": p} for id, title, p in ranked][:20],
        }


# -- the page -----------------------------------------------------------------------------------


def _add_page(app: FastAPI) -> None:
    def file(name: str) -> str:
        return resources.files("megart").joinpath("data", "page", name).read_text("utf-8")

    @app.api_route("/", methods=["GET", "HEAD"])
    async def page() -> Response:
        headers = {
            "Content-Security-Policy": _PAGE_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return HTMLResponse(file("page.html"), headers=headers)

    for name, kind in _FILES.items():

        def part(name: str = name, kind: str = kind) -> Response:
            return Response(file(name), media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

        app.add_api_route(f"/{name}", part, methods=["GET"])
