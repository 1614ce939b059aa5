"""Which plane a slice view shows: Slicer's own slice nodes and logics over volumes of any orientation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mrml.conftest import tilted_volume
from mrml.scenes import array_of

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, aligned_plane, number_of_slices, view_axes
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.slice_views import plane_of_view, ras_at, settle_view, view_kind
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

SLICER_NAMES = {"axial": "Axial", "coronal": "Coronal", "sagittal": "Sagittal"}


class Looking:
    """A slice logic over one volume, without a window."""

    def __init__(self, slicer_scene, volume: Volume, size=(300, 260)):
        import slicer

        self.volume_node = slicer_scene.add_volume(volume)
        self.volume = volume_from_node(self.volume_node)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(slicer_scene.application)
        self.logic.SetMRMLScene(slicer_scene.scene)
        self.node = self.logic.AddSliceNode("Red")
        self.logic.GetSliceCompositeNode().SetBackgroundVolumeID(self.volume_node.GetID())
        self.logic.ResizeSliceNode(*size)
        self.size = size
        self.logic.FitSliceToAll()

    def orient(self, orientation: str, to_volume: bool) -> None:
        self.node.SetOrientation(SLICER_NAMES[orientation])
        if to_volume:
            self.node.RotateToVolumePlane(self.volume_node)
        self.logic.FitSliceToAll()

    def go_to(self, ras) -> None:
        self.node.JumpSliceByOffsetting(*map(float, ras))

    def in_volume(self, count: int, seed: int = 0) -> np.ndarray:
        """RAS (N, 3) of positions in the view that lie in the volume."""
        xy = np.random.default_rng(seed).uniform(0, self.size, (count, 2))
        ras = np.array([ras_at(self.node, point) for point in xy])
        ijk = self.volume.ras_to_ijk(ras)
        return ras[((ijk > -0.49) & (ijk < np.array(self.volume.shape[::-1]) - 0.51)).all(axis=1)]


@pytest.fixture
def looking(slicer_scene, a_tilted_volume):
    return Looking(slicer_scene, a_tilted_volume)


def straight_volume(shape=(7, 12, 10), spacing=(0.8, 1.1, 2.5)) -> Volume:
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[:3, 3] = 40, 30, -20
    return Volume(np.random.default_rng(0).integers(0, 900, shape).astype(np.int16), affine)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_standard_view_over_a_straight_volume_shows_its_slices(slicer_scene, orientation):
    looking = Looking(slicer_scene, straight_volume())
    looking.orient(orientation, to_volume=False)
    for index in range(number_of_slices(looking.volume, orientation)):
        expected = aligned_plane(looking.volume, orientation, index)
        looking.go_to(expected.origin + 0.3 * expected.thickness * expected.normal)
        plane = plane_of_view(looking.node, looking.volume)
        assert plane.key == expected.key and view_kind(looking.node, looking.volume) == orientation
        assert plane.contains(looking.in_volume(50)).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_standard_view_over_a_tilted_volume_is_oblique(looking, orientation):
    looking.orient(orientation, to_volume=False)
    plane = plane_of_view(looking.node, looking.volume)
    assert view_kind(looking.node, looking.volume) == "oblique" == plane.orientation
    normal = array_of(looking.node.GetSliceToRAS())[:3, 2]
    assert np.allclose(np.abs(plane.normal @ normal), 1)
    clicks = looking.in_volume(200)
    assert len(clicks) > 20 and plane.contains(clicks).all()
    pixels = plane.ras_to_pixel(clicks)
    assert (pixels > -0.51).all() and (pixels < np.array(plane.shape[::-1]) - 0.49).all()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_view_rotated_to_the_volume_shows_its_slices(looking, orientation):
    looking.orient(orientation, to_volume=True)
    for index in (0, 2, number_of_slices(looking.volume, orientation) - 1):
        looking.go_to(looking.volume.ijk_to_ras(along(looking.volume, orientation, index)))
        assert view_kind(looking.node, looking.volume) == orientation
        plane = plane_of_view(looking.node, looking.volume)
        assert (plane.orientation, plane.index) == (orientation, index)
        assert plane.contains(looking.in_volume(50)).all()


def along(volume: Volume, orientation: str, index: float) -> np.ndarray:
    """ijk of the volume's middle, moved to slice `index` of the orientation."""
    ijk = (np.array(volume.shape[::-1]) - 1) / 2
    ijk[view_axes(volume, orientation)[2]] = index
    return ijk


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(*[st.integers(-157, 157)] * 3),
    st.tuples(*[st.integers(-40, 40)] * 3),
    st.integers(0, 99),
)
def test_every_click_in_any_view_lies_on_its_plane_and_picture(lasting_scene, turn, offset, seed):
    volume = tilted_volume(seed=seed)
    looking = Looking(lasting_scene, volume)
    a, b, c = np.array(turn) / 50
    axes = tilted_axes(a, b, c)
    middle = volume.ijk_to_ras((np.array(volume.shape[::-1]) - 1) / 2) + np.array(offset) / 20
    matrix = looking.node.GetSliceToRAS()
    for column, vector in enumerate((*axes.T, middle)):
        for row in range(3):
            matrix.SetElement(row, column, float(vector[row]))
    looking.node.UpdateMatrices()
    plane = plane_of_view(looking.node, volume)
    clicks = looking.in_volume(100, seed)
    assert plane.contains(clicks).all()
    pixels = plane.ras_to_pixel(clicks)
    assert (pixels > -0.51).all() and (pixels < np.array(plane.shape[::-1]) - 0.49).all()
    for click in clicks[:5]:
        chosen = plane_of_view(looking.node, volume, click)
        assert chosen.contains(click) and chosen.key == plane.key
    lasting_scene.scene.Clear(True)


