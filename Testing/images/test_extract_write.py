"""Pictures out of volumes and masks back into label maps, compared with SimpleITK's resampling."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.slice_extraction import covered_voxels, extract, extract_labels, picture, write
from SAMFineTuneLib.images.slice_plane import (
    ORIENTATIONS,
    aligned_plane,
    number_of_slices,
    oblique_plane,
    plane_through,
)
from SAMFineTuneLib.images.volume import Volume

LPS = np.array([-1.0, -1.0, 1.0])


def oriented(shape, spacing, turn, axes, signs, seed=0) -> Volume:
    """Noise [k, j, i]; voxel axis a runs along RAS axis axes[a] with signs[a]; all is turned about `turn`."""
    directions = np.zeros((3, 3))
    directions[list(axes), range(3)] = signs
    angle = np.linalg.norm(turn)
    x, y, z = np.asarray(turn) / angle if angle else (0, 0, 1)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues
    affine = np.eye(4)
    affine[:3, :3] = turned @ directions * spacing
    affine[:3, 3] = (-31.5, 12.25, 100.0)
    return Volume(np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16), affine)


def hundredths(low: int, high: int):
    """Not any float: SimpleITK's inverse fails on angles as small as 1e-309."""
    return st.integers(low, high).map(lambda number: number / 100)


spacings = st.floats(0.4, 5)
anisotropic = st.tuples(spacings, spacings, spacings)
isotropic = spacings.map(lambda mm: (mm, mm, mm))


def volumes(spacing, smallest=1):
    return st.builds(
        oriented,
        shape=st.tuples(*[st.integers(smallest, 9)] * 3),
        spacing=spacing,
        turn=st.tuples(*[hundredths(-50, 50)] * 3),
        axes=st.permutations((0, 1, 2)),
        signs=st.tuples(*[st.sampled_from((-1, 1))] * 3),
        seed=st.integers(0, 99),
    )


def middle_of(volume: Volume) -> np.ndarray:
    return volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2)


@st.composite
def oblique_cuts(draw, spacing=anisotropic):
    """(volume, an oblique plane through it)"""
    volume = draw(volumes(spacing, smallest=2))
    right = np.array(draw(st.tuples(*[hundredths(-100, 100)] * 3)))
    down = np.array(draw(st.tuples(*[hundredths(-100, 100)] * 3)))
    assume(np.linalg.norm(np.cross(right, down)) > 0.1)
    inside = np.array(draw(st.tuples(*[st.floats(0.1, 0.9)] * 3))) * (np.array(volume.shape[::-1]) - 1)
    return volume, oblique_plane(volume, volume.ijk_to_ras(inside), right, down)


def with_simpleitk(volume: Volume, plane, interpolator=sitk.sitkLinear) -> np.ndarray:
    """The same picture, computed by SimpleITK in LPS from the geometry alone."""
    image = sitk.GetImageFromArray(volume.array.astype(np.float64))
    image.SetOrigin(tuple(LPS * volume.affine[:3, 3]))
    image.SetSpacing(tuple(map(float, volume.spacing)))
    directions = LPS[:, None] * volume.affine[:3, :3] / volume.spacing
    image.SetDirection(directions.reshape(-1).tolist())
    to_lps = np.stack(
        [LPS * plane.right, LPS * plane.down, np.cross(LPS * plane.right, LPS * plane.down)], axis=1
    )
    rows, columns = plane.shape
    resampled = sitk.Resample(
        image,
        [columns, rows, 1],
        sitk.Transform(),
        interpolator,
        tuple(LPS * plane.origin),
        [plane.pixel_size] * 3,
        to_lps.reshape(-1).tolist(),
        float(volume.array.min()),
        sitk.sitkFloat64,
    )
    return sitk.GetArrayFromImage(resampled)[0]


