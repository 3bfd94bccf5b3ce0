"""What is fuzzed: each target takes the bytes of a stranger's file and may end in a MegartError, and in nothing else.

What passes is used as a bank and the runtime use it, so that a parser that lets something through is found out too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from megart.adapter import read_adapter
from megart.architecture import check_whole_header, scalar_keys
from megart.bank import Bank, Memory
from megart.bank.pack_file import BLOCK
from megart.bank.packed import PackedBank
from megart.bank.reading import read_memories
from megart.bank.sources import read_sources
from megart.errors import MegartError
from megart.train import peft

# A new folder in memory, where there is one: the catalog's target waits for the disk otherwise.
_ROOM = "/dev/shm" if os.path.isdir("/dev/shm") else None
HEADER = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
}
PARTS = b"\n=====\n"  # between the files of a target that takes several
_OURS = ("bank", "victim")


def _file(name: str, data: bytes) -> Path:
    """*data* as the file *name*, alone in the target's folder."""
    path = _folder() / name
    path.write_bytes(data)
    return path


_made: list[Path] = []


def _folder() -> Path:
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix="megart-fuzz-", dir=_ROOM)))
    return _made[0]


def clean() -> None:
    """Deletes the folder of the targets."""
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)


def adapter(data: bytes) -> None:
    made = read_adapter(data)
    assert made.rank > 0 and made.nbytes <= len(data)
    for name, (a, b) in made.tensors.items():
        made.scale(name)
        a.tobytes(), b.tobytes()


def gguf(data: bytes) -> None:
    path = _file("model.gguf", data)
    for read in (scalar_keys, check_whole_header):
        with suppress(MegartError):
            read(path)


def packed(data: bytes) -> None:
    with PackedBank(_file("bank.megapack", honest(data))) as bank:
        for read in (
            bank.columns,
            bank.keys,
            bank.words,
            bank.verify,
            lambda: bank.tokens(bank.ids),
            lambda: bank.delta,
            lambda: bank.content,
        ):
            with suppress(MegartError):
                read()
        with suppress(MegartError):
            bank.vectors("e5")
        for id in bank.ids[:4]:
            for use in (bank.get, lambda id: bank.tokens([id]), bank.adapter):
                with suppress(MegartError):
                    use(id)


def honest(data: bytes) -> bytes:
    """A pack with the hashes that its bytes have: who changes a pack on purpose changes them too."""
    made = bytearray(data)
    if len(made) < 128:
        return data
    at, size = struct.unpack_from("<QQ", made, 16)
    if not at + 8 <= at + size <= len(made):
        return data
    count = min(struct.unpack_from("<I", made, at + 4)[0], (size - 8) // 64)
    for entry in range(at + 8, at + 8 + 64 * count, 64):
        start, length = struct.unpack_from("<QQ", made, entry + 16)
        if start + length > len(made):
            continue
        blocks = [made[part : min(part + BLOCK, start + length)] for part in range(start, start + length, BLOCK)]
        hashes = b"".join(hashlib.sha256(block).digest() for block in blocks)
        behind = start + length + -(start + length) % 64
        made[behind : behind + len(hashes)] = hashes
        made[entry + 32 : entry + 64] = hashlib.sha256(hashes).digest()
    made[32:64] = hashlib.sha256(made[at : at + size]).digest()
    return bytes(made)


def peft_folder(data: bytes) -> None:
    config, _, weights = data.partition(PARTS)
    _file(peft.CONFIG, config), _file(peft.WEIGHTS, weights)
    made = peft.read_peft(_folder(), HEADER)
    assert made.rank >= 0 and made.nbytes <= 64 * len(data) + 4096


def json_lines(data: bytes) -> None:
    _read(_file("notes.jsonl", data))


def markdown(data: bytes) -> None:
    _read(_file("notes.md", data))


def text(data: bytes) -> None:
    _read(_file("notes.txt", data))


def _read(path: Path) -> None:
    for memory in read_memories(path):
        assert memory.text.strip() == memory.text != ""
        memory.default_id()


def chats(data: bytes) -> None:
    read_sources([str(_file("talks.json", data))])


def catalog(data: bytes) -> None:
    home = _folder()
    shutil.rmtree(home / "bank", ignore_errors=True)
    (home / "bank" / "adapters").mkdir(parents=True)
    for name in ("ada", "suisha"):
        (home / "bank" / "adapters" / f"{name}.gguf").write_bytes(b"GGUF " + name.encode())
    (home / "victim").write_bytes(b"precious")
    (home / "bank" / "catalog.sqlite").write_bytes(data)
    try:
        _use(home / "bank")
    finally:
        # nothing outside the bank was touched, and nothing was made there
        assert (home / "victim").read_bytes() == b"precious"
        assert all(entry.name in _OURS or entry.suffix in _SUFFIXES for entry in home.iterdir())


_SUFFIXES = (".gguf", ".megapack", ".json", ".safetensors", ".jsonl", ".md", ".txt")


def _use(folder: Path) -> None:
    with Bank.open(folder) as bank:
        for read in (bank.keys, bank.words, bank.verify, bank.without_evidence, lambda: bank.vectors("e5")):
            with suppress(MegartError):
                read()
        for record in bank.records()[:3]:
            with suppress(MegartError):
                bank.adapter_bytes(record.id)
            with suppress(MegartError):
                bank.tokens([record.id])
        with suppress(MegartError):
            bank.add(Memory("New.", id="new"), key=np.ones(4, np.float32), adapter=b"x", replace=True)
            bank.remove("new")
        bank.repair()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "adapter": adapter,
    "gguf": gguf,
    "pack": packed,
    "peft": peft_folder,
    "jsonl": json_lines,
    "markdown": markdown,
    "text": text,
    "chats": chats,
    "catalog": catalog,
}


def run(name: str, data: bytes) -> None:
    """Feeds *data* to the target *name*; raises whatever is no MegartError."""
    with suppress(MegartError):
        TARGETS[name](data)
