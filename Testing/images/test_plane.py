"""Slice planes of straight, flipped, tilted, anisotropic and sheared volumes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import (
    ORIENTATIONS,
    SlicePlane,
    aligned_plane,
    box_corners,
    how_outside,
    inside,
    number_of_slices,
    oblique_plane,
    plane_through,
)
from SAMFineTuneLib.images.volume import Volume

VIEWS = {  # right and down in RAS, as radiologists look at them
    "axial": ((-1, 0, 0), (0, -1, 0)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
    "sagittal": ((0, -1, 0), (0, 0, -1)),
}


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Turned about the three axes, in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos([x, y, z]), np.sin([x, y, z])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def make_volume(shape=(5, 6, 7), spacing=(1.0, 1.0, 1.0), turn=(0, 0, 0), axes=(0, 1, 2), signs=(1, 1, 1)):
    """Noise [k, j, i]; voxel axis a runs along RAS axis axes[a] with signs[a]; all is turned."""
    directions = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        directions[axis, column] = sign
    affine = np.eye(4)
    affine[:3, :3] = rotation(*turn) @ directions * spacing
    affine[:3, 3] = (-31.5, 12.25, 100.0)
    return Volume(np.random.default_rng(0).integers(-1000, 2000, shape).astype(np.int16), affine)


volumes = st.builds(
    make_volume,
    shape=st.tuples(*[st.integers(1, 8)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 6)] * 3),
    turn=st.tuples(*[st.floats(-0.6, 0.6)] * 3),
    axes=st.permutations((0, 1, 2)),
    signs=st.tuples(*[st.sampled_from((-1, 1))] * 3),
)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1), (-1, -1, -1)])
def test_right_and_down_are_the_radiologists_view_however_the_voxels_are_stored(orientation, axes, signs):
    plane = aligned_plane(make_volume(axes=axes, signs=signs), orientation, 0)
    assert np.allclose([plane.right, plane.down], VIEWS[orientation])


def test_planes_of_a_tilted_volume_are_tilted_with_it():
    volume = make_volume(turn=(0.19, 0, 0))
    plane = aligned_plane(volume, "axial", 2)
    assert np.allclose(plane.normal, volume.affine[:3, 2] / volume.spacing[2])
    assert np.allclose(plane.distance(volume.ijk_to_ras([[0, 0, 2], [6, 5, 2]])), 0, atol=1e-5)


def test_number_of_slices_follows_the_axis():
    volume = make_volume(shape=(5, 6, 7), axes=(2, 0, 1))  # i runs superior, j right, k anterior
    assert [number_of_slices(volume, name) for name in ("axial", "coronal", "sagittal")] == [7, 5, 6]


@settings(max_examples=60, deadline=None)
@given(volumes, st.sampled_from(ORIENTATIONS), st.data())
def test_a_plane_runs_through_its_voxel_centres_and_its_picture_covers_them(volume, orientation, data):
    index = data.draw(st.integers(0, number_of_slices(volume, orientation) - 1))
    plane = aligned_plane(volume, orientation, index)
    ijk = np.indices(volume.shape[::-1]).reshape(3, -1).T
    on_slice = ijk[plane.contains(volume.ijk_to_ras(ijk))]
    axis = int(np.abs(plane.normal @ volume.affine[:3, :3] / volume.spacing).argmax())
    assert len(on_slice) == volume.array.size // number_of_slices(volume, orientation)
    assert set(on_slice[:, axis]) == {index}
    x, y = plane.ras_to_pixel(volume.ijk_to_ras(on_slice)).T
    assert x.min() >= -0.5 and x.max() <= plane.shape[1] - 0.5
    assert y.min() >= -0.5 and y.max() <= plane.shape[0] - 0.5


@settings(max_examples=60, deadline=None)
@given(
    volumes,
    st.sampled_from(ORIENTATIONS),
    st.lists(st.floats(-0.49, 0.49), min_size=3, max_size=3),
    st.data(),
)
def test_a_point_finds_the_slice_of_its_voxel_even_in_the_outer_half_of_a_border_voxel(
    volume, orientation, shift, data
):
    voxel = [data.draw(st.integers(0, length - 1)) for length in volume.shape[::-1]]
    point = volume.ijk_to_ras(np.array(voxel) + shift)
    plane = plane_through(volume, orientation, point)
    assert plane.contains(point) and plane.contains(volume.ijk_to_ras(voxel))
    x, y = plane.ras_to_pixel(point)
    assert -0.51 <= x <= plane.shape[1] - 0.49 and -0.51 <= y <= plane.shape[0] - 0.49


@settings(max_examples=40, deadline=None)
@given(volumes, st.sampled_from(ORIENTATIONS), st.floats(-9, 9), st.floats(-9, 9), st.floats(-3, 3))
def test_pixels_and_ras_are_inverse_and_distance_is_along_the_normal(volume, orientation, x, y, off):
    plane = aligned_plane(volume, orientation, 0)
    point = plane.pixel_to_ras([x, y]) + off * plane.normal
    assert np.allclose(plane.ras_to_pixel(point), [x, y], atol=1e-6)
    assert np.isclose(plane.distance(point), off, atol=1e-6)


def test_points_beyond_the_border_voxels_are_refused_with_point_and_bounds():
    volume = Volume(np.zeros((10, 20, 30), np.int16), np.eye(4))
    plane_through(volume, "axial", (29.49, -0.5, 9.5))
    with pytest.raises(
        UserError, match=r"R 29\.6, A 0\.0, S 0\.0.*outside.*R -0\.5 to 29\.5.*S -0\.5 to 9\.5"
    ):
        plane_through(volume, "axial", (29.6, 0, 0))
    with pytest.raises(UserError, match="three finite numbers"):
        plane_through(volume, "axial", (float("nan"), 0, 0))


@settings(max_examples=40, deadline=None)
@given(volumes, st.lists(st.floats(-1, 2), min_size=3, max_size=3))
def test_what_lies_outside_is_said_to_be_beside_tilted_slices_or_given_in_lps_only_where_that_is_so(volume, share):
    corners = volume.ijk_to_ras(box_corners([-0.5] * 3, np.array(volume.shape[::-1]) - 0.5))
    low, high = corners.min(axis=0), corners.max(axis=0)
    point = low + np.array(share) * (high - low)
    if inside(volume, point):
        return
    said = how_outside(volume, point)
    if ((point >= low) & (point <= high)).all():
        distance = float(said.split(" mm beside the slices")[0].rsplit(" ", 1)[1])
        r, a, s = (float(part.split()[-1]) for part in said.rsplit("at R", 1)[1].removesuffix(" mm").split(","))
        place = volume.ras_to_ijk((r, a, s))
        nearest = volume.ijk_to_ras(np.clip(place, -0.5, np.array(volume.shape[::-1]) - 0.5))
        assert np.linalg.norm(nearest - (r, a, s)) < 0.3, "what is told, to a tenth of a millimetre, is in the volume"
        assert np.isclose(np.linalg.norm(np.array([r, a, s]) - point), distance, atol=0.2)
    else:
        assert "outside the volume, which covers R" in said
        assert ("LPS" in said) == bool(inside(volume, point * (-1, -1, 1)))


def test_slices_say_where_they_lie_in_mm():
    straight = Volume(np.zeros((10, 20, 30), np.int16), np.diag([1, 1, 2.5, 1.0]))
    assert str(aligned_plane(straight, "axial", 4)) == "axial slice 4 (S 10.0 mm)"
    assert str(aligned_plane(straight, "sagittal", 0)) == "sagittal slice 0 (R 0.0 mm)"
    tilt = np.radians(10)
    affine = np.eye(4)
    affine[1:3, 1:3] = [[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]]
    tilted = Volume(np.zeros((10, 20, 30), np.int16), affine)
    low, high = 5 * np.cos(tilt), 5 * np.cos(tilt) + 19 * np.sin(tilt)
    assert str(aligned_plane(tilted, "axial", 5)) == f"axial slice 5 (S {low:.1f} to {high:.1f} mm)"


def test_a_slice_number_beyond_the_volume_and_an_unknown_orientation_are_refused():
    volume = make_volume()
    for index in (-1, 5):
        with pytest.raises(UserError, match="axial slice.*from 0 to 4"):
            aligned_plane(volume, "axial", index)
    with pytest.raises(UserError, match="axial, coronal, sagittal"):
        aligned_plane(volume, "transverse", 0)


def test_pixels_are_square_and_as_small_as_the_smaller_voxel_side():
    volume = make_volume(shape=(10, 20, 30), spacing=(0.5, 0.5, 2.5))
    plane = aligned_plane(volume, "coronal", 3)
    assert plane.pixel_size == 0.5 and plane.shape == (50, 30) and plane.thickness == 0.5


def test_matrices_stored_in_single_precision_still_give_one_pixel_a_voxel():
    volume = make_volume(
        shape=(300, 512, 512), spacing=(0.9765625, 0.9765625, 0.97656255), turn=(0.1, 0.2, 0.3)
    )
    rounded = Volume(volume.array, volume.affine.astype(np.float32))
    for orientation in ORIENTATIONS:
        plane = aligned_plane(rounded, orientation, 7)
        assert sorted(plane.shape)[0] in (300, 512) and sorted(plane.shape)[1] == 512


def test_very_thick_slices_do_not_blow_the_picture_up():
    plane = aligned_plane(make_volume(shape=(60, 8, 8), spacing=(0.01, 0.01, 5.0)), "coronal", 0)
    assert max(plane.shape) <= 4097


def test_an_oblique_plane_covers_the_cross_section_and_misses_are_refused():
    volume = Volume(np.zeros((10, 10, 10), np.int16), np.eye(4))
    plane = oblique_plane(volume, (4.5, 4.5, 4.5), (1, 1, 0), (0, 0, -1))
    corners = plane.ras_to_pixel([(-0.5, -0.5, -0.5), (9.5, 9.5, 9.5)])
    assert plane.index is None and plane.orientation == "oblique" and plane.shape == (10, 15)
    assert (corners >= -0.5 - 1e-6).all() and (corners <= [14.5, 9.5]).all()
    with pytest.raises(UserError, match=r"R 4\.0, A 5\.0, S 10\.0 mm misses.*S -0\.5 to 9\.5"):
        oblique_plane(volume, (4, 5, 10), (1, 0, 0), (0, 1, 0))
    with pytest.raises(UserError, match="parallel"):
        oblique_plane(volume, (4, 5, 5), (1, 0, 0), (-2, 0, 0))
    with pytest.raises(UserError, match="finite"):
        oblique_plane(volume, (4, 5, 5), (0, 0, 0), (0, 1, 0))


def test_an_oblique_plane_along_the_axes_has_pixels_on_voxels():
    volume = make_volume(spacing=(1, 1, 1), turn=(0.2, -0.1, 0.4))
    aligned = aligned_plane(volume, "sagittal", 3)
    oblique = oblique_plane(volume, aligned.pixel_to_ras([1.3, 2.1]), aligned.right, aligned.down)
    assert oblique.shape == aligned.shape
    assert np.allclose(oblique.origin, aligned.origin, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(volumes, st.tuples(*[st.floats(-0.4, 0.4)] * 6), st.tuples(*[st.floats(-1e-11, 1e-11)] * 9))
def test_keys_do_not_change_with_floating_point_noise(volume, tilt, noise):
    middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)
    right, down = np.array([1, *tilt[:2]]), np.array([*tilt[2:4], 1])[[0, 2, 1]]
    plane = oblique_plane(volume, middle, right, down)
    noisy = oblique_plane(volume, middle + noise[:3], right + noise[3:6], down + noise[6:])
    if plane.shape == noisy.shape:  # a size on the edge of a pixel may go either way
        assert plane.key == noisy.key


@settings(max_examples=40, deadline=None)
@given(volumes, st.sampled_from(ORIENTATIONS))
def test_planes_survive_json(volume, orientation):
    middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)
    for plane in (
        aligned_plane(volume, orientation, 0),
        oblique_plane(volume, middle, (1, 0.2, 0), (0, 1, 0.3)),
    ):
        again = SlicePlane.from_dict(json.loads(json.dumps(plane.to_dict())))
        assert again.key == plane.key and again.to_dict() == plane.to_dict()
        assert np.array_equal(again.origin, plane.origin) and again.shape == plane.shape


@pytest.mark.parametrize(
    "change",
    [
        {"origin": [0, 0]},
        {"right": [2, 0, 0]},
        {"down": [1, 0, 0]},
        {"pixel_size": 0},
        {"shape": [0, 3]},
        {"shape": 3},
        {"origin": [float("nan"), 0, 0]},
        {"orientation": "upside down"},
        {"orientation": ["axial"]},
        {"index": None},
        {"unknown": 1},
    ],
)
def test_damaged_planes_are_refused(change):
    values = aligned_plane(make_volume(), "axial", 1).to_dict()
    with pytest.raises(UserError, match="damaged"):
        SlicePlane.from_dict(values | change)


def test_keys_tell_planes_apart():
    volume = make_volume(shape=(6, 6, 6))
    keys = {aligned_plane(volume, o, i).key for o in ORIENTATIONS for i in range(6)}
    keys |= {
        oblique_plane(volume, volume.ijk_to_ras([2, 3, z]), (1, 0, 0.1), (0, 1, 0)).key for z in (2, 2.01, 3)
    }
    assert len(keys) == 21


def test_aligned_planes_of_sheared_axes_keep_square_pixels_and_go_through_the_voxels():
    affine = np.eye(4)
    affine[:3, 2] = (0.0, 0.5, 2.0)  # a tilted gantry: slices shift to anterior
    volume = Volume(np.zeros((8, 9, 10), np.int16), affine)
    for orientation in ORIENTATIONS:
        plane = aligned_plane(volume, orientation, 2)
        assert abs(plane.right @ plane.down) < 1e-8
        axis = {"axial": 2, "coronal": 1, "sagittal": 0}[orientation]
        ijk = np.indices(volume.shape[::-1]).reshape(3, -1).T
        ijk = ijk[ijk[:, axis] == 2]
        assert np.allclose(plane.distance(volume.ijk_to_ras(ijk)), 0, atol=1e-5)
        x, y = plane.ras_to_pixel(volume.ijk_to_ras(ijk)).T
        assert min(x.min(), y.min()) >= -0.5 and x.max() < plane.shape[1] and y.max() < plane.shape[0]
