"""Whole volumes by an automatic head: the mean of slices in several orientations."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from tuned_models import CLASSES, shake

from SAMFineTuneLib.cases.case_slices import learned_orientations
from SAMFineTuneLib.images import Volume, aligned_plane, choose_window, number_of_slices, picture
from SAMFineTuneLib.inference import automatic_head
from SAMFineTuneLib.inference.automatic_head import class_slices, segment_classes
from SAMFineTuneLib.inference.open_predictor import open_predictor
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder
from SAMFineTuneLib.models.adapters.tuning import Card, Method, attach, save_adapter
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.store import Store

ALL = ("coronal", "axial", "sagittal")


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """Of an adapter whose random answers differ from slice to slice."""
    base, method = Store().get("compact"), Method(heads=("automatic",), classes=CLASSES)
    network = attach(load_network(base.file("weights"))[1], base.spec, method)
    shake(network, 3, 0.05)
    folder = tmp_path_factory.mktemp("home") / "adapter"
    save_adapter(folder, network, base, method, Card(labels=CLASSES[1:]))
    return open_predictor(adapter=read_adapter_folder(folder), disk_cache=False)


def volume_of(spacing=(1.0, 1.0, 1.0), shape=(9, 12, 14)) -> Volume:
    """Noise on a grid whose axes are neither in the order nor in the direction of R, A, S."""
    affine = np.eye(4)
    affine[:3, :3] = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]) * spacing
    affine[:3, 3] = 5, -7, 11
    return Volume(np.random.default_rng(0).normal(100, 30, shape).astype(np.float32), affine)


def shares_by_voxel(predictor, volume: Volume, orientation: str) -> np.ndarray:
    """The shares [class, k, j, i] that the slices of one orientation give, placed by their positions in millimetres."""
    found = np.full((len(CLASSES), *volume.shape), np.nan)
    for index in range(number_of_slices(volume, orientation)):
        plane = aligned_plane(volume, orientation, index)
        logits = predictor.class_logits(picture(volume, plane, choose_window(volume, None)))
        shares = np.exp(logits - logits.max(0)) / np.exp(logits - logits.max(0)).sum(0)
        rows, columns = np.indices(plane.shape)
        ras = plane.pixel_to_ras(np.stack([columns.ravel(), rows.ravel()], 1))
        ijk = np.linalg.solve(volume.affine, np.c_[ras, np.ones(len(ras))].T)[:3].round().astype(int)
        found[:, ijk[2], ijk[1], ijk[0]] = shares.reshape(len(CLASSES), -1)
    assert not np.isnan(found).any()
    return found


def test_the_answers_of_all_orientations_are_averaged(predictor):
    volume = volume_of()
    window = choose_window(volume, None)
    by_orientation = {name: shares_by_voxel(predictor, volume, name) for name in ALL}
    for name, own in by_orientation.items():
        assert (segment_classes(predictor, volume, window, (name,)) == own.argmax(0)).all()
    mean, told = np.mean(list(by_orientation.values()), axis=0), []
    labels = segment_classes(predictor, volume, window, ALL, told.append)
    sure = np.diff(np.sort(mean, axis=0)[-2:], axis=0)[0] > 0.002  # the others are kept with half precision
    assert sure.mean() > 0.9 and (labels == mean.argmax(0))[sure].all()
    assert any((labels != own.argmax(0))[sure].any() for own in by_orientation.values()), "no test of the mean else"
    assert told[-1].done == told[-1].total == sum(volume.shape)


def test_a_single_slice_and_a_volume_too_large_for_memory_have_the_first_orientation_alone(predictor, monkeypatch):
    volume = volume_of()
    window = choose_window(volume, None)
    (alone,) = class_slices(predictor, volume, window, ALL, 4, 4)
    (same,) = class_slices(predictor, volume, window, ALL[:1], 4, 4)
    assert alone.plane.key == same.plane.key and alone.masks.keys() == same.masks.keys()
    assert all((alone.masks[value].unpack() == same.masks[value].unpack()).all() for value in same.masks)
    monkeypatch.setattr(automatic_head, "_MOST_BYTES", 100)
    labels = segment_classes(predictor, volume, window, ALL)
    assert (labels == segment_classes(predictor, volume, window, ALL[:1])).all()


def test_cancelling_among_the_other_orientations_yields_nothing(predictor):
    volume, asked = volume_of(), []

    def cancelled() -> bool:
        asked.append(0)
        return len(asked) > 3

    assert list(class_slices(predictor, volume, choose_window(volume, None), ALL, cancelled=cancelled)) == []


def test_all_orientations_are_used_where_the_volume_resolves_them():
    fine, thick, flat = volume_of(), volume_of((5.0, 1.0, 1.0)), volume_of(shape=(1, 12, 14))
    assert sorted(learned_orientations(fine, {"orientation": "all"})) == sorted(ALL)
    assert len(learned_orientations(thick, {"orientation": "all"})) == 1
    assert len(learned_orientations(flat, {"orientation": "all"})) == 1
    assert learned_orientations(fine, {"orientation": "sagittal"}) == ("sagittal",)
    assert len(learned_orientations(fine, {})) == 1
