"""Writing: a file appears whole or not at all, and what a disk refuses is one sentence, whichever library writes."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_files import LIMIT, small_files_only

from SAMFineTuneLib import files
from SAMFineTuneLib.disk_errors import DiskError, disk_error
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, only_new, require_writable, staged_folder
from SAMFineTuneLib.process_lock import owning


def noise():
    return np.random.default_rng(0).integers(0, 255, (40, 64, 64), dtype=np.uint8)


def write_text(path):
    path.write_text("a" * 3 * LIMIT)


def write_picture(path):
    from PIL import Image

    Image.fromarray(np.concatenate(list(noise()))).save(path, format="PNG")


def write_arrays(path):
    with open(path, "wb") as file:
        np.savez(file, noise())


def write_checkpoint(path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.rand(100_000)}, path)


def write_tensors(path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors.torch").save_file({"a": torch.rand(100_000)}, path)


def write_graph(path):
    onnx = pytest.importorskip("onnx")
    weights = onnx.numpy_helper.from_array(np.zeros((300, 300), np.float32), "w")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([], "graph", [], [], [weights])), path)


def write_figure(path):
    figure = pytest.importorskip("matplotlib.figure").Figure(dpi=300)
    figure.subplots().imshow(noise()[0], interpolation="nearest")
    figure.savefig(path, format="raw")


WRITERS = (write_text, write_picture, write_arrays, write_checkpoint, write_tensors, write_graph, write_figure)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_a_refused_file_leaves_the_earlier_one_and_is_a_sentence(tmp_path, write):
    path = tmp_path / "file.bin"
    path.write_bytes(b"earlier")
    with small_files_only(), pytest.raises(DiskError, match="larger than a file may be") as raised:
        with atomic_write(path) as temporary:
            write(temporary)
    assert str(path) in str(raised.value) and "partial" not in str(raised.value)
    assert path.read_bytes() == b"earlier" and os.listdir(tmp_path) == ["file.bin"]
    with atomic_write(path) as temporary:
        write(temporary)
    assert path.stat().st_size > LIMIT


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@pytest.mark.parametrize("there", [False, True])
def test_a_refused_folder_leaves_nothing(tmp_path, write, there):
    folder = tmp_path / "model"
    if there:
        folder.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with small_files_only(), pytest.raises(DiskError) as raised:
        with staged_folder(folder) as building:
            (building / "first").write_text("written")
            write(building / "second")
    assert str(folder) in str(raised.value) and "partial" not in str(raised.value)
    assert sorted(tmp_path.rglob("*")) == before
    with staged_folder(folder) as building:
        assert building.name == "model"
        write(building / "second")
    assert os.listdir(folder) == ["second"] and os.listdir(tmp_path) == ["model"]


def test_a_renewed_folder_keeps_what_is_not_replaced(tmp_path):
    folder = tmp_path / "demo"
    (folder / "dicom").mkdir(parents=True)
    for name in ("notes.txt", "dicom/1", "dicom/2"):
        (folder / name).write_text("old")
    with staged_folder(folder, [folder / "dicom" / "1", folder / "dicom" / "2"]) as building:
        (building / "dicom").mkdir()
        (building / "dicom" / "2").write_text("new")
    found = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert found == {"notes.txt": "old", "dicom/2": "new"}


@pytest.mark.parametrize("links", [True, False])
def test_of_two_programs_that_write_one_new_file_the_first_does(tmp_path, monkeypatch, links):
    if not links:

        def refuse(*names):
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
    for durable in (True, False):
        with pytest.raises(UserError, match="a.txt” was written by another program meanwhile"):
            with only_new(), atomic_write(tmp_path / "a.txt", durable) as late:
                late.write_text("late")
                with only_new(), atomic_write(tmp_path / "a.txt") as first:
                    first.write_text("first")
        assert (tmp_path / "a.txt").read_text() == "first" and os.listdir(tmp_path) == ["a.txt"]
        with atomic_write(tmp_path / "a.txt", durable) as other:
            other.write_text("replaced")
        (tmp_path / "a.txt").unlink()


@pytest.mark.parametrize("there", [True, False])
def test_of_two_programs_that_write_one_new_folder_the_first_does(tmp_path, there):
    folder = tmp_path / "model"
    if there:
        folder.mkdir()
    with pytest.raises(UserError, match="model.* was written by another program meanwhile"):
        with only_new(), staged_folder(folder) as late:
            for text in ("draft", "late"):
                with atomic_write(late / "a.txt") as file:
                    file.write_text(text)
            with only_new(), staged_folder(folder) as first:
                (first / "a.txt").write_text("first")
    assert [path.read_text() for path in folder.iterdir() if path.is_file()] == ["first"]
    assert os.listdir(folder) == ["a.txt"] and os.listdir(tmp_path) == ["model"]


def test_of_two_programs_that_write_other_names_into_one_empty_folder_the_first_does(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=f"{tmp_path.name}.* was written by another program meanwhile"):
        with only_new(), staged_folder(tmp_path) as late:
            (late / "late.txt").write_text("late")
            with only_new(), staged_folder(tmp_path) as first:
                (first / "first.txt").write_text("first")
    assert os.listdir(tmp_path) == ["first.txt"]
    (tmp_path / "first.txt").unlink()

    def meanwhile(source, target):
        monkeypatch.setattr(os, "link", link)
        with pytest.raises(UserError, match="by another program meanwhile"):
            with only_new(), staged_folder(tmp_path) as late:
                (late / "late.txt").write_text("late")
        return link(source, target)

    link = os.link
    monkeypatch.setattr(os, "link", meanwhile)  # while the first one moves its files in
    with only_new(), staged_folder(tmp_path) as first:
        (first / "first.txt").write_text("first")
    assert os.listdir(tmp_path) == ["first.txt"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no place without folders")
def test_a_place_where_no_folder_can_be_is_one_sentence():
    for write in (atomic_write, staged_folder, owning_it):
        with pytest.raises(DiskError, match="The folder of “/proc/nothing/a” does not exist and cannot be made"):
            with write("/proc/nothing/a"):
                pass


def owning_it(folder):
    return owning(Path(folder), "The work")


def test_a_defect_stays_one(tmp_path):
    for kind in (KeyError, RuntimeError, TypeError):
        with pytest.raises(kind), atomic_write(tmp_path / "a"):
            raise kind("not the disk's fault")
    with pytest.raises(UserError, match="^wrong$"), staged_folder(tmp_path / "b"):
        raise UserError("wrong")
    assert os.listdir(tmp_path) == []


def test_a_name_that_just_fits_can_be_written(tmp_path):
    path = tmp_path / f"{'n' * 243}.nii.gz"
    with atomic_write(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    with pytest.raises(DiskError, match="too long"), atomic_write(tmp_path / ("n" * 300)) as temporary:
        temporary.write_text("whole")


def test_a_link_stays_a_link(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    try:
        link.symlink_to(target)
    except OSError:
        pytest.skip("links need a privilege here")
    with atomic_write(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and target.read_text() == "new"


def held(number=32):
    error = PermissionError(errno.EACCES, "held")
    error.winerror = number
    return error


def test_a_file_that_is_open_for_a_moment_is_waited_for(tmp_path, monkeypatch):
    """As on Windows, where a virus scanner opens what is new."""
    refusals, replace = [held(5), held(32)], os.replace

    def refuse_first(source, target):
        if refusals:
            raise refusals.pop()
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse_first)
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "new"


def test_a_file_that_stays_open_is_named(tmp_path, monkeypatch):
    def refuse(source, target):
        raise held()

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(files, "_PATIENCE", 0.0)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(DiskError, match="a” is open in another program"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("number", ["ENOSPC", "EDQUOT", "EIO"])
def test_what_only_the_last_step_finds_out_is_said_as_well(tmp_path, monkeypatch, number):
    """Network disks and quotas may accept every byte and refuse when they are waited for."""
    if not hasattr(errno, number):
        pytest.skip("not on this system")

    def refuse(handle):
        raise OSError(getattr(errno, number), os.strerror(getattr(errno, number)))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskError, match="a”"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a").read_text() == "old" and os.listdir(tmp_path) == ["a"]


def test_a_writer_that_does_not_say_why_is_asked_about_the_disk(tmp_path):
    def write_half(path):
        path.write_bytes(bytes(LIMIT))
        raise RuntimeError("could not write")

    with small_files_only(), pytest.raises(DiskError), atomic_write(tmp_path / "a") as temporary:
        write_half(temporary)


def wrapped(outer, inner):
    try:
        try:
            raise inner
        except Exception as error:
            raise outer from error
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space", "x"), "nothing can be written to “x”"),
        (OSError(errno.EROFS, "Read-only", "x"), "is read-only"),
        (PermissionError(errno.EACCES, "Denied", "x"), "not permitted to use “x”"),
        (OSError(errno.ENAMETOOLONG, "Long", "x"), "too long"),
        (NotADirectoryError(errno.ENOTDIR, "Not a folder", "a/x"), "a part of its path is a file"),
        (OSError(errno.EIO, "Input/output error", "x"), "Input/output error"),
        (held(112), "The disk is full"),
        (held(1295), "quota"),
        (held(19), "is read-only"),
        (held(206), "too long"),
        (wrapped(RuntimeError("writer failed"), OSError(errno.ENOSPC, "No space", "x")), "The disk is full"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "The disk is full"),
        (FileNotFoundError("No usable temporary directory found in ['/tmp']"), "No folder for temporary files"),
    ],
)  # fmt: skip
def test_refusals_are_sentences(error, said):
    found = disk_error(error)
    assert isinstance(found, DiskError) and said in str(found)
    assert str(found).endswith(".") and "\n" not in str(found)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        wrapped(UserError("better said already"), PermissionError(errno.EACCES, "Denied", "x")),
    ],
)
def test_other_errors_are_not_the_disk_s(error):
    assert disk_error(error) is None


def test_a_folder_that_cannot_be_written_is_found_out_before_the_work(tmp_path):
    require_writable(tmp_path / "to" / "be" / "made")
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        require_writable(tmp_path / "file" / "folder")
    with pytest.raises(DiskError):
        require_writable(Path(tmp_path / "file"))


_KILLED = """
import os, signal, sys
from pathlib import Path
from SAMFineTuneLib.files import atomic_write, staged_folder

