"""kill -9 before every change that a verb makes to the disk, and in the middle of every write: nothing is lost.

A library in front of libc counts what changes files (write, rename, unlink, ...), and ends the process at a given one.
A server imports megart once and runs each command line in a child of its own, so that a thousand kills take minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import few_lines, noise_adapter

import megart
from megart.adapter import write_adapter
from megart.bank import Bank, Memory
from megart.cli import VERBS, main
from megart.models import Model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs Linux's libc and gcc"),
]
SECRET = b"4711-0815"
# Of each verb so many kills, evenly spread, the first and the last among them; MEGART_KILLS=all: at every change.
MOST_KILLS, EVERY = 40, os.environ.get("MEGART_KILLS") == "all"
# Kills before the call number `wanted`; of a write, after half of its bytes where the number is odd.
SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
static long seen, wanted = -1;
void kill_at(long number) { seen = 0; wanted = number; }
long changes(void) { return seen; }
static int now(void) { return wanted >= 0 && __atomic_fetch_add(&seen, 1, __ATOMIC_SEQ_CST) == wanted; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }
static int is_file(int fd) { struct stat about; return fstat(fd, &about) == 0 && S_ISREG(about.st_mode); }
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(name, PARAMETERS, WHOLE, HALF) ssize_t name PARAMETERS { \\
    if (is_file(fd) && now()) { if (wanted % 2) (void)!NEXT(name) HALF; die(); } return NEXT(name) WHOLE; }
#define CHANGES(name, PARAMETERS, GIVEN) int name PARAMETERS { if (now()) die(); return NEXT(name) GIVEN; }
WRITES(write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, size / 2))
WRITES(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), (fd, data, size / 2, at))
WRITES(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), (fd, data, size / 2, at))
CHANGES(fsync, (int fd), (fd))
CHANGES(fdatasync, (int fd), (fd))
CHANGES(ftruncate, (int fd, off_t size), (fd, size))
CHANGES(ftruncate64, (int fd, off64_t size), (fd, size))
CHANGES(rename, (const char *a, const char *b), (a, b))
CHANGES(renameat, (int x, const char *a, int y, const char *b), (x, a, y, b))
CHANGES(link, (const char *a, const char *b), (a, b))
CHANGES(linkat, (int x, const char *a, int y, const char *b, int flags), (x, a, y, b, flags))
CHANGES(unlink, (const char *a), (a))
CHANGES(unlinkat, (int x, const char *a, int flags), (x, a, flags))
CHANGES(mkdir, (const char *a, mode_t mode), (a, mode))
"""
SERVER = """
import ctypes, json, os, sys
shim = ctypes.CDLL(None)
import megart.interop, megart.verbatim, megart.bank.pack, megart.runtime.assistant
from megart.cli import main
from megart.runtime import embed
lines = json.loads(sys.stdin.readline())
embed.corpus = lambda: [tuple(line) for line in lines]
for line in sys.stdin:
    words, number = json.loads(line)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        out = os.open("out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0), os.dup2(out, 1), os.dup2(out, 2)
        shim.kill_at(ctypes.c_long(number))
        code = main(words)
        os.write(writer, str(shim.changes()).encode())
        os._exit(code)
    os.close(writer)
    told = os.read(reader, 99)
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    print(json.dumps([os.waitstatus_to_exitcode(status), int(told or 0)]), flush=True)
"""
Whole = dict[str, tuple[object, ...]]


class Server:
    """Runs command lines, each killed at its change number *at* (huge: never)."""

    def __init__(self, folder: Path) -> None:
        (folder / "shim.c").write_text(SHIM)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", "shim.so", "shim.c", "-ldl"], cwd=folder, check=True)
        root = str(Path(megart.__file__).parents[1])
        env = {**os.environ, "LD_PRELOAD": str(folder / "shim.so"), "PYTHONPATH": root, "MEGART_THREADS": "1"}
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=folder,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.send(few_lines())

    def send(self, value: object) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(value) + "\n")
        self.process.stdin.flush()

    def run(self, words: list[object], at: int = 1 << 60) -> tuple[int, int]:
        """(exit code, -9 when killed; how many changes it made, 0 when killed)."""
        assert self.process.stdout
        self.send([[str(word) for word in words], at])
        code, changes = json.loads(self.process.stdout.readline())
        return code, changes

    def close(self) -> None:
        assert self.process.stdin
        self.process.communicate(timeout=60)


def whole(folder: Path) -> Whole:
    """All that a bank holds of each memory, by id; its state "embedder" under "" (what the keys are by)."""
    with Bank.open(folder) as bank:
        assert bank.verify() == []  # what was half there went when it was opened
        ids, keys = bank.keys()
        made: Whole = {"": (bank.get_state("embedder"),)}
        for id, key in zip(ids, keys, strict=True):
            record = bank.get(id)
            adapter = bank.adapter_bytes(id) if record.state == "learnt" else None
            made[id] = (record.text, record.title, record.state, record.recipe, adapter, key.tobytes())
        assert len(made) == len(bank) + 1
    return made


