"""The tools of the Model Context Protocol, called by the protocol's own client over a real process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megart import Bank, Memory, memorize
from megart.models import Model

mcp = pytest.importorskip("mcp")

import httpx2  # noqa: E402
from mcp import Client, ClientSession, StdioServerParameters, stdio_client  # noqa: E402

PROGRAM = "import sys; from megart.cli import main; sys.exit(main(sys.argv[1:]))"


def test_an_assistant_remembers_asks_and_forgets(smollm2: Model, tmp_path: Path) -> None:
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        memorize(bank, [Memory("The spare key of the boathouse hangs behind the blue oar.", id="key")], later=True)
    server = StdioServerParameters(
        command=sys.executable, args=["-c", PROGRAM, "mcp", "--bank", str(tmp_path / "bank")]
    )

    async def talk() -> None:
        async with stdio_client(server) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            names = [tool.name for tool in (await session.list_tools()).tools]
            assert sorted(names) == ["ask", "forget", "list", "recall", "remember"]

            async def call(name: str, **arguments: str) -> str:
                made = await session.call_tool(name, arguments)
                return "".join(part.text for part in made.content if part.type == "text")

            assert "behind the blue oar" in await call("ask", query="Where is the key of the boathouse?")
            saved = await call("remember", content="Ines takes her coffee with oat milk.", title="Ines")
            id = saved.removeprefix("Remembered as ").rstrip(".")
            assert "oat milk" in await call("ask", question="How does Ines take her coffee?")
            assert id in await call("list", query="coffee") and "key" in await call("list")
            assert await call("forget", id=id) == f"Forgot {id}."
            assert "no memory" in await call("forget", id=id)
            assert "error: got no question" in await call("ask")

    asyncio.run(asyncio.wait_for(talk(), 180))
    with Bank.open(tmp_path / "bank") as bank:
        assert [record.id for record in bank.records()] == ["key"]


@contextlib.contextmanager
def over_http(bank: Path) -> Iterator[str]:
    """The address of a server of *bank* in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, "mcp", "--bank", str(bank), "--http", str(port)])
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        process.terminate()
        process.wait(30)


def test_two_processes_one_over_http_share_a_bank(smollm2: Model, tmp_path: Path) -> None:
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        memorize(bank, [Memory("The spare key of the boathouse hangs behind the blue oar.", id="key")], later=True)
    stdio = StdioServerParameters(command=sys.executable, args=["-c", PROGRAM, "mcp", "--bank", str(tmp_path / "bank")])

    async def call(client: Client, tool: str, **arguments: str) -> str:
        made = await client.call_tool(tool, arguments)
        return "".join(part.text for part in made.content if part.type == "text")

    async def talk(url: str) -> None:
        async with Client(url) as http, Client(stdio) as piped:
            assert "behind the blue oar" in await call(http, "ask", question="Where is the key of the boathouse?")
            id = (await call(piped, "remember", text="Ines takes her coffee with oat milk.")).split()[-1].rstrip(".")
            assert "oat milk" in await call(http, "ask", question="How does Ines take her coffee?")
            assert await call(http, "forget", id=id) == f"Forgot {id}."
            assert id not in await call(piped, "list")

    with over_http(tmp_path / "bank") as url:
        asyncio.run(asyncio.wait_for(talk(url), 180))
        evil = httpx2.post(url, json={}, headers={"Host": "evil.example", "Accept": "application/json, text/event-stream"})
        assert evil.status_code == 421
