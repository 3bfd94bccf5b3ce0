"""megart mcp: a bank as tools of the Model Context Protocol, for assistants that call tools."""

from __future__ import annotations

import argparse

from ..errors import DependencyError
from . import common

EPILOG = """\
An assistant starts it itself, by a line of its own settings such as

  {"mcpServers": {"megart": {"command": "megart", "args": ["mcp", "--bank", "/path/to/bank"]}}}

examples:
  megart mcp --bank notes
  megart mcp --bank notes --http 8190       streamable HTTP at http://127.0.0.1:8190/mcp"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser, packs=True)
    parser.add_argument("--http", type=common.positive, metavar="PORT", help="over HTTP on 127.0.0.1 instead of stdio")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="(default: the cores that are free)")


def run(args: argparse.Namespace) -> int:
    try:
        from ..serve.tools import make_server
    except ImportError as error:
        raise DependencyError(f"MCP needs {error.name}; run: pip install 'megart[mcp]'") from error
    with common.open_bank(args) as bank:
        server = make_server(bank, threads=args.threads)
        try:
            if args.http is None:
                server.run("stdio")
            else:
                server.run("streamable-http", host="127.0.0.1", port=args.http)
        finally:
            server.close_memory()  # type: ignore[attr-defined]
    return 0
