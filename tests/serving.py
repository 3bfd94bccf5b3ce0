"""Shared by the tests of the server: one that listens on a free port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from megart.serve.app import make_app
from megart.serve.desk import Desk


@contextlib.contextmanager
def listening(desk: Desk, **how: Any) -> Iterator[str]:
    """The address of a server over *desk*; at the end it has to stop within half a minute."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(desk, **how), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
