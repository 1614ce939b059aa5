"""Files that cannot be read are left out and said; a series is refused only where a slice may be missing unseen."""

import builtins
import os
import socket
import sys
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from closed_folders import close_to_all
from dicom_samples import save, write_series
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import list_series, read_volume

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has none of these")


def stored(count=5):
    return np.random.default_rng(3).integers(0, 4000, (count, 6, 5)).astype(np.int16)


def nested(path):
    """Give a file sequences within sequences, among them after what says where it lies."""
    dataset = pydicom.dcmread(path)
    inner, outer = Dataset(), Dataset()
    inner.CodeValue, inner.CodeMeaning = "1234", "something" * 5
    outer.PurposeOfReferenceCodeSequence = Sequence([inner])
    outer.ReferencedSOPInstanceUID = "1.2.3"
    dataset.SourceImageSequence = Sequence([outer])
    dataset.RequestAttributesSequence = Sequence([outer, inner])
    return save(dataset, path)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1), st.booleans(), st.booleans())
def test_any_file_cut_at_any_length_leaves_the_others(part, beside, named):
    """Invariant: the slices that are whole are read in their place."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder, stored(), shuffle=False)
        ending = ".dcm" if named else ""
        for path in sorted(folder.iterdir()):
            nested(path).rename(path.with_name(path.name + ending))
        victim = folder / f"002{ending}"
        whole = victim.read_bytes()
        cut = whole[: int(part * (len(whole) - 1))]
        (folder / f"zz{ending}" if beside else victim).write_bytes(cut)
        (entry,) = list_series(folder)
        volume = read_volume(folder)
        assert volume.shape[0] == 5 and np.allclose(volume.spacing, (0.7, 0.8, 2.5))
        others = range(5) if beside else [0, 1, 3, 4]
        assert np.array_equal(volume.array[others], stored()[others])
        text = " ".join(volume.warnings)
        assert "left out" in text and (f"“{victim.name}”" in text or f"“zz{ending}”" in text)
        if not beside:
            assert "between S 32.5 mm and S 37.5 mm" in text


def test_a_damaged_file_at_the_end_is_said_with_its_place(tmp_path):
    write_series(tmp_path, stored(), shuffle=False)
    data = nested(tmp_path / "004").read_bytes()
    (tmp_path / "004").write_bytes(data[: data.index(b"\x28\x00\x10\x00") + 2])
    volume = read_volume(tmp_path)
    assert volume.shape[0] == 4 and volume.warnings == ("“004” (S 40.0 mm) was left out: it is damaged or cut off.",)


def test_damage_in_another_series_is_not_this_ones(tmp_path):
    write_series(tmp_path / "a", stored(), shuffle=False, SeriesNumber=1)
    write_series(tmp_path / "b", stored(), shuffle=False, SeriesNumber=2)
    data = nested(tmp_path / "b" / "002").read_bytes()
    (tmp_path / "b" / "002").write_bytes(data[: data.index(b"\x28\x00\x10\x00") + 2])
    assert read_volume(tmp_path, "1").warnings == ()
    assert "002" in read_volume(tmp_path, "2").warnings[0]


@posix
def test_what_is_no_file_is_left_out_and_said(tmp_path):
    write_series(tmp_path, stored(), shuffle=False)
    os.mkfifo(tmp_path / "pipe.dcm")
    (tmp_path / "link.dcm").symlink_to(tmp_path / "gone.dcm")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # a socket's path is short
    try:
        server.bind("socket")
    finally:
        os.chdir(here)
    volume = read_volume(tmp_path)
    server.close()
    assert np.array_equal(volume.array, stored())
    text = " ".join(volume.warnings)
    assert all(f"“{name}”" in text for name in ("pipe.dcm", "link.dcm", "loop", "socket"))
    assert "link to a file that is gone" in text and "not a file but a pipe" in text
    for name in ("pipe.dcm", "link.dcm"):
        with pytest.raises(UserError):
            read_volume(tmp_path / name)


def test_links_to_files_are_read(tmp_path):
    write_series(tmp_path / "real", stored())
    (tmp_path / "links").mkdir()
    try:
        for path in (tmp_path / "real").iterdir():
            (tmp_path / "links" / path.name).symlink_to(path)
    except OSError:
        pytest.skip("this user may not make links")
    assert np.array_equal(read_volume(tmp_path / "links").array, stored())


@pytest.fixture
def forbid(monkeypatch):
    """Make files unreadable to this user, who may be root."""
    forbidden = set()
    real = builtins.open

    def opening(path, *args, **kwargs):
        if not isinstance(path, int) and Path(path) in forbidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", opening)
    return forbidden.add


@pytest.mark.parametrize("victim", ["000", "002", "004"])
def test_a_slice_that_may_not_be_read_is_a_reason_to_refuse(tmp_path, forbid, victim):
    write_series(tmp_path, stored(), shuffle=False)
    forbid(tmp_path / victim)
    with pytest.raises(UserError, match=f"“{victim}” may not be read.*permission.*slice of this series may be missing"):
        read_volume(tmp_path)
    assert len(list_series(tmp_path)) == 1


def test_another_file_that_may_not_be_read_is_said(tmp_path, forbid):
    write_series(tmp_path / "images", stored(), shuffle=False)
    (tmp_path / "report.pdf").write_text("%PDF")
    (tmp_path / "images" / "notes.txt").write_text("secret")
    forbid(tmp_path / "report.pdf")
    forbid(tmp_path / "images" / "notes.txt")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stored()) and "permission" in volume.warnings[0]
    (tmp_path / "images" / "002").unlink()
    with pytest.raises(UserError, match="may be missing because of it"):
        read_volume(tmp_path)


def test_files_none_of_which_may_be_read_name_the_reason(tmp_path, forbid):
    write_series(tmp_path, stored(2), shuffle=False)
    for path in tmp_path.iterdir():
        forbid(path)
    with pytest.raises(UserError, match="permission"):
        read_volume(tmp_path)
    with pytest.raises(UserError, match="permission"):
        read_volume(tmp_path / "000")


def test_a_folder_that_may_not_be_looked_into_is_said(tmp_path, monkeypatch):
    write_series(tmp_path / "images", stored(), shuffle=False)
    close_to_all(monkeypatch, tmp_path / "closed")
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.array, stored())
    assert volume.warnings == ("“closed” was left out: it may not be looked into (you lack the permission).",)
    with pytest.raises(UserError, match="“closed”.*permission"):
        read_volume(tmp_path / "closed")
    (tmp_path / "images" / "002").unlink()
    assert "1 slice is missing" in read_volume(tmp_path).warnings[1]


def test_files_of_other_systems_are_not_damage(tmp_path):
    write_series(tmp_path, stored())
    (tmp_path / "._000.dcm").write_bytes(b"\0\5\x16\7" + bytes(60))
    (tmp_path / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0" * 100)
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(300))
    assert read_volume(tmp_path).warnings == ()


def test_a_series_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    """Otherwise its voxels would lie where those of the first series were."""
    write_series(tmp_path, stored(), shuffle=False)
    real = pydicom.dcmread

    def replaced(path, *args, stop_before_pixels=False, **kwargs):
        if not stop_before_pixels and "series" not in seen:
            seen.append("series")
            write_series(tmp_path, stored(), shuffle=False, step=9.0)
        return real(path, *args, stop_before_pixels=stop_before_pixels, **kwargs)

    seen = []
    monkeypatch.setattr(pydicom, "dcmread", replaced)
    with pytest.raises(UserError, match="“000” was replaced by another image while it was read"):
        read_volume(tmp_path)
