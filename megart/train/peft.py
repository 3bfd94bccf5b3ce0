"""PEFT's adapter folders, out and in: adapter_config.json and adapter_model.safetensors.

Source of the format: ``peft.LoraConfig`` and ``peft.utils.save_and_load``. Needs safetensors, neither
torch nor peft. Knows nothing about banks or text.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
from safetensors.numpy import save

from ..adapter import Adapter
from ..errors import AdapterError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
# Projections of a decoder block under their names in transformers.
_PARTS = {
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
# Initialisations that leave the base's weights as they are; others (pissa, olora, ...) subtract from them.
_HARMLESS = (True, False, None, "gaussian", "eva", "orthogonal", "lora_ga")
_MOST_CONFIG, _MOST_WEIGHTS, _MOST_MODULES = 4 << 20, 16 << 30, 10_000
# Ranks differ from module to module, but not so that a small file fills the memory.
_MOST_PADDING = 16
_MODULE = re.compile(r"[\w.]{1,200}", re.ASCII)
_FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def write_peft(adapter: Adapter, header: Mapping[str, Any], folder: Path, base: str) -> None:
    """Write *adapter* as a PEFT folder that computes the same: scale lora_alpha / r, no rsLoRA.

    ``header`` holds the base's GGUF keys, ``base`` names it in the config. An activated adapter becomes
    an aLoRA. Raises AdapterError for a tensor that has no place in transformers.
    """
    modules = _modules(adapter.arch, header)
    names = {name: module for module, name in modules.items()}
    arrays: dict[str, np.ndarray] = {}
    for name, (a, b) in adapter.as_type("f32").tensors.items():
        module = names.get(name.removesuffix(".weight"))
        if module is None:
            raise AdapterError(f"the tensor {name} has no counterpart in transformers; cannot write it for PEFT")
        if heads := permuted_heads(name, adapter.arch, header):
            b = unpermute_rows(b, heads)
        half = adapter.tensors[name][0].dtype == np.float16
        for side, array in (("A", a), ("B", b)):
            stored = array.astype(np.float16) if half else array
            arrays[f"base_model.model.{module}.lora_{side}.weight"] = np.ascontiguousarray(stored)
    scale = adapter.scale(next(iter(adapter.tensors)))
    alpha = scale * adapter.rank
    layers = sorted({int(name.split(".")[1]) for name in adapter.tensors})
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": False,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({names[n.removesuffix(".weight")].split(".")[-1] for n in adapter.tensors}),
        "modules_to_save": None,
        "alora_invocation_tokens": list(adapter.invocation_tokens) or None,
    }
    if len(layers) < int(header[f"{adapter.arch}.block_count"]):
        config["layers_to_transform"] = layers
    folder.mkdir(parents=True, exist_ok=True)
    # Whole or not at all, and the config, by which the folder is known as an adapter, last.
    with tempfile.TemporaryDirectory(prefix=".megart-", dir=folder) as beside:
        scratch = Path(beside)
        (scratch / WEIGHTS).write_bytes(save(arrays, metadata={"format": "pt"}))
        (scratch / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name in (WEIGHTS, CONFIG):
            os.replace(scratch / name, folder / name)


@np.errstate(all="ignore")  # what is not finite is refused when the adapter is written
def read_peft(folder: Path, header: Mapping[str, Any]) -> Adapter:
    """The adapter in a PEFT folder, for the base with the GGUF keys *header*; factors in float32.

    Scales of LoRA and rsLoRA, rank and alpha patterns come out exactly: pairs are padded with zeros to
    one rank, and what their scales differ by goes into B. Raises AdapterError for what a LoRA GGUF
    cannot hold.
    """
    config = _config(folder)
    tensors = _read(folder / WEIGHTS)
    arch = str(header["general.architecture"])
    modules = _modules(arch, header)
    pairs: dict[str, dict[str, np.ndarray]] = {}
    for key, array in tensors.items():
        match = _KEY.fullmatch(key)
        module = match[1] if match else ""
        if not match or module not in modules:
            raise AdapterError(
                f"{folder / WEIGHTS}: the tensor {key!r} has no place in {arch}; "
                "expected LoRA factors of attention and MLP projections"
            )
        pairs.setdefault(module, {})[match[2]] = array
    if not pairs:
        raise AdapterError(f"{folder / WEIGHTS} holds no LoRA factors")
    scales: dict[str, float] = {}
    for module, pair in pairs.items():
        if set(pair) != {"A", "B"} or any(array.ndim != 2 for array in pair.values()):
            raise AdapterError(f"{folder / WEIGHTS}: {module} has no whole pair of lora_A and lora_B")
        rank = pair["A"].shape[0]
        if pair["B"].shape[1] != rank:
            raise AdapterError(f"{folder / WEIGHTS}: {module} has ranks {rank} and {pair['B'].shape[1]}")
        alpha = _pattern(config["alpha_pattern"], module, config["lora_alpha"])
        scales[module] = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    rank = max(pair["A"].shape[0] for pair in pairs.values())
    scale = scales[next(iter(pairs))]
    padded = sum(rank * (pair["A"].shape[1] + pair["B"].shape[0]) for pair in pairs.values())
    if padded > _MOST_PADDING * sum(array.size for array in tensors.values()):
        raise AdapterError(f"{folder / WEIGHTS}: padded to one rank, {rank}, its factors would have {padded} numbers")
    factors = {}
    for module, pair in pairs.items():
        a, b = pair["A"], pair["B"] * np.float32(scales[module] / scale if scale else 0.0)
        name = modules[module]
        if heads := permuted_heads(name, arch, header):
            if b.shape[0] % (2 * heads):
                raise AdapterError(f"{module}: lora_B has {b.shape[0]} rows, which {heads} heads cannot share")
            b = permute_rows(b, heads)
        fill = rank - a.shape[0]
        factors[f"{name}.weight"] = (np.pad(a, ((0, fill), (0, 0))), np.pad(b, ((0, 0), (0, fill))))
    return Adapter(arch, scale * rank, factors, config["alora_invocation_tokens"])


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(_bytes(path, _MOST_CONFIG))
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror or error}; expected a folder saved by PEFT") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path} holds no JSON object")
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{path}: peft_type is {config.get('peft_type')!r}; expected LORA")
    init = config.get("init_lora_weights", True)
    wrong = [
        f"{name} is {config[name]!r}"
        for name in ("use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "modules_to_save", "layer_replication")
        if config.get(name)
    ]
    wrong += [f"bias is {config['bias']!r}"] if config.get("bias", "none") != "none" else []
    wrong += [f"init_lora_weights is {init!r}, which changes the base"] if init not in _HARMLESS else []
    if wrong:
        raise AdapterError(f"{path}: {'; '.join(wrong)}; a LoRA GGUF cannot hold that")
    return {
        **config,
        "lora_alpha": _number(path, "lora_alpha", config.get("lora_alpha", 8)),
        "alpha_pattern": _numbers(path, "alpha_pattern", config.get("alpha_pattern")),
        "alora_invocation_tokens": _tokens(path, config.get("alora_invocation_tokens")),
    }


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e9:
        raise AdapterError(f"{path}: {name} is {str(value)[:40]!r}; expected a number from 0 on")
    return float(value)


def _numbers(path: Path, name: str, value: object) -> dict[str, float]:
    """A pattern of PEFT's: numbers by the end of a module's name."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > _MOST_MODULES:
        raise AdapterError(f"{path}: {name} is no object of at most {_MOST_MODULES} numbers by modules' names")
    value = {key.replace("\\.", "."): number for key, number in value.items()}
    for key in value:
        if not _MODULE.fullmatch(key.removeprefix("^")):
            raise AdapterError(f"{path}: {name} has the key {key[:60]!r}; expected a module's name, not a pattern")
    return {key: _number(path, f"{name} of {key}", number) for key, number in value.items()}


