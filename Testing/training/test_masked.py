"""Masked auto-encoding: the encoder learns what unlabelled volumes look like, and the result is a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from case_files import case_folder  # noqa: E402
from closed_folders import close_to_all  # noqa: E402

from SAMFineTuneLib.errors import UserError  # noqa: E402
from SAMFineTuneLib.images import body_phantom, write_dicom_series  # noqa: E402
from SAMFineTuneLib.inference.engine import open_engine  # noqa: E402
from SAMFineTuneLib.inference.predictor import Predictor  # noqa: E402
from SAMFineTuneLib.models.formats.checkpoint import read_checkpoint  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.prompts import PlanePrompts  # noqa: E402
from SAMFineTuneLib.training import masked_autoencoding as masked  # noqa: E402
from SAMFineTuneLib.training import training_loop  # noqa: E402
from SAMFineTuneLib.training.stopping import Stopped  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def volumes(tmp_path):
    return case_folder(tmp_path / "cases", count=2, shape=(4, 32, 32)) / "images"


def pretrain(volumes, output, **options):
    history = []
    options = {"steps": 4, "batch_size": 2, "device": "cpu", "progress": history.append, **options}
    return masked.pretrain_masked(volumes, output, Store().get(), **options), history


def test_the_result_is_a_model_that_answers(volumes, tmp_path):
    model, history = pretrain(volumes, tmp_path / "ours")
    model.verify()
    assert model.spec.id == "ours" and "8 unlabelled slices, 4 steps" in model.spec.source
    picture = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    box = PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, int), box=np.float32([10, 10, 30, 30]))
    answer = Predictor(open_engine(model)).predict(picture, box)
    assert answer.mask.shape == (40, 40)
    base = read_checkpoint(Store().get().file("weights"))
    found = read_checkpoint(model.file("weights"))
    assert found.keys() == base.keys()
    changed = {name.split(".")[0] for name in base if not torch.equal(base[name].float(), found[name].float())}
    assert changed == {"image_encoder"}, "prompts and masks are as before"
    assert [one.step for one in history] == [1, 2, 3, 4] and not (tmp_path / "ours" / masked.CHECKPOINT_NAME).exists()


@pytest.mark.slow
def test_it_learns_to_fill_in_what_was_blanked(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(masked, "RATE", 2e-3)
    _, history = pretrain(volumes, tmp_path / "ours", steps=30)
    losses = [one.measured["loss"] for one in history]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(volumes, tmp_path, monkeypatch):
    monkeypatch.setattr(training_loop, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(training_loop, "CHECKPOINT_SHARE", 1e9)

    class Stop(Exception):
        pass

    def stop(course):
        if course.step == 3:
            raise Stop

    with pytest.raises(Stop):
        pretrain(volumes, tmp_path / "parts", progress=stop)
    parts, history = pretrain(volumes, tmp_path / "parts", resume=True)
    whole, _ = pretrain(volumes, tmp_path / "whole")
    assert [one.step for one in history] == [3, 4]
    assert parts.file("weights").read_bytes() == whole.file("weights").read_bytes()


def test_only_blanked_blocks_count():
    whole, guess = torch.randn(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    blank = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    blank[0, 0, 0, 0] = True
    first = masked._blank_error(guess, whole, blank, 4)
    guess[..., 4:] = 100
    assert masked._blank_error(guess, whole, blank, 4) == first > 0


def test_volumes_are_found_in_files_and_dicom_folders(volumes, tmp_path):
    phantom, _, _ = body_phantom(0, shape=(3, 32, 32), spacing=(9.0, 9.0, 20.0))
    write_dicom_series(phantom, volumes / "series")
    found = masked.find_volumes(volumes)
    assert [path.name for path in found] == ["a.nii.gz", "b.nii.gz", "series"]
    assert len(masked.pictures_of(found)) == 11


@pytest.mark.parametrize("place", ["", "task/"])
@pytest.mark.parametrize(
    ("image", "label", "said"),
    [
        ("images/p1.nii.gz", "labels/p1.nii.gz", "labels"),
        ("imagesTr/p1_0000.nii.gz", "labelsTr/p1.nii.gz", "labelsTr"),
        ("p1_t1.nii.gz", "p1_seg.nii.gz", "p1_seg.nii.gz"),
        ("p1.nii.gz", "p1-Label.nii.gz", "p1-Label.nii.gz"),
    ],
)
def test_label_maps_are_not_learned_as_images(volumes, place, image, label, said):
    """Labels beside the images of "unlabelled" volumes, in the usual layouts."""
    for name in (image, label):
        (volumes / place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(volumes / "a.nii.gz", volumes / place / name)
    told = []
    found = masked.find_volumes(volumes, told.append)
    assert found == sorted([volumes / "a.nii.gz", volumes / "b.nii.gz", volumes / place / image])
    assert told == [f"Left out as label maps, judged by their names: {Path(place + said)}."]


def test_label_maps_of_a_cohort_are_not_learned_as_images(volumes):
    (volumes / "cohort" / "accepted").mkdir(parents=True)
    (volumes / "cohort" / "cohort.json").write_text("{}")
    shutil.copy(volumes / "a.nii.gz", volumes / "cohort" / "accepted")
    assert len(masked.find_volumes(volumes)) == 2


def test_folders_that_may_not_be_looked_into_are_said(volumes, monkeypatch):
    close_to_all(monkeypatch, volumes / "closed")
    told = []
    assert [path.name for path in masked.find_volumes(volumes, told.append)] == ["a.nii.gz", "b.nii.gz"]
    assert told == ["“closed” was left out: it may not be looked into (you lack the permission)."]
    with pytest.raises(UserError, match="“closed” was left out.*permission"):
        masked.find_volumes(volumes / "closed")


@pytest.mark.parametrize(
    ("options", "match"), [({}, "holds no volumes"), ({"steps": 0}, "one step and one picture")]
)
def test_what_cannot_be_learned_from(tmp_path, options, match):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=match):
        pretrain(tmp_path / "empty", tmp_path / "out", **options)


def test_fewer_pictures_at_once_change_nothing_but_rounding(volumes, tmp_path, monkeypatch):
    whole, first = pretrain(volumes, tmp_path / "whole", steps=2)
    monkeypatch.setattr(masked, "pictures_at_once", lambda *_: (2, True))
    parts, second = pretrain(volumes, tmp_path / "parts", steps=2)
    for name in ("loss", "moved"):
        assert [one.measured[name] for one in first] == pytest.approx([one.measured[name] for one in second], rel=1e-3)


def test_a_model_is_not_overwritten(volumes, tmp_path):
    pretrain(volumes, tmp_path / "ours", steps=1)
    with pytest.raises(UserError, match="holds a model already"):
        pretrain(volumes, tmp_path / "ours", steps=1)


def test_a_model_is_not_written_among_the_volumes(volumes):
    before = sorted(volumes.iterdir())
    with pytest.raises(UserError, match="holds other files .a.nii.gz"):
        pretrain(volumes, volumes, steps=1)
    assert sorted(volumes.iterdir()) == before


def test_a_training_continues_with_the_same_volumes_only(volumes, tmp_path):
    asked = iter([False] * 400 + [True] * 9999)
    with pytest.raises(Stopped):
        pretrain(volumes, tmp_path / "ours", steps=200, cancel=lambda: next(asked))
    (volumes / "b.nii.gz").unlink()
    with pytest.raises(UserError, match="another set of volumes"):
        pretrain(volumes, tmp_path / "ours", steps=200, resume=True)
