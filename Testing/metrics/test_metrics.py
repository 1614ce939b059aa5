"""Agreement of masks: equal to implementations of another kind, on random and on degenerate masks."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cdist

from SAMFineTuneLib.images import SegmentInfo, Volume
from SAMFineTuneLib.metrics.mask_metrics import Agreement, agreement, boundary, dice
from SAMFineTuneLib.metrics.segment_statistics import segment_statistics

SPACINGS = st.floats(0.3, 4.0).map(lambda value: round(value, 2))


def brute_force(answer, reference, spacing, tolerance) -> Agreement:
    """All distances between all boundary voxels, those with a face neighbour that is not in the mask."""
    edges = []
    for mask in (answer, reference):
        voxels = {tuple(place) for place in np.argwhere(mask)}
        steps = [tuple(sign * unit) for unit in np.eye(mask.ndim, dtype=int) for sign in (1, -1)]
        edges.append([
            place for place in sorted(voxels)
            if any(tuple(a + b for a, b in zip(place, step, strict=True)) not in voxels for step in steps)
        ])  # fmt: skip
    apart = cdist(*(np.array(edge) * spacing for edge in edges))
    there, back = apart.min(axis=1), apart.min(axis=0)
    near = (there <= tolerance + 1e-6).sum() + (back <= tolerance + 1e-6).sum()
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, answer)))
    return Agreement(
        overlap.GetDiceCoefficient(), overlap.GetJaccardCoefficient(),
        max(np.percentile(there, 95), np.percentile(back, 95)), near / (len(there) + len(back)),
    )  # fmt: skip


def assert_alike(found: Agreement, wanted: Agreement) -> None:
    assert vars(found) == pytest.approx(vars(wanted), abs=1e-6)


@st.composite
def pairs(draw):
    """Two masks of one shape in two or three dimensions, neither empty, and a spacing."""
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=7))
    masks = [draw(hnp.arrays(bool, shape)) for _ in range(2)]
    for mask in masks:
        mask[tuple(draw(st.integers(0, side - 1)) for side in shape)] = True
    return *masks, tuple(draw(SPACINGS) for _ in shape)


@settings(max_examples=150)
@given(pairs(), SPACINGS)
def test_random_masks(pair, tolerance):
    answer, reference, spacing = pair
    assert_alike(agreement(answer, reference, spacing, tolerance), brute_force(answer, reference, spacing, tolerance))
    assert dice(answer, reference) == pytest.approx(brute_force(answer, reference, spacing, tolerance).dice)


def voxel(shape, *place):
    mask = np.zeros(shape, bool)
    mask[place] = True
    return mask


SHAPES = ((6, 7), (4, 5, 6))


@pytest.mark.parametrize("shape", SHAPES)
def test_full_one_voxel_and_border_masks(shape):
    full, corner, middle = np.ones(shape, bool), voxel(shape, *[0] * len(shape)), voxel(shape, *[2] * len(shape))
    edge = np.zeros(shape, bool)
    edge[0] = True
    spacing = (2.0, 0.7, 1.3)[: len(shape)]
    masks = (full, corner, middle, edge)
    for answer in masks:
        for reference in masks:
            assert_alike(agreement(answer, reference, spacing, 1.5), brute_force(answer, reference, spacing, 1.5))


@pytest.mark.parametrize("shape", SHAPES)
def test_empty_masks(shape):
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    spacing = (1.0,) * len(shape)
    assert agreement(empty, empty, spacing, 1.0) == Agreement(None, None, None, None)
    assert dice(empty, empty) is None
    for pair in ((empty, full), (full, empty)):
        assert agreement(*pair, spacing, 1.0) == Agreement(0.0, 0.0, None, 0.0)
        assert dice(*pair) == 0.0


def test_equal_masks_agree_and_touching_the_border_is_a_boundary():
    full = np.ones((5, 5), bool)
    assert agreement(full, full, (1.0, 1.0), 0.0) == Agreement(1.0, 1.0, 0.0, 1.0)
    assert boundary(full).sum() == 16


def test_spacing_is_that_of_the_axes_and_the_tolerance_counts_millimetres():
    one, other = voxel((5, 5), 0, 0), voxel((5, 5), 2, 0)
    assert agreement(one, other, (3.0, 1.0), 6.0) == Agreement(0.0, 0.0, 6.0, 1.0)
    assert agreement(one, other, (3.0, 1.0), 5.9).nsd == 0.0
    assert agreement(one.T, other.T, (3.0, 1.0), 1.9).hd95 == 2.0


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(3, 2\)"):
        agreement(np.ones((2, 2), bool), np.ones((3, 2), bool), (1, 1), 1)


def test_voxels_without_a_real_number_count_for_size_alone():
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values[0, 0, :3] = np.nan, np.inf, -np.inf
    labels = np.zeros(values.shape, np.uint8)
    labels[0], labels[1] = 1, 2
    labels[0, 0, :3], labels[1, 0, 0] = (1, 1, 3), 0
    segments = [SegmentInfo(name, value, (1, 0, 0)) for value, name in enumerate("abc", start=1)]
    first, second, third = segment_statistics(Volume(values, np.diag([1, 1, 2, 1.0])), labels, segments)
    assert (first.voxels, first.milliliters) == (11, 0.022) and (first.minimum, first.maximum) == (3, 11)
    assert first.mean == values[0].ravel()[3:].mean() and second.mean == values[1].ravel()[1:].mean()
    assert (third.voxels, third.mean, third.maximum) == (1, None, None)
