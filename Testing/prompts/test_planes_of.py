"""Prompts in RAS become prompts in the pixels of the right slice planes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_extraction import extract_labels, write
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, aligned_plane, number_of_slices
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.prompts import (
    Box3DPrompt,
    BoxPrompt,
    MaskPrompt,
    ObliqueView,
    PlanePrompts,
    PointPrompt,
    PromptSet,
    ScribblePrompt,
    SegmentPrompts,
    planes_of,
    prompt_planes,
)

STRAIGHT = Volume(np.zeros((10, 20, 30), np.int16), np.eye(4))
_C, _S = np.cos(0.19), np.sin(0.19)
TILTED = Volume(  # flipped, 3 mm slices, tilted about the left-right axis as a brain MR
    np.zeros((12, 25, 30), np.int16),
    np.array([[-0.7, 0, 0, 40], [0, -0.7 * _C, -3 * _S, 20], [0, -0.7 * _S, 3 * _C, -10], [0, 0, 0, 1]]),
)


def placed(volume, prompt, view="axial") -> dict:
    return planes_of(volume, prompt, view, "liver")


def by_index(volume, prompt, orientation="axial") -> dict[int, PlanePrompts]:
    return {plane.index: found for plane, found in placed(volume, prompt, orientation).items()}


# ---- points


def test_points_go_to_their_slices_and_keep_their_signs():
    for point, slice_, label in (
        (PointPrompt((3, 4, 7)), 7, 1),
        (PointPrompt((5, 6, 2.4)), 2, 1),
        (PointPrompt((5, 6, 7.4), positive=False), 7, 0),
    ):
        ((index, found),) = by_index(STRAIGHT, point).items()
        assert index == slice_ and found.labels.tolist() == [label] and found.says_where == bool(label)
        assert found.points.dtype == np.float32 and found.box is None and found.mask is None
    assert by_index(STRAIGHT, PointPrompt((5, 6, 2)))[2].points.tolist() == [[24, 13]]  # 29 - 5, 19 - 6


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([STRAIGHT, TILTED]), st.sampled_from(ORIENTATIONS), st.data())
def test_a_point_lands_on_its_own_voxel_in_every_orientation(volume, orientation, data):
    i, j, k = (data.draw(st.integers(0, length - 1)) for length in volume.shape[::-1])
    ((plane, found),) = placed(volume, PointPrompt(volume.ijk_to_ras([i, j, k])), orientation).items()
    labelmap = np.zeros(volume.shape, np.uint8)
    labelmap[k, j, i] = 1
    x, y = np.rint(found.points[0]).astype(int)
    assert extract_labels(labelmap, volume, plane)[y, x] == 1


@pytest.fixture(scope="module", params=["ct-abdomen-dicom/series", "brain-mr-oblique-dicom/t1post"])
def real_volume(request, real_images):
    from SAMFineTuneLib.images import read_volume

    return read_volume(real_images / request.param)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_voxelised_prompt_lands_on_its_voxel_in_real_series(real_volume, orientation):
    volume = real_volume
    labelmap = np.zeros(volume.shape, np.uint8)
    for i, j, k in np.random.default_rng(0).integers(0, volume.shape[::-1], (5, 3)):
        labelmap[:] = 0
        prompt = PointPrompt(tuple(volume.ijk_to_ras([i, j, k])))
        ((plane, found),) = placed(volume, prompt, orientation).items()
        mask = np.zeros(plane.shape, bool)
        x, y = np.rint(found.points[0]).astype(int)
        mask[y, x] = True
        write(mask, plane, labelmap, volume, 1)
        assert np.argwhere(labelmap).tolist() == [[k, j, i]]


def test_points_outside_are_refused_by_name():
    with pytest.raises(
        UserError, match=r"Point 1 of segment liver at R 40\.0.*outside the volume.*R -0\.5 to 29\.5"
    ):
        by_index(STRAIGHT, PointPrompt((40, 4, 7)))


# ---- boxes


@pytest.mark.parametrize(
    "orientation, flat, slice_", [("axial", 2, 4), ("coronal", 1, 4), ("sagittal", 0, 4)]
)
def test_a_box_on_a_slice_is_in_the_pixels_of_that_slice(orientation, flat, slice_):
    a, b = [2.0, 3.0, 1.0], [9.0, 8.0, 8.0]
    a[flat] = b[flat] = 4.3
    ((plane, found),) = placed(STRAIGHT, BoxPrompt(a, b), orientation).items()
    assert plane.index == slice_ and found.box.dtype == np.float32
    corners = plane.pixel_to_ras(found.box.reshape(2, 2))
    expected = np.sort([a, b], axis=0)
    expected[:, flat] = slice_
    assert np.allclose(np.sort(corners, axis=0), expected, atol=1e-5)
    assert found.box[0] < found.box[2] and found.box[1] < found.box[3]


def test_corners_on_different_slices_are_a_box_through_all_of_them():
    found = by_index(STRAIGHT, BoxPrompt((2, 3, 1.6), (9, 8, 5.4)))
    assert list(found) == [2, 3, 4, 5]
    assert all(one.box.tolist() == found[2].box.tolist() for one in found.values())


def test_a_box_along_the_axes_of_a_tilted_volume_is_the_same_on_all_its_slices():
    corners = TILTED.ijk_to_ras([[5, 6, 2], [20, 15, 6]])
    found = by_index(TILTED, BoxPrompt(*corners))
    assert list(found) == [2, 3, 4, 5, 6]
    for one in found.values():
        assert np.allclose(one.box[2:] - one.box[:2], (15, 9), atol=1e-4)
    coronal = by_index(TILTED, BoxPrompt(*corners), orientation="coronal")
    assert list(coronal) == list(range(6, 16))
    assert np.allclose(coronal[10].box[2:] - coronal[10].box[:2], (15, 4 * 3 / 0.7), atol=1e-3)


def test_boxes_are_clipped_to_the_picture():
    assert by_index(STRAIGHT, BoxPrompt((-5, 3, 2), (9, 100, 2)))[2].box.tolist() == [20, -0.5, 29.5, 16]


@pytest.mark.parametrize(
    "a, b, says",
    [
        ((3, 4, 2), (3, 4, 2), "Box 1 of segment liver has no area on axial slice 2"),
        ((3, 4, 2), (9, 4, 2), "Box 1 of segment liver has no area"),
        ((3, 4, 2), (9, 4, 8), "choose the orientation whose slice it lies on"),
        ((3, 4, 22), (9, 8, 22), "Box 1 of segment liver from R 3.0.*outside the volume"),
        ((33, 4, 2), (39, 8, 2), "outside the volume"),
        ((33, 4, 2), (39, 8, 6), "outside the volume"),
    ],
)
def test_empty_boxes_and_boxes_outside_are_refused_by_name(a, b, says):
    with pytest.raises(UserError, match=says):
        by_index(STRAIGHT, BoxPrompt(a, b))


def test_a_box_flat_in_the_patients_axes_goes_to_the_slice_through_its_centre_of_a_tilted_volume_and_that_is_said():
    centre = TILTED.ijk_to_ras((14, 12, 6))
    flat = BoxPrompt(tuple(centre + (5, 20, 0)), tuple(centre - (5, 20, 0)))  # at one S, over three tilted slices
    found = by_index(TILTED, flat)
    assert list(found) == [6]
    (plane,) = placed(TILTED, flat)
    edges = np.sort(plane.ras_to_pixel([flat.corner_a, flat.corner_b]), axis=0).reshape(-1)
    edges = np.clip(edges, -0.5, [plane.shape[1] - 0.5, plane.shape[0] - 0.5] * 2)
    assert np.allclose(found[6].box, edges, atol=1e-4)  # the corners, along the normal onto the slice
    said = flat.remark(TILTED, "axial")
    assert "axial slices 5 to 7" in said and "axial slice 6 (S" in said and "different S" in said
    over_several = BoxPrompt(tuple(centre + (5, 6, 4)), tuple(centre - (5, 6, 4)))
    assert len(by_index(TILTED, over_several)) > 1 and over_several.remark(TILTED, "axial") is None
    on_slice = BoxPrompt(*map(tuple, TILTED.ijk_to_ras([(10, 8, 6), (18, 16, 6)])))
    assert list(by_index(TILTED, on_slice)) == [6] and on_slice.remark(TILTED, "axial") is None
    assert BoxPrompt((2, 3, 4), (9, 8, 4)).remark(STRAIGHT, "axial") is None


# ---- 3-D boxes


def test_a_3d_box_gives_one_box_to_every_slice_it_reaches():
    found = by_index(STRAIGHT, Box3DPrompt((10, 8, 5), (6, 4, 5)))
    assert list(found) == [3, 4, 5, 6, 7]
    assert all(one.box.tolist() == [16, 9, 22, 13] for one in found.values())


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([STRAIGHT, TILTED]),
    st.sampled_from(ORIENTATIONS),
    st.tuples(*[st.floats(0.3, 0.7)] * 3),
    st.tuples(*[st.floats(3, 12)] * 3),
    st.floats(0, 3),
)
def test_an_oriented_3d_box_is_the_bounds_of_what_each_slice_cuts_from_it(
    volume, orientation, at, size, angle
):
    c, s = np.cos(angle), np.sin(angle)
    axes = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    center = volume.ijk_to_ras(np.array(at) * volume.shape[::-1])
    found = placed(volume, Box3DPrompt(tuple(center), size, axes), orientation)
    inside_of = 0
    for index in range(number_of_slices(volume, orientation)):
        plane = aligned_plane(volume, orientation, index)
        rows, columns = np.indices(plane.shape)
        offset = plane.pixel_to_ras(np.stack([columns, rows], axis=-1)) - center
        inside = (np.abs(offset @ axes.T) <= np.array(size) / 2).all(axis=-1)
        box = next((one.box for key, one in found.items() if key.index == index), None)
        if inside.any():
            y, x = np.nonzero(inside)
            if box is None:  # at most a sliver, narrower than the grid
                assert min(np.ptp(x), np.ptp(y)) == 0
                continue
            inside_of += 1
            assert box[0] <= x.min() + 1e-3 and box[1] <= y.min() + 1e-3
            assert box[2] >= x.max() - 1e-3 and box[3] >= y.max() - 1e-3
    assert inside_of or len(found) >= 1


def test_a_thin_3d_box_between_two_slices_belongs_to_the_nearer_one():
    for height, slice_ in ((4.4, 4), (4.6, 5)):
        found = by_index(STRAIGHT, Box3DPrompt((10, 8, height), (6, 4, 0.05)))
        assert list(found) == [slice_] and found[slice_].box.tolist() == [16, 9, 22, 13]
    assert list(by_index(STRAIGHT, Box3DPrompt((10, 8, 4), (6, 4, 0)))) == [4]


def test_a_3d_box_reaching_out_is_clipped_and_one_outside_is_refused():
    found = by_index(STRAIGHT, Box3DPrompt((0, 0, 0), (10, 10, 6)))
    assert list(found) == [0, 1, 2, 3] and found[0].box.tolist() == [24, 14, 29.5, 19.5]
    with pytest.raises(UserError, match="3-D box 1 of segment liver.*outside the volume"):
        by_index(STRAIGHT, Box3DPrompt((100, 8, 5), (6, 4, 5)))
    with pytest.raises(UserError, match="empty"):
        Box3DPrompt((1, 2, 3), (5, 0, 0))
    with pytest.raises(UserError, match="different directions"):
        Box3DPrompt((1, 2, 3), (5, 5, 5), ((1, 0, 0), (2, 0, 0), (0, 0, 1)))


# ---- scribbles


def test_a_stroke_on_a_slice_becomes_a_few_points_spread_along_it():
    found = by_index(STRAIGHT, ScribblePrompt(((1, 2, 3), (26, 2, 3), (26, 17, 3))))
    points = found[3].points
    assert 3 <= len(points) <= 8 and found[3].labels.all()
    assert points[0].tolist() == [28, 17] and points[-1].tolist() == [3, 2]
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert steps.min() > 3.5 and np.isclose(points[:, 0], 3).any()
    on_line = np.isclose(points[:, 1], 17) | np.isclose(points[:, 0], 3)
    assert on_line.all()


def test_short_strokes_and_single_points_are_one_point_and_negative_strokes_are_negative():
    dot, stroke = ScribblePrompt(((3, 4, 7),)), ScribblePrompt(((9, 9, 7), (10, 9, 7)), positive=False)
    assert by_index(STRAIGHT, dot)[7].labels.tolist() == [1]
    assert by_index(STRAIGHT, dot)[7].points.tolist() == [[26, 15]]
    assert by_index(STRAIGHT, stroke)[7].labels.tolist() == [0]


def test_a_stroke_through_slices_gives_points_to_each():
    found = by_index(STRAIGHT, ScribblePrompt(((5, 5, 2), (5, 5, 6))))
    assert list(found) == [2, 3, 4, 5, 6] and all(len(one.points) == 1 for one in found.values())


def test_a_stroke_that_leaves_the_volume_is_refused():
    with pytest.raises(UserError, match="Scribble 1 of segment liver.*outside"):
        by_index(STRAIGHT, ScribblePrompt(((5, 5, 2), (50, 5, 2))))


# ---- masks


def test_a_mask_goes_to_its_plane():
    plane = aligned_plane(TILTED, "coronal", 4)
    mask = np.zeros(plane.shape, bool)
    mask[3:9, 4:8] = True
    found = by_index(TILTED, MaskPrompt(mask, plane), orientation="coronal")
    assert list(found) == [4] and np.array_equal(found[4].mask, mask) and found[4].says_where


def test_masks_that_do_not_belong_are_refused():
    plane = aligned_plane(TILTED, "axial", 4)
    prompt = MaskPrompt(np.ones(plane.shape, bool), plane)
    with pytest.raises(UserError, match="Mask 1 of segment liver was drawn on axial slice 4"):
        by_index(STRAIGHT, prompt)
    assert list(by_index(TILTED, prompt, "sagittal")) == [4]  # on its own plane, whatever the view
    with pytest.raises(UserError, match="empty"):
        MaskPrompt(np.zeros(plane.shape, bool), plane)
    with pytest.raises(UserError, match="does not fit"):
        MaskPrompt(np.ones((3, 3), bool), plane)


# ---- oblique planes


def test_on_an_oblique_plane_prompts_are_in_its_pixels_and_others_are_refused():
    view = ObliqueView((15, 10, 5), (1, 0.2, 0), (0, 0.3, -1))
    (plane,) = prompt_planes(STRAIGHT, PromptSet((), view=view))
    a, b, point = plane.pixel_to_ras([[8, 3], [16, 7], [10, 5]])
    (found,) = placed(STRAIGHT, PointPrompt(tuple(point)), plane).items()
    assert found[0] is plane and np.allclose(found[1].points, [[10, 5]])
    assert np.allclose(placed(STRAIGHT, BoxPrompt(a, b), plane)[plane].box, [8, 3, 16, 7])
    box = placed(STRAIGHT, Box3DPrompt((15, 10, 5), (8, 8, 8)), plane)[plane].box
    assert box[0] < box[2] and np.allclose(plane.ras_to_pixel((15, 10, 5)), (box[:2] + box[2:]) / 2, atol=0.1)
    off = PointPrompt(tuple(point + 2 * plane.normal))
    with pytest.raises(UserError, match="Point 1 of segment liver.*2.0 mm off the oblique plane"):
        placed(STRAIGHT, off, plane)
    with pytest.raises(UserError, match="Box 1 of segment liver has a corner 3.0 mm off"):
        placed(STRAIGHT, BoxPrompt(a, b + 3 * plane.normal), plane)


def test_a_view_that_misses_the_volume_is_refused():
    with pytest.raises(UserError, match="misses the volume"):
        prompt_planes(STRAIGHT, PromptSet((), view=ObliqueView((0, 0, 50), (1, 0, 0), (0, 1, 0))))


# ---- values


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: PointPrompt((1, 2)), "three finite numbers"),
        (lambda: PointPrompt((1, 2, float("nan"))), "three finite numbers"),
        (lambda: PointPrompt("abc"), "three finite numbers"),
        (lambda: PointPrompt((1, 2, -1e300)), "more than a thousand kilometres away"),
        (lambda: BoxPrompt((1, 2, 3), None), "three finite numbers"),
        (lambda: ScribblePrompt(()), "at least one point"),
        (lambda: SegmentPrompts(" "), "needs a name"),
        (lambda: SegmentPrompts("a", 0), "label value of segment a"),
        (lambda: SegmentPrompts("a", 65536), "label value of segment a"),
        (lambda: SegmentPrompts("a", 1, (0, 0, 2)), "color of segment a"),
        (lambda: PromptSet((SegmentPrompts("a"), SegmentPrompts("b"))), "same value, 1"),
        (lambda: PromptSet((SegmentPrompts("a"), SegmentPrompts("a", 2))), "same name, a"),
        (lambda: PromptSet((), "diagonal"), "axial, coronal, sagittal"),
    ],
)
def test_values_that_make_no_sense_are_refused(make, says):
    with pytest.raises(UserError, match=says):
        make()


def test_segments_get_colors_that_differ():
    colors = {SegmentPrompts("s", value).color for value in range(1, 30)}
    assert len(colors) == 29
