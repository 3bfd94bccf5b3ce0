"""Asking while other programs use the processor: the section `neighbour` of bench_ask.py.

One process asks the same question again and again, alone and beside programs that compute without
pause; with megart's own settings, and with others that could have been the default. Each setting has to
be in the environment before OpenMP is loaded, so every measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bench_ask import ASKED, noise_bank, summary

from megart.bank import Bank
from megart.runtime.assistant import Assistant

TIMES = 9
ROUNDS = 2
WORK = "while True: sum(i * i for i in range(10000))"
# Variables of the environment, and threads (0: the default).
SETTINGS: dict[str, tuple[dict[str, str], int]] = {
    "default": ({}, 0),
    "--threads 2": ({}, 2),
    "OpenMP never spins (OMP_WAIT_POLICY=passive)": ({"OMP_WAIT_POLICY": "passive"}, 0),
    "--threads 1": ({}, 1),
}


def run(_: argparse.Namespace) -> dict:
    """Milliseconds to the first token, and tokens per second after it."""
    cores = len(os.sched_getaffinity(0))
    result: dict = {"cores": cores}
    with tempfile.TemporaryDirectory() as folder:
        noise_bank(Path(folder) / "bank", 10).close()
        for busy in (0, 1, cores):
            others = [subprocess.Popen([sys.executable, "-c", WORK]) for _ in range(busy)]
            try:
                by_setting: dict[str, list[dict]] = {name: [] for name in SETTINGS}
                for _round in range(ROUNDS):
                    for name, (variables, threads) in SETTINGS.items():
                        by_setting[name].append(child(Path(folder) / "bank", variables, threads))
            finally:
                for other in others:
                    other.kill()
                    other.wait()
            result[f"beside {busy} busy program{'s' * (busy != 1)}"] = {
                name: {
                    "first_token_ms": summary([v for run in runs for v in run["first"]]),
                    "tokens_per_second": summary([v for run in runs for v in run["speed"]]),
                }
                for name, runs in by_setting.items()
            }
    return result


def child(bank: Path, variables: dict[str, str], threads: int) -> dict:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, str(Path(__file__)), str(bank), str(threads)]
    return json.loads(subprocess.run(command, env=environment | variables, stdout=subprocess.PIPE, check=True).stdout)


def asked(bank: Path, threads: int) -> dict[str, list[float]]:
    """In the child: nothing is cached when a question comes."""
    first, speed = [], []
    with Bank.open(bank) as opened, Assistant(opened, threads=threads or None) as assistant:
        for turn in range(TIMES + 1):
            with assistant.engine.lock:
                assistant.base.truncate(0)
                assistant.mix.truncate(0)
            answer = assistant.direct(ASKED[turn % len(ASKED)][2], max_tokens=24)
            if turn:
                first.append(answer.timings.first_token_ms)
                speed.append(1000 / answer.token_ms if answer.token_ms else np.nan)
    return {"first": first, "speed": [v for v in speed if np.isfinite(v)]}


if __name__ == "__main__":
    print(json.dumps(asked(Path(sys.argv[1]), int(sys.argv[2]))))
