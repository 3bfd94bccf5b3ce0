"""Runs `megart demo --json` and writes its figures, with machine and versions, to a results file.

python tools/bench_demo.py [tools/results/demo.json]
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("megart", "llama-cpp-python", "torch", "transformers", "numpy")


def main() -> int:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "results" / "demo.json")
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "megart", "demo", "--json"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    )
    result = {
        "command": "python tools/bench_demo.py",
        "exit_code": done.returncode,
        "total_seconds": round(time.perf_counter() - started, 1),
        "demo": json.loads(done.stdout) if done.stdout.strip() else None,
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    print(json.dumps(result, indent=2))
    return done.returncode


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    sys.exit(main())
