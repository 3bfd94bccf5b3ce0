"""A file is there whole or not at all, and what a killed writer left goes."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megart.whole_file import whole_file


def test_a_file_is_written_whole_for_its_owner(tmp_path: Path) -> None:
    target = tmp_path / "some pack[1].bin"
    for data in (b"first", b"second"):
        with whole_file(target) as file:
            file.write(data)
    assert target.read_bytes() == b"second" and [*tmp_path.iterdir()] == [target]
    assert os.name == "nt" or stat.S_IMODE(target.stat().st_mode) == 0o600


def test_what_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "pack"
    target.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"before" and [*tmp_path.iterdir()] == [target]


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is swept there: no such locks")
def test_what_a_killed_writer_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    target, other = tmp_path / "pack", tmp_path / ".pack.mine.new"
    other.touch()
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom megart.whole_file import whole_file\n"
        "with whole_file(Path(sys.argv[1])) as file:\n    file.write(b'half'); file.flush(); print('x', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout and writer.stdout.readline() == b"x\n"
        with whole_file(target) as file:
            file.write(b"whole")
        assert len([*tmp_path.iterdir()]) == 3  # the other writer's stays
        writer.send_signal(signal.SIGKILL)
    assert len([*tmp_path.iterdir()]) == 3
    with whole_file(target) as file:
        file.write(b"again")
    assert sorted(tmp_path.iterdir()) == [other, target] and target.read_bytes() == b"again"
