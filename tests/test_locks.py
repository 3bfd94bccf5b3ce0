"""A bank where locks fail, or bind nobody, is refused in one line instead of being destroyed by two writers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import megart
from megart.bank import Bank, Memory, locks
from megart.errors import BankError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="simulates Linux's mounts and libc")
# What a mount without a lock daemon does: every lock fails, or is granted to all who ask.
SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <unistd.h>
static int call(int fd, int command, long argument) {
    if (command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK) {
#ifdef GRANTED
        return 0;
#else
        errno = ENOLCK;
        return -1;
#endif
    }
    return syscall(SYS_fcntl, fd, command, argument);
}
#define BODY { va_list rest; va_start(rest, command); long a = va_arg(rest, long); va_end(rest); return call(fd, command, a); }
int fcntl(int fd, int command, ...) BODY
int fcntl64(int fd, int command, ...) BODY
"""
ADD = """
import sys, numpy as np
from megart.bank import Bank, Memory
from megart.errors import BankError
try:
    with Bank.open(sys.argv[1]) as bank:
        {}
        print("done")
except BankError as error:
    print(error)
"""


@pytest.fixture
def bank(tmp_path: Path, model: Path) -> Path:
    with Bank.create(tmp_path / "bank", model) as made:
        made.add(Memory("Bo sails.", id="bo"), key=np.ones(4, np.float32))
    return tmp_path / "bank"


def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, options: str) -> None:
    line = "40 1 0:40 / {} rw,relatime shared:1 - {} server:/data rw,{}\n"
    point = str(tmp_path).replace(" ", "\\040")
    (tmp_path / "mounts").write_text(line.format("/", "ext4", "x") + line.format(point, kind, options) + "odd line\n")
    monkeypatch.setattr(locks, "_MOUNTS", tmp_path / "mounts")


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("nfs4", "vers=4.2,local_lock=none", ""),
        ("ext4", "nolock", ""),
        ("nfs", "vers=3,nolock,local_lock=all", "nfs mounted with local_lock=all"),
        ("nfs4", "local_lock=posix", "nfs4 mounted with local_lock=posix"),
        ("cifs", "nobrl", "cifs mounted with nobrl"),
    ],
)
def test_mounts_whose_locks_bind_one_machine_are_refused(
    bank: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, told: str
) -> None:
    mounted(monkeypatch, tmp_path, kind, options)
    if not told:
        Bank.open(bank).close()
        return
    for attempt in (lambda: Bank.open(bank), lambda: Bank.create(tmp_path / "new", model)):
        with pytest.raises(BankError, match=f"{told}, without locks; put it on a local disk"):
            attempt()


def test_the_innermost_mount_counts(bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted(monkeypatch, tmp_path, "nfs", "nolock")
    with (tmp_path / "mounts").open("a") as file:
        file.write(f"41 40 0:41 / {bank} rw - tmpfs tmpfs rw\n")
    Bank.open(bank).close()


def test_nothing_is_left_of_the_trial(bank: Path) -> None:
    with Bank.open(bank) as there:
        there.check_writable()
    assert sorted(entry.name for entry in bank.iterdir()) == [".turn", "adapters", "catalog.sqlite"]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("granted", "work", "told"),
    [
        (
            "",
            "bank.add(Memory('x'), key=np.ones(4, 'f4'))",
            "has no locks (No locks available); put it on a local disk",
        ),
        ("", "bank.check_writable()", "has no locks (No locks available)"),
        ("-DGRANTED", "bank.check_writable()", "has no locks (a second lock is given beside the first)"),
    ],
)
def test_a_file_system_without_locks_is_told(bank: Path, tmp_path: Path, granted: str, work: str, told: str) -> None:
    (tmp_path / "shim.c").write_text(SHIM)
    command = ["gcc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", *granted.split()]
    subprocess.run(command, cwd=tmp_path, check=True)
    env = {**os.environ, "LD_PRELOAD": str(tmp_path / "shim.so"), "PYTHONPATH": str(Path(megart.__file__).parents[1])}
    started = time.monotonic()
    code = ["import megart.bank.catalog as catalog", "catalog.BUSY_SECONDS = 0.2", ADD.format(work)]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code), str(bank)], env=env, capture_output=True, text=True, check=True
    )
    assert told in done.stdout and done.stdout.count("\n") == 1, done.stdout
    assert time.monotonic() - started < 30
