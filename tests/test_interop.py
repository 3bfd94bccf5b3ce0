"""PEFT folders and GGUF files, out and in: what PEFT computes is what llama.cpp computes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import FAST_ROLES, FFN, HIDDEN, LAYERS, Stock, few_lines, noise, noise_adapter, save, tiny_shapes

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from megart.adapter import Adapter, read_adapter, write_adapter
from megart.architecture import scalar_keys
from megart.bank import Bank, Memory
from megart.cli import main
from megart.errors import AdapterError, BankError, InputError
from megart.interop import export_gguf, export_peft, import_adapter
from megart.models import Model
from megart.runtime import embed
from megart.train import peft as folders

# of peft, about transformers
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

TOKENS = [60, 61, 62, 70, 90, 101, 33, 45]
ADA = Memory("Ada Quill keeps bees.", id="ada", title="Ada Quill")
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)


def by_peft(base: object, folder: Path, tokens: list[int]) -> np.ndarray:
    """Logits of the last token by PEFT's own loader."""
    peft = pytest.importorskip("peft")
    import copy

    model = peft.PeftModel.from_pretrained(copy.deepcopy(base.network), folder).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()


def by_llama(model: Model, adapter: Adapter, path: Path, tokens: list[int]) -> np.ndarray:
    with Stock(model, [(save(adapter, path), 1.0)]) as stock:
        return stock.decode(tokens)


def shapes(roles: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    sizes = {
        "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN // 2), "attn_v": (HIDDEN, HIDDEN // 2),
        "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (HIDDEN, FFN), "ffn_up": (HIDDEN, FFN), "ffn_down": (FFN, HIDDEN),
    }  # fmt: skip
    return {f"blk.{i}.{role}.weight": sizes[role] for i in range(LAYERS) for role in roles}


@pytest.mark.parametrize("alpha, rank", [(8.0, 8), (90.5096679, 16), (0.0, 8)])
@pytest.mark.parametrize("arch", ["llama", "qwen2", "gemma2"])
def test_an_export_computes_in_peft_what_it_computes_in_llama_cpp(
    tiny: Callable[..., Model], tiny_base: Callable[..., object], exact: None, tmp_path: Path, arch: str,
    alpha: float, rank: int,
) -> None:  # fmt: skip
    if arch != "llama" and alpha != 8.0:
        pytest.skip("the scale does not depend on the architecture")
    adapter = noise_adapter(arch, rank, 3, alpha=alpha, dtype=np.float32, size=0.5)
    folders.write_peft(adapter, scalar_keys(tiny(arch).gguf), tmp_path / "out", "tiny")
    theirs = by_peft(tiny_base(arch), tmp_path / "out", TOKENS)
    ours = by_llama(tiny(arch), adapter, tmp_path / "a.gguf", TOKENS)
    with Stock(tiny(arch)) as stock:
        assert abs(stock.decode(TOKENS) - ours).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(theirs, ours, atol=2e-2 if arch == "gemma2" else 2e-3)
    again = folders.read_peft(tmp_path / "out", scalar_keys(tiny(arch).gguf))
    assert again.tensors.keys() == adapter.tensors.keys()
    assert again.scale("blk.0.ffn_up.weight") == pytest.approx(adapter.scale("blk.0.ffn_up.weight"), rel=1e-12)


def test_an_adapter_of_some_layers_and_of_blocks(tiny, tiny_base, exact: None, tmp_path: Path) -> None:
    full = noise_adapter("llama", 32, 4, dtype=np.float32, size=0.5)
    some = {name: pair for name, pair in full.tensors.items() if name.startswith(("blk.2.", "blk.3."))}
    adapter = replace(full, tensors=some).as_type("q8_0")
    folders.write_peft(adapter, scalar_keys(tiny("llama").gguf), tmp_path / "out", "tiny")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["layers_to_transform"] == [2, 3]
    theirs = by_peft(tiny_base("llama"), tmp_path / "out", TOKENS)
    # q8_0 factors are multiplied with rounded activations: compared with their exact values
    ours = by_llama(tiny("llama"), adapter.as_type("f32"), tmp_path / "a.gguf", TOKENS)
    np.testing.assert_allclose(theirs, ours, atol=2e-3)


def test_an_activated_adapter_becomes_an_alora(tiny, tiny_base, exact: None, tmp_path: Path) -> None:
    """PEFT switches it on at the generation prompt: before it, the base's own keys and values."""
    adapter = replace(noise_adapter("llama", 8, 5, size=0.5), invocation_tokens=[70, 90])
    folders.write_peft(adapter, scalar_keys(tiny("llama").gguf), tmp_path / "out", "tiny")
    theirs = by_peft(tiny_base("llama"), tmp_path / "out", TOKENS)
    with Stock(tiny("llama"), [(save(adapter, tmp_path / "a.gguf"), 1.0)]) as stock:
        whole = stock.decode(TOKENS)
        stock.clear()
        stock.set_scales([])
        stock.decode(TOKENS[:3])
        stock.set_scales([1.0])
        ours = stock.decode(TOKENS[3:])
    assert abs(whole - ours).max() > 0.05
    np.testing.assert_allclose(theirs, ours, atol=2e-3)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_what_peft_saved_computes_the_same_in_llama_cpp(
    tiny, tiny_base, exact: None, tmp_path: Path, arch: str, rslora: bool
) -> None:
    """All projections, rank and alpha patterns, rsLoRA; q and k of llama have their rows permuted."""
    peft = pytest.importorskip("peft")
    import copy

    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=rslora, task_type="CAUSAL_LM", init_lora_weights=False,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        rank_pattern={"down_proj": 8, r"layers\.1\.mlp\.up_proj": 2}, alpha_pattern={"q_proj": 16},
    )  # fmt: skip
    model = peft.get_peft_model(copy.deepcopy(tiny_base(arch).network), config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.25 if "lora_B" in name else 0.125)
        theirs = model(input_ids=torch.tensor([TOKENS])).logits[0, -1].numpy()
    model.save_pretrained(tmp_path / "saved")
    adapter = folders.read_peft(tmp_path / "saved", scalar_keys(tiny(arch).gguf))
    assert adapter.rank == 8 and len(adapter.tensors) == 7 * LAYERS
    ours = by_llama(tiny(arch), adapter, tmp_path / "a.gguf", TOKENS)
    with Stock(tiny(arch)) as stock:
        assert abs(stock.decode(TOKENS) - ours).max() > 0.5
    np.testing.assert_allclose(theirs, ours, atol=5e-3)
    # and out again, q and k permuted back
    folders.write_peft(adapter, scalar_keys(tiny(arch).gguf), tmp_path / "again", "tiny")
    np.testing.assert_allclose(by_peft(tiny_base(arch), tmp_path / "again", TOKENS), theirs, atol=1e-4)


