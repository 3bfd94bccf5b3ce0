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
_FILE = re.compile(ID_PATTERN + r"(~[0-9a-f]{8})?\.gguf")


class AdapterFiles:
    """The folder of a bank's adapters; `touched` lists collect names for `drop` to clean up."""

    def __init__(self, folder: Path, catalog: Catalog) -> None:
        self.folder = folder
        self._catalog = catalog
        with catalog.translated():
            folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, name: str) -> Path:
        """Where the file `name` of the catalog lies. Raises BankError when it is no name of ours."""
        if not is_adapter_name(name):
            raise BankError(f"the bank {self.folder.parent} names the adapter file {name!r}; restore it from a backup")
        return self.folder / name

    def write(self, name: str, data: bytes, touched: list[str]) -> None:
        """Puts `data` at `name`, on the disk when it returns. Call it inside a write transaction."""
        temporary = f".{name}.{secrets.token_hex(4)}.tmp"
        touched.append(temporary)
        descriptor = os.open(self.folder / temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        touched.append(name)
        os.replace(self.folder / temporary, self.folder / name)
        self._sync()

    def drop(self, names: list[str]) -> None:
        """Deletes the files among `names` that no row names; what cannot be deleted now stays an orphan."""
        if not names:
            return
        sql = "SELECT 1 FROM memory WHERE adapter_file = ? COLLATE NOCASE"
        with suppress(BankError), self._catalog.hold() as connection:
            for name in names:
                if Path(name).name == name and connection.execute(sql, (name,)).fetchone() is None:
                    with suppress(OSError):
                        (self.folder / name).unlink(missing_ok=True)

    def set_aside(self, name: str) -> bool:
        """Moves a file of this folder into the bank's quarantine; False where it stays. Never through a link."""
        if Path(name).name != name or self.folder.is_symlink():
            return False
        aside = self.folder.with_name(QUARANTINE)
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


def is_adapter_name(name: object) -> bool:
    return isinstance(name, str) and _FILE.fullmatch(name) is not None