def _tokens(path: Path, value: object) -> list[int]:
    tokens = value or []
    if not isinstance(tokens, list) or not all(type(token) is int and 0 <= token < 1 << 31 for token in tokens):
        raise AdapterError(f"{path}: alora_invocation_tokens is no list of token ids")
    return tokens


def _bytes(path: Path, most: int) -> bytes:
    """A regular file of at most *most* bytes, whole; not what waits for a writer or never ends."""
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_size > most:
            raise AdapterError(f"{path} is no regular file of at most {most >> 20} MiB")
        return file.read(most)


def _read(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file, float32; NumPy has no bfloat16, so that is widened here."""
    if not path.is_file():
        other = path.with_name("adapter_model.bin").is_file()
        hint = "; adapter_model.bin is a pickle, save it again with safe_serialization" if other else ""
        raise AdapterError(f"no file {path}{hint}")
    try:
        tensors = safetensors.deserialize(_bytes(path, _MOST_WEIGHTS))
    except (safetensors.SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a whole safetensors file: {error}") from error
    arrays = {}
    for name, tensor in tensors:
        kind, data = tensor["dtype"], bytes(tensor["data"])
        if kind == "BF16":
            flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif kind in _FLOATS:
            flat = np.frombuffer(data, _FLOATS[kind]).astype(np.float32)
        else:
            raise AdapterError(f"{path}: {name} is of type {kind}; expected float32, float16 or bfloat16")
        arrays[name] = flat.reshape(tensor["shape"])
    return arrays


def _modules(arch: str, header: Mapping[str, Any]) -> dict[str, str]:
    """Module of the transformers model -> GGUF tensor name without ".weight"."""
    layers = int(header.get(f"{arch}.block_count", 0))
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[arch], layers)
    paths = [f"model.layers.{layer}.{part}" for layer in range(layers) for part in _PARTS.values()]
    return {path: name for path in paths if (name := names.get_name(path))}


def _pattern(pattern: Mapping[str, float], module: str, default: float) -> float:
    """The value that PEFT takes for *module*: of the first key that is its name or the end of it."""
    for key, value in pattern.items():
        if module == key.removeprefix("^") or (not key.startswith("^") and module.endswith(f".{key}")):
            return value
    return default


def permuted_heads(name: str, arch: str, header: Mapping[str, Any]) -> int:
    """How many heads' rows the GGUF conversion interleaves in the tensor *name*; 0 when none."""
    part = name.split(".")[2]
    if arch != "llama" or part not in ("attn_q", "attn_k"):
        return 0
    heads = header.get("llama.attention.head_count", 0)
    return int(header.get("llama.attention.head_count_kv", heads) if part == "attn_k" else heads)


def permute_rows(b: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's conversion of llama models orders them (its rotary halves are interleaved)."""
    rows = b.shape[0] // heads // 2
    return np.ascontiguousarray(b.reshape(heads, 2, rows, -1).swapaxes(1, 2).reshape(b.shape))


def unpermute_rows(b: np.ndarray, heads: int) -> np.ndarray:
    rows = b.shape[0] // heads // 2
    return np.ascontiguousarray(b.reshape(heads, rows, 2, -1).swapaxes(1, 2).reshape(b.shape))
