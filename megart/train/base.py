"""The frozen base in PyTorch: the very weights of the GGUF that will be deployed, dequantised.

Knows nothing about memories or adapters. Source of the loading: transformers' ``gguf_file=``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GgufConfig, modeling_gguf_pytorch_utils
from transformers.utils import logging as hf_logging

from ..architecture import check_teachable, check_whole_header
from ..errors import ModelError
from ..models import Model, user_cache_dir

# Dequantised copies larger than this are not cached: an 8B base would take 16 GB of somebody's disk.
CACHE_LIMIT_BYTES = 4 << 30
# The roles a memory may write to, as GGUF names them; projections of a gated MLP.
TARGET_ROLES = ("ffn_gate", "ffn_up", "ffn_down")
# Those that a reader works on as well.
ALL_ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", *TARGET_ROLES)


@dataclass(frozen=True)
class Target:
    """One projection that adapters attach to."""

    name: str  # GGUF tensor name, "blk.0.ffn_up.weight"
    module: nn.Linear  # weight [out, in]

    @property
    def role(self) -> str:
        return self.name.split(".")[2]

    @property
    def layer(self) -> int:
        return int(self.name.split(".")[1])


@dataclass
class FrozenBase:
    """A causal language model whose weights never change.

    ``network`` is a transformers decoder; ``targets`` lists its MLP projections in layer order.
    """

    network: Any  # a causal model of transformers, whose classes are typed too loosely
    architecture: str
    device: torch.device
    dtype: torch.dtype
    targets: list[Target]

    @property
    def n_layer(self) -> int:
        return self.network.config.get_text_config().num_hidden_layers


def default_device() -> str:
    """``cuda`` where PyTorch finds one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    native = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 and "AVX512" in native else torch.float32


def load_base(
    model: Model,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    cache: bool = True,
) -> FrozenBase:
    """Load and freeze the base of *model*.

    The weights are those of ``model.gguf`` (dequantised by transformers), or of the Hugging Face
    folder ``model.hf`` when that is given. Dequantising takes many seconds, so the result is kept
    in the user's cache under the hash of the GGUF.

    Raises ModelError for an unsupported architecture, a missing device or an unreadable file.
    """
    try:
        where = torch.device(device or default_device())
    except RuntimeError:
        raise ModelError(f"got the device {device!r}; expected cpu, cuda or cuda:1") from None
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device {where}: PyTorch finds no CUDA device; use --device cpu")
    kind = dtype or default_dtype(where)
    architecture = check_teachable(model)
    if model.hf is None:
        check_whole_header(model.gguf)
    with _quiet():
        network: Any = _network(model, kind, cache)
    try:
        network.to(where).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:  # no such device, or not enough memory there
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"device {where}: {first}; use --device cpu") from error
    # On a CPU the plain form is the faster one: SDPA's backward pass is slow with a mask.
    network.set_attn_implementation("sdpa" if where.type == "cuda" else "eager")
    return FrozenBase(network, architecture, where, kind, find_targets(network, architecture))


def with_cache(module: nn.Module, keys_and_values: Any) -> dict[str, Any]:
    """The arguments by which *module*, of transformers, goes on from *keys_and_values* and adds its own.

    transformers 5.24 calls it ``cache``, those before ``past_key_values``, which it warns of.
    """
    name = "cache" if "cache" in inspect.signature(module.forward).parameters else "past_key_values"
    return {name: keys_and_values, "use_cache": True}


def find_targets(network: Any, architecture: str, roles: tuple[str, ...] = TARGET_ROLES) -> list[Target]:
    """The projections of *network* that play *roles*, under their GGUF names (``gguf`` name map)."""
    layers = network.config.get_text_config().num_hidden_layers
    arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    names = gguf.get_tensor_name_map(arch, layers)
    targets = []
    for path, module in network.named_modules():
        name = names.get_name(path)
        if isinstance(module, nn.Linear) and name and name.split(".")[-1] in roles:
            targets.append(Target(f"{name}.weight", module))
    if len(targets) != layers * len(roles):
        raise ModelError(
            f"{architecture}: expected {', '.join(roles)} in each of {layers} layers, "
            f"found {len(targets)}; only dense models with a gated MLP can be taught"
        )
    return targets


def _network(model: Model, dtype: torch.dtype, cache: bool) -> nn.Module:
    if model.hf is not None:
        return _pretrained(str(model.hf), dtype)
    folder = user_cache_dir() / "bases" / f"{model.sha256[:32]}-{str(dtype).split('.')[-1]}"
    if cache and (folder / "config.json").exists():
        try:
            return _pretrained(str(folder), dtype)
        except Exception:  # a damaged cache is made anew, never trusted
            shutil.rmtree(folder, ignore_errors=True)
    network = _pretrained(
        str(model.gguf.parent),
        dtype,
        gguf_file=model.gguf.name,
        quantization_config=GgufConfig(dequantize=True),
    )
    size = sum(p.numel() * p.element_size() for p in network.parameters())
    if cache and size <= CACHE_LIMIT_BYTES:
        _keep(network, folder)
    return network


def _pretrained(source: str, dtype: torch.dtype, **options: object) -> nn.Module:
    try:
        return AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{source}: transformers cannot load this model: {first}") from error


def _keep(network: Any, folder: Path) -> None:
    """Save into the cache, whole or not at all; failing to cache is not an error."""
    with contextlib.suppress(Exception):  # safetensors has errors of its own for a full disk
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".new-") as temporary:
            config = network.config
            quantization = config.__dict__.pop("quantization_config", None)
            try:
                network.save_pretrained(temporary)
            finally:
                if quantization is not None:
                    config.quantization_config = quantization
            os.replace(temporary, folder)
            os.makedirs(temporary)  # TemporaryDirectory wants something to remove


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers prints progress bars and advice of its own; only our CLI draws."""
    level = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    # Its GGUF reader has a bar of its own; tqdm looks at TQDM_DISABLE only when it is imported.
    bar = modeling_gguf_pytorch_utils.tqdm
    modeling_gguf_pytorch_utils.tqdm = functools.partial(bar, disable=True)
    root = logging.getLogger("transformers")
    previous = root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        hf_logging.set_verbosity(level)
        root.setLevel(previous)
        modeling_gguf_pytorch_utils.tqdm = bar
