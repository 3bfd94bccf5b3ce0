"""The page: three files of our own, which ask nothing of anybody but this server."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from fastapi.responses import Response

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FILES = {
    "": ("page.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
PATHS = tuple(f"/{path}" for path in _FILES)


def add_routes(app: FastAPI) -> None:
    for path, (name, kind) in _FILES.items():

        def part(name: str = name, kind: str = kind) -> Response:
            text = resources.files("megart").joinpath("data", "page", name).read_text("utf-8")
            headers = {
                "Content-Security-Policy": _POLICY,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cache-Control": "no-cache",
            }
            return Response(text, media_type=kind, headers=headers)

        app.add_api_route(f"/{path}", part, methods=["GET"])
