"""Makes the corpus anew from what megart writes: python tests/fuzz/make_corpus.py. Inputs found by fuzzing stay."""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import targets

from megart.adapter import Adapter, write_adapter
from megart.bank import Bank, Memory
from megart.bank.pack import write_pack
from megart.train.peft import CONFIG, WEIGHTS, write_peft


def keep(target: str, name: str, data: bytes | str) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


def adapters() -> dict[str, Adapter]:
    chance = np.random.default_rng(1)

    def pairs(dtype: type, rank: int, wide: int = 4) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        shapes = [(f"blk.{n}.ffn_up.weight", wide, 6) for n in range(2)]
        return {
            name: (chance.normal(size=(rank, n_in)).astype(dtype), chance.normal(size=(n_out, rank)).astype(dtype))
            for name, n_in, n_out in shapes
        }

    return {
        "f32": Adapter("llama", 2.0, pairs(np.float32, 2)),
        "f16": Adapter("llama", 0.0, pairs(np.float16, 1), [1, 2], {"megart.x": "y", "megart.l": [1.5, 2.5]}),
        "q8_0": Adapter("llama", 1.0, pairs(np.float32, 1, 32)).as_type("q8_0"),
        "q4_0": Adapter("llama", 1.0, pairs(np.float32, 1, 32)).as_type("q4_0"),
    }


def main() -> None:
    made = adapters()
    for name, adapter in made.items():
        keep("adapter", name, write_adapter(adapter))
        keep("gguf", name, write_adapter(adapter))
    with tempfile.TemporaryDirectory() as room:
        folder = Path(room)
        write_peft(made["f16"], targets.HEADER, folder / "peft", "base")
        config, weights = ((folder / "peft" / name).read_bytes() for name in (CONFIG, WEIGHTS))
        keep("peft", "f16", config + targets.PARTS + weights)
        patterns = {
            "alpha_pattern": {"up_proj": 3, "^model.layers.0.mlp.up_proj": 1},
            "use_rslora": True,
            "lora_alpha": 4.5,
        }
        keep("peft", "patterns", json.dumps({**json.loads(config), **patterns}).encode() + targets.PARTS + weights)
        packs(folder, write_adapter(made["f32"]))
    for sql in sorted((HERE.parent / "banks").glob("format*.sql")):
        with tempfile.TemporaryDirectory() as room:
            path = Path(room) / "catalog.sqlite"
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA page_size = 512")  # of a small input more is worth changing
                connection.executescript(sql.read_text("utf-8"))
            if sql.stem in ("format1", "format6"):
                keep("catalog", sql.stem, path.read_bytes())
    keep("jsonl", "plain", '{"text": "Bo sails.", "id": "bo", "title": "Bo", "tags": ["sea"], "questions": ["Who?"]}\n')
    keep(
        "jsonl",
        "odd",
        '\ufeff{"text": "a\\u2028b \\ud83d\\ude00", "metadata": {"x": [1e308, null]}}\n\n{"text": "c"}\n',
    )
    keep(
        "markdown",
        "front",
        "---\ntitle: Keys\ntags: [a, b]\ndate: 2026-01-02\n---\n# One\n\nBo sails.\n\n## Two\n- a\n- b\n",
    )
    keep(
        "markdown",
        "blocks",
        "# A > B\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```\n\n> said\n\n1. [l](u) ![p](q) **b** `c`\n",
    )
    keep("markdown", "long", "# Long\n\n" + "One more sentence stands here, and it says little. " * 60)
    keep("text", "paragraphs", "Bo sails.\n\nAda keeps bees. " + "水車は止まっている。" * 30 + "\n\n" + "word " * 400)
    talk = {"title": "T", "create_time": 1700000000.5, "messages": [
        {"role": "user", "content": "Where is the key?", "timestamp": "2026-01-02T03:04:05Z"},
        {"role": "assistant", "content": [{"type": "text", "text": "Behind the boiler."}, "There."]},
    ]}  # fmt: skip
    keep("chats", "list", json.dumps([talk, talk]))
    keep("chats", "messages", json.dumps(talk["messages"]))


def packs(folder: Path, adapter: bytes) -> None:
    (folder / "base.gguf").write_bytes(b"GGUF" + bytes(100))
    with Bank.create(folder / "bank", folder / "base.gguf") as bank:
        for n, id in enumerate(("ada", "bo")):
            bank.add(
                Memory(f"{id} sails.", id=id, title=id.title(), metadata={"tags": ["x"]}),
                key=np.full(3, n, np.float32),
                evidence=(np.arange(1, 4, dtype=np.uint32), np.arange(6, dtype=np.int8)),
                vector=("e5", np.full(2, n, np.float32)),
                adapter=adapter if id == "ada" else None,
                rank=2,
            )
        bank.set_state("embedder", b"e5")
        with bank._catalog.write() as connection:  # the same corpus whenever and wherever it is made
            connection.execute("UPDATE memory SET created_at = '2026-01-02T03:04:05Z', learnt_at = NULL")
            connection.execute("UPDATE base SET spec = '/models/base.gguf', gguf = '/models/base.gguf'")
        bank.base = bank._catalog.base()
        write_pack(bank, folder / "two.megapack")
        keep("pack", "two", (folder / "two.megapack").read_bytes())


if __name__ == "__main__":
    main()