folder = Path(sys.argv[1])
with staged_folder(folder / "results") as building:
    (building / "a.txt").write_text("half")
    with staged_folder(folder) as more, atomic_write(folder / "labels.nii.gz") as temporary:
        (more / "b.txt").write_text("half")
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("place", ["labels.nii.gz", ".0123456789ab.partial-labels.nii.gz",
                                   ".0123456789ab.partial/labels.nii.gz/labels.nii.gz"])  # fmt: skip
def test_hidden_names_are_not_told(tmp_path, place):
    told = str(disk_error(OSError(errno.ENOSPC, "full"), tmp_path / place))
    assert str(tmp_path / "labels.nii.gz") in told and "partial" not in told


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("write", [lambda folder: files.write_text(folder / "new.txt", "whole"),
                                   lambda folder: _stage(folder / "new")])  # fmt: skip
def test_what_a_killed_process_left_is_deleted_a_day_later(tmp_path, root, write):
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], cwd=root)
    assert killed.returncode == -signal.SIGKILL
    left = set(tmp_path.iterdir())
    assert len(left) == 3 and all(path.name.startswith(".") for path in left)
    others = {tmp_path / ".notes.partial", tmp_path / ".0123456789ab.partially", tmp_path / "0123456789ab.partial-a"}
    for path in others:
        path.write_text("the user's")
    young = next(path for path in left if path.is_dir())
    yesterday = time.time() - 25 * 3600
    for path in (*others, *left, *(inner for one in left - {young} for inner in one.rglob("*"))):
        os.utime(path, (yesterday, yesterday))
    write(tmp_path)
    assert {path for path in tmp_path.iterdir() if path.name.startswith((".", "0"))} == others | {young}


def _stage(folder):
    with staged_folder(folder) as building:
        (building / "a.txt").write_text("whole")
