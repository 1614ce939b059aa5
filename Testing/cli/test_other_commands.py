"""`samfinetune info`, `embed`, `cache` and `pretrain`."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from SAMFineTuneLib.images import Volume, body_phantom, write_dicom_series, write_labelmap
from SAMFineTuneLib.inference.predictor import Predictor


def row(out, label):
    """The text of a line of the output by its label."""
    return next(line for line in out.splitlines() if line.startswith(label)).removeprefix(label).strip()


# ---- info


def test_info_says_what_a_series_is(samfinetune, phantom):
    result = samfinetune("info", phantom.folder)
    assert result.code == 0, result.err
    assert row(result.out, "read") == "CT, “Body phantom”, 12 DICOM files"
    assert row(result.out, "grid") == "128 × 128 × 12 voxels of 2.8 × 2.8 × 8 mm"
    axes = row(result.out, "axes")
    assert axes.startswith("axial slices, i → Left, j → Posterior, k → Superior, oblique, tilted by ")
    directions = phantom.volume.affine[:3, :3] / phantom.volume.spacing
    tilt = np.degrees(np.arccos(np.abs(np.diag(directions)).min()))
    assert float(axes.rstrip("°").split()[-1]) == pytest.approx(tilt, abs=0.06)
    r, a, s = phantom.volume.affine[:3, 3]
    assert row(result.out, "corner") == f"the first voxel lies at R {r:.1f}, A {a:.1f}, S {s:.1f} mm"
    low, high = phantom.volume.array.min(), phantom.volume.array.max()
    assert row(result.out, "values").startswith(f"{low} to {high}")
    assert "-160 to 239" in row(result.out, "window")


def test_info_knows_a_sagittal_scan_that_is_not_tilted(samfinetune, tmp_path):
    affine = np.array([[0, 0, 4.0, -8], [-1, 0, 0, 20], [0, -1, 0, 30], [0, 0, 0, 1]])
    volume = Volume(np.zeros((5, 40, 30), np.uint8), affine)
    write_labelmap(tmp_path / "sagittal.nii.gz", volume.array, volume)
    result = samfinetune("info", "sagittal.nii.gz")
    assert row(result.out, "axes") == "sagittal slices, i → Posterior, j → Inferior, k → Right, not tilted"
    assert row(result.out, "grid") == "30 × 40 × 5 voxels of 1 × 1 × 4 mm"


def test_info_lists_the_series_of_a_folder_and_shows_the_one_asked_for(samfinetune, tmp_path):
    for number, slices in ((1, 3), (2, 5)):
        volume, _, _ = body_phantom(number, shape=(slices, 32, 32), spacing=(10.0, 10.0, 30.0))
        write_dicom_series(volume, tmp_path / "study" / str(number))
    result = samfinetune("info", "study")
    assert result.code == 0 and "holds 2 series" in result.out
    assert "32×32×3" in result.out and "32×32×5" in result.out
    chosen = next(line.split(":")[0].strip() for line in result.out.splitlines() if "32×32×5" in line)
    assert "32 × 32 × 5" in samfinetune("info", "study", "--series", chosen).out
    (tmp_path / "study" / "cut.dcm").write_bytes(next((tmp_path / "study" / "1").iterdir()).read_bytes()[:900])
    assert "“cut.dcm”" in row(samfinetune("info", "study").out, "note")


def test_info_of_what_is_no_volume_is_one_sentence(samfinetune, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for path in ("notes.txt", "missing", tmp_path):
        result = samfinetune("info", path)
        assert result.code == 2 and result.err.count("\n") == 1 and result.out == ""


# ---- embed


def test_embed_goes_on_where_it_was_interrupted(samfinetune, phantom, monkeypatch):
    embed, calls = Predictor.embed, []

    def interrupted(self, picture, *rest):
        calls.append(picture)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return embed(self, picture, *rest)

    monkeypatch.setattr(Predictor, "embed", interrupted)
    stopped = samfinetune("embed", phantom.folder)
    assert stopped.code == 130 and "stopped after 4 of 12 slices" in stopped.err
    monkeypatch.setattr(Predictor, "embed", embed)
    assert row(samfinetune("embed", phantom.folder).out, "embeddings") == "8 computed, 4 were there already"
    assert row(samfinetune("embed", phantom.folder).out, "embeddings") == "0 computed, 12 were there already"
    assert row(samfinetune("embed", phantom.folder, "--window", "minmax").out, "embeddings").startswith("12 computed")
    refused = samfinetune("embed", phantom.folder, "--no-cache")
    assert refused.code == 2 and "--no-cache" in refused.err


# ---- cache


def test_cache_info_and_clear(samfinetune, phantom, tmp_path):
    assert row(samfinetune("cache", "info").out, "holds") == "0 embeddings, 0.0 MB"
    samfinetune("embed", phantom.folder)
    assert row(samfinetune("cache", "info").out, "holds").startswith("12 embeddings, ")
    asked = samfinetune("cache", "clear")  # nobody can answer here
    assert asked.code == 2 and "--yes" in asked.err
    assert row(samfinetune("cache", "info").out, "holds").startswith("12 embeddings, ")
    assert samfinetune("cache", "clear", "--yes").out.startswith("Removed 12 embeddings, ")
    assert not list((tmp_path / "home" / "embeddings").iterdir())


# ---- pretrain


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--minutes", "1"), "--synthetic"),
        (("--synthetic",), "--minutes"),
        (("--synthetic", "--minutes", "-1"), "above zero"),
        (("--synthetic", "--minutes", "inf"), "at most"),
        (("--synthetic", "--steps", 1, "--batch", 10**20), "at most"),
        (("--synthetic", "--steps", 1, "--seed", 10**30), "--seed must be"),
        (("--synthetic", "--steps", 1, "--model", "other"), "leave out --model"),
    ],
)
def test_pretrain_says_what_is_missing(samfinetune, tmp_path, arguments, said):
    result = samfinetune("pretrain", "-o", "model", *arguments)
    assert result.code == 2 and said in result.err and not (tmp_path / "model").exists()


def test_pretrain_without_torch_says_how_to_get_it(samfinetune, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    result = samfinetune("pretrain", "--synthetic", "-o", "model", "--steps", "1")
    assert result.code == 2 and "samfinetune[training]" in result.err and result.err.count("\n") == 1


@pytest.mark.slow
def test_a_pretrained_model_segments(fresh_python, samfinetune, phantom, tmp_path):
    process = fresh_python("-m", "SAMFineTuneLib.cli", "pretrain", "--synthetic", "-o", "model", "--steps", "2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "step 2, " in err and "segment VOLUME" in out
    result = samfinetune("segment", phantom.folder, "-o", "x.nii.gz", "--space", "ijk", "--point", "60,60,6",
                         "--model", "model")  # fmt: skip
    assert result.code == 0, result.err
