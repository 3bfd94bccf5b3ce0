"""Adapters out of a bank and into it: PEFT folders and LoRA GGUF files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import direct, prompts
from .adapter import CUE_KEY, Adapter, read_adapter, write_adapter
from .architecture import check_teachable, scalar_keys
from .bank import Bank, Memory, Record
from .errors import AdapterError, DependencyError, InputError
from .models import Model, resolve_model
from .verbatim import recited_share
from .whole_file import whole_file

if TYPE_CHECKING:
    from types import ModuleType

    from .runtime.assistant import Assistant

# An adapter that recites less of its text was taught another one, or by another model's prompts.
LEAST_RECALL = 0.5


def export_gguf(bank: Bank, id: str, path: str | Path, *, replace_existing: bool = False) -> Path:
    """Copy the adapter of memory *id* to the file *path*: llama.cpp takes it with --lora.

    Raises InputError when the file is there and is not to be replaced, BankError when the bank's is damaged.
    """
    target = Path(path).expanduser()
    data = bank.adapter_bytes(id)
    _refuse(target, replace_existing)
    try:
        with whole_file(target) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def export_peft(
    bank: Bank, id: str, folder: str | Path, *, model: str | Path | Model | None = None, replace_existing: bool = False
) -> Path:
    """Write the adapter of memory *id* as a PEFT folder of exactly the same effect.

    Raises InputError when the folder holds an adapter and is not to be overwritten.
    """
    peft, base = _peft(), _base(bank, model)
    adapter = bank.adapter(id)
    target = Path(folder).expanduser()
    _refuse(target / peft.CONFIG, replace_existing)
    try:
        peft.write_peft(adapter, scalar_keys(base.gguf), target, str(base.hf or bank.base.name))
    except OSError as error:
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def import_adapter(
    bank: Bank,
    source: str | Path,
    memory: Memory,
    *,
    model: str | Path | Model | None = None,
    replace_existing: bool = False,
    force: bool = False,
) -> Record:
    """Commit *memory* with an adapter trained elsewhere: a PEFT folder or a LoRA GGUF file.

    The record's ``training["recall"]`` says how much of the text the runtime recalls with it, in [0, 1]. Raises
    AdapterError when that is less than ``LEAST_RECALL``, unless *force*, or when the adapter does not fit the bank's
    base; InputError when the id is taken.
    """
    base = _base(bank, model)
    architecture = check_teachable(base)
    memory = replace(memory, id=memory.id or memory.default_id())
    there = bank.find(memory.id or "")
    over = there.memory if there else None
    if there and not replace_existing:
        raise InputError(f"{memory.id!r} is in the bank; give another id, or --replace")
    path = Path(source).expanduser()
    adapter = _peft().read_peft(path, scalar_keys(base.gguf)) if path.is_dir() else read_adapter(path)
    if adapter.arch != architecture:
        raise AdapterError(f"{path} is an adapter for {adapter.arch}; the bank's base is {architecture}")
    from .runtime.assistant import Assistant

    with Assistant(bank, model=base) as assistant:
        return _commit(bank, memory, over, adapter, path, assistant, force)


def _commit(
    bank: Bank, memory: Memory, over: Memory | None, adapter: Adapter, path: Path, assistant: Assistant, force: bool
) -> Record:
    opening = list(assistant.engine.prompt([{"role": "user", "content": "?"}]).opening)
    if adapter.invocation_tokens and adapter.invocation_tokens != opening:
        raise AdapterError(
            f"{path} works from the tokens {adapter.invocation_tokens} on, "
            f"but this model's answers begin with {opening}; train it on this model's chat template"
        )
    activated = bool(adapter.invocation_tokens)
    if any(array.dtype.kind == "f" for pair in adapter.tensors.values() for array in pair):
        adapter = adapter.as_type("f16")
    cue, score = _best_cue(adapter, memory, activated, assistant)
    if score < LEAST_RECALL and not force:
        raise AdapterError(
            f"{path} recites {score:.0%} of the text; expected {LEAST_RECALL:.0%} at least: give the very text that it was "
            "taught, or take it as it is with --force"
        )
    names = {"general.name": memory.title or memory.id, "megart.memory_id": memory.id, CUE_KEY: cue}
    data = write_adapter(replace(adapter, metadata=names))
    return bank.add(
        memory,
        **assistant.index_entry(memory.text, memory.title),
        adapter=data,
        recipe="imported",
        activated=activated,
        rank=adapter.rank,
        training={"recall": round(score, 4), "source": path.name},
        replace=over,
    )


def _best_cue(adapter: Adapter, memory: Memory, activated: bool, assistant: Assistant) -> tuple[str, float]:
    """The cue by which *adapter* recalls most of *memory*, its own first, and how much of it: 0 to 1."""
    told = adapter.metadata.get(CUE_KEY)
    own = told if isinstance(told, str) and told.strip() else None
    best, most = prompts.RECALL_CUE, -1.0
    for cue in dict.fromkeys([own or prompts.RECALL_CUE, prompts.RECALL_CUE, direct.recall_cue(memory)]):
        score = recited_share(adapter, cue, [memory.text], assistant.acceptance, activated=activated)
        if score > most:
            best, most = cue, score
        if score == 1.0:
            break
    return best, most


def _base(bank: Bank, model: str | Path | Model | None) -> Model:
    base = resolve_model(model) if model is not None else bank.model
    bank.check_base(base)
    return base


def _refuse(path: Path, replace_existing: bool) -> None:
    if path.exists() and not replace_existing:
        raise InputError(f"{path} is there already; give another name, or --replace")


def _peft() -> ModuleType:
    try:
        from .train import peft
    except ImportError as error:
        raise DependencyError(
            f"PEFT folders need safetensors ({error.name} is missing); run: pip install 'megart[train]'"
        ) from error
    return peft