def tilted_axes(a, b, c) -> np.ndarray:
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return x @ y @ z


def test_zoom_pan_roll_light_box_and_slab_change_no_plane(looking):
    looking.orient("coronal", to_volume=True)
    looking.go_to(looking.volume.ijk_to_ras(along(looking.volume, "coronal", 5)))
    before = plane_of_view(looking.node, looking.volume).key
    looking.node.SetFieldOfView(7.5, 6.5, 1)
    looking.node.SetXYZOrigin(31, -12, 0)
    assert plane_of_view(looking.node, looking.volume).key == before
    looking.node.SetLayoutGrid(2, 3)
    assert plane_of_view(looking.node, looking.volume).key == before
    looking.node.SetSlabReconstructionEnabled(True)
    looking.node.SetSlabReconstructionThickness(9)
    assert plane_of_view(looking.node, looking.volume).key == before
    roll(looking.node, np.pi / 7)
    assert plane_of_view(looking.node, looking.volume).key == before


def roll(node, angle: float) -> None:
    """Turns the view about its own normal."""
    matrix = node.GetSliceToRAS()
    axes = array_of(matrix)
    turned = axes.copy()
    turned[:, 0] = np.cos(angle) * axes[:, 0] + np.sin(angle) * axes[:, 1]
    turned[:, 1] = np.cos(angle) * axes[:, 1] - np.sin(angle) * axes[:, 0]
    for row in range(3):
        for column in range(2):
            matrix.SetElement(row, column, turned[row, column])
    node.UpdateMatrices()


def test_panning_an_oblique_view_changes_no_plane(looking):
    looking.orient("axial", to_volume=False)
    before = plane_of_view(looking.node, looking.volume)
    matrix = looking.node.GetSliceToRAS()
    for row in range(3):
        shift = 3.7 * matrix.GetElement(row, 0) - 2.2 * matrix.GetElement(row, 1)
        matrix.SetElement(row, 3, matrix.GetElement(row, 3) + shift)
    looking.node.UpdateMatrices()
    after = plane_of_view(looking.node, looking.volume)
    assert after.key == before.key


def test_a_transformed_volume_is_seen_where_it_is(slicer_scene):
    angle = np.radians(20)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    looking = Looking(slicer_scene, straight_volume())
    looking.volume_node.SetAndObserveTransformNodeID(slicer_scene.add_transform(matrix).GetID())
    volume = volume_from_node(looking.volume_node)
    looking.node.SetOrientation("Axial")
    looking.logic.FitSliceToAll()
    assert view_kind(looking.node, volume) == "axial"  # turned about the axial normal only
    looking.node.SetOrientation("Sagittal")
    assert view_kind(looking.node, volume) == "oblique"


