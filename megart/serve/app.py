"""The HTTP application: its routes, and who may ask."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import MegartError
from . import answers, completions, memories, ollama, openai, page, wire
from .desk import Desk

LOCAL = ("localhost", "127.0.0.1", "[::1]")
_OPEN = ("/health", *page.PATHS)  # what needs no key: it tells nothing
_METHODS = "GET, HEAD, POST, DELETE, OPTIONS"


def make_app(
    desk: Desk,
    *,
    key: str | None = None,
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
    metrics: bool = False,
) -> FastAPI:
    """The application over *desk*, which it closes at the end.

    ``key``: what clients must send as their API key; ``hosts``: names besides this machine's own by which it may be
    called; ``origins``: whose pages may call it (CORS), none by default; ``metrics``: whether there is /metrics.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(desk.close)

    app = FastAPI(
        title="megart", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    allowed = {host.lower() for host in (*LOCAL, *hosts)}
    for routes in (openai, completions, ollama, memories):
        routes.add_routes(app, desk)
    page.add_routes(app)
    if metrics:
        from . import metrics as counting

        counting.add_routes(app, desk)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    for route in app.routes:
        if isinstance(route, APIRoute) and route.methods and "GET" in route.methods:
            route.methods.add("HEAD")

    @app.middleware("http")
    async def guard(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = _refused(request, allowed, key, origins) or _too_early(request, desk)
        if refused is not None:
            return _cors(refused, request, origins)
        if request.method == "OPTIONS":
            return _cors(Response(status_code=204, headers={"Allow": _METHODS}), request, origins)
        return _cors(await go_on(request), request, origins)

    @app.exception_handler(MegartError)
    @app.exception_handler(Exception)  # uvicorn writes its traceback
    async def failed(_: Request, error: Exception) -> Response:
        return answers.failed(error)

    @app.exception_handler(RequestValidationError)
    async def misunderstood(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        told = f"got {str(first.get('input'))[:100]!r} for {first['loc'][-1]}; {first['msg']}"
        return JSONResponse(wire.error(told, "invalid_request_error", param=str(first["loc"][-1])), 400)

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> Response:
        told = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(wire.error(told, "invalid_request_error"), error.status_code, error.headers)

    return app


def _refused(request: Request, hosts: set[str], key: str | None, origins: Sequence[str]) -> Response | None:
    """The refusal of *request*; None where it may go on."""
    host = request.headers.get("host", "")
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() not in hosts:  # a foreign name that leads here: DNS rebinding
        return JSONResponse(wire.error(f"this server is not called {name!r} (--name)", "invalid_request_error"), 421)
    origin = request.headers.get("origin")
    if origin and origin not in origins and origin.partition("://")[2].lower() != host.lower():  # another site's page
        return JSONResponse(
            wire.error(f"pages of {origin} may not call this server (--cors)", "invalid_request_error"), 403
        )
    size = request.headers.get("content-length", "")
    if size.isdecimal() and int(size) > answers.MOST_BODY:  # told before it is sent
        return answers.failed(answers.TooLargeError())
    if key is not None and request.method != "OPTIONS" and request.url.path not in _OPEN:
        sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(sent.encode(), key.encode()):
            return JSONResponse(wire.error("the API key is wrong or missing", "authentication_error"), 401)
    return None


def _too_early(request: Request, desk: Desk) -> Response | None:
    """The refusal of what comes before the models are loaded; the page does not wait for them."""
    if desk.is_loaded or request.method == "OPTIONS" or request.url.path in page.PATHS:
        return None
    return JSONResponse(wire.error("the model is still loading", "server_error", "loading"), 503, {"Retry-After": "1"})


def _cors(response: Response, request: Request, origins: Sequence[str]) -> Response:
    origin = request.headers.get("origin")
    if origin and origin in origins:
        response.headers["Access-Control-Allow-Origin"] = origin
        # Whatever it asks for: openai's own client in a page sends a dozen names (x-stainless-...).
        wanted = request.headers.get("access-control-request-headers")
        response.headers["Access-Control-Allow-Headers"] = wanted or "authorization, content-type"
        response.headers["Access-Control-Allow-Methods"] = _METHODS
        response.headers["Vary"] = "Origin"
    return response
