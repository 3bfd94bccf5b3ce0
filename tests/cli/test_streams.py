"""Output that goes nowhere: closed pipes, full disks, terminals without UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def outside(*words: object, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "megart", *map(str, words)]
    how["env"] = {**os.environ, **how.pop("env", {})}
    how["env"].pop("PYTHONUNBUFFERED", None)  # users have a buffer, and it fails at another time
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_that_goes_away(bank: Path) -> None:
    with outside("list", "--bank", bank, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert (process.stderr.read(), process.wait(20)) == ("", 141)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(bank: Path) -> None:
    with open("/dev/full", "w") as full, outside("list", "--bank", bank, stdout=full) as process:
        assert process.stderr is not None
        said = (process.stderr.read(), process.wait(20))
        assert said == ("megart: error: No space left on device\n", 1)


@pytest.mark.skipif(os.name == "nt", reason="descriptors")
def test_closed_streams(tmp_path: Path) -> None:
    """Talk goes nowhere, and no file of ours gets the number that stray output of C code goes to."""
    program = (
        "import os, sys; from megart.cli import progress, ui; from megart.memorize import Progress; ui.prepare_streams(); "
        "ui.say('x'); progress.StudyDisplay().show(Progress('loading', 0, 1)); "
        "file = open(sys.argv[1], 'w'); file.write(str(file.fileno()))"
    )
    for gaps in (">&-", "2>&-", "<&- >&- 2>&-"):
        line = f'exec "$0" -c "$1" "$2" {gaps}'
        subprocess.run(["sh", "-c", line, sys.executable, program, str(tmp_path / "f")], check=True, timeout=60)
        assert int((tmp_path / "f").read_text()) > 2


def test_no_utf8_anywhere(bank: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii:strict"}
    for words in (["show", "ada"], ["show", "ada", "--json"]):
        with outside(*words, "--bank", bank, stdout=subprocess.PIPE, env=env) as process:
            out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert ('"Zo\\u00eb"' if "--json" in words else '"Zo?"') in out