def test_sheared_volumes_are_seen_along_their_slices(slicer_scene):
    """A gantry tilt: the axes across the slices are not perpendicular to them."""
    volume = straight_volume()
    affine = volume.affine.copy()
    affine[:3, 2] += (0, 0.8, 0)
    looking = Looking(slicer_scene, Volume(volume.array, volume.affine))
    sheared = Volume(volume.array, affine)
    looking.node.SetOrientation("Axial")
    looking.go_to(sheared.ijk_to_ras((5, 6, 3)))
    plane = plane_of_view(looking.node, sheared)
    assert (plane.orientation, plane.index) == ("axial", 3)
    looking.node.SetOrientation("Coronal")
    assert view_kind(looking.node, sheared) == "oblique"


def nearly_straight_volume(tilt: float, shape=(20, 60, 50)) -> Volume:
    """Turned by `tilt` against the patient's axes, as by directions that were stored with few digits."""
    volume = straight_volume(shape, spacing=(1, 1, 1))
    turned = volume.affine.copy()
    turned[:3, :3] = tilted_axes(tilt, 0, 0) @ turned[:3, :3]
    return Volume(np.random.default_rng(0).integers(0, 900, shape).astype(np.int16), turned)


@pytest.mark.parametrize("tilt, kind", [(1e-3, "axial"), (1e-2, "oblique")])
def test_directions_stored_with_few_digits_are_still_the_volumes_own(slicer_scene, tilt, kind):
    looking = Looking(slicer_scene, nearly_straight_volume(tilt))
    looking.node.SetOrientation("Axial")
    for index in (3, 10, 16):
        looking.go_to(looking.volume.ijk_to_ras((24.5, 29.5, index + 0.3)))
        assert view_kind(looking.node, looking.volume) == kind
        plane = plane_of_view(looking.node, looking.volume)
        assert plane.contains(looking.in_volume(100)).all() and plane.index in (index, None)


def test_between_two_slices_such_a_view_is_oblique_until_it_is_settled(slicer_scene):
    looking = Looking(slicer_scene, nearly_straight_volume(1e-3))
    looking.node.SetOrientation("Axial")
    looking.go_to(looking.volume.ijk_to_ras((24.5, 29.5, 9.5)))
    assert plane_of_view(looking.node, looking.volume).contains(looking.in_volume(100)).all()
    assert view_kind(looking.node, looking.volume) == "oblique"
    before = looking.in_volume(100)
    assert settle_view(looking.node, looking.volume)
    assert view_kind(looking.node, looking.volume) == "axial"
    assert np.abs(looking.in_volume(100) - before).max() < 0.1  # mm, of slices of 1 mm
    plane = plane_of_view(looking.node, looking.volume)
    assert plane.contains(looking.in_volume(100)).all()
    assert not settle_view(looking.node, looking.volume)


def test_settling_a_view_changes_nothing_on_the_screen(slicer_scene):
    volume = nearly_straight_volume(8e-4)
    node = slicer_scene.add_volume(volume)
    node.GetDisplayNode().SetInterpolate(False)
    view = slicer_scene.add_view("Red", "Axial", (300, 300))
    view.show(node)
    for offset in (-0.01, 0.0, 0.004, 0.01):
        view.go_to(volume.ijk_to_ras((24.5, 29.5, 9.5 + offset)))
        before = view.pixels()
        plane_before = view_kind(view.node, volume)
        assert settle_view(view.node, volume) and plane_before == "oblique"
        same = (view.pixels() == before).all(axis=2)
        assert same.mean() > 0.99  # a rounding here and there on the edges of voxels
        assert (before > 0).any(axis=2).mean() > 0.5
    view.node.SetOrientation("Sagittal")
    assert not settle_view(view.node, nearly_straight_volume(0.3))  # cuts across: it stays where it is


