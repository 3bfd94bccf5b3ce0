"""Adapter files that are wrong: one sample per way, every cut, and random damage. AdapterError, nothing else."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from megart.adapter import Adapter, read_adapter, write_adapter
from megart.errors import AdapterError


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def string(key: str, value: str) -> bytes:
    return text(key) + struct.pack("<I", 8) + text(value)


def alpha(value: float = 4.0) -> bytes:
    return text("adapter.lora.alpha") + struct.pack("<If", 6, value)


TYPE, ARCH, LORA = (
    string("general.type", "adapter"),
    string("general.architecture", "llama"),
    string("adapter.type", "lora"),
)
KEYS = [TYPE, ARCH, LORA, alpha()]


def tensor(name: str, columns: int, rows: int, kind: int = 0, offset: int = 0, dims: int = 2) -> bytes:
    sizes = (columns, rows, 1, 1)[:dims]
    return text(name) + struct.pack(f"<I{dims}QIQ", dims, *sizes, kind, offset)


A, B = tensor("w.lora_a", 8, 4), tensor("w.lora_b", 4, 2, offset=128)


def file(keys: list[bytes] = KEYS, tensors: list[bytes] | None = None, data: int = 160, **head: int) -> bytes:
    tensors = [A, B] if tensors is None else tensors
    counts = (
        head.get("version", 3),
        head.get("n_tensors", len(tensors)),
        head.get("n_keys", len(keys)),
    )
    start = b"GGUF" + struct.pack("<IQQ", *counts) + b"".join(keys) + b"".join(tensors)
    return start + bytes(-len(start) % 32 + data)


def array(item: int, count: int, body: bytes = b"") -> bytes:
    return text("megart.x") + struct.pack("<IIQ", 9, item, count) + body


BROKEN = {
    "empty": (b"", "empty"),
    "magic": (b"GGML" + file()[4:], "starts with b'GGML'"),
    "version": (file(version=1), "version 1"),
    "big-endian": (file(version=3 << 24), "little-endian"),
    "tensor count": (file(n_tensors=2**60), "tensors"),
    "key count": (file(n_keys=2**60), "keys"),
    "more keys than there are": (file(n_keys=60), "a\\.gguf"),
    "key twice": (file([*KEYS, TYPE]), "occurs twice"),
    "key too long": (file([struct.pack("<Q", 2**63) + b"x", *KEYS]), "string of"),
    "key not utf-8": (file([text(b"\xff") + struct.pack("<II", 4, 1), *KEYS]), "utf-8"),
    "value type": (file([*KEYS, text("megart.x") + struct.pack("<I", 13)]), "type 13"),
    "array too long": (file([*KEYS, array(0, 2**62)]), "array of"),
    "array of arrays": (file([*KEYS, array(9, 1)]), "array of"),
    "array of nothing": (file([*KEYS, array(77, 1)]), "type 77"),
    "no type": (file([ARCH, LORA]), "general.type is None"),
    "a model": (file([string("general.type", "model"), ARCH, LORA]), "not a LoRA adapter"),
    "not lora": (file([TYPE, ARCH, string("adapter.type", "x")]), "adapter.type"),
    "no architecture": (file([TYPE, LORA]), "architecture"),
    "alpha is text": (file([TYPE, ARCH, LORA, string("adapter.lora.alpha", "1")]), "alpha has the type"),
    "alpha is nan": (file([TYPE, ARCH, LORA, alpha(float("nan"))]), "finite"),
    "tokens are i32": (
        file([*KEYS, array(5, 1, bytes(4)).replace(text("megart.x"), text("adapter.alora.invocation_tokens"))]),
        "invocation_tokens has the type",
    ),
    "alignment": (file([*KEYS, text("general.alignment") + struct.pack("<II", 4, 48)]), "power of two"),
    "alignment 0": (file([*KEYS, text("general.alignment") + struct.pack("<II", 4, 0)]), "power of two"),
    "no tensors": (file(tensors=[]), "no tensors"),
    "half a pair": (file(tensors=[A]), "lacks its other half"),
    "other tensor": (file(tensors=[A, B, tensor("w.norm", 1, 1, offset=160)], data=192), "no LoRA factor"),
    "no base name": (file(tensors=[tensor(".lora_a", 8, 4)]), "no LoRA factor"),
    "twice": (file(tensors=[A, tensor("w.lora_a", 4, 2, offset=128)]), "occurs twice"),
    "one dimension": (file(tensors=[tensor("w.lora_a", 8, 1, dims=1), B]), "1 dimensions"),
    "many dimensions": (file(tensors=[text("w.lora_a") + struct.pack("<I", 2**31), B]), "dimensions"),
    "half a block": (file(tensors=[tensor("w.lora_a", 8, 4, kind=2), B]), "whole blocks"),
    "another type": (file(tensors=[tensor("w.lora_a", 8, 4, kind=3), B]), "type 3"),
    "huge": (file(tensors=[tensor("w.lora_a", 2**63, 2**63), B]), "larger than the file"),
    "empty matrix": (file(tensors=[tensor("w.lora_a", 0, 4), tensor("w.lora_b", 4, 2)]), "expected"),
    "offset beyond": (file(tensors=[A, tensor("w.lora_b", 4, 2, offset=2**63)]), "lies at"),
    "overlap": (file(tensors=[A, tensor("w.lora_b", 4, 2, offset=0)]), "lies at"),
    "unequal ranks": (file(tensors=[A, tensor("w.lora_b", 2, 2, offset=128)]), "one rank"),
    "cut short": (file(data=159), "cut short"),
}  # fmt: skip


def test_the_sample_that_the_others_break_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(file())
    adapter = read_adapter(path)
    assert adapter.rank == 4 and adapter.tensors["w"][1].shape == (2, 4) and adapter.alpha == 4.0


@pytest.mark.parametrize("name", BROKEN)
def test_each_way_of_being_wrong_is_named(tmp_path: Path, name: str) -> None:
    data, message = BROKEN[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(AdapterError, match=message) as caught:
        read_adapter(path)
    assert str(caught.value).count("\n") == 0 and str(path) in str(caught.value)


def whole() -> bytes:
    rng = np.random.default_rng(0)
    pairs = {
        f"blk.{n}.w": (
            rng.normal(size=(2, 5)).astype(np.float16),
            rng.normal(size=(3, 2)).astype(np.float32),
        )
        for n in range(3)
    }
    return write_adapter(Adapter("llama", 2.0, pairs, [1, 2], {"megart.x": "y", "megart.l": [1.5]}))


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    data = whole()
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    ends = read_adapter(path)
    last = data.rstrip(b"\0")
    assert ends.rank == 2
    for length in range(0, len(last) - 4, 3):
        path.write_bytes(data[:length])
        with pytest.raises(AdapterError):
            read_adapter(path)


def test_random_damage_is_an_error_or_an_adapter(tmp_path: Path) -> None:
    data = whole()
    head = data.index(b"blk.2.w.lora_b") + 60
    chance = random.Random(3)
    path = tmp_path / "a.gguf"
    refused = 0
    for _ in range(500):
        broken = bytearray(data)
        for _ in range(chance.choice((1, 1, 2, 8))):
            broken[chance.randrange(head)] = chance.choice((0, 1, 2, 255, chance.randrange(256)))
        if chance.random() < 0.2:
            del broken[chance.randrange(head) :][: chance.randrange(9)]
        path.write_bytes(broken)
        try:
            for pair in read_adapter(path).tensors.values():
                assert pair[0].shape[0] == pair[1].shape[1]
        except AdapterError:
            refused += 1
    assert refused > 200


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="No such file"):
        read_adapter(tmp_path / "no.gguf")
    with pytest.raises(AdapterError, match="not a regular file"):
        read_adapter(tmp_path)
    with pytest.raises(AdapterError):
        read_adapter("a\0b")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(AdapterError, match="not a regular file"):
            read_adapter(tmp_path / "pipe")
