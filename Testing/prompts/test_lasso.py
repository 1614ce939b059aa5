"""Lassos on slice planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import LassoPrompt, planes_of
from SAMFineTuneLib.prompts.lasso_prompt import enclosed_pixels

VOLUME = Volume(np.zeros((8, 30, 40), np.int16), np.diag([-1.0, 2.0, 3.0, 1.0]))


def drawn(plane, pixels, positive=True):
    return LassoPrompt(tuple(map(tuple, plane.pixel_to_ras(np.array(pixels, float)))), positive)


def placed(prompt, orientation="axial"):
    return planes_of(VOLUME, prompt, orientation, "liver")


@given(arrays.arrays(np.float64, st.tuples(st.integers(3, 9), st.just(2)), elements=st.floats(-10, 40, width=16)))
def test_a_line_encloses_the_pixels_that_it_turns_round(corners):
    rows, columns = np.indices((20, 30))
    pixels = np.c_[columns.ravel(), rows.ravel()].astype(float)
    starts, ends = corners[:, None] - pixels, np.roll(corners, -1, axis=0)[:, None] - pixels
    cross = starts[..., 0] * ends[..., 1] - starts[..., 1] * ends[..., 0]
    angles = np.arctan2(cross, (starts * ends).sum(axis=-1))
    on_line = (np.abs(np.abs(angles) - np.pi) < 1e-6) | (np.abs(starts).max(axis=-1) < 1e-6)
    clear = ~on_line.any(axis=0).reshape(20, 30)  # a pixel centre on the line may fall to either side
    expected = (np.abs(angles.sum(axis=0)) > np.pi).reshape(20, 30)
    assert np.array_equal(enclosed_pixels(corners, (20, 30))[clear], expected[clear])


def test_a_line_that_crosses_itself_encloses_all_that_it_runs_round():
    twice = [(2, 2), (12, 2), (12, 12), (2, 12)] * 2  # runs round twice
    assert enclosed_pixels(np.array(twice, float), (20, 20)).sum() == 100
    eight = np.array([(0, 0), (10, 10), (10, 0), (0, 10)], float)  # two triangles, one to the left, one to the right
    assert enclosed_pixels(eight, (12, 12))[5, 1] and enclosed_pixels(eight, (12, 12))[5, 8]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_lasso_lies_on_the_slice_that_it_was_drawn_on(orientation):
    plane = aligned_plane(VOLUME, orientation, 3)
    corners = [(-4, 2.5), (4.5, 2.5), (4.5, 5.5), (-4, 5.5)]  # beyond the picture's left edge
    for positive in (True, False):
        ((found, prompts),) = placed(drawn(plane, corners, positive), orientation=orientation).items()
        assert found.key == plane.key and prompts.says_where == positive
        expected = np.zeros(plane.shape)
        expected[3:6, :5] = 1 if positive else -1
        assert np.array_equal(prompts.region, expected)


@pytest.mark.parametrize(
    "corners, says",
    [
        ([(2.2, 2.2), (2.4, 2.2), (2.3, 2.4)], "Lasso 1 of segment liver encloses no pixel of axial slice 3"),
        ([(-9, 2), (-2, 2), (-2, 9)], "encloses no pixel"),
        ([(2, 2), (9, 9)], "three points"),
        ([(2, 2), (9, 9), (2, 2)], "three points"),
    ],
)
def test_lassos_that_enclose_nothing_are_refused(corners, says):
    with pytest.raises(UserError, match=says):
        placed(drawn(aligned_plane(VOLUME, "axial", 3), corners))


def test_a_lasso_through_several_slices_is_refused():
    plane = aligned_plane(VOLUME, "coronal", 3)
    with pytest.raises(UserError, match="Lasso 1 of segment liver runs through several axial slices"):
        placed(drawn(plane, [(2, 1), (9, 1), (9, 6)]))
    with pytest.raises(UserError, match="outside the volume"):
        placed(LassoPrompt(((0, 0, 500), (5, 0, 500), (0, 5, 500))))
