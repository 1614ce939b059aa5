from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.mask_shapes import (
    interior_points,
    interpolate,
    moved_to,
    overlap,
    pieces,
    pieces_asked_for,
)

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=19)


@settings(deadline=None)
@given(hnp.arrays(bool, shapes))
def test_packing_loses_nothing_and_equal_masks_are_equal(mask):
    packed = PackedMask.of(mask)
    assert np.array_equal(packed.unpack(), mask)
    assert packed == PackedMask.of(mask.copy())
    assert len(packed.data) == -(-mask.size // 8)


@settings(deadline=None)
@given(hnp.arrays(bool, shapes))
def test_pieces_partition_the_mask_and_agree_with_scipy(mask):
    ndimage = pytest.importorskip("scipy.ndimage")
    found = pieces(mask)
    assert len(found) == ndimage.label(mask, np.ones((3, 3)))[1]
    assert np.array_equal(np.sum(found, axis=0) if found else np.zeros(mask.shape), mask.astype(int))
    sizes = [int(piece.sum()) for piece in found]
    assert sizes == sorted(sizes, reverse=True)


@settings(deadline=None)
@given(hnp.arrays(bool, (7, 9)).filter(np.any), st.integers(0, 8), st.integers(0, 6))
def test_a_mask_is_moved_to_a_point_only_where_it_does_not_show_it(mask, x, y):
    moved = moved_to(mask, np.float32([x, y]))
    assert moved[y, x] and moved.sum() <= mask.sum()
    if mask[y, x]:
        assert np.array_equal(moved, mask)
    else:
        places, before = np.argwhere(moved), {tuple(place) for place in np.argwhere(mask)}
        deepest = interior_points(mask)[0][::-1].astype(int)
        assert {tuple(place) for place in places - [y, x] + deepest} <= before, "the same shape"


def test_pieces_that_were_mostly_there_before_are_kept():
    mask, before, marked = (np.zeros((8, 24), bool) for _ in range(3))
    mask[1:6, 0:6] = mask[1:5, 8:14] = mask[1:4, 16:22] = marked[3, 3] = True
    before[1:6, 0:12] = before[1:4, 16:18] = True  # four of six columns of the second piece, two of six of the third
    assert np.array_equal(
        pieces_asked_for(mask, marked, False, before).any(axis=0), np.arange(24) // 8 < 2 * mask.any(axis=0)
    )
    assert not pieces_asked_for(mask, marked, False)[:, 8:].any()


@settings(deadline=None)
@given(shapes.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))), st.booleans())
def test_pieces_that_are_asked_for_are_those_touched_and_the_largest(masks, largest):
    mask, marked = masks
    kept = pieces_asked_for(mask, marked, largest)
    parts = pieces(mask)
    touched = [part for part in parts if (part & marked).any()]
    for part in parts:
        assert kept[part].all() or not kept[part].any(), "a piece is kept whole or not at all"
    for part in touched:
        assert kept[part].all()
    others = [part for part in parts if kept[part].any() and not (part & marked).any()]
    if largest or not touched:
        biggest = max((int(part.sum()) for part in parts), default=0)
        assert len(others) <= 1 and all(part.sum() == biggest for part in others)
        assert kept.any() == mask.any()
    else:
        assert not others
    assert not (kept & ~mask).any()


@settings(deadline=None)
@given(hnp.arrays(bool, shapes), st.integers(1, 4))
def test_interior_points_lie_inside_and_are_distinct(mask, count):
    points = interior_points(mask, count)
    assert (len(points) >= 1) == bool(mask.any()) and len(points) <= count
    assert len({tuple(point) for point in points}) == len(points)
    assert all(mask[int(y), int(x)] for x, y in points)


def test_the_first_interior_point_is_the_centre_of_a_disc():
    rows, columns = np.indices((60, 50))
    disc = (rows - 33) ** 2 + (columns - 17) ** 2 <= 10**2
    assert np.allclose(interior_points(disc)[0], (17, 33))
    two = disc | ((rows - 10) ** 2 + (columns - 40) ** 2 <= 6**2)
    assert np.allclose(interior_points(two, 2), [(17, 33), (40, 10)])


def test_overlap():
    mask = np.zeros((8, 9), dtype=bool)
    assert overlap(mask, mask) == 0.0
    mask[2:5, 3:8] = True
    assert overlap(mask, np.roll(mask, 1, axis=0)) == pytest.approx(10 / 20)


def test_interpolation_moves_and_grows_a_disc_evenly():
    rows, columns = np.indices((60, 70))

    def disc(x, y, radius):
        return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2

    assert overlap(interpolate(disc(30, 30, 8), disc(30, 30, 16), 0.5), disc(30, 30, 12)) > 0.95
    assert overlap(interpolate(disc(28, 30, 12), disc(32, 30, 12), 0.25), disc(29, 30, 12)) > 0.93
    small = disc(20, 20, 3)
    assert np.array_equal(interpolate(small, small, 0.3), small)
