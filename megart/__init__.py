"""Memories for small language models: learnt once, opened by a gate, mixed in per question.

Public names load on first use: importing megart imports no model library, no torch, no numpy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .openmp import spin_briefly

if TYPE_CHECKING:
    from .bank import Bank, Memory
    from .errors import (
        AdapterError,
        BankError,
        BaseMismatchError,
        DependencyError,
        InputError,
        MegartError,
        MemorizeError,
        MemoryNotFoundError,
        ModelError,
    )
    from .memorize import learn, memorize
    from .runtime.assistant import Assistant
    from .runtime.runtime import Runtime

    __version__: str

spin_briefly()  # before anything of megart loads NumPy

__all__ = [
    "AdapterError",
    "Assistant",
    "Bank",
    "BankError",
    "BaseMismatchError",
    "DependencyError",
    "InputError",
    "MegartError",
    "MemorizeError",
    "Memory",
    "MemoryNotFoundError",
    "ModelError",
    "Runtime",
    "__version__",
    "learn",
    "memorize",
]
_HOMES = {
    "Assistant": "megart.runtime.assistant",
    "Bank": "megart.bank",
    "Memory": "megart.bank",
    "Runtime": "megart.runtime.runtime",
    "learn": "megart.memorize",
    "memorize": "megart.memorize",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version()
    elif name in __all__:
        value = getattr(importlib.import_module(_HOMES.get(name, "megart.errors")), name)
    else:
        raise AttributeError(f"module 'megart' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("megart")
    except PackageNotFoundError:
        return "0+unknown"


class _Package(ModuleType):
    """`megart.memorize` stays the function when the import of the module of that name binds it here."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "memorize" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
