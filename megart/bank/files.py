"""The adapter files of a bank: written whole, renamed into place, deleted once no row names them."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import BankError
from .catalog import Catalog
from .memory import ID_PATTERN

QUARANTINE = "quarantine"
_BINARY = getattr(os, "O_BINARY", 0)  # of Windows
_VERSION = r"(~[0-9a-f]{8})?\.gguf"
_FILE = re.compile(ID_PATTERN + _VERSION)
_TEMPORARY = re.compile(rf"\.({ID_PATTERN}{_VERSION})\.[0-9a-f]{{8}}\.tmp")


class AdapterFiles:
    """The folder of a bank's adapters; `touched` lists collect names for `drop` to clean up."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder = folder
        self._catalog = catalog
        if folder.is_symlink():  # what lies there is somebody else's to write and delete
            raise BankError(f"{folder} leads out of the bank; put the folder itself there")
        with catalog.translated():
            folder.mkdir(mode=0o700, exist_ok=True)
            self._sweep()

    def path(self, name: str) -> Path:
        """Where the file `name` of the catalog lies. Raises BankError when it is no name of ours."""
        if not is_adapter_name(name):
            raise BankError(f"the bank {self.folder.parent} names the adapter file {name!r}; restore it from a backup")
        return self.folder / name

    def write(self, name: str, data: bytes, touched: list[str]) -> None:
        """Puts `data` at `name`, on the disk when it returns. Call it inside a write transaction, and `written` after it.

        Until then a temporary name stays beside it, by which `_sweep` knows what a killed process left.
        """
        temporary, second = (f".{name}.{secrets.token_hex(4)}.tmp" for _ in range(2))
        touched += [temporary, second]
        descriptor = os.open(self.folder / temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        touched.append(name)
        with suppress(OSError):  # a file system without links
            os.link(self.folder / temporary, self.folder / second)
            temporary = second
        os.replace(self.folder / temporary, self.folder / name)
        self._sync()

    def written(self, touched: list[str]) -> None:
        """Deletes the temporary names among `touched`: what was written is committed."""
        for name in touched:
            if _TEMPORARY.fullmatch(name):
                with suppress(OSError):
                    (self.folder / name).unlink(missing_ok=True)

    def drop(self, names: list[str]) -> None:
        """Deletes the files among `names` that no row names; what cannot be deleted now stays an orphan."""
        if not names:
            return
        with suppress(BankError), self._catalog.hold():
            for name in names:
                place = self.place(name)
                if place is not None and not self.is_named(name):
                    with suppress(OSError):
                        place.unlink(missing_ok=True)

    def is_named(self, name: str) -> bool:
        """Whether a row names the file."""
        sql = "SELECT 1 FROM memory WHERE adapter_file = ? COLLATE NOCASE"
        return bool(self._catalog.read(sql, (name,)))

    def place(self, name: str) -> Path | None:
        """Where a file lies that `of` or the catalog names; None where that is not in the bank."""
        aside, folder = name.removeprefix(f"{QUARANTINE}/"), self.folder
        if aside != name:
            folder = folder.with_name(QUARANTINE)
        return folder / aside if Path(aside).name == aside and not folder.is_symlink() else None

    def of(self, id: str) -> list[str]:
        """The files that hold an adapter of the memory `id`, or held one: what was replaced, what a repair set aside."""
        own, aside = re.escape(id) + _VERSION, self.folder.with_name(QUARANTINE)
        names = [name for name in _names(self.folder) if re.fullmatch(own, name, re.IGNORECASE)]
        if not aside.is_symlink():
            pattern = rf"\.?{own}(\.[0-9a-f]{{8}}(\.tmp)?)*"
            names += [f"{QUARANTINE}/{name}" for name in _names(aside) if re.fullmatch(pattern, name, re.IGNORECASE)]
        return names

    def _sweep(self) -> None:
        """Deletes what a killed writer left: temporary names and, where it did not commit, the adapter they stand for.

        Also of two versions of one adapter that which no row names.
        """
        names = {*_names(self.folder)}
        left = [name for name in names if _TEMPORARY.fullmatch(name)]
        for name in names:
            if "~" in name and is_adapter_name(name):
                other = f"{name.split('~')[0]}.gguf"
                left += [one for one in (name, other) if one in names and not self.is_named(one)]
        if not left:
            return
        with suppress(BankError, OSError), self._catalog.aside():  # where nobody writes now
            for name in left:
                match = _TEMPORARY.fullmatch(name)
                final = match[1] if match else name
                if not self.is_named(final) and (not match or _is_same(self.folder / name, self.folder / final)):
                    (self.folder / final).unlink(missing_ok=True)
                if match:
                    (self.folder / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> bool:
        """Moves a file of this folder into the bank's quarantine; False where it stays. Never through a link."""
        aside = self.folder.with_name(QUARANTINE)
        if Path(name).name != name or self.folder.is_symlink() or aside.is_symlink():
            return False
        try:
            aside.mkdir(mode=0o700, exist_ok=True)
            os.replace(self.folder / name, aside / f"{name}.{secrets.token_hex(4)}")
        except OSError:
            return not os.path.lexists(self.folder / name)
        return True

    def settle(self, id: str, old: str, new: str | None) -> None:
        """After a replacement: deletes the old file and gives the new one its plain name, if it can.

        Every step leaves the row naming a whole file, so a failure here needs no remedy.
        """
        plain = f"{id}.gguf"
        temporary = f".{plain}.{secrets.token_hex(4)}.tmp"
        touched = [old]
        try:
            if new is not None and new != plain:
                with self._catalog.write() as connection:
                    sql = "SELECT adapter_file FROM memory WHERE id = ?"
                    if connection.execute(sql, (id,)).fetchone() == (new,):
                        touched += [temporary, new, plain]
                        os.link(self.folder / new, self.folder / temporary)
                        os.replace(self.folder / temporary, self.folder / plain)
                        self._sync()
                        sql = "UPDATE memory SET adapter_file = ? WHERE id = ?"
                        connection.execute(sql, (plain, id))
        except BankError:
            pass
        finally:
            self.drop(touched)

    def _sync(self) -> None:
        """Makes a rename survive a power cut; a no-op where folders cannot be opened."""
        if os.name == "nt":
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_same(first: Path, second: Path) -> bool:
    try:
        return os.path.samestat(os.lstat(first), os.lstat(second))
    except OSError:
        return False


def is_adapter_name(name: object) -> bool:
    return isinstance(name, str) and _FILE.fullmatch(name) is not None
