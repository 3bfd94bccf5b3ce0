"""Readers: adapters shared by all memories of a base, which answer from what a memory recited. Where they are kept."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from .adapter import Adapter, read_adapter
from .errors import AdapterError, InputError
from .models import user_data_dir
from .whole_file import whole_file

# What a reader is taught to say where the passage does not answer; its first token's probability is the measure.
NOTHING = "Not in memory"
# In the metadata of a reader's file: what it is, and the SHA-256 of the base that it works on.
KIND_KEY, BASE_KEY = "megart.kind", "megart.base_sha256"
KIND = "reader"


def find(base_sha256: str, brought: Callable[[], bytes | None] = lambda: None) -> Adapter | None:
    """The reader for a base: the user's own, else what a bank has *brought*, else one that ships; None without any.

    Raises AdapterError, with the remedy, for a file of the user's that is damaged or belongs to another base.
    """
    own = own_path(base_sha256)
    if own.is_file():
        try:
            return checked(read_adapter(own), base_sha256, own.name)
        except AdapterError as error:
            raise AdapterError(f"{error}; delete it, or train it again: megart reader train --data FILE") from None
    if (data := brought()) is not None:
        try:
            return checked(read_adapter(data), base_sha256, "what the bank brings")
        except AdapterError as error:
            raise AdapterError(f"{error}; get the pack again") from None
    for entry in resources.files("megart.data").joinpath("readers").iterdir():
        if entry.name == f"{base_sha256[:16]}.gguf":
            with resources.as_file(entry) as path:
                return checked(read_adapter(path), base_sha256, entry.name)
    return None


def own_path(base_sha256: str) -> Path:
    """Where the user's own reader for a base lies."""
    return user_data_dir() / "readers" / f"{base_sha256}.gguf"


def own_bytes(base_sha256: str) -> bytes | None:
    """The file of the user's own reader for a base, for a pack to take along; None where there is none."""
    path = own_path(base_sha256)
    return path.read_bytes() if path.is_file() else None


def keep(data: bytes, path: Path) -> Path:
    """Write a reader's bytes to *path*, whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def checked(adapter: Adapter, base_sha256: str, name: str) -> Adapter:
    if adapter.metadata.get(KIND_KEY) != KIND or adapter.metadata.get(BASE_KEY) != base_sha256:
        raise AdapterError(f"{name} is no reader for the base {base_sha256[:12]}")
    return adapter


def covering(text: str, ends: list[int], start: int, end: int) -> tuple[int, int] | None:
    """The tokens, [first, last), of *text* that are its characters from *start* to *end* and no other word's.

    ``ends``: where each token ends. None where a token holds letters of the span and of its neighbours.
    """
    first = bisect.bisect_right(ends, start)
    last = bisect.bisect_left(ends, end)
    begins = ends[first - 1] if first else 0
    if any(c.isalnum() for c in text[begins:start] + text[end : ends[last]]):
        return None
    return first, last + 1
