"""Tubes that run through the volume unchanged are followed where the volume memory loses them, and not beyond."""

from __future__ import annotations

import numpy as np
import pytest
from region_engine import WINDOW, region_predictor
from region_memory import RegionMemory
from scipy import ndimage

from SAMFineTuneLib.images import Volume
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.inference.propagation import propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, PropagationEnd, Seed

SIZE = 64
ORIENTATIONS = ("axial", "coronal", "sagittal")  # along the array's axes


class TiringMemory(RegionMemory):
    """Lets every structure taper three slices from a known one, and end after five."""

    def __call__(self, block):
        logits, presence = super().__call__(block)
        known = np.flatnonzero((block[3] > 0).any((1, 2)))
        for index in range(len(presence)):
            away = np.abs(known - index).min() if len(known) else np.inf
            if away > 3:
                logits[index] = np.where(ndimage.binary_erosion(logits[index] > 0, iterations=6), 6.0, -6.0)
            if away > 5:
                logits[index] = presence[index] = -6.0
        return logits, presence


def tube(slices, radius, contrast=60, slant=0.0, spacing=3.0, orientation="axial", inside=None, beyond=None):
    """A tube in a noisy volume: pixels of its radius and of its slant from slice to slice, grey values of its contrast.

    It is there on the slices `inside`; on others, `beyond` (rows, columns, middle) draws what lies there instead.
    """
    random = np.random.default_rng(slices + radius)
    rows, columns = np.indices((SIZE, SIZE))
    grey, labels = np.full((slices, SIZE, SIZE), 110.0), np.zeros((slices, SIZE, SIZE), np.uint8)
    for k in range(slices):
        away = np.hypot(rows - SIZE / 2, columns - SIZE / 2 - slant * (k - slices / 2))
        if inside is None or k in inside:
            labels[k] = away < radius
            grey[k][labels[k] > 0] += contrast
        elif beyond is not None:
            grey[k][beyond(away)] += contrast
    grey += random.normal(0, 2, grey.shape)
    axis = ORIENTATIONS.index(orientation)
    apart = np.roll((spacing, 1.0, 1.0), axis) if axis == 0 else np.insert([1.0, 1.0], axis, spacing)
    affine = np.diag([-apart[2], -apart[1], apart[0], 1.0])
    array, labels = (np.ascontiguousarray(np.moveaxis(one, 0, axis)) for one in (grey.round().astype(np.int16), labels))
    return Volume(array, affine), labels


def carried(volume, labels, index, orientation="axial"):
    """Dice by slice from the mask of one, the slices beyond the tube's own that got a mask, and what was said."""
    predictor = region_predictor(tolerance=25)
    predictor.engine.memory = TiringMemory()
    plane = aligned_plane(volume, orientation, index)
    start = Seed(plane, extract_labels(labels, volume, plane) > 0)
    found, over, said = {}, [], []
    for item in propagate(predictor, volume, WINDOW, [start]):
        if isinstance(item, PropagatedSlice):
            truth = extract_labels(labels, volume, item.plane) > 0
            found[item.plane.index] = 2 * np.sum(truth & item.mask) / (np.sum(truth) + np.sum(item.mask))
            over += [] if truth.any() else [item.plane.index]
        elif isinstance(item, PropagationEnd):
            said.append(item.reason)
    return found, over, said


@pytest.mark.parametrize(
    ("slices", "radius", "contrast", "slant", "spacing", "orientation"),
    [
        (30, 6, 60, 0.0, 5.0, "axial"),
        (40, 4, 70, 0.0, 3.0, "sagittal"),
        (50, 10, -45, 0.0, 2.0, "coronal"),
        (90, 6, 60, 0.0, 0.5, "axial"),
        (40, 6, 60, 0.5, 3.0, "coronal"),
        (30, 8, 80, -0.6, 1.5, "sagittal"),
    ],
)
def test_a_tube_that_does_not_change_is_followed_to_both_ends_of_the_volume(
    slices, radius, contrast, slant, spacing, orientation
):
    volume, labels = tube(slices, radius, contrast, slant, spacing, orientation)
    found, _, said = carried(volume, labels, slices // 2, orientation)
    assert sorted(found) == [index for index in range(slices) if index != slices // 2] and said == []
    assert min(found.values()) > 0.85


@pytest.mark.parametrize(
    ("beyond", "slant", "spacing"),
    [
        pytest.param(None, 0.4, 1.0, id="nothing"),
        pytest.param(lambda away: away < 3, 0.0, 3.0, id="something thin"),
        pytest.param(lambda away: away < 16, 0.4, 0.5, id="something wide"),
        pytest.param(lambda away: (away > 8) & (away < 12), 0.0, 3.0, id="a wall"),
        pytest.param(lambda away: away > 9, 0.0, 6.0, id="everything but a hole"),
    ],
)
def test_it_ends_where_the_tube_ends_whatever_lies_behind(beyond, slant, spacing):
    own = range(12, 37)
    volume, labels = tube(48, 6, 60, slant, spacing, inside=own, beyond=beyond)
    found, over, said = carried(volume, labels, 24)
    assert {index for index in own if index != 24} <= set(found)
    assert len(over) <= 3 and all("not found there" in one for one in said)
    assert min(score for index, score in found.items() if index in own) > 0.85


def test_a_tube_in_a_wall_of_similar_grey_does_not_take_the_wall():
    volume, labels = tube(40, 6, 60)
    rows, columns = np.indices((SIZE, SIZE))
    wall = np.abs(np.hypot(rows - SIZE / 2, columns - SIZE / 2) - 8) <= 1.5
    array = volume.array.copy()
    array[:, wall] += 30
    found, _, _ = carried(Volume(array, volume.affine), labels, 20)
    assert len(found) == 39 and min(found.values()) > 0.85


def test_what_hardly_differs_from_its_surroundings_is_not_said_to_go_on():
    volume, labels = tube(40, 6, 15)
    found, _, said = carried(volume, labels, 20)
    assert max(abs(index - 20) for index in found) <= 5 and len(said) == 2


def test_a_tube_that_gets_wider_by_and_by_is_followed_no_further_than_it_is_alike():
    volume, labels = tube(60, 6, 60)
    rows, columns = np.indices((SIZE, SIZE))
    array = np.full(volume.array.shape, 110, np.int16)
    for k in range(60):
        labels[k] = np.hypot(rows - SIZE / 2, columns - SIZE / 2) < 6 + 0.15 * abs(k - 30)
        array[k][labels[k] > 0] = 170
    found, _, said = carried(Volume(array, volume.affine), labels, 30)
    assert 4 <= max(abs(index - 30) for index in found) < 15 and len(said) == 2