def agree(ours: np.ndarray, theirs: np.ndarray, volume: Volume, plane) -> None:
    """Equal everywhere but on the volume's very edge, where inside or outside is a matter of rounding.

    Where a whole axis stays within 0.005 voxels of the centres, pixels show the voxels themselves: of
    neighbours up to 3000 apart, that may differ by 15 an axis.
    """
    rows, columns = np.indices(plane.shape)
    ijk = volume.ras_to_ijk(plane.pixel_to_ras(np.stack([columns, rows], axis=-1)))
    last = np.array(volume.shape[::-1]) - 0.5
    edge = (np.minimum(np.abs(ijk + 0.5), np.abs(ijk - last)) < 1e-4).any(axis=-1)
    off_centre = np.abs(ijk - np.rint(ijk)).reshape(-1, 3).max(axis=0)
    tolerance = 0.6 + 15 * np.count_nonzero((off_centre > 1e-5) & (off_centre <= 0.005))
    assert ours.shape == theirs.shape and np.abs(ours - theirs)[~edge].max(initial=0) < tolerance


@settings(max_examples=60, deadline=None)
@given(volumes(isotropic), st.sampled_from(ORIENTATIONS), st.data())
def test_isotropic_slices_are_the_voxels_themselves(volume, orientation, data):
    plane = aligned_plane(
        volume, orientation, data.draw(st.integers(0, number_of_slices(volume, orientation) - 1))
    )
    values = extract(volume, plane)
    rows, columns = np.indices(plane.shape)
    ijk = np.rint(volume.ras_to_ijk(plane.pixel_to_ras(np.stack([columns, rows], axis=-1)))).astype(int)
    assert values.dtype == np.float32
    assert np.array_equal(values, volume.array[ijk[..., 2], ijk[..., 1], ijk[..., 0]])


@settings(max_examples=80, deadline=None)
@given(volumes(anisotropic), st.sampled_from(ORIENTATIONS), st.data())
def test_slices_of_any_volume_are_what_simpleitk_finds_there(volume, orientation, data):
    plane = aligned_plane(
        volume, orientation, data.draw(st.integers(0, number_of_slices(volume, orientation) - 1))
    )
    agree(extract(volume, plane), with_simpleitk(volume, plane), volume, plane)


@settings(max_examples=80, deadline=None)
@given(oblique_cuts())
def test_oblique_pictures_are_what_simpleitk_finds_there(cut):
    volume, plane = cut
    agree(extract(volume, plane), with_simpleitk(volume, plane), volume, plane)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_slices_of_sheared_volumes_are_right(orientation):
    """A linear ramp in RAS looks the same however it is sampled."""
    affine = np.diag([1.0, 1.2, 2.0, 1.0])
    affine[:3, 2] = (0.3, 0.7, 2.0)
    k, j, i = np.indices((8, 9, 10))
    ras = np.stack([i, j, k], axis=-1) @ affine[:3, :3].T
    volume = Volume((ras @ (3.0, 5.0, 7.0)).astype(np.float64), affine)
    plane = aligned_plane(volume, orientation, 4)
    rows, columns = np.indices(plane.shape)
    points = plane.pixel_to_ras(np.stack([columns, rows], axis=-1))
    ijk = volume.ras_to_ijk(points)
    between_centres = ((ijk >= -1e-6) & (ijk <= np.array([9, 8, 7]) + 1e-6)).all(axis=-1)
    assert between_centres.mean() > 0.4
    assert np.allclose(
        extract(volume, plane)[between_centres], (points @ (3.0, 5.0, 7.0))[between_centres], atol=1e-3
    )
    labelmap = np.zeros(volume.shape, np.uint8)
    mask = between_centres.copy()
    write(mask, plane, labelmap, volume, 1)
    inner = mask & np.roll(mask, 2, 0) & np.roll(mask, -2, 0) & np.roll(mask, 2, 1) & np.roll(mask, -2, 1)
    assert inner.sum() > 20 and extract_labels(labelmap, volume, plane)[inner].all()
    axis = {"axial": 0, "coronal": 1, "sagittal": 2}[orientation]
    assert set(np.nonzero(labelmap)[axis]) == {4}


def test_outside_the_volume_is_its_lowest_value_and_its_outer_half_voxels_are_not():
    volume = Volume(np.full((4, 4, 4), 50, np.int16), np.eye(4))
    volume = Volume(np.where(np.arange(4) == 2, 7, volume.array), volume.affine)
    plane = oblique_plane(volume, (1.5, 1.5, 1.5), (1, 1, 0.2), (0, 0.1, 1))
    values = extract(volume, plane)
    rows, columns = np.indices(plane.shape)
    ijk = volume.ras_to_ijk(plane.pixel_to_ras(np.stack([columns, rows], axis=-1)))
    outside = ((ijk < -0.5) | (ijk > 3.5)).any(axis=-1)
    outer_half = ~outside & (ijk[..., 0] < 1)
    assert outside.any() and outer_half.any()
    assert (values[outside] == 7).all() and np.allclose(values[outer_half], 50)


