"""Fuzzes the parsers of strangers' files: python tests/fuzz/run.py [TARGET ...] [--seconds 60].

Targets are those of targets.py, and "core": the C++ part (core.cpp), built here with g++ under ASan and UBSan. Python's
are driven by atheris (pip install atheris), which follows the branches that an input takes; without it by mutations of
the corpus. Ends with 1 at a crash, a hang of 10 seconds, or more than 1 GiB of memory; the input is left in crash-*.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MOST_BYTES, HANG_SECONDS, MOST_MIB = 1 << 16, 10, 1024
_NUMBERS = [0, 1, 2, 3, 7, 8, 31, 32, 63, 64, 127, 128, 255, 1 << 15, (1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 62]
_NUMBERS += [1 << 63, (1 << 64) - 1]
_WORDS = (
    b'{}[]:,"\\ null true false 1e999 -1 NaN \\ud800 \x1b[0m \xff \xe2\x80\xa8 \r\n --- ... # |-| ```'.split()
)  # fmt: skip


def corpus(target: str) -> list[bytes]:
    """The inputs that are kept for *target*."""
    return [path.read_bytes() for path in sorted((HERE / "corpus" / target).iterdir())]


def mutated(seeds: list[bytes], chance: random.Random) -> bytes:
    """One of *seeds* with some of it changed, cut, doubled, or taken from another."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.choice((1, 1, 2, 3, 6, 12))):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            size = chance.choice((1, 2, 4, 8))
            data[at : at + size] = (chance.choice(_NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 3:
            del data[at : at + chance.choice((1, 2, 8, 64, len(data)))]
        elif kind == 4:
            data[at:at] = data[at : at + chance.choice((1, 8, 64))] * chance.choice((1, 2, 50))
        elif kind == 5:
            data[at:at] = chance.choice(_WORDS)
        else:
            other = chance.choice(seeds)
            start = chance.randrange(len(other) + 1)
            data[at : at + chance.randrange(64)] = other[start : start + chance.randrange(64)]
    return bytes(data[:MOST_BYTES])


def by_mutation(target: str, seconds: float, seed: int) -> int:
    """Runs mutations for so long; returns how many. Raises what the target raises, once the input is kept."""
    import targets

    def too_long(*_: object) -> None:
        raise TimeoutError(f"{target} took more than {HANG_SECONDS} seconds")

    seeds, chance, count = corpus(target), random.Random(seed), 0
    signal.signal(signal.SIGALRM, too_long)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        data = mutated(seeds, chance)
        signal.alarm(HANG_SECONDS)
        try:
            targets.run(target, data)
            if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MOST_MIB << 10:
                raise MemoryError(f"{target} took more than {MOST_MIB} MiB")
        except BaseException:
            Path(f"crash-{target}").write_bytes(data)
            raise
        finally:
            signal.alarm(0)
        count += 1
    return count


def by_atheris(target: str, seconds: float, seed: int) -> None:
    """Runs libFuzzer over *target* in this process, which it ends."""
    import atheris

    # Compiled parsers of others are not followed: their own projects fuzz them.
    with atheris.instrument_imports(include=["megart"]):
        import targets

    @atheris.instrument_func
    def one(data: bytes) -> None:
        targets.run(target, data)

    with contextlib.ExitStack() as stack:
        found = stack.enter_context(tempfile.TemporaryDirectory())
        options = [f"-max_total_time={int(seconds)}", f"-max_len={MOST_BYTES}", f"-seed={seed or 1}"]
        options += [f"-timeout={HANG_SECONDS}", f"-rss_limit_mb={MOST_MIB}", f"-artifact_prefix=crash-{target}-"]
        atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", found, str(HERE / "corpus" / target)], one)
        atheris.Fuzz()


def core(seconds: float, seed: int) -> int:
    """Builds and runs core.cpp for so long; returns its exit code."""
    sources = [HERE / "core.cpp", *(ROOT / "csrc" / f"{name}.cpp" for name in ("gate", "lexicon", "mix", "simd"))]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "core"
        flags = "-std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -pthread".split()
        flags.append("-D_GLIBCXX_SANITIZE_VECTOR")
        subprocess.run(["g++", *flags, f"-I{ROOT / 'csrc'}", "-o", program, *sources], check=True)
        return subprocess.run([program, str(seconds), str(seed)], check=False).returncode


def main() -> int:
    sys.path[:0] = [str(HERE), str(ROOT)]
    names = [*sorted(path.name for path in (HERE / "corpus").iterdir()), "core"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "targets", nargs="*", default=names, metavar="TARGET", help=f"of {', '.join(names)} (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each target runs (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="where chance begins (default: 1)")
    parser.add_argument("--no-atheris", action="store_true", help="only mutations of the corpus")
    args = parser.parse_args()
    with_atheris = importlib.util.find_spec("atheris") is not None and not args.no_atheris
    if len(args.targets) > 1:  # each in a process of its own: libFuzzer ends it
        own = [sys.executable, __file__, "--seconds", str(args.seconds), "--seed", str(args.seed)]
        own += ["--no-atheris"] if args.no_atheris else []
        return max(subprocess.run([*own, name], check=False).returncode != 0 for name in args.targets)
    (target,) = args.targets
    if target == "core":
        return core(args.seconds, args.seed)
    if with_atheris:
        by_atheris(target, args.seconds, args.seed)
        return 0
    print(f"{target}: {by_mutation(target, args.seconds, args.seed)} inputs, nothing found", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
