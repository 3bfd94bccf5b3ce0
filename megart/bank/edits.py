"""A file that is read once more: what of it is new, and what that was read of it before is in it no longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .memory import Memory, Record
from .store import Bank


@dataclass(frozen=True)
class Edit:
    """Of one file: how many memories are ``new`` and ``same``, and the records of those ``gone`` from it."""

    file: Path
    new: int
    same: int
    gone: tuple[Record, ...]

    def told(self, *, kept: bool) -> str:
        """One line for the user."""
        names = ", ".join(record.heading for record in self.gone[:3]) + (", ..." if self.gone[3:] else "")
        gone = (
            f"; {len(self.gone)} {'no longer in it, kept' if kept else 'replaced or gone'}: {names}"
            if self.gone
            else ""
        )
        return f"{self.file}: read before; {self.new} new, {self.same} as they were{gone}"


def edited(bank: Bank, file: Path, memories: Sequence[Memory]) -> Edit | None:
    """What reading *file* again as *memories* changes in *bank*; None where it was never read before."""
    name = str(file.absolute())
    before = [record for record in bank.records() if _file(record.metadata) == name]
    if not before:
        return None
    now = {(memory.title, memory.text) for memory in memories if _file(memory.metadata) == name}
    gone = tuple(record for record in before if (record.title, record.text) not in now)
    same = len(before) - len(gone)
    return Edit(file, max(0, len(now) - same), same, gone)


def _file(metadata: dict) -> str | None:
    source = metadata.get("source")
    return source.get("file") if isinstance(source, dict) else None