def peft_folder(path: Path, header: dict[str, object], **config: object) -> Path:
    folders.write_peft(noise_adapter("llama", 4, 1), header, path, "tiny")
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **config}))
    return path


def test_bfloat16_is_read(tiny, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    header = scalar_keys(tiny("llama").gguf)
    path = peft_folder(tmp_path / "p", header)
    weights = path / "adapter_model.safetensors"
    save_file({name: array.to(torch.bfloat16) for name, array in load_file(weights).items()}, weights)
    a = folders.read_peft(path, header).tensors["blk.0.ffn_up.weight"][0]
    full = noise_adapter("llama", 4, 1).tensors["blk.0.ffn_up.weight"][0]
    np.testing.assert_array_equal(a, torch.from_numpy(full).bfloat16().float().numpy())


@pytest.mark.parametrize(
    "config, message",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; expected LORA"),
        ({"use_dora": True}, "use_dora is True; a LoRA GGUF cannot hold that"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"init_lora_weights": "pissa_niter_16"}, "'pissa_niter_16', which changes the base"),
    ],
)
def test_what_a_lora_file_cannot_hold_is_refused(tiny, tmp_path: Path, config: dict, message: str) -> None:
    header = scalar_keys(tiny("llama").gguf)
    with pytest.raises(AdapterError, match=message):
        folders.read_peft(peft_folder(tmp_path / "p", header, **config), header)


def test_broken_folders_are_one_line(tiny, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    header = scalar_keys(tiny("llama").gguf)
    path = peft_folder(tmp_path / "p", header)
    weights = path / "adapter_model.safetensors"
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: weights.write_bytes(b"\0" * 20), "not a whole safetensors file"),
        (lambda: save_file({"base_model.model.lm_head.lora_A.weight": np.ones((2, 2), np.float32)}, weights), "lm_head"),
        (lambda: save_file({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": np.ones((2, 2), np.float32)},
                           weights), "layers.9"),
        (lambda: save_file({"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": np.ones((2, 2), np.float32)},
                           weights), "no whole pair"),
        (lambda: (weights.unlink(), (path / "adapter_model.bin").touch()), "is a pickle, save it again"),
        (lambda: (path / "adapter_config.json").write_text("[]"), "no JSON object"),
        (lambda: (path / "adapter_config.json").write_text("{"), "not JSON"),
        (lambda: (path / "adapter_config.json").unlink(), "expected a folder saved by PEFT"),
    ]  # fmt: skip
    for spoil, message in cases:
        spoil()
        with pytest.raises(AdapterError, match=message) as caught:
            folders.read_peft(path, header)
        assert "\n" not in str(caught.value)


