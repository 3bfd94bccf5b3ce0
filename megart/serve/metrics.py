"""What a server counts, as Prometheus reads it at /metrics; no word of a question or memory is in it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial

from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .desk import Desk

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def add_routes(app: FastAPI, desk: Desk) -> None:
    registry = CollectorRegistry()
    requests = Counter("megart_requests", "Requests by route and status.", ("route", "status"), registry=registry)
    seconds = Histogram(
        "megart_request_seconds", "Until an answer is whole, a streamed one until it begins.", ("route",),
        buckets=_SECONDS, registry=registry,
    )  # fmt: skip
    waiting = Gauge("megart_waiting", "Questions whose answers are not whole.", registry=registry)
    waiting.set_function(lambda: desk.waiting)
    memories = Gauge("megart_memories", "Memories of a bank.", ("model",), registry=registry)
    for id in desk.models:
        if desk.about(id)["memories"] is not None:
            memories.labels(id).set_function(partial(_count, desk, id))

    @app.middleware("http")
    async def count(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        started = time.perf_counter()
        response = await go_on(request)
        # The route's pattern, not the path: an id of a memory is nobody's label.
        route = getattr(request.scope.get("route"), "path", "other")
        requests.labels(route, response.status_code).inc()
        seconds.labels(route).observe(time.perf_counter() - started)
        return response

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _count(desk: Desk, id: str) -> float:
    return float(desk.about(id)["memories"] or 0)
