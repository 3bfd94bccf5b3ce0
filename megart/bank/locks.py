"""Whether the file system of a bank has locks: without them two writers at once would destroy it."""

from __future__ import annotations

import errno
import os
import random
import re
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import BankError

# Mounted so, locks bind the programs of one machine only, while others see the same files.
_OF_ONE_MACHINE = {
    "nfs": ("nolock", "local_lock=all", "local_lock=posix"),
    "nfs4": ("nolock", "local_lock=all", "local_lock=posix"),
    "cifs": ("nobrl",),
    "smb3": ("nobrl",),
}
_REFUSALS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_MOUNTS = Path("/proc/self/mountinfo")
_TURN = ".turn"
_LOCKS = Path("/proc/locks")
# Bytes of an SQLite file by whose locks its writer is known: PENDING and RESERVED.
_WRITERS = {0x40000000, 0x40000001}
_REMEDY = "put it on a local disk, or mount that file system with locks"


def check_mount(folder: Path) -> None:
    """Raises BankError where *folder* is mounted without locks that other machines see. Reads one file of Linux's."""
    kind, options = _mount(folder)
    wrong = sorted(options.intersection(_OF_ONE_MACHINE.get(kind, ())))
    if wrong:
        raise BankError(f"the bank {folder} lies on {kind} mounted with {wrong[0]}, without locks; {_REMEDY}")


def check_locks(folder: Path) -> None:
    """Raises BankError where a lock cannot be had in *folder*, or binds nobody. Tries it on a file of its own."""
    check_mount(folder)
    if os.name == "nt":  # Windows always locks
        return
    trial = folder / f".lock-{secrets.token_hex(4)}"
    try:
        descriptor = os.open(trial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        return  # who cannot write here needs no lock either
    try:
        why = _refusal(descriptor, trial)
    finally:
        os.close(descriptor)
        trial.unlink(missing_ok=True)
    if why:
        raise BankError(f"the file system of the bank {folder} has no locks ({why}); {_REMEDY}")


@contextmanager
def turn(folder: Path, until: float) -> Iterator[None]:
    """Be the next writer of the bank *folder*, for as long as the write lock is waited for.

    Who has just written must come here too, and so cannot take the lock again before one that waits. Without a turn by
    *until*, on the monotonic clock, or where there are no such locks, it goes on all the same: this is manners, no
    safety.
    """
    try:
        import fcntl

        descriptor = os.open(folder / _TURN, os.O_RDWR | os.O_CREAT, 0o600)
    except (ImportError, OSError):  # Windows; a bank that is read-only
        yield
        return
    try:
        while time.monotonic() < until:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pause()
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def pause() -> None:
    """Between two looks at a lock."""
    time.sleep(random.uniform(0.001, 0.004))


def writer(catalog: Path) -> str:
    """Who writes to the SQLite file *catalog* now, in words, as far as Linux tells."""
    unknown = "another process"
    try:
        about = catalog.stat()
        lines = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return unknown
    file = f"{os.major(about.st_dev):02x}:{os.minor(about.st_dev):02x}:{about.st_ino}"
    for fields in lines:  # 1: POSIX ADVISORY WRITE process file first last
        if len(fields) == 8 and fields[3] == "WRITE" and fields[5] == file and int(fields[6]) in _WRITERS:
            try:
                return f"the process {fields[4]} ({Path(f'/proc/{fields[4]}/comm').read_text().strip()})"
            except (OSError, ValueError):
                return unknown
    return unknown


def _refusal(descriptor: int, trial: Path) -> str:
    """Why a lock on the open file *trial* is none; "" where it is one."""
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return str(error.strerror) if error.errno in _REFUSALS else ""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return ""
    # A lock of an open file, not of a process, sees the one above: type, whence, start, length, process.
    second = os.open(trial, os.O_RDWR)
    try:
        fcntl.fcntl(second, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return ""
    finally:
        os.close(second)
    return "a second lock is given beside the first"


def _mount(folder: Path) -> tuple[str, set[str]]:
    """The type of the file system that *folder* lies on and how it is mounted; "" and nothing where nobody says."""
    try:
        lines = _MOUNTS.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return "", set()
    place, best = folder.resolve(), (-1, "", set[str]())
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, about = before.split(), after.split()
        if len(fields) < 6 or len(about) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), fields[4]))
        if (place == point or point in place.parents) and len(point.parts) >= best[0]:
            best = (len(point.parts), about[0], {*fields[5].split(","), *about[2].split(",")})
    return best[1], best[2]