@pytest.fixture(scope="module")
def home(tiny: Callable[..., Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of four memories, two packs of it, notes and an adapter: what the verbs below work on."""
    folder = tmp_path_factory.mktemp("kills")
    adapters = [write_adapter(noise_adapter("llama", 4, seed, dtype=np.float16)) for seed in range(3)]
    (folder / "notes.jsonl").write_text('{"text": "Cy digs.", "id": "cy"}\n{"text": "Di sings.", "id": "di"}\n')
    (folder / "new.gguf").write_bytes(adapters[2])
    lines = few_lines()
    with pytest.MonkeyPatch.context() as patch:
        from megart.runtime import embed
        from megart.runtime.assistant import Assistant

        patch.setattr(embed, "corpus", lambda: lines)
        with Bank.create(folder / "bank", tiny("llama")) as bank, Assistant(bank) as assistant:
            bank.set_state("embedder", b"words")
            for id, text, adapter in (
                ("ada", f"Ada's safe opens with {SECRET.decode()}.", adapters[0]),
                ("bo", "Bo sails at dusk.", adapters[1]),
                ("pending", "The mill stands still.", None),
                ("tom", "Tom paints.", None),
            ):
                bank.add(Memory(text, id=id), **assistant.index_entry(text, None), adapter=adapter, recipe="fast", rank=4)
        assert main(["pack", str(folder / "p.megapack"), "--bank", str(folder / "bank")]) == 0
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("server"))
    yield made
    made.close()


# Verb -> its words; {x} is the trial's folder. A command that is there only in some versions is left out.
COMMANDS: dict[str, str] = {
    "init": "init --bank {x}/made --model {model}",
    "memorize": "memorize --later --bank {x}/bank {x}/notes.jsonl",
    "replace": "import --gguf {x}/new.gguf --bank {x}/bank --id bo --text Bo --replace --force",
    "import": "import --gguf {x}/new.gguf --bank {x}/bank --id new --text New --force",
    "forget": "forget --yes --bank {x}/bank ada tom",
    "rekey": "rekey --bank {x}/bank --embedder paper",
    "verify": "verify --repair --bank {x}/spoilt",
    "export": "export --gguf bo {x}/out.gguf --bank {x}/bank",
    "pack": "pack {x}/out.megapack --bank {x}/bank",
    "unpack": "unpack {x}/p.megapack {x}/made --model {model}",
    "merge": "merge {x}/p.megapack {x}/other",
}
COMMANDS = {name: words for name, words in COMMANDS.items() if words.split()[0] in VERBS}


def trial(home: Path, tiny: Callable[..., Model], tmp_path: Path, name: str) -> tuple[Path, list[str]]:
    """A fresh copy of *home*, and the command line for it."""
    folder = tmp_path / "trial"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home, folder)
    if name == "verify":
        shutil.copytree(folder / "bank", folder / "spoilt")
        (folder / "spoilt" / "adapters" / "stray.gguf").write_bytes(b"stray")
        (folder / "spoilt" / "adapters" / "bo.gguf").write_bytes(b"damaged")
    if name == "merge":
        shutil.copytree(folder / "bank", folder / "other")
        with Bank.open(folder / "other") as other:
            other.remove("ada"), other.remove("tom")
    return folder, COMMANDS[name].format(x=folder, model=tiny("llama").gguf).split()


def bank_of(folder: Path, name: str) -> Path:
    return folder / {"init": "made", "unpack": "made", "verify": "spoilt", "merge": "other"}.get(name, "bank")


def check(folder: Path, name: str, before: Whole | None, after: Whole) -> None:
    """After a kill every memory is as it was before the verb or as it is after it, and no file is half there."""
    path = bank_of(folder, name)
    if before is None and not (path / "catalog.sqlite").exists():
        return
    if name == "init":  # what is half there the next init ends
        return
    now = whole(path)
    known = [before, after] if before is not None else [after]
    if name == "rekey" or before is None:  # all of them or none
        assert now in known
    for id in {*now, *after, *(before or ())}:
        assert now.get(id) in [state.get(id) for state in known], id
    if name == "forget" and "ada" not in now:
        left = [file for file in path.rglob("*") if file.is_file() and SECRET in file.read_bytes()]
        assert not left and not list(path.glob("adapters/ada*")), left


@pytest.mark.parametrize("name", COMMANDS)
def test_a_verb_killed_at_any_change_leaves_before_or_after(
    home: Path, server: Server, tiny: Callable[..., Model], tmp_path: Path, name: str, record_property
) -> None:
    folder, words = trial(home, tiny, tmp_path, name)
    path = bank_of(folder, name)
    before = None
    if path.exists() and name != "verify":
        before = whole(path)
    code, changes = server.run(words)
    assert code == (1 if name == "verify" and code == 1 else 0), (server.folder / "out").read_text()
    assert changes > 0
    after = whole(path)
    if name == "verify":  # bo's adapter was lost before: its text is what is kept
        before = None if "bo" not in after else {**after}
    kills = 0
    points = range(changes) if EVERY else sorted({*np.linspace(0, changes - 1, MOST_KILLS).astype(int).tolist()})
    for at in points:
        folder, words = trial(home, tiny, tmp_path, name)
        code, _ = server.run(words, at)
        if code != -9:
            continue  # a cache that was warm by now: fewer changes than the first time
        kills += 1
        if name == "verify":
            assert {record.id for record in Bank.open(path).records()} == {"ada", "bo", "pending", "tom"}
        else:
            check(folder, name, before, after)
        for made, others in (("out.megapack", "pack"), ("out.gguf", "export")):
            if name == others and (folder / made).exists():
                checked = {"out.megapack": home / "p.megapack", "out.gguf": home / "bank" / "adapters" / "bo.gguf"}
                assert (folder / made).read_bytes() == checked[made].read_bytes()
        if kills % 5 == 0:  # the same command again ends what was begun
            again, _ = server.run(words)
            said = (server.folder / "out").read_text()
            assert again == 0 or any(
                told in said for told in ("no memory", "is there already", "there is a bank", "is in the bank")
            ), said
            if name not in ("forget", "verify"):
                assert whole(path) == after
    record_property("kills", kills)
    record_property("changes", changes)
    print(f"{name}: {kills} kills, {changes} changes")
