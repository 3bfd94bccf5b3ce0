"""What an evaluation has measured so far: one JSON object a line, appended and flushed as it is known.

A killed run loses at most the line it was writing; the next run reads the rest and goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError

Key = tuple[str, str, int, str, str]  # suite, partition, memories in the bank, method, item
KEY_FIELDS = ("suite", "partition", "stage", "method", "item")
Row = dict[str, Any]


class Ledger:
    """Rows by key, in a file of the work folder.

    ``settings`` are what a row depends on beside its key; a folder with other settings is refused
    (InputError), because its rows would be mixed with ours.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make the work folder {folder}: {error.strerror}") from None
        self.path = folder / "rows.jsonl"
        self._rows: dict[Key, Row] = {}
        self._read()
        self._check(folder / "settings.json", settings)
        self._file = self.path.open("a", encoding="utf-8")

    def _check(self, path: Path, settings: dict[str, Any]) -> None:
        if self._rows and path.is_file():
            before = json.loads(path.read_text("utf-8"))
            other = [name for name in settings if before.get(name) != settings[name]]
            if other:
                changed = ", ".join(f"{n} {before.get(n)!r} (now {settings[n]!r})" for n in other)
                raise InputError(f"{path.parent} holds rows measured with another {changed}; give another --work")
        path.write_text(json.dumps(settings, indent=1) + "\n", "utf-8")

    def _read(self) -> None:
        if not self.path.is_file():
            return
        whole = 0
        with self.path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                    key = key_of(row)
                except (ValueError, KeyError):
                    break  # torn by a kill: it and what follows are measured again
                if not line.endswith(b"\n"):
                    break
                self._rows[key] = row
                whole += len(line)
        os.truncate(self.path, whole)

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def add(self, key: Key, row: Row) -> None:
        """Keep *row* under *key*, on disk before this returns."""
        whole = {**dict(zip(KEY_FIELDS, key, strict=True)), **row}
        self._file.write(json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        self._rows[key] = whole

    def close(self) -> None:
        self._file.close()


def key_of(row: Row) -> Key:
    """The key of a row as it was written."""
    return (row["suite"], row["partition"], int(row["stage"]), row["method"], row["item"])
