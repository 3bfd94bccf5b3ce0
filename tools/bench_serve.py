"""`megart serve` under load, and against llama-cpp-python's own server.

    python tools/bench_serve.py load        8 clients, 1000 requests, two banks, clients that go away: wrong answers, memory, SIGTERM
    python tools/bench_serve.py speed       requests a second and first token at 1, 4 and 8 clients, without memory, in turns
                                            (needs pip install 'llama-cpp-python[server]')

Figures go to tools/results/serve.json, each section under its name.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from megart import Bank, Memory, memorize
from megart.models import resolve_model

RESULTS = Path(__file__).parent / "results" / "serve.json"
GONE = 0.15  # share of requests whose client goes away
THINGS = ("boathouse", "kiln", "ferry", "bakery", "mill", "observatory", "orchard", "printworks")
PLACES = ("behind the blue oar", "under the third brick", "in the tin of rivets", "beside the old clock")
BARE = (
    "Say something kind about rain.", "Name three birds.", "Why is the sea salty?", "What is a verb?",
    "Describe a fox.", "Count to ten.", "What do bees do in winter?", "Name a river.",
)  # fmt: skip
TOKENS = 32


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def running(command: Sequence[str], port: int, ready: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server as a process, from the moment in which GET *ready* is answered."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError):
                if get(port, ready):
                    break
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            time.sleep(0.25)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def get(port: int, path: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    finally:
        connection.close()


def ask(port: int, model: str, question: str, leave_after: float | None = None) -> tuple[str | None, float, float]:
    """The answer, None where the client went away or was refused; seconds to the first word and to the end."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    started, first, parts = time.perf_counter(), 0.0, []
    body = {
        "model": model, "stream": True, "temperature": 0, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": question}],
    }  # fmt: skip
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        if leave_after is not None:
            time.sleep(leave_after)
            return None, 0.0, 0.0
        answer = connection.getresponse()
        if answer.status != 200:
            return None, 0.0, 0.0
        for line in answer:
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                text = (choices[0].get("delta") or {}).get("content")
                if text:
                    first = first or time.perf_counter() - started
                    parts.append(text)
        return "".join(parts), first, time.perf_counter() - started
    finally:
        connection.close()


def at_once(clients: int, work: Sequence[Any], do: Callable[[Any], None]) -> float:
    """*do* each of *work* by so many threads; the seconds it took."""
    left, lock, started = list(work), threading.Lock(), time.perf_counter()

    def client() -> None:
        while True:
            with lock:
                if not left:
                    return
                item = left.pop(0)
            do(item)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - started


