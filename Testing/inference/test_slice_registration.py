"""Masks that are carried from slice to slice along with the picture."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from SAMFineTuneLib.inference.slice_registration import carried_masks, deformation, deformed, joined

SIDE = 96


def slices(count=9, row_step=1.0, column_step=2.0, growth=0.0, seed=0):
    """Pictures of a bright ellipse in texture that moves and grows from slice to slice, and its masks."""
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((SIDE, SIDE)), 5)
    texture *= 15 / texture.std()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pictures, masks = [], []
    for number in range(count):
        row, column, radius = 40 + row_step * number, 36 + column_step * number, 9 + growth * number
        mask = ((rows - row) / radius) ** 2 + ((columns - column) / (0.7 * radius)) ** 2 < 1
        moved = ndimage.shift(texture, (row_step * number, column_step * number), order=1, mode="reflect")
        pictures.append(np.clip(90 + moved + 70 * ndimage.gaussian_filter(mask.astype(float), 1), 0, 255))
        masks.append(mask)
    return np.array(pictures, np.float32), np.array(masks)


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def carried(pictures, known, missing, distance=1.0):
    shares = {index: mask.astype(np.float32) for index, mask in known.items()}
    return list(carried_masks(shares, missing, pictures.__getitem__, len(pictures), distance))


@pytest.mark.parametrize("growth", [0.0, 0.5])
def test_a_mask_follows_a_structure_that_moves_away_from_it(growth):
    pictures, masks = slices(growth=growth)
    found = carried(pictures, {0: masks[0]}, range(1, 9), distance=1.0)
    assert [(index, away) for index, _, away in found] == [(index, index) for index in range(1, 9)]
    for index, share, _ in found:
        assert dice(share > 0.5, masks[index]) > 0.85
    assert dice(masks[0], masks[8]) < 0.1


def test_masks_between_two_known_ones_come_from_both():
    pictures, masks = slices()
    found = carried(pictures, {2: masks[2], 6: masks[6]}, range(3, 6))
    assert sorted((index, away) for index, _, away in found) == [(3, 1), (3, 3), (4, 2), (4, 2), (5, 1), (5, 3)]
    assert all(dice(share > 0.5, masks[index]) > 0.85 for index, share, _ in found)


def test_masks_that_came_from_two_sides_are_joined_the_surer_the_nearer():
    pictures, masks = slices()
    shares = joined(carried(pictures, {2: masks[2], 6: masks[6]}, range(3, 6)))
    assert list(shares) == [3, 4, 5] and all(dice(share > 0.5, masks[index]) > 0.85 for index, share in shares.items())
    surest = {index: np.abs(share - 0.5).max() for index, share in shares.items()}
    assert surest[4] < min(surest[3], surest[5]) < 0.5
    near, far = np.full((4, 4), 0.9), np.full((4, 4), 0.1)
    assert (joined([(0, near, 1), (0, far, 3)])[0] > 0.5).all()  # the nearer one counts more


def test_a_mask_is_carried_less_than_one_and_a_half_times_as_far_as_it_is_wide():
    pictures, masks = slices()
    found = carried(pictures, {0: masks[0]}, range(1, 9), distance=4.0)
    assert [index for index, _, _ in found] == [1, 2, 3, 4, 5, 6]  # of 17 pixels: 24 are six distances


def test_a_mask_that_has_vanished_is_carried_no_further():
    pictures, masks = slices(count=5)
    pictures[2:] = 0  # nothing to be seen, and the structure is 36 pixels away there
    nothing = np.zeros_like(masks[0])
    nothing[46, 48] = True  # as small as one pixel
    found = carried(pictures, {0: nothing}, range(1, 5))
    assert all((share > 0.5).any() for _, share, _ in found[:-1])


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_equal_pictures_leave_a_mask_as_it_is(seed):
    pictures, masks = slices(count=1, seed=seed)
    ((_, share, _),) = carried(np.repeat(pictures, 2, axis=0), {0: masks[0]}, [1])
    assert dice(share > 0.5, masks[0]) > 0.95


def test_it_deforms_as_the_demons_of_itk_do():
    pictures, masks = slices(row_step=2.0, column_step=2.0, growth=1.0)
    window = (slice(8, 88), slice(4, 84))
    moving, fixed = (pictures[index][window] / 127.5 - 1 for index in (0, 1))
    demons = sitk.FastSymmetricForcesDemonsRegistrationFilter()
    demons.SetNumberOfIterations(60)
    demons.SetStandardDeviations(2.0)
    field = demons.Execute(*(sitk.GetImageFromArray(picture) for picture in (fixed, moving)))
    columns, rows = np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)
    mask = masks[0][window].astype(np.float32)
    own = deformed(mask, deformation(fixed, moving)) > 0.5
    theirs = deformed(mask, np.stack([rows, columns])) > 0.5
    assert dice(own, masks[1][window]) > dice(masks[0], masks[1]) + 0.1
    assert dice(own, theirs) > 0.9
