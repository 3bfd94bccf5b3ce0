"""Teaching a server's bank in a process of its own, with a program in the place of `megart learn`."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from megart.errors import DependencyError
from megart.serve import lessons
from megart.serve.lessons import Lessons

LEARNS = "print('{}', flush=True); print('{}', flush=True)"
FAILS = "import sys; print('{}'); print('loading', file=sys.stderr); sys.exit('megart: error: no room')"
WAITS = "import time; print('{}', flush=True); time.sleep(60)"


@pytest.fixture
def teach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(lessons, "can_teach", lambda: True)

    def make(program: str, pending: int = 2) -> Lessons:
        monkeypatch.setattr(lessons, "_COMMAND", (sys.executable, "-c", program))
        return Lessons(SimpleNamespace(path=tmp_path, records=lambda state: [None] * pending))  # type: ignore[arg-type]

    return make


def settled(lesson: Lessons) -> dict:
    for _ in range(200):
        if not lesson.state()["running"]:
            return lesson.state()
        time.sleep(0.05)
    raise AssertionError("it did not end")


def test_what_is_learnt_is_counted(teach) -> None:
    lesson = teach(LEARNS)
    lesson.start()
    assert settled(lesson) == {
        "can_teach": True, "running": False, "done": 2, "total": 2, "pending": 2, "error": None,
    }  # fmt: skip


def test_a_failure_is_told_and_not_repeated_by_itself(teach) -> None:
    lesson = teach(FAILS)
    lesson.start()
    assert settled(lesson)["error"] == "megart: error: no room" and lesson.state()["done"] == 1
    lesson.start(again=False)
    assert lesson.state()["running"] is False and lesson.state()["error"]


def test_it_can_be_stopped_and_runs_once_at_a_time(teach) -> None:
    lesson = teach(WAITS)
    lesson.start()
    process = lesson._process
    lesson.start()
    assert lesson._process is process
    while not lesson.state()["done"]:
        time.sleep(0.05)
    lesson.stop()
    assert lesson.state()["running"] is False and lesson.state()["error"] is None and process.poll() is not None


def test_nothing_pending_starts_nothing_and_no_torch_is_told(teach, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson = teach(WAITS, pending=0)
    lesson.start()
    assert lesson.state()["running"] is False
    monkeypatch.setattr(lessons, "can_teach", lambda: False)
    with pytest.raises(DependencyError, match="megart learn elsewhere"):
        lesson.start()


def test_it_waits_until_nobody_asks_and_then_teaches(teach, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(lessons, "_LOOK_SECONDS", 0.02)
    lesson, quiet = teach(LEARNS), threading.Event()
    lesson.start_when(quiet.is_set)
    time.sleep(0.3)
    assert lesson.state()["running"] is False and lesson.state()["total"] == 0
    quiet.set()
    for _ in range(200):
        if lesson.state()["done"] == 2:
            break
        time.sleep(0.05)
    assert settled(lesson)["done"] == 2


def test_what_comes_while_it_teaches_is_taught_afterwards(teach, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(lessons, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(lessons, "_LOOK_SECONDS", 0.02)
    lesson = teach(f"import time; open({str(tmp_path / 'runs')!r}, 'a').write('x'); time.sleep(0.5)")
    lesson.start()
    lesson.start_when(lambda: True)
    for _ in range(200):
        if (tmp_path / "runs").exists() and (tmp_path / "runs").read_text() == "xx":
            break
        assert lesson.state()["error"] is None
        time.sleep(0.05)
    assert (tmp_path / "runs").read_text() == "xx"
    settled(lesson)


def test_a_quiet_time_is_not_waited_for_after_a_stop(teach) -> None:
    lesson = teach(LEARNS)
    lesson.start_when(lambda: False)
    lesson.stop()
    assert lesson._waiter is None and lesson.state()["running"] is False
