"""`samfinetune demo`: what README promises, with the bundled model."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from SAMFineTuneLib.images import body_phantom, read_volume
from SAMFineTuneLib.prompts import read_prompts


def table(out):
    """name → (Dice on the slice of the box, Dice of the whole organ)."""
    rows = [line.rsplit(maxsplit=4) for line in out.splitlines() if line.endswith(" mL")]
    return {name.strip(): (float(on_slice), float(whole)) for name, on_slice, whole, _, _ in rows}


def test_the_demo_measures_what_it_wrote(samfinetune, tmp_path):
    result = samfinetune("demo")
    assert result.code == 0, result.err
    volume, labels, names = body_phantom(0)
    found = table(result.out)
    assert set(found) == set(names.values())

    written = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "demo" / "organs.seg.nrrd")))
    assert np.allclose(read_volume(tmp_path / "demo" / "dicom").affine, volume.affine, atol=1e-4)
    for value, name in names.items():
        both, sizes = (written == value) & (labels == value), (written == value).sum() + (labels == value).sum()
        assert found[name][1] == pytest.approx(2 * both.sum() / sizes, abs=0.006)
    assert found["liver"][0] > 0.85
    assert np.mean([on_slice for on_slice, _ in found.values()]) > 0.85
    assert np.mean([whole for _, whole in found.values()]) > 0.65

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