def test_the_lowest_value_is_a_number_even_among_voxels_that_are_not():
    voxels = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    voxels[0, 0, :2] = np.nan, -np.inf
    volume = Volume(voxels, np.eye(4))
    plane = oblique_plane(volume, (2, 2, 2.5), (1, 1, 0), (1, -1, 0.1))
    assert np.isfinite(extract(volume, plane)).all() and extract(volume, plane)[0, 0] == 2


def test_picture_is_the_window_of_the_extract():
    volume = oriented((6, 7, 8), (1, 1, 2), (0.1, 0.2, 0), (0, 1, 2), (1, 1, 1))
    plane, window = aligned_plane(volume, "coronal", 3), IntensityWindow(-160, 240)
    shown = picture(volume, plane, window)
    assert shown.dtype == np.uint8 and np.array_equal(shown, window.apply(extract(volume, plane)))


# ---- writing


def random_mask(shape, seed) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.4


@settings(max_examples=60, deadline=None)
@given(volumes(isotropic), st.sampled_from(ORIENTATIONS), st.integers(0, 99), st.data())
def test_what_is_written_on_an_isotropic_slice_is_read_back_and_nothing_else_changes(
    volume, orientation, seed, data
):
    plane = aligned_plane(
        volume, orientation, data.draw(st.integers(0, number_of_slices(volume, orientation) - 1))
    )
    mask = random_mask(plane.shape, seed)
    labelmap = np.zeros(volume.shape, np.uint8)
    block = write(mask, plane, labelmap, volume, 3)
    assert np.array_equal(extract_labels(labelmap, volume, plane), mask * 3)
    assert np.array_equal(extract(Volume(labelmap, volume.affine), plane), mask * 3)
    assert np.count_nonzero(labelmap) == mask.sum()
    assert (block is None) == (not mask.any())
    if block is not None:
        assert np.count_nonzero(labelmap[block]) == mask.sum()