def offset_of_a_slice(slice_node, volume: Volume, orientation: str) -> float:
    """Where the slice node's offset would be, were its view exactly on the slice nearest to it."""
    plane = plane_of_view(slice_node, volume)
    normal = array_of(slice_node.GetSliceToRAS())[:3, 2]
    return float(plane.origin @ normal)


@pytest.mark.parametrize("signs", [(-1, -1, 1), (1, 1, 1), (1, -1, -1), (-1, 1, -1)])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_in_the_middle_of_an_even_number_of_slices_the_one_that_is_drawn_is_meant(slicer_scene, orientation, signs):
    """Exactly on the edge of two slices, as after jumping to the volume's middle."""
    affine = np.diag([*(0.7 * np.array(signs)), 1.0])
    affine[:3, 3] = 13.37, -21.1, 7.77
    random = np.random.default_rng(1).integers(0, 1000, (20, 60, 50)).astype(np.int16)
    volume = Volume(random, affine)
    node = slicer_scene.add_volume(volume)
    display = node.GetDisplayNode()
    display.SetInterpolate(False)
    display.SetAutoWindowLevel(False)
    display.SetWindowLevelMinMax(0, 1000)
    view = slicer_scene.add_view("Red", SLICER_NAMES[orientation], (300, 300))
    view.show(node)
    assert view.node.GetSliceOffset() == pytest.approx(offset_of_a_slice(view.node, volume, orientation), abs=1e-6)
    view.go_to(volume.ijk_to_ras((24.5, 29.5, 9.5)))
    plane = plane_of_view(view.node, volume)
    assert plane.index == number_of_slices(volume, orientation) // 2  # of 0 to 19 it is 10, of 9.5 the upper
    shown = view.pixels()[..., 0].astype(float)
    for xy in np.random.default_rng(0).integers(120, 180, (40, 2)):
        ijk = volume.ras_to_ijk(ras_at(view.node, xy))
        in_slice = np.abs(np.delete(ijk, view_axes(volume, orientation)[2]) % 1 - 0.5).min() > 0.05
        ijk[view_axes(volume, orientation)[2]] = plane.index
        i, j, k = np.rint(ijk).astype(int)
        if in_slice and (0 <= i < 50 and 0 <= j < 60 and 0 <= k < 20):
            assert shown[xy[1], xy[0]] == pytest.approx(volume.array[k, j, i] * 0.255, abs=1.5)


def test_a_view_beside_the_volume_says_so(slicer_scene):
    looking = Looking(slicer_scene, straight_volume())
    looking.node.SetOrientation("Axial")
    looking.go_to((0, 0, 500))
    with pytest.raises(UserError, match="no slice of the volume"):
        plane_of_view(looking.node, looking.volume)


def test_real_rendered_views_agree(slicer_scene, phantom):
    """The picture at a position in the view is the plane's pixel there: checked with the rendered grey values."""
    from SAMFineTuneLib.images.slice_extraction import extract

    node = slicer_scene.add_volume(phantom)
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevelMinMax(-200, 400)
    node.GetDisplayNode().SetInterpolate(False)
    view = slicer_scene.add_view("Red", "Axial", (300, 300))
    view.show(node)
    angle = np.radians(20)
    for right, down in (((-1, 0, 0), (0, -1, 0)), ((-np.cos(angle), 0, np.sin(angle)), (0, -1, 0.2))):
        view.turn(right, down, phantom.ijk_to_ras((np.array(phantom.shape[::-1]) - 1) / 2))
        view.logic.FitSliceToAll()
        plane = plane_of_view(view.node, phantom)
        values = extract(phantom, plane)
        shown = view.pixels()[..., 0].astype(float)
        points = np.random.default_rng(0).integers(20, 280, (400, 2))
        pixels = np.rint(plane.ras_to_pixel([ras_at(view.node, xy) for xy in points])).astype(int)
        inside = ((pixels >= 1) & (pixels < np.array(plane.shape[::-1]) - 1)).all(axis=1)
        assert inside.sum() > 100
        ours = np.clip((values[pixels[inside, 1], pixels[inside, 0]] + 200) / 600 * 255, 0, 255)
        theirs = shown[points[inside, 1], points[inside, 0]]
        assert np.corrcoef(ours, theirs)[0, 1] > 0.9
