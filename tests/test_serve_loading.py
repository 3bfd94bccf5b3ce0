"""A server from its first moment: it listens at once, says that it is loading, and fails in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megart import Bank, Memory, memorize
from megart.errors import ModelError
from megart.models import Model, resolve_model

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx2")

from serving import listening  # noqa: E402

from megart.serve import desk as desks  # noqa: E402
from megart.serve.desk import Desk  # noqa: E402

KEY = Memory("The spare key of the boathouse hangs behind the blue oar.", id="key", title="Boathouse")
ASK = {"messages": [{"role": "user", "content": "Where is the key of the boathouse?"}]}


@pytest.fixture(scope="module")
def bank(smollm2: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    with Bank.create(tmp_path_factory.mktemp("loading") / "notes", smollm2) as bank:
        memorize(bank, [KEY], later=True)
        yield bank


def test_until_the_model_is_loaded_clients_are_told_to_come_again(bank: Bank) -> None:
    desk = Desk([bank], later=True, threads=1)
    with listening(desk, key="secret", origins=["tauri://localhost"]) as url, httpx.Client(base_url=url, timeout=60) as http:
        http.headers["Authorization"] = "Bearer secret"
        http.headers["Origin"] = "tauri://localhost"
        for early in (http.get("/health"), http.get("/v1/models"), http.post("/v1/chat/completions", json=ASK)):
            assert early.status_code == 503 and int(early.headers["retry-after"]) > 0
            assert early.json()["error"]["code"] == "loading" and "loading" in early.json()["error"]["message"]
            assert early.headers["access-control-allow-origin"] == "tauri://localhost"
        assert http.get("/health", headers={"Authorization": ""}).status_code == 503
        assert http.get("/v1/models", headers={"Authorization": ""}).status_code == 401
        assert http.get("/").status_code == 200 and http.get("/page.js").status_code == 200
        desk.load()
        assert http.get("/health").json() == {"status": "ok"}
        assert "blue oar" in http.post("/v1/chat/completions", json=ASK).text


def test_closing_while_loading_waits(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    desk, begun, order = Desk([bank], later=True), threading.Event(), []

    class Slow:
        def __init__(self, *_: object, **__: object):
            begun.set()
            time.sleep(0.2)
            order.append("failed")
            raise ModelError("no room")

    def load() -> None:
        with pytest.raises(ModelError):
            desk.load()

    monkeypatch.setattr(desks, "Runtime", Slow)
    loading = threading.Thread(target=load)
    loading.start()
    begun.wait()
    desk.close()
    order.append("closed")
    loading.join()
    assert order == ["failed", "closed"] and not desk.is_loaded


@contextlib.contextmanager
def serving(*words: object, **env: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "megart", "serve", "--threads", "1", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}) as process:
        yield process
        process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_the_command_listens_before_it_has_loaded_and_ends_on_sigterm(bank: Bank) -> None:
    port = free_port()
    with serving("--bank", bank.path, "--port", port) as process:
        assert process.stderr
        assert process.stderr.readline() == f"megart listens at http://127.0.0.1:{port}, loading smollm2\n"
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code in (200, 503)
        assert process.stderr.readline() == "serving smollm2:notes, smollm2 (Ctrl-C ends it)\n"
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
        assert process.stderr.read() == ""


def test_a_model_that_cannot_be_loaded_is_one_line(bank: Bank, tmp_path: Path) -> None:
    model = tmp_path / "cut.gguf"
    model.write_bytes(Path(bank.model.gguf).read_bytes()[: 16 << 20])
    Bank.create(tmp_path / "cut", resolve_model(str(model))).close()
    with serving("--bank", tmp_path / "cut", "--port", free_port()) as process:
        assert process.wait(60) == 1
        assert process.stderr
        told = process.stderr.read().splitlines()
        assert len(told) == 2 and told[1].startswith("megart: error: ") and "cut.gguf" in told[1]


def test_a_port_that_is_taken_is_one_line(bank: Bank) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, serving("--bank", bank.path, "--port", taken.getsockname()[1]) as process:
        assert process.wait(60) == 1
        assert process.stderr
        told = process.stderr.read().splitlines()
        assert len(told) == 1 and "cannot listen on 127.0.0.1" in told[0] and "--port" in told[0]
