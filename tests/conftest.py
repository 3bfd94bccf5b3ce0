"""What every test stands on: folders of its own, tiny models, and the real one where it is installed."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import importlib.util
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from megart.errors import DependencyError
from megart.models import Model, resolve_model

# Tests say themselves when a bank is to have a text embedder (tests/test_embedders.py), installed or not.
os.environ["MEGART_EMBEDDER"] = "words"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # so a shell starts what runs behind; processes would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or writes the user's cache, data or default bank, or stands in the clone.

    In the clone `python -c "import megart"` would find the sources, which lack the built extension.
    """
    folder = tmp_path_factory.mktemp("user")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    for name in [name for name in os.environ if name.startswith("MEGART_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MEGART_EMBEDDER", "words")


@pytest.fixture(scope="session")
def tool() -> Callable[[str], ModuleType]:
    """Loads a program of ``tools/`` as a module, by name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny(tool: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Model]:
    """``tiny(arch="llama", dtype="f32", seed=0)``: a random model, made once per session."""
    made: dict[tuple[str, str, int], Model] = {}
    folder = tmp_path_factory.mktemp("tiny")

    def model(arch: str = "llama", dtype: str = "f32", seed: int = 0) -> Model:
        key = (arch, dtype, seed)
        if key not in made:
            name = f"{arch}-{dtype}-{seed}"
            made[key] = Model(name, tool("tiny_gguf").make(folder / f"{name}.gguf", arch, dtype, seed))
        return made[key]

    return model


@pytest.fixture(scope="session")
def tiny_base(tiny: Callable[..., Model]) -> Callable[..., object]:
    """``tiny_base(arch="llama")``: the tiny f32 model frozen in PyTorch, float32 on the CPU."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from megart.train.base import load_base

    made: dict[str, object] = {}

    def base(arch: str = "llama") -> object:
        if arch not in made:
            import torch

            made[arch] = load_base(tiny(arch), device="cpu", dtype=torch.float32, cache=False)
        return made[arch]

    return base


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that passes for a model until somebody loads it."""
    path = tmp_path / "base.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    return path


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """The real model, embedded in a package; skips where that is absent."""
    try:
        return resolve_model("smollm2")
    except DependencyError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def base_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bases")


@pytest.fixture
def shared_base_cache(base_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dequantised smollm2 is made once per session, not once per test."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr("megart.train.base.user_cache_dir", lambda: base_cache)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """llama.cpp with a float32 KV cache and plain attention: no rounding but float32's own."""
    import llama_cpp

    default = llama_cpp.llama_context_default_params

    def params() -> object:
        chosen = default()
        chosen.type_k = chosen.type_v = 0  # GGML_TYPE_F32
        chosen.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return chosen

    monkeypatch.setattr(llama_cpp, "llama_context_default_params", params)
    yield


@pytest.fixture(scope="session")
def smollm2_base(smollm2: Model, base_cache: Path) -> object:
    """The real model frozen in PyTorch, float32 on the CPU."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from megart.train.base import load_base

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megart.train.base.user_cache_dir", lambda: base_cache)
        return load_base(smollm2, device="cpu", dtype=torch.float32)


@pytest.fixture
def ready(tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., object]]:
    """``ready(model=None, activated=True, **options)``: an assistant over a bank of two strong memories."""
    from helpers import FIRST, SECOND, few_lines, noise_adapter
    from numpy import float16

    from megart.adapter import write_adapter
    from megart.bank import Bank
    from megart.runtime import embed
    from megart.runtime.assistant import Assistant

    opened: list[Assistant | Bank] = []
    lines = few_lines()  # the whole corpus takes a second
    monkeypatch.setattr(embed, "corpus", lambda: lines)

    def make(model: Model | None = None, activated: bool = True, **options: object) -> Assistant:
        model = model or tiny("llama")
        bank = Bank.create(tmp_path / f"bank{len(opened)}", model)
        opened.append(bank)
        assistant = Assistant(bank, **{"context_size": 1024, **options})
        opened.append(assistant)
        for seed, memory in enumerate((FIRST, SECOND)):
            bank.add(
                memory,
                key=assistant.key(memory.text),
                adapter=write_adapter(noise_adapter("llama", 8, seed, dtype=float16)),
                recipe="fast",
                activated=activated,
                rank=8,
                training={},
            )
        return assistant

    yield make
    for item in reversed(opened):
        item.close()