def mask_at_voxel_centres(mask, plane, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """SimpleITK's opinion [k, j, i]: whether the voxels' centres lie in the mask, seen along the plane's normal;
    and where that is not a matter of rounding."""
    rows, columns = plane.shape
    along = [LPS * plane.right, LPS * plane.down, np.cross(LPS * plane.right, LPS * plane.down)]
    picture_itself = sitk.GetImageFromArray(mask[None].astype(np.uint8))
    picture_itself.SetOrigin(tuple(LPS * plane.origin))
    picture_itself.SetSpacing([plane.pixel_size] * 2 + [1e5])  # so thick that it reaches every voxel
    picture_itself.SetDirection(np.stack(along, axis=1).reshape(-1).tolist())
    grid = sitk.GetImageFromArray(volume.array)
    grid.SetOrigin(tuple(LPS * volume.affine[:3, 3]))
    grid.SetSpacing(tuple(map(float, volume.spacing)))
    grid.SetDirection((LPS[:, None] * volume.affine[:3, :3] / volume.spacing).reshape(-1).tolist())
    found = sitk.GetArrayFromImage(sitk.Resample(picture_itself, grid, sitk.Transform(), sitk.sitkNearestNeighbor))
    k, j, i = np.indices(volume.shape)
    xy = plane.ras_to_pixel(volume.ijk_to_ras(np.stack([i, j, k], axis=-1)))
    clear = (np.abs(xy - np.floor(xy) - 0.5) > 1e-3).all(axis=-1)
    return found.astype(bool), clear & ((xy > -0.499) & (xy < [columns - 0.501, rows - 0.501])).all(axis=-1)


@settings(max_examples=60, deadline=None)
@given(volumes(anisotropic), st.sampled_from(ORIENTATIONS), st.integers(0, 99), st.data())
def test_on_any_aligned_slice_voxels_have_the_mask_at_their_centres_and_neighbours_stay(
    volume, orientation, seed, data
):
    index = data.draw(st.integers(0, number_of_slices(volume, orientation) - 1))
    plane = aligned_plane(volume, orientation, index)
    mask = random_mask(plane.shape, seed)
    labelmap = np.zeros(volume.shape, np.uint16)
    write(mask, plane, labelmap, volume, 500)
    axis = 2 - int(np.abs(plane.normal @ volume.affine[:3, :3] / volume.spacing).argmax())
    assert set(np.nonzero(labelmap)[axis]) <= {index}
    expected, clear = mask_at_voxel_centres(mask, plane, volume)
    own = np.zeros(volume.shape, bool)
    own.swapaxes(0, axis)[index] = True
    assert np.array_equal((labelmap == 500)[own & clear], expected[own & clear])


@settings(max_examples=60, deadline=None)
@given(oblique_cuts(), st.integers(0, 99), st.booleans())
def test_voxels_of_points_in_the_mask_belong_to_it_and_of_points_outside_it_do_not_for_that(cut, seed, aligned):
    volume, plane = cut
    if aligned:
        plane = plane_through(volume, "coronal", middle_of(volume))
    random = np.random.default_rng(seed)
    mask = random_mask(plane.shape, seed)
    points = random.uniform(-0.4, np.array(plane.shape[::-1]) - 0.6, (4, 2))
    ijk = volume.ras_to_ijk(plane.pixel_to_ras(points))
    within = ((ijk > -0.499) & (ijk < np.array(volume.shape[::-1]) - 0.501)).all(axis=1)
    points = points[within & (np.abs(ijk - np.floor(ijk) - 0.5) > 1e-3).all(axis=1)]
    with_points, without = np.zeros(volume.shape, np.uint8), np.zeros(volume.shape, np.uint8)
    write(mask, plane, with_points, volume, 1, points=points)
    write(mask, plane, without, volume, 1)
    allowed = without > 0
    for x, y in points:
        i, j, k = np.rint(volume.ras_to_ijk(plane.pixel_to_ras((x, y)))).astype(int)
        if mask[int(np.floor(y + 0.5)), int(np.floor(x + 0.5))]:
            assert with_points[k, j, i]
            allowed[k, j, i] = True
    assert not (with_points[~allowed]).any() and with_points[without > 0].all()


@settings(max_examples=80, deadline=None)
@given(oblique_cuts(isotropic), st.integers(0, 99))
def test_an_oblique_mask_has_no_holes_and_stays_on_the_voxels_the_plane_cuts(cut, seed):
    volume, plane = cut
    rows, columns = np.indices(plane.shape)
    centre = np.array(plane.shape) / 2 - 0.5
    disc = np.hypot(rows - centre[0], columns - centre[1]) <= max(plane.shape) * (0.2 + 0.006 * seed)
    labelmap = np.zeros(volume.shape, np.uint8)
    write(disc, plane, labelmap, volume, 1)
    k, j, i = np.indices(volume.shape)
    corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3), axis=-1).reshape(-1, 3)
    distance = plane.distance(volume.ijk_to_ras(np.stack([i, j, k], axis=-1)[..., None, :] + corners))
    cut_or_touched = (distance.min(axis=-1) <= 1e-4) & (distance.max(axis=-1) >= -1e-4)
    assert cut_or_touched[labelmap > 0].all()
    cut_through = (distance.min(axis=-1) < -1e-4) & (distance.max(axis=-1) > 1e-4)
    expected, clear = mask_at_voxel_centres(disc, plane, volume)
    concerned = cut_through & clear
    # Closest in voxel steps is closest along the normal where voxels are cubes, as here.
    assert np.array_equal(labelmap[concerned] > 0, expected[concerned])


@pytest.mark.parametrize("orientation", ["coronal", "sagittal"])
def test_thick_slices_do_not_make_a_mask_grow(orientation):
    volume = oriented((24, 120, 120), (0.7, 0.7, 5.0), (0, 0, 0), (0, 1, 2), (1, 1, 1))
    plane = plane_through(volume, orientation, middle_of(volume))
    rows, columns = np.indices(plane.shape)
    sizes = []
    for shift in np.linspace(-0.5, 0.5, 9) * 5.0 / 0.7:
        disc = np.hypot(rows - plane.shape[0] / 2 - shift, columns - plane.shape[1] / 2) <= 40
        labelmap = np.zeros(volume.shape, np.uint8)
        write(disc, plane, labelmap, volume, 1)
        sizes.append(np.count_nonzero(labelmap) * 5.0 / 0.7 / disc.sum())
    assert abs(np.mean(sizes) - 1) < 0.01