def resident(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def load(args: argparse.Namespace) -> dict[str, Any]:
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(("one", "two")):
            with Bank.create(Path(folder) / name, "smollm2") as bank:
                notes = [
                    Memory(f"The spare key of the {thing} hangs {PLACES[(at + number) % len(PLACES)]}.", title=thing)
                    for at, thing in enumerate(THINGS)
                ]
                memorize(bank, notes, later=not args.learnt)
        port = free_port()
        command = [sys.executable, "-m", "megart", "serve", "--port", str(port), "--threads", str(args.threads)]
        for name in ("one", "two"):
            command += ["--bank", str(Path(folder) / name)]
        asks = [
            (f"smollm2:{bank}", f"Where is the spare key of the {thing}?")
            for bank in ("one", "two")
            for thing in THINGS
        ]
        asks.append(("smollm2", "Name three birds."))
        with running(command, port, "/health") as process:
            alone = {one: ask(port, *one)[0] for one in asks}
            right = sum(PLACES[(THINGS.index(q.split()[-1][:-1]) + (m[-3:] == "two")) % len(PLACES)] in (a or "")
                        for (m, q), a in alone.items() if m != "smollm2")  # fmt: skip
            work = [
                (draw.choice(asks), draw.random() * 0.5 if draw.random() < GONE else None) for _ in range(args.requests)
            ]
            wrong, refused, memory = [], [0], [resident(process.pid)]

            def one(item: tuple[tuple[str, str], float | None]) -> None:
                (model, question), leave = item
                answer, _, _ = ask(port, model, question, leave)
                if leave is None and answer is None:
                    refused[0] += 1
                elif leave is None and answer != alone[model, question]:
                    wrong.append([model, question, answer, alone[model, question]])

            seconds = 0.0
            for start in range(0, len(work), 100):
                seconds += at_once(args.clients, work[start : start + 100], one)
                memory.append(resident(process.pid))
                print(
                    f"{start + 100}: {seconds:.0f} s, {memory[-1]:.0f} MB, {len(wrong)} wrong",
                    file=sys.stderr,
                    flush=True,
                )
            ended = sigterm(process, port, asks, alone)
    gone = sum(leave is not None for _, leave in work)
    return {
        "requests": len(work), "clients": args.clients, "clients_gone": gone, "alone_right": f"{right} of {2 * len(THINGS)}",
        "wrong": len(wrong), "examples": wrong[:3], "refused": refused[0],
        "requests_per_second": round(len(work) / seconds, 2), "megabytes": [round(m, 1) for m in memory], "sigterm": ended,
    }  # fmt: skip


def sigterm(process: subprocess.Popen[bytes], port: int, asks: list, alone: dict) -> dict[str, Any]:
    """What becomes of eight questions when the server is told to end while they wait."""
    outcomes: list[str] = []

    def one(item: tuple[str, str]) -> None:
        try:
            answer = ask(port, *item)[0]
            outcomes.append("whole" if answer == alone[item] else "refused" if answer is None else "cut")
        except (OSError, http.client.HTTPException):
            outcomes.append("refused")

    threads = [threading.Thread(target=one, args=(item,)) for item in asks[:8]]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    started = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    code = process.wait(60)
    counts = {kind: outcomes.count(kind) for kind in ("whole", "cut", "refused")}
    return {"exit_code": code, "seconds": round(time.perf_counter() - started, 2), **counts}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    gguf = resolve_model("smollm2").gguf
    groups: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        Bank.create(Path(folder) / "one", "smollm2").close()
        ports = {"megart": free_port(), "llama_cpp.server": free_port()}
        threads = str(args.threads)
        commands = {
            "megart": [sys.executable, "-m", "megart", "serve", "--bank", f"{folder}/one", "--threads", threads,
                       "--port", str(ports["megart"])],
            "llama_cpp.server": [sys.executable, "-m", "llama_cpp.server", "--model", str(gguf), "--n_ctx", "2048",
                                 "--interrupt_requests", "False",  # else a new request ends the one at work
                                 "--n_threads", threads, "--n_threads_batch", threads, "--port", str(ports["llama_cpp.server"])],
        }  # fmt: skip
        with contextlib.ExitStack() as stack:
            for name, command in commands.items():
                stack.enter_context(running(command, ports[name], "/v1/models"))
                ask(ports[name], "smollm2", BARE[0])
            for clients in (1, 4, 8):
                for name in (*commands, *reversed(commands)):  # in turns, so that a slow minute hits both
                    rows: list[tuple[str | None, float, float]] = []
                    work = [BARE[n % len(BARE)] for n in range(args.requests)]
                    port = ports[name]
                    seconds = at_once(
                        clients,
                        work,
                        lambda question, port=port, rows=rows: rows.append(ask(port, "smollm2", question)),
                    )
                    one = groups.setdefault(f"{clients} clients", {}).setdefault(
                        name, {"seconds": 0.0, "first": [], "n": 0}
                    )
                    one["seconds"] += seconds
                    one["n"] += sum(answer is not None for answer, _, _ in rows)
                    one["first"] += [first for _, first, _ in rows if first]
    for group in groups.values():
        for one in group.values():
            one["requests_per_second"] = round(one["n"] / one["seconds"], 3)
            one["first_token_ms"] = round(statistics.median(one.pop("first")) * 1000, 1)
            one["seconds"] = round(one["seconds"], 2)
        group["ratio"] = round(
            group["megart"]["requests_per_second"] / group["llama_cpp.server"]["requests_per_second"], 3
        )
    return groups


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    versions = {name: metadata.version(name) for name in ("llama-cpp-python", "fastapi", "uvicorn")}
    return {
        "processor": names[0] if names else "?",
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        **versions,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=("load", "speed"))
    parser.add_argument(
        "--requests", type=int, help="(default: load 1000; speed 40 for each number of clients and round)"
    )
    parser.add_argument("--clients", type=int, default=8, help="of load (default: 8)")
    parser.add_argument("--threads", type=int, default=2, help="of each server (default: 2)")
    parser.add_argument(
        "--learnt", action="store_true", help="load: teach the memories (needs torch), not only save them"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.requests = args.requests or {"load": 1000, "speed": 40}[args.section]
    result = {"command": " ".join(["python tools/bench_serve.py", *sys.argv[1:]]), "machine": machine()}
    result |= load(args) if args.section == "load" else speed(args)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**results, args.section: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