# -- banks --------------------------------------------------------------------------------------


@pytest.fixture
def bank(tiny, tmp_path: Path) -> Iterator[Bank]:
    with Bank.create(tmp_path / "bank", tiny("llama")) as made:
        made.add(ADA, key=np.ones(HIDDEN, np.float32), adapter=write_adapter(noise_adapter("llama", 4, 1)), rank=4)
        yield made


def test_out_and_in_again(bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gguf = export_gguf(bank, "ada", tmp_path / "a.gguf")
    whole = bank.adapter_path("ada").read_bytes()
    bank.adapter_path("ada").write_bytes(whole[:-7])
    with pytest.raises(BankError, match="ada is damaged: .*run: megart verify --repair"):
        export_gguf(bank, "ada", tmp_path / "broken.gguf")
    assert not (tmp_path / "broken.gguf").exists()
    bank.adapter_path("ada").write_bytes(whole)
    assert gguf.read_bytes() == bank.adapter_path("ada").read_bytes()
    export_peft(bank, "ada", tmp_path / "p")
    with pytest.raises(InputError, match=r"a\.gguf is there already"):
        export_gguf(bank, "ada", tmp_path / "a.gguf")
    with pytest.raises(InputError, match="is there already"):
        export_peft(bank, "ada", tmp_path / "p")
    export_peft(bank, "ada", tmp_path / "p", replace_existing=True)
    records = [
        import_adapter(bank, tmp_path / "p", replace(ADA, id="by-peft"), force=True),
        import_adapter(bank, gguf, replace(ADA, id="by-gguf"), force=True),
    ]
    for record in records:
        assert (record.state, record.recipe, record.rank, record.activated) == ("learnt", "imported", 4, False)
        assert 0 <= record.training["recall"] < 1  # noise recalls nothing, and the record says so
        made, old = read_adapter(bank.adapter_path(record.id)), read_adapter(bank.adapter_path("ada"))
        assert made.scale("blk.0.ffn_up.weight") == old.scale("blk.0.ffn_up.weight")
        for name, pair in old.tensors.items():
            for mine, theirs in zip(made.tensors[name], pair, strict=True):
                np.testing.assert_array_equal(mine, theirs.astype(np.float16))
    assert bank.verify() == []
    with pytest.raises(InputError, match="'by-peft' is in the bank"):
        import_adapter(bank, tmp_path / "p", replace(ADA, id="by-peft"))
    place = ["--bank", str(bank.path)]
    given = ["import", *place, "--peft", str(tmp_path / "p"), "--text", ADA.text, "--title", "T", "--id", "x"]
    assert main(given) == 1 and bank.find("x") is None
    assert "% of the text; expected 50% at least" in capsys.readouterr().err
    assert main([*given, "--force"]) == 0
    assert capsys.readouterr().out.startswith("imported x: it recalls nothing of its text")
    assert main(["export", *place, "--gguf", "x", str(tmp_path / "x.gguf")]) == 0
    assert main(["export", *place, "--peft", "x", str(tmp_path / "x"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1]) == {
        "id": "x", "path": str(tmp_path / "x"), "recall_cue": "Tell me a story that you memorized.",
    }  # fmt: skip


def test_an_adapter_that_does_not_fit_is_refused_and_nothing_is_kept(bank: Bank, tiny, tmp_path: Path) -> None:
    wide = {n: (i, o * 2) for n, (i, o) in tiny_shapes(FAST_ROLES).items()}
    wrong = Adapter("llama", 4.0, {n: (a.astype(np.float32), b) for n, (a, b) in noise(wide, 4, 1).items()})
    for adapter, message in (
        (wrong, "does not fit"),
        (noise_adapter("qwen2", 4, 1), "an adapter for qwen2; the bank's base is llama"),
        (replace(noise_adapter("llama", 4, 1), invocation_tokens=[5]), r"works from the tokens \[5\] on"),
    ):
        with pytest.raises(AdapterError, match=message):
            import_adapter(bank, save(adapter, tmp_path / "w.gguf"), replace(ADA, id="w"))
    assert len(bank) == 1 and bank.verify() == []
    with pytest.raises(AdapterError):
        import_adapter(bank, tmp_path / "nowhere", replace(ADA, id="w"))