def test_a_full_oblique_mask_sets_every_voxel_the_plane_cuts():
    volume = oriented((20, 22, 24), (0.7, 0.7, 2.0), (0.3, 0.1, 0.2), (0, 1, 2), (1, -1, 1))
    plane = oblique_plane(volume, middle_of(volume), (1, 0.4, 0.2), (0, 1, -0.7))
    labelmap = np.zeros(volume.shape, np.uint8)
    write(np.ones(plane.shape, bool), plane, labelmap, volume, 1)
    ijk = np.indices(volume.shape[::-1]).reshape(3, -1).T
    corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3), axis=-1).reshape(-1, 3)
    distance = plane.distance(volume.ijk_to_ras(ijk[:, None] + corners))
    cut = (distance.min(axis=1) < -1e-4) & (distance.max(axis=1) > 1e-4)
    i, j, k = ijk[cut].T
    assert labelmap[k, j, i].all() and np.count_nonzero(labelmap) - cut.sum() <= 5


@settings(max_examples=60, deadline=None)
@given(oblique_cuts(), st.integers(0, 99), st.booleans())
def test_writing_again_replaces_the_plane_and_protects_other_labels(cut, seed, aligned):
    volume, plane = cut
    if aligned:
        plane = plane_through(volume, "coronal", middle_of(volume))
    before = np.random.default_rng(seed).choice([0, 0, 2], volume.shape).astype(np.uint8)
    labelmap = before.copy()
    write(random_mask(plane.shape, seed), plane, labelmap, volume, 1)
    assert np.array_equal(labelmap == 2, before == 2)
    write(np.zeros(plane.shape, bool), plane, labelmap, volume, 1)
    assert np.array_equal(labelmap, before)
    assert write(np.zeros(plane.shape, bool), plane, labelmap, volume, 1) is None
    mask = random_mask(plane.shape, seed + 1)
    write(mask, plane, labelmap, volume, 1, protect=False)
    once = labelmap.copy()
    assert write(mask, plane, labelmap, volume, 1, protect=False) is None and np.array_equal(labelmap, once)
    write(np.ones(plane.shape, bool), plane, labelmap, volume, 1, protect=False)
    assert np.count_nonzero((before == 2) & (labelmap == 1)) or not (extract_labels(before, volume, plane) == 2).any()


@settings(max_examples=60, deadline=None)
@given(oblique_cuts(), st.integers(0, 99), st.booleans())
def test_the_block_returned_holds_exactly_the_changes(cut, seed, aligned):
    volume, plane = cut
    if aligned:
        plane = plane_through(volume, "sagittal", middle_of(volume))
    labelmap = np.zeros(volume.shape, np.uint8)
    write(random_mask(plane.shape, seed), plane, labelmap, volume, 1)
    before = labelmap.copy()
    block = write(random_mask(plane.shape, seed + 1), plane, labelmap, volume, 1)
    changed = np.argwhere(before != labelmap)
    if block is None:
        assert not len(changed)
    else:
        assert [(s.start, s.stop) for s in block] == [(c.min(), c.max() + 1) for c in changed.T]


def test_label_maps_that_are_not_contiguous_are_written_too():
    volume = oriented((6, 7, 8), (1, 1, 1), (0, 0, 0), (0, 1, 2), (1, 1, 1))
    labelmap = np.zeros((8, 7, 6), np.uint8).transpose(2, 1, 0)
    plane = oblique_plane(volume, middle_of(volume), (1, 0.3, 0), (0, 1, 0.4))
    write(np.ones(plane.shape, bool), plane, labelmap, volume, 1)
    assert extract_labels(labelmap, volume, plane).any()


