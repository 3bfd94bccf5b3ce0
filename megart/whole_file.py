"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(target: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write, for its owner's eyes only unless *mode* says more; at the end of the block it is *target*, and on
    the disk.

    Where the block fails, *target* stays as it was. Until then the file lies beside it, as ``.NAME.HEX.new``; one that
    a killed process left there is deleted by the next that writes *target*. Raises OSError.
    """
    _sweep(target)
    new, descriptor = _create(target, mode)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(new, target)
    finally:
        new.unlink(missing_ok=True)


def _create(target: Path, mode: int) -> tuple[Path, int]:
    while True:
        new = target.with_name(f".{target.name}.{secrets.token_hex(4)}.new")
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
        if not _lock(descriptor) or new.exists():
            return new, descriptor
        os.close(descriptor)  # swept between its making and its lock


def _sweep(target: Path) -> None:
    ours = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.new")
    with suppress(OSError):
        for name in os.listdir(target.parent):
            if not ours.fullmatch(name):
                continue
            with suppress(OSError):
                descriptor = os.open(target.parent / name, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
                try:
                    if _lock(descriptor):
                        (target.parent / name).unlink()
                finally:
                    os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the file is ours alone now: False where another writes it, or where there are no such locks."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):  # Windows; a file system without locks
        return False
    return True
