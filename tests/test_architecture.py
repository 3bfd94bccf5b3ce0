"""A base that cannot be taught is refused by its header, before anything is loaded or made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import pytest

from megart.architecture import DENSE, check_teachable, scalar_keys
from megart.bank import Bank, Memory
from megart.cli import main
from megart.errors import ModelError
from megart.memorize import Progress, memorize
from megart.models import Model


def header(path: Path, arch: str, *, experts: int = 0, vocabulary_first: bool = False) -> Model:
    """A GGUF without tensors."""
    writer = gguf.GGUFWriter(str(path), arch)
    if vocabulary_first:
        writer.add_token_list([f"t{n}" for n in range(1000)])
        writer.add_token_scores([0.5] * 1000)
    writer.add_block_count(2)
    if experts:
        writer.add_expert_count(experts)
    if not vocabulary_first:
        writer.add_token_list(["a"] * 1000)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return Model(path.stem, path)


REFUSED = {
    "qwen3moe": ({"experts": 128}, r"a mixture of 128 experts \(qwen3moe\) cannot be taught"),
    "llama": ({"experts": 8}, r"a mixture of 8 experts \(llama\) cannot be taught"),  # Mixtral
    "olmoe": ({}, r"a mixture \(olmoe\) cannot be taught"),
    "mamba": ({}, r"architecture 'mamba' cannot be taught; expected a dense llama, .* or gemma3 model"),
    "gemma": ({}, "transformers cannot read gemma from a GGUF; give the model's Hugging Face folder with --hf"),
}


@pytest.mark.parametrize("vocabulary_first", [False, True])
@pytest.mark.parametrize("arch", REFUSED)
def test_what_cannot_be_taught_is_refused(tmp_path: Path, arch: str, vocabulary_first: bool) -> None:
    options, message = REFUSED[arch]
    model = header(tmp_path / "m.gguf", arch, vocabulary_first=vocabulary_first, **options)
    with pytest.raises(ModelError, match=message) as caught:
        check_teachable(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_what_can_be_taught(tiny: Callable[..., Model], arch: str) -> None:
    assert check_teachable(tiny(arch)) == {"mistral": "llama"}.get(arch, arch)
    assert set(DENSE) <= set(gguf.MODEL_ARCH_NAMES.values())


def test_gemma_is_taught_from_its_folder(tmp_path: Path) -> None:
    model = header(tmp_path / "m.gguf", "gemma")
    assert check_teachable(Model("m", model.gguf, hf=tmp_path)) == "gemma"


def test_nothing_is_done_before_the_refusal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = header(tmp_path / "moe.gguf", "qwen3moe", experts=4)
    assert main(["init", "--bank", str(tmp_path / "bank"), "--model", str(model.gguf)]) == 1
    assert capsys.readouterr().err.startswith("megart: error: moe.gguf: a mixture of 4 experts (qwen3moe) cannot")
    assert not (tmp_path / "bank").exists()
    seen: list[Progress] = []
    with Bank.create(tmp_path / "bank", model) as bank, pytest.raises(ModelError, match="mixture"):
        memorize(bank, [Memory("Ada keeps bees.")], progress=seen.append)
    assert seen == []


def test_a_damaged_header_is_one_line(tmp_path: Path, tiny: Callable[..., Model]) -> None:
    whole = tiny().gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(1, 400, 7), 5000]:
        path.write_bytes(whole[:length])
        try:
            check_teachable(Model("cut", path))
        except ModelError as error:
            assert "\n" not in str(error)
    path.write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ModelError, match="GGUF version 0"):
        scalar_keys(path)
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(8) + (1 << 60).to_bytes(8, "little"))
    with pytest.raises(ModelError, match="damaged or cut short"):
        scalar_keys(path)