def test_wrong_shapes_and_values_are_refused():
    volume = oriented((6, 7, 8), (1, 1, 1), (0, 0, 0), (0, 1, 2), (1, 1, 1))
    plane = aligned_plane(volume, "axial", 0)
    mask, labelmap = np.ones(plane.shape, bool), np.zeros(volume.shape, np.uint8)
    with pytest.raises(UserError, match="resample it"):
        write(mask, plane, np.zeros((6, 7, 9), np.uint8), volume, 1)
    for value in (0, 256, -1):
        with pytest.raises(UserError, match="from 1 to 255"):
            write(mask, plane, labelmap, volume, value)
    with pytest.raises(ValueError, match="mask"):
        write(mask[1:], plane, labelmap, volume, 1)
    assert not labelmap.any()


def test_the_volume_is_never_changed():
    volume = oriented((6, 7, 8), (1, 1, 2), (0.1, 0, 0), (0, 1, 2), (1, 1, 1))
    before = volume.array.copy()
    for orientation in ORIENTATIONS:
        extract(volume, aligned_plane(volume, orientation, 2))[:] = 0
    assert np.array_equal(volume.array, before)


# ---- the voxels a mask covers, without writing


@settings(max_examples=80, deadline=None)
@given(oblique_cuts(), st.integers(0, 99), st.sampled_from(("oblique", "axial", "sagittal")))
def test_covered_voxels_are_those_that_are_written(cut, seed, kind):
    volume, plane = cut
    if kind != "oblique":
        plane = plane_through(volume, kind, middle_of(volume))
    random = np.random.default_rng(seed)
    mask = random_mask(plane.shape, seed)
    if seed % 2:  # a small mask: only its surroundings are looked at
        mask[: plane.shape[0] // 2] = mask[:, : plane.shape[1] // 2] = False
    points = random.uniform(-0.4, np.array(plane.shape[::-1]) - 0.6, (4, 2)) if seed % 3 else None
    written = np.zeros(volume.shape, np.uint8)
    write(mask, plane, written, volume, 1, points=points)
    covered = covered_voxels(mask, plane, volume, points)
    assert set(map(tuple, covered.T)) == set(zip(*np.nonzero(written), strict=True))
    assert covered.shape[1] == np.count_nonzero(written)


def test_a_slice_covers_its_whole_thickness_in_a_finer_grid_and_never_misses_a_coarser_one():
    volume = oriented((6, 10, 10), (1.0, 1.0, 5.0), (0.2, 0.1, 0), (0, 1, 2), (1, 1, 1))
    plane = aligned_plane(volume, "axial", 3)
    mask = np.ones(plane.shape, bool)
    for times, count in ((5, 5), (0.5, 1)):
        affine = volume.affine.copy()
        affine[:3, 2] /= times
        affine[:3, 3] = volume.ijk_to_ras((0, 0, -0.5)) + affine[:3, 2] / 2  # the same outer edges
        grid = Volume(np.zeros((int(6 * times), 10, 10), np.uint8), affine)
        covered = covered_voxels(mask, plane, grid)
        assert covered.shape[1] == 100 * count
        assert len(set(covered[0])) == count
        assert set(covered[0]) == set(range(15, 20) if times == 5 else (1,))


@pytest.mark.parametrize("orientation", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize(("part", "shift"), [(2, 0), (2, 1), (0.5, 0), (0.5, -0.5), (1, 0.5)])
def test_whole_slices_fill_a_grid_of_other_voxels_once(orientation, part, shift):
    """Grids of half and double the resolution, also with slices halfway between those of the volume."""
    volume = Volume(np.zeros((8, 8, 8), np.uint8), np.diag([-1.0, 1.5, 2.0, 1.0]))
    moved = np.diag([part, part, part, 1.0])
    moved[:3, 3] = shift
    grid = Volume(np.zeros((round(8 / part),) * 3, np.uint8), volume.affine @ moved)
    across = ("axial", "coronal", "sagittal").index(orientation)  # array axis: the voxels lie as the patient does
    times = np.zeros(grid.shape[across], int)
    for index in range(2, 6):  # well inside the grid
        plane = aligned_plane(volume, orientation, index)
        slices = np.unique(covered_voxels(np.ones(plane.shape, bool), plane, grid)[across])
        assert len(slices) == max(1, round(1 / part)), "a slice is lost, or in two"
        times[slices] += 1
    assert times.max() <= max(1, part)
