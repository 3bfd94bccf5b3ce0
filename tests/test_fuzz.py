"""The fuzz harnesses run: the corpus and some mutations of it end in errors of ours; what does not is found and kept."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz"
TARGETS = sorted(path.name for path in (FUZZ / "corpus").iterdir())
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the harness counts memory and time as Unix does")
pytest.importorskip("safetensors")


@pytest.fixture(scope="module", autouse=True)
def at_hand():
    sys.path.insert(0, str(FUZZ))
    import targets

    yield
    targets.clean()
    sys.path.remove(str(FUZZ))
    for name in ("targets", "run"):
        sys.modules.pop(name, None)


def test_every_target_has_a_corpus() -> None:
    import targets

    assert sorted(targets.TARGETS) == TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_what_is_near_it(name: str) -> None:
    import run
    import targets

    seeds, chance = run.corpus(name), random.Random(7)
    if not name.startswith(("pack", "gguf")):  # these name a model that is not there
        passed = 0
        for data in seeds:
            try:
                targets.TARGETS[name](data)
                passed += 1
            except targets.MegartError as error:
                assert "peft" in name, error
        assert passed
    for data in seeds:  # those that were found by fuzzing among them
        targets.run(name, data)
    for _ in range(60 if name == "catalog" else 250):
        targets.run(name, run.mutated(seeds, chance))


def test_a_pack_with_honest_hashes_opens() -> None:
    import run
    import targets

    whole = (run.HERE / "corpus" / "pack" / "two").read_bytes()
    assert targets.honest(whole) == whole  # a pack's hashes are right already
    wrong = bytearray(whole)
    wrong[-1] ^= 1
    assert targets.honest(bytes(wrong)) != wrong


def test_what_is_no_error_of_ours_ends_the_run_and_its_input_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import run
    import targets

    def fail(data: bytes) -> None:
        raise IndexError("past the end")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(targets.TARGETS, "jsonl", fail)
    with pytest.raises(IndexError):
        run.by_mutation("jsonl", 1.0, 1)
    assert (tmp_path / "crash-jsonl").exists()
    monkeypatch.setattr(run, "HANG_SECONDS", 1)
    monkeypatch.setitem(targets.TARGETS, "jsonl", lambda data: [None for _ in iter(int, 1)])
    with pytest.raises(TimeoutError, match="more than 1 seconds"):
        run.by_mutation("jsonl", 1.0, 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_cpp_part_under_sanitizers() -> None:
    import run

    assert run.core(5, 1) == 0
