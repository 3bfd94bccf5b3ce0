"""megart serve: banks behind an HTTP endpoint that assistants know, and a page."""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

from ..errors import DependencyError, InputError
from . import common, ui

EPILOG = """\
Clients find an OpenAI endpoint at http://127.0.0.1:8180/v1 and Ollama's at http://127.0.0.1:8180; the page is at /.
The model "smollm2:notes" answers from the bank notes, "smollm2" from the model alone.
"Remember that ..." in a conversation saves a memory (--no-remember: it does not).

examples:
  megart serve
  megart serve --bank notes --bank work --port 9000
  MEGART_API_KEY=... megart serve --host 0.0.0.0 --name desk.local"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--bank",
        action="append",
        metavar="DIR",
        help="a bank's folder, or a pack; may be given again (default: $MEGART_BANK, else in the user's data directory)",
    )
    common.add_verify_key(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="A", help="the address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=common.whole, default=8180, metavar="N", help="(default: 8180)")
    parser.add_argument(
        "--name", action="append", default=[], metavar="HOST", help="another name by which clients call this machine"
    )
    parser.add_argument("--key-file", metavar="FILE", help="holds the API key (default: $MEGART_API_KEY, else none)")
    parser.add_argument(
        "--cors",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages of this origin call, as tauri://localhost",
    )
    parser.add_argument("--insecure", action="store_true", help="listen beyond this machine without an API key")
    parser.add_argument("--no-remember", action="store_true", help='"Remember that ..." saves nothing')
    parser.add_argument("--learn", action="store_true", help="teach what is saved when nobody asks (needs megart[train])")
    parser.add_argument("--metrics", action="store_true", help="count requests at /metrics, for Prometheus")
    parser.add_argument("--threads", type=common.positive, metavar="N", help="(default: the cores that are free)")


def run(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from ..serve.app import make_app
        from ..serve.desk import Desk
        from ..serve.lessons import can_teach

        if args.metrics:
            import prometheus_client  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"serving needs {error.name}; run: pip install 'megart[serve]'") from error
    key = _key(args.key_file)
    if key is None and not args.insecure and not _is_local(args.host):
        raise InputError(
            f"{args.host} can be reached from other machines; set MEGART_API_KEY or --key-file, or say --insecure"
        )
    if args.learn and not can_teach():
        raise DependencyError("--learn needs torch; run: pip install 'megart[train]'")
    if not 0 < args.port < 1 << 16:
        raise InputError(f"got the port {args.port}; expected 1 to 65535")
    with ExitStack() as stack:
        paths = args.bank or [None]
        banks = [stack.enter_context(common.open_bank(argparse.Namespace(bank=path, verify_key=args.verify_key))) for path in paths]
        desk = Desk(banks, remember=not args.no_remember, teach=args.learn, threads=args.threads, later=True)
        stack.callback(desk.close)
        app = make_app(desk, key=key, hosts=[*args.name, _shown(args.host)], origins=args.cors, metrics=args.metrics)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=20)
        server = uvicorn.Server(config)
        failed: list[BaseException] = []

        def load() -> None:
            try:
                desk.load()
                if not server.should_exit:
                    ui.say(f"serving {', '.join(desk.models)} (Ctrl-C ends it)")
            except BaseException as error:  # told below, by the thread that serves
                failed.append(error)
                server.should_exit = True

        loading = threading.Thread(target=load, daemon=True)
        with _listening(args.host, args.port) as listener:
            bases = ", ".join(dict.fromkeys(bank.base.name for bank in banks))
            ui.say(f"megart listens at http://{_shown(args.host)}:{args.port}, loading {bases}")
            loading.start()
            try:
                server.run([listener])
            finally:
                loading.join()
        if failed:
            raise failed[0]
    return 0


def _listening(host: str, port: int) -> socket.socket:
    """A socket on that port, which says at once when another program has it. Raises InputError."""
    try:
        kind = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=kind, backlog=2048)
    except OSError as error:
        told = error.strerror or str(error)
        raise InputError(f"cannot listen on {host}:{port} ({told}); give another --port or --host") from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _key(file: str | None) -> str | None:
    key = common.read_text(file).strip() if file else os.environ.get("MEGART_API_KEY", "").strip()
    if file and not key:
        raise InputError(f"{Path(file)} is empty; expected an API key")
    return key or None


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
