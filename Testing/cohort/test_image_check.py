"""`cohort status` tells which images were moved, are gone or have changed."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from case_files import image_of, save
from dicom_samples import write_series
from small_cohorts import small_cohort, truth

from SAMFineTuneLib.cli.main import main
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import find_images


@pytest.fixture
def status(capsys):
    def status(cohort: Cohort) -> tuple[dict[str, str], str]:
        """What is wrong, by the names of the cases, and what is printed for people."""
        capsys.readouterr()
        assert main(["cohort", "status", str(cohort.folder), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert main(["cohort", "status", str(cohort.folder)]) == 0
        return {case["name"]: case["trouble"] for case in told["cases"] if case["trouble"]}, capsys.readouterr().out

    return status


def test_what_happened_to_images_is_told(tmp_path, status):
    cohort, images = small_cohort(tmp_path, count=6), tmp_path / "images"
    assert status(cohort)[0] == {}
    os.utime(images / "a.nii.gz", (1, 1))  # copied, perhaps
    (images / "sub").mkdir()
    shutil.move(images / "b.nii.gz", images / "sub" / "renamed.nii.gz")
    shutil.move(images / "c.nii.gz", tmp_path / "c.nii.gz")
    old = (images / "d.nii.gz").read_bytes()
    save(images / "d.nii.gz", image_of(truth(9), 9))
    (images / "e.nii.gz").write_bytes(b"no image at all")
    found, said = status(cohort)
    assert found == {"b": "moved", "c": "gone", "d": "changed", "e": "unreadable"}
    assert "1 moved, 1 gone, 1 changed, 1 unreadable; find what was moved: samfinetune cohort locate" in said
    assert "its image has changed" in said and status(cohort)[0] == found
    (images / "d.nii.gz").write_bytes(old)
    assert main(["cohort", "locate", str(cohort.folder), str(images)]) == 0
    assert status(cohort)[0] == {"c": "gone", "e": "unreadable"}
    shutil.move(tmp_path / "c.nii.gz", images / "c.nii.gz")
    assert status(cohort)[0] == {"e": "unreadable"}


def test_images_that_nobody_may_read_are_told(tmp_path, status, capsys):
    cohort, images = small_cohort(tmp_path, count=2), tmp_path / "images"
    images.chmod(0)
    try:
        if os.access(images, os.X_OK):
            pytest.skip("permissions do not bind this user")
        found, said = status(cohort)
        assert found == {"a": "unreadable", "b": "unreadable"} and "ask for permission to read them" in said
        assert main(["cohort", "next", str(cohort.folder), "--take", "me"]) == 2
        assert "not permitted to use" in capsys.readouterr().err
    finally:
        images.chmod(0o755)
    assert not any(case.lease for case in cohort.state.cases), "nobody gets it as the next one"
    assert status(cohort)[0] == {}


def test_images_that_are_as_they_were_are_not_read(tmp_path, status):
    cohort, image = small_cohort(tmp_path, count=2), tmp_path / "images" / "b.nii.gz"
    before = image.stat()
    image.write_bytes(bytes(before.st_size))
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert status(cohort)[0] == {}, "nothing but voxels tells"
    image.touch()
    assert status(cohort)[0] == {"b": "unreadable"}


def test_a_series_is_one_image(tmp_path, status):
    for number in range(3):
        write_series(tmp_path / "scans" / f"s{number}", image_of(truth(number), number).astype(np.uint16))
    cohort = create_cohort(tmp_path / "cohort", find_images(tmp_path / "scans"), ["blob"]).cohort
    assert status(cohort)[0] == {}
    shutil.move(tmp_path / "scans" / "s1", tmp_path / "scans" / "other")
    next((tmp_path / "scans" / "s2").iterdir()).unlink()
    assert status(cohort)[0] == {"s1": "moved", "s2": "changed"}


def test_a_cohort_from_before_images_were_looked_at(tmp_path, status):
    cohort = small_cohort(tmp_path, count=2)
    file = cohort.folder / "cohort.json"
    values = json.loads(file.read_text("utf-8"))
    for case in values["cases"]:
        del case["stamp"], case["trouble"]
    file.write_text(json.dumps(values), "utf-8")
    (tmp_path / "images" / "b.nii.gz").unlink()
    assert status(cohort)[0] == {"b": "gone"}
    assert cohort.state.case("a").stamp and not cohort.state.case("b").stamp
