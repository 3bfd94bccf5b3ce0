"""What the routes share: a request's body, an answer waited for or streamed, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import anyio
from fastapi import Request
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse
from starlette.requests import ClientDisconnect

from ..bank import Memory
from ..errors import InputError, MegartError, MemoryNotFoundError
from ..runtime.answer import Answer
from ..runtime.room import TooLongError
from ..runtime.worker import BusyError, CancelledError, Stream
from . import wire
from .desk import Desk, ReadOnlyError

T = TypeVar("T")
MOST_BODY = 2 << 20  # bytes of a request
BODY_SECONDS = 30  # until a request has come whole
ANSWER_SECONDS = 600  # until an answer ends, its waiting for others among them
MOST_TOLD = 300  # characters of an error
PING_SECONDS = 15  # a comment in a stream that waits so long, so that nobody on the way closes it
GRACE_SECONDS = 15  # less than uvicorn waits, see cli/serve.py
_LOOK_SECONDS = 0.25  # how often it is asked whether the client is still there


class TooLargeError(InputError):
    """A request of more bytes than are read."""

    def __init__(self) -> None:
        super().__init__(f"the request is too large; expected at most {MOST_BODY} bytes")


def failed(error: Exception) -> JSONResponse:
    """*error* as an HTTP answer in OpenAI's shape, in one line that does not say again all that was sent."""
    told = " ".join(str(error).split())
    if len(told) > MOST_TOLD:
        told = f"{told[: MOST_TOLD // 2]} ... {told[-MOST_TOLD // 2 :]}"
    if not isinstance(error, MegartError):  # a fault of ours; its words may hold what nobody should read
        told = f"unexpected {type(error).__name__}; the server's own output says more"
        return JSONResponse(wire.error(told, "server_error"), 500)
    if isinstance(error, BusyError):
        return JSONResponse(wire.error(told, "server_error", "busy"), 503, {"Retry-After": "3"})
    if isinstance(error, CancelledError):  # read only by clients that are still there
        told = f"no answer within {ANSWER_SECONDS} seconds; others were before it"
        return JSONResponse(wire.error(told, "server_error", "timeout"), 503, {"Retry-After": "30"})
    if isinstance(error, MemoryNotFoundError):
        return JSONResponse(wire.error(told, "invalid_request_error", "not_found"), 404)
    if isinstance(error, TooLongError):
        return JSONResponse(wire.error(told, "invalid_request_error", "context_length_exceeded"), 400)
    if isinstance(error, TooLargeError):
        return JSONResponse(wire.error(told, "invalid_request_error", "too_large"), 413, {"Connection": "close"})
    if isinstance(error, InputError):
        return JSONResponse(wire.error(told, "invalid_request_error"), 400)
    if isinstance(error, ReadOnlyError):
        return JSONResponse(wire.error(told, "invalid_request_error", "read_only"), 403)
    return JSONResponse(wire.error(told, "server_error"), 500)


async def body_of(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Raises InputError."""
    sent = bytearray()
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for part in request.stream():
                sent += part
                if len(sent) > MOST_BODY:
                    raise TooLargeError()
        text = sent.decode("utf-8-sig") or "{}"
        body = json.loads(text)
        if "\\ud" in text.lower():  # perhaps half of a pair, where a program has cut a text
            body = json.loads(json.dumps(body, ensure_ascii=False).encode("utf-8", "replace"))
    except TimeoutError:
        raise InputError(f"the request did not come whole within {BODY_SECONDS} seconds") from None
    except ClientDisconnect:
        raise InputError("the client went away") from None  # nobody reads it
    except (ValueError, RecursionError):
        raise InputError("the request is no JSON") from None
    if not isinstance(body, dict):
        raise InputError("the request is no JSON object")
    return body


async def whole(stream: Stream[T], request: Request) -> T:
    """The whole answer; cancelled when the client goes away, or the time is out."""
    until = time.monotonic() + ANSWER_SECONDS
    try:
        waiting = asyncio.ensure_future(anyio.to_thread.run_sync(lambda: stream.answer, abandon_on_cancel=True))
        while not waiting.done():
            await asyncio.wait([waiting], timeout=_LOOK_SECONDS)
            if not waiting.done() and (time.monotonic() > until or await request.is_disconnected()):
                stream.cancel()
        return waiting.result()
    finally:
        stream.cancel()


async def parts(stream: Stream[T]) -> AsyncIterator[str]:
    """The text of *stream* as it comes; cancelled when nobody listens any more, also while it waits for its turn, or
    the time is out."""
    coming = iter(stream)
    timer = asyncio.get_running_loop().call_later(ANSWER_SECONDS, stream.cancel)
    try:
        while (part := await anyio.to_thread.run_sync(next, coming, None, abandon_on_cancel=True)) is not None:
            yield part
    finally:
        timer.cancel()
        stream.cancel()


def event_stream(events: AsyncIterator[Any]) -> EventSourceResponse:
    """*events* as they come; those under way when the server ends get some seconds to become whole."""
    return EventSourceResponse(events, ping=PING_SECONDS, shutdown_grace_period=GRACE_SECONDS)


async def remembered(desk: Desk, ask: wire.Ask) -> Answer | None:
    """Where the message says to remember something: done, and told."""
    text = desk.to_remember(ask)
    if text is None:
        return None
    record = await anyio.to_thread.run_sync(desk.save, ask.model, Memory(text))
    return Answer(f"Saved: {record.heading}{'' if record.heading.endswith('.') else '.'} It answers from now on.", "ask", known=None)


def event(value: dict[str, Any]) -> dict[str, str]:
    """A server-sent event."""
    return {"data": json.dumps(value)}


async def telling(events: AsyncIterator[dict[str, str]]) -> AsyncIterator[dict[str, str]]:
    """*events*, and an error in OpenAI's shape where one comes after the stream has begun."""
    try:
        async for one_event in events:
            yield one_event
    except Exception as error:
        if not isinstance(error, MegartError):
            logging.getLogger("uvicorn.error").exception("a stream failed")
        yield event(json.loads(bytes(failed(error).body)))
        yield {"data": "[DONE]"}
