"""Threads for the cores that other programs leave: a shared core holds up all threads."""

from __future__ import annotations

from pathlib import Path

import pytest

from megart import cores


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):  # type: ignore[no-untyped-def]
    """``machine(running, cores=4, mine=4)``: so many threads run, two of them ours."""
    stat, threads = tmp_path / "stat", tmp_path / "task"
    for number, state in enumerate("RSR"):
        (threads / str(number)).mkdir(parents=True)
        (threads / str(number) / "stat").write_text(f"{number} (a) b) R) {state} 1 1")
    monkeypatch.setattr(cores, "_OWN", str(threads))
    monkeypatch.setattr(cores, "_STAT", str(stat))

    def make(*running: int, count: int = 4, mine: int = 4) -> None:
        looks = iter(running)

        def look(_seconds: float) -> None:
            stat.write_text(f"cpu 1 2 3\nprocs_running {next(looks)}\nprocs_blocked 0\n")

        monkeypatch.setattr(cores.time, "sleep", look)
        monkeypatch.setattr(cores.os, "cpu_count", lambda: count)
        monkeypatch.setattr(cores, "available", lambda: mine)

    return make


def test_every_core_that_nobody_uses(machine) -> None:
    machine(2)
    assert cores.free() == 4


def test_busy_programs_are_left_their_cores(machine) -> None:
    machine(4, 4)
    assert cores.free() == 2
    machine(9, 9)
    assert cores.free() == 1


def test_a_program_that_runs_for_a_moment_does_not_count(machine) -> None:
    machine(4, 2)
    assert cores.free() == 4


def test_others_may_run_on_cores_that_are_not_ours(machine) -> None:
    machine(6, 6, count=16, mine=4)
    assert cores.free() == 4


def test_where_the_system_does_not_say_all_are_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores, "_STAT", str(tmp_path / "absent"))
    assert cores.free() == cores.available()


def test_an_assistant_fits_its_threads_unless_told(ready, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the answer does not depend on how many they are."""
    import llama_cpp

    monkeypatch.setattr(cores, "available", lambda: 2)
    said = {}
    for free in (2, 1):
        monkeypatch.setattr(cores, "free", lambda free=free: free)
        assistant, told = ready(), ready(threads=2)
        said[free] = assistant.direct("Who keeps cats?", max_tokens=8).tokens
        assert [llama_cpp.llama_n_threads(c.handle) for c in (assistant.base, assistant.mix)] == [free, free]
        told.direct("Who keeps cats?", max_tokens=8)
        assert llama_cpp.llama_n_threads(told.base.handle) == 2
    assert said[1] == said[2]


def test_amx_is_told_by_linux_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cores, "_INFO", str(tmp_path / "cpuinfo"))
    assert not cores.have_amx()
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_vnni amx_bf16 amx_tile amx_int8\n")
    assert cores.have_amx()
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx512_vnni\n")
    assert not cores.have_amx()
