"""One process owns a folder: a second one learns which, a kill releases it, and no file remains."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_files import small_files_only

from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.process_lock import LOCK, ProcessLock, owning

_HOLD = """
import sys, time
from pathlib import Path
from SAMFineTuneLib.process_lock import owning
with owning(Path(sys.argv[1]), "The work"):
    print("owned", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def owner(root, tmp_path):
    """A process that owns the folder `work`."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path / "work"],
        env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "owned\n"
    yield process
    process.kill()
    process.communicate()


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error, owning(folder, "The work"):
        pass
    return str(error.value)


def test_a_second_process_is_told_which_one_it_is(owner, tmp_path):
    lock = ProcessLock(tmp_path / "work" / LOCK)
    assert lock.owner.pid == owner.pid and lock.owner.is_here
    sentence = refused(tmp_path / "work")
    assert sentence.startswith(f"The work is running (process {owner.pid}, for less than a minute); wait until")
    assert lock.owner.pid == owner.pid, "asking takes nothing from it"


def test_a_kill_lets_go_at_once(owner, tmp_path):
    owner.kill()
    owner.wait()
    lock = ProcessLock(tmp_path / "work" / LOCK)
    assert (tmp_path / "work" / LOCK).read_text() and lock.owner is None, "what it wrote is left, and holds nothing"
    with owning(tmp_path / "work", "The work"):
        assert lock.owner.pid == os.getpid()
    assert lock.owner is None


def test_where_the_file_system_cannot_lock_the_living_process_counts(owner, tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert f"process {owner.pid}" in refused(tmp_path / "work")
    owner.kill()
    owner.wait()
    with owning(tmp_path / "work", "The work"):
        assert "process" in refused(tmp_path / "work")


def test_an_owner_on_another_computer_is_said_to_be_there(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    lock = ProcessLock(tmp_path / LOCK)
    assert lock.take()
    text = (tmp_path / LOCK).read_text()
    assert "elsewhere" not in text, "no name of a computer is written"
    monkeypatch.setattr("platform.node", lambda: "here")
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSYS, "not implemented")))
    assert "of another computer" in refused(tmp_path) and "where it was started" in refused(tmp_path)
    lock.release()


def test_nothing_is_left_of_it(tmp_path):
    with owning(tmp_path / "new" / "folder", "The work"):
        assert (tmp_path / "new" / "folder" / LOCK).is_file()
    assert list(tmp_path.iterdir()) == []
    mine = tmp_path / "mine"
    mine.mkdir()
    with owning(mine, "The work"):
        pass
    with owning(tmp_path / "kept", "The work"):
        (tmp_path / "kept" / "result").touch()
    assert mine.is_dir() and not any(mine.iterdir())
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["result"]


def test_a_disk_that_takes_nothing_is_said_and_nothing_is_left(tmp_path):
    with small_files_only(0), pytest.raises(DiskError, match="work"), owning(tmp_path / "work", "The work"):
        pass
    assert list(tmp_path.iterdir()) == []
