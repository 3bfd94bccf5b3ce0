"""A small bank as SQL, in the format of the megart that runs this: formatN.sql, read by tests/test_formats.py.

Before a migration is added, from the commit before it:
    git archive COMMIT megart | tar -x -C OLD; PYTHONPATH=OLD python tests/banks/make.py tests/banks
Format 5 was in no commit.
"""

import sqlite3
import sys
import tempfile
from pathlib import Path

import numpy as np

from megart.bank import Bank, Memory

out, work = Path(sys.argv[1]), Path(tempfile.mkdtemp())
model = work / "base.gguf"
model.write_bytes(b"GGUF" + bytes(100))
with Bank.create(work / "bank", model) as bank:
    notes = [
        Memory(
            "Ada Quill keeps bees.",
            id="ada",
            title="Ada Quill",
            paraphrases=("Bees are kept by Ada Quill.",),
            questions=("What does Ada keep?",),
            metadata={"tags": ["bees"]},
        ),
        Memory("The mill stands still.", id="mill"),
        Memory("\u6c34\u8eca\u306f\u6b62\u307e\u3063\u3066\u3044\u308b\u3002", id="suisha", title="\u6c34\u8eca"),
    ]
    for n, note in enumerate(notes):
        learnt = (
            {}
            if note.id == "mill"
            else {"adapter": b"GGUF " + note.id.encode(), "recipe": "fast", "activated": True, "rank": 2, "training": {"steps": 9}}
        )
        bank.add(note, key=np.arange(n, n + 4, dtype=np.float32), **learnt)
    bank.set_state("whitening", b"\x01\x02")
    if hasattr(bank, "set_evidence"):
        made = [(r, (np.array([7, 8, 0], np.uint32), np.array([1, -1, 0, 0], np.int8))) for r in bank.records()]
        try:
            bank.set_evidence(made)
        except AttributeError:
            bank.set_evidence({r.id: e for r, e in made})
    if hasattr(bank, "set_vectors"):
        bank.set_state("embedder", b"e5")
        bank.set_vectors("e5", [(r, np.ones(3, np.float32)) for r in bank.records()])
connection = sqlite3.connect(work / "bank" / "catalog.sqlite")
connection.execute("UPDATE base SET sha256 = ?, spec = '/models/base.gguf', gguf = '/models/base.gguf'", ("ab" * 32,))
connection.execute(
    "UPDATE memory SET created_at = '2026-01-02T03:04:05Z', learnt_at = CASE state WHEN 'learnt' THEN '2026-01-02T03:05:00Z' END"
)
connection.commit()
number = connection.execute("PRAGMA user_version").fetchone()[0]
identity = connection.execute("PRAGMA application_id").fetchone()[0]
lines = [f"PRAGMA application_id = {identity};", f"PRAGMA user_version = {number};", *connection.iterdump()]
(out / f"format{number}.sql").write_text("\n".join(lines) + "\n", encoding="utf-8")
print(f"format{number}.sql")
