"""Images that are sent into a cohort on a server: whole or not at all, and without names of patients."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from case_files import AFFINE, image_of, save
from department import TOKEN, Department
from dicom_samples import write_series
from small_cohorts import small_cohort, truth
from test_cohort_on_server import said

from SAMFineTuneLib.cases.cases import SHORT
from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.packed_images import pack_image
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume
from SAMFineTuneLib.service import cohort_messages as messages
from SAMFineTuneLib.service import cohort_uploads
from SAMFineTuneLib.service.cohort_api import CohortApi
from SAMFineTuneLib.service.cohort_client import Unreached
from SAMFineTuneLib.service.protocol import Limits, Refused
from SAMFineTuneLib.service.wire import encode

pytestmark = pytest.mark.skipif(os.name == "nt", reason="ports are reused at once")


@pytest.fixture
def cohort(home, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFINETUNE_TOKEN", TOKEN)
    return small_cohort(tmp_path / "there", count=1)


@pytest.fixture
def department(cohort, tmp_path):
    department = Department(cohort, tmp_path / "server")
    yield department
    department.kill()


@pytest.fixture
def add(department, capsys):
    def add(source: Path) -> dict:
        assert main(["cohort", "add", "cohort", str(source), "--server", department.address, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return add


def packed(path: Path, target: Path) -> tuple[bytes, str]:
    """The bytes of a packed image, and the digest of its volume."""
    volume = pack_image(path, read_volume(path), target)
    return target.read_bytes(), volume.digest


def test_images_of_all_kinds_come_with_labels_and_without_names(department, cohort, add, tmp_path):
    here = tmp_path / "Miller^Anna"
    for number, folder in ((1, here / "Miller^Hans"), (2, tmp_path / "other")):
        stored = image_of(truth(number), number).astype(np.uint16)
        write_series(folder, stored, PatientName="Miller^Hans", PatientID="77")
    for number, name in ((3, "näme with spaces.nii.gz"), (4, "four.nrrd"), (5, "five.mhd")):
        save(here / name, image_of(truth(number), number))
        save(tmp_path / f"{number}_seg.nii.gz", truth(number))
    rows = ["Miller^Anna/Miller^Hans,,", "other,,", "Miller^Anna/näme with spaces.nii.gz,3_seg.nii.gz,Miller",
            "Miller^Anna/four.nrrd,,Miller", "Miller^Anna/five.mhd,5_seg.nii.gz,Smith", "missing.nii.gz,,"]  # fmt: skip
    (tmp_path / "list.csv").write_text("\n".join(["image,label,patient", *rows[:-1]]), encoding="utf-8")
    told = add(tmp_path / "list.csv")
    assert told["added"] == 5
    volumes = [read_volume(tmp_path / row.split(",")[0]) for row in rows[:-1]]
    cases = {case.key: case for case in cohort.state.cases}
    new = [cases[volume.digest[:SHORT]] for volume in volumes[:3]] + [cohort.state.case(n) for n in ("four", "five")]
    assert [case.name for case in new[2:]] == ["näme with spaces", "four", "five"]
    for case, volume in zip(new, volumes, strict=True):
        read = read_volume(cohort.image(case))
        assert np.array_equal(read.array, volume.array) and np.allclose(read.affine, volume.affine, atol=1e-4)
    patients = [case.patient for case in new]
    assert patients[0] == patients[1] != patients[2] and patients[2] == patients[3] != patients[4]
    assert [case.state for case in new] == ["untouched", "untouched", "accepted", "untouched", "accepted"]
    for number, case in ((3, new[2]), (5, new[4])):
        assert np.array_equal(read_volume(cohort.accepted(case.key)).array, truth(number))
    files = [path for place in (cohort.folder, tmp_path / "server", tmp_path / "home") for path in place.rglob("*")]
    assert not any("Miller" in str(path.relative_to(tmp_path)) for path in files)
    assert not any(b"Miller" in path.read_bytes() for path in files if path.is_file() and path.suffix != ".dcm")
    again = add(tmp_path / "list.csv")
    assert again["added"] == 0 and len(again["notes"]) == 5 and "is the same image" in again["notes"][0]
    assert not list((cohort.folder / "added").glob(".*")), "nothing is left of what was sent"
    department.kill()
    moved = Cohort(shutil.move(cohort.folder, tmp_path / "elsewhere"))
    assert all(moved.image(case).is_relative_to(moved.folder) for case in new)


def test_one_image_that_is_refused_does_not_stop_the_others(department, cohort, add, tmp_path):
    for number, name in ((1, "x"), (2, "y")):
        save(tmp_path / "more" / f"{name}.nii.gz", image_of(truth(number), number))
    (tmp_path / "more" / "broken.nii.gz").write_bytes(b"no image")
    save(tmp_path / "more" / "large.nii.gz", np.random.default_rng(0).integers(0, 9000, (40, 300, 300), np.int16))
    department.kill()
    department.start("--volume-gb", "0.001")
    told = add(tmp_path / "more")
    assert told["added"] == 2 and [case.name for case in cohort.state.cases] == ["a", "x", "y"]
    assert any("broken.nii.gz" in note for note in told["notes"])
    assert any("large.nii.gz" in note and "takes at most 0.0 GB" in note for note in told["notes"])


def test_sending_goes_on_where_it_stopped_also_after_a_restart(department, cohort, tmp_path):
    save(tmp_path / "large.nii.gz", np.random.default_rng(0).integers(0, 30000, (30, 600, 600), np.int16))
    data, digest = packed(tmp_path / "large.nii.gz", tmp_path / "large.zip")
    parts: list[float] = []

    def stop(part: float) -> None:
        parts.append(part)
        if len(parts) == 3:
            raise UserError("enough")

    with pytest.raises(UserError, match="enough"):
        department.client().upload(tmp_path / "large.zip", stop)
    assert 0 < parts[-1] < 1
    first = dict(cohort="cohort", window="c" * 16, what="receive", case=digest, image=hashlib.sha256(data).hexdigest())
    told = said(department, messages.CohortPiece(**first, number=1))
    assert told["event"] == "failed" and "damaged" in told["text"] and len(cohort.state.cases) == 1
    with pytest.raises(UserError, match="enough"):
        parts.clear()
        department.client().upload(tmp_path / "large.zip", stop)
    department.kill()
    department.start()
    rest: list[float] = []
    department.client().upload(tmp_path / "large.zip", rest.append)
    assert rest[0] == parts[-1] and rest[-1] == 1
    assert said(department, messages.CohortPiece(**first, number=2))["event"] == "done"
    assert said(department, messages.CohortPiece(**first, number=2))["event"] == "done", "asked for once more"
    assert [case.name for case in cohort.state.cases] == ["a", "large"]
    assert read_volume(cohort.image(cohort.state.case("large"))).digest == digest


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as made:
        for name, content in files.items():
            made.writestr(name, content)
    return buffer.getvalue()


def test_what_no_client_of_ours_would_send_is_refused(department, cohort, tmp_path):
    image = save(tmp_path / "x.nii.gz", image_of(truth(1), 1))
    data, digest = packed(image, tmp_path / "x.zip")
    secret = save(tmp_path / "secret.nrrd", image_of(truth(2), 2))
    header = (f"NRRD0004\ntype: short\ndimension: 3\nsizes: 32 32 6\nencoding: raw\nendian: little\n"
              f"data file: {secret}\n\n").encode()  # fmt: skip
    content = image.read_bytes()
    wrong = {
        "leaves the folder": archive(**{"../x.nii.gz": content}),
        "is absolute": archive(**{str(tmp_path / "y.nii.gz"): content}),
        "lies in a folder": archive(**{"images/x.nii.gz": content}),
        "is hidden": archive(**{".x.nii.gz": content}),
        "names another file": archive(**{"x.nrrd": header}),
        "names another file, too": archive(**{"x.nii.gz": header}),
        "is another image": packed(save(tmp_path / "z.nii.gz", image_of(truth(3), 3)), tmp_path / "z.zip")[0],
        "holds none": archive(**{"x.dcm": b"no image"}),
        "is empty": archive(),
        "is cut off": data[:-30],
        "is not an archive": b"no archive",
    }
    before = {path: path.read_bytes() for path in cohort.folder.rglob("*") if path.is_file()}
    for number, (what, sent) in enumerate(wrong.items()):
        name = hashlib.sha256(sent).hexdigest()
        said(department, messages.CohortUpload("cohort", name, len(sent), 0, sent), action="upload")
        values = {"case": digest, "image": name, "number": number, "what": "receive"}
        told = said(department, messages.CohortPiece("cohort", "c" * 16, **values))
        assert told["event"] == "failed" and str(tmp_path) not in told["text"], (what, told)
    values |= {"number": 50, "image": hashlib.sha256(data).hexdigest()}
    for change, text in (({"case": "../a"}, "digest"), ({"image": "../../a"}, "digest"), ({"window": "../a"}, "window"),
                         ({"cohort": "../cohort"}, "no cohort")):  # fmt: skip
        told = said(department, messages.CohortPiece(**{"cohort": "cohort", "window": "c" * 16, **values, **change}))
        assert told["event"] in ("message", "cohort") and text in told["text"]
    for change in ({"digest": "../" + "0" * 61}, {"size": 0}, {"size": 1 << 40}, {"cohort": "x"}, {"digest": "0" * 64}):
        message = {"cohort": "cohort", "digest": values["image"], "size": len(data), "data": data, **change}
        message["size"] = message["size"] if "digest" not in change else len(data)
        assert said(department, messages.CohortUpload(**message), action="upload")["status"] >= 400, change
    assert said(department, messages.CohortUpload("cohort", "0" * 64, 5), "wrong", "upload")["status"] == 401
    assert not list((cohort.folder / "added").iterdir()) and not (tmp_path / "y.nii.gz").exists()
    assert before == {path: path.read_bytes() for path in cohort.folder.rglob("*") if path.is_file()}


def test_a_full_disk_and_a_server_that_takes_nothing_are_said(cohort, monkeypatch):
    usage = namedtuple("usage", "total used free")
    message = messages.CohortUpload("cohort", "0" * 64, 1000, 0, b"x" * 100)
    monkeypatch.setattr(cohort_uploads.shutil, "disk_usage", lambda path: usage(1, 1, 1500))
    with pytest.raises(Refused, match="The server's disk is full"):
        CohortApi([cohort.folder]).answer("upload", b"".join(encode(message)))
    monkeypatch.undo()
    with pytest.raises(Refused, match="Only its administrator"):
        CohortApi([cohort.folder], Limits(), may_add=False).answer("upload", b"".join(encode(message)))
    assert not list((cohort.folder).glob("added/.*"))


def test_an_older_server_is_told_apart(department, monkeypatch, tmp_path):
    """One that knows no images: the client says to update it."""
    save(tmp_path / "x.nii.gz", image_of(truth(1), 1))
    pack_image(tmp_path / "x.nii.gz", read_volume(tmp_path / "x.nii.gz"), tmp_path / "x.zip")
    client = department.client()
    ask = client._ask
    monkeypatch.setattr(client, "_ask", lambda action, *rest: ask("uploads", *rest))
    with pytest.raises(Unreached, match="update the server"):
        client.upload(tmp_path / "x.zip", lambda part: None)


def test_what_became_of_labels_is_told_as_for_a_cohort_beside(department, add, tmp_path):
    coarse = np.diag([2, 2, 1, 1]) @ AFFINE
    save(tmp_path / "more" / "images" / "x.nii.gz", image_of(truth(1), 1))
    save(tmp_path / "more" / "labels" / "x.nii.gz", truth(1)[:, ::2, ::2], coarse)
    save(tmp_path / "more" / "labels" / "y.nii.gz", truth(1))
    orphans, resampled = add(tmp_path / "more")["notes"]
    assert orphans.endswith(": y.") and resampled.startswith("x.nii.gz: The labels (")
