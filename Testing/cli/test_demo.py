"""`samfinetune demo`: what README promises, with the bundled model."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.images import body_phantom, read_volume
from SAMFineTuneLib.prompts import read_prompts


def table(out):
    """name → (Dice on the slice of the box, Dice of the whole organ)."""
    rows = [line.rsplit(maxsplit=4) for line in out.splitlines() if line.endswith(" mL")]
    return {name.strip(): (float(on_slice), float(whole)) for name, on_slice, whole, _, _ in rows}


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        pytest.param((20, 128, 128), (2.8, 2.8, 6.0), id="half the resolution"),
        pytest.param((40, 256, 256), (1.4, 1.4, 3.0), id="as users see it", marks=pytest.mark.slow),
    ],
)
def test_the_demo_measures_what_it_wrote(samfinetune, tmp_path, monkeypatch, shape, spacing):
    made = functools.partial(body_phantom, shape=shape, spacing=spacing)
    monkeypatch.setattr("SAMFineTuneLib.images.body_phantom", made)
    result = samfinetune("demo")
    assert result.code == 0, result.err
    volume, labels, names = body_phantom(0, shape, spacing)
    found = table(result.out)
    assert set(found) == set(names.values())

    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "demo" / "organs.seg.nrrd")))
    assert np.allclose(read_volume(tmp_path / "demo" / "dicom").affine, volume.affine, atol=1e-4)
    for value, name in names.items():
        both, sizes = (written == value) & (labels == value), (written == value).sum() + (labels == value).sum()
        assert found[name][1] == pytest.approx(2 * both.sum() / sizes, abs=0.006)
    assert min(min(dice) for dice in found.values()) > 0.93, "also structures that run through all slices"

    prompts = read_prompts(tmp_path / "demo" / "prompts.json")
    assert {segment.value: segment.name for segment in prompts.segments} == names
    assert np.asarray(Image.open(tmp_path / "demo" / "picture.png")).std() > 10

    by_hand = next(line for line in result.out.splitlines() if line.startswith("  samfinetune segment"))
    again = samfinetune(*by_hand.split()[1:])
    assert again.code == 0, again.err
    assert "embeddings  0 computed" in again.out
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "organs.seg.nrrd"))), written)


def test_the_demo_leaves_files_of_others_alone(samfinetune, phantom, tmp_path):
    own = tmp_path / "demo" / "dicom" / "IM0001"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    before = hashlib.sha256(own.read_bytes()).hexdigest()
    result = samfinetune("demo")
    assert result.code == 2 and result.err.count("\n") == 1
    assert hashlib.sha256(own.read_bytes()).hexdigest() == before and len(list(own.parent.iterdir())) == 1
    (tmp_path / "file").write_text("")
    assert samfinetune("demo", "-o", "file").code == 2


def test_the_demo_of_a_cohort_can_be_accepted_to_its_end(samfinetune, tmp_path):
    result = samfinetune("demo", "--cohort")
    assert result.code == 0, result.err
    commands = [line.split()[1:] for line in result.out.splitlines() if line.startswith("  samfinetune cohort")]
    assert [command[1] for command in commands] == ["status", "train", "propose", "next", "accept", "report"]
    cohort = Cohort(tmp_path / "demo-cohort" / "cohort")
    assert list(cohort.state.labels.values()) == ["liver", "spleen", "right kidney"]
    assert len(cohort.state.accepted) == 5 and len(cohort.state.cases) == 8
    shapes = set()
    for case in cohort.state.accepted:
        labels = read_labels(cohort.accepted(case.key)).array
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        shapes.add(tuple(np.bincount(labels.ravel())[1:]))
    assert len(shapes) == 5
    for case in cohort.state.those("untouched"):
        answer = tmp_path / "demo-cohort" / "answers" / f"{case.name}.nii.gz"
        assert samfinetune("cohort", "accept", cohort.folder, case.name, "--labels", answer).code == 0
    assert "8: 8 accepted" in samfinetune(*commands[0]).out
    assert samfinetune(*commands[-1]).code == 0
    again = samfinetune("demo", "--cohort")  # what is there may hold somebody's work
    assert again.code == 2 and again.err.count("\n") == 1 and len(cohort.state.accepted) == 8
