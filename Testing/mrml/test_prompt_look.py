"""What prompts look like, in rendered slice views."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("slicer")

from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.prompt_look import grabs, handles_of
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes
from SAMFineTuneLib.prompts import PointPrompt, ScribblePrompt
from SAMFineTuneLib.prompts.box_prompts import box_along_plane, box_on_slice

GREYS = (-1000, -200, 0, 200, 1000)  # bands of the picture, from black to white
COLOURS = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.35, 1.0, 0.25), (0.75, 0.05, 0.05), (0.5, 0.68, 0.5), (0.5, 0.5, 0.5))
MIDDLE = 40.0  # mm: of the slice on which things are


@pytest.fixture
def volume():
    """Five bands side by side, 20 mm each."""
    array = np.repeat(np.array(GREYS, np.int16), 10)[None, None, :] * np.ones((40, 50, 1), np.int16)
    return Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]))


@pytest.fixture
def bench(slicer_scene, volume):
    return Bench(slicer_scene, volume)


class Bench:
    """The picture with two segments on it, in three views."""

    def __init__(self, slicer_scene, volume):
        self.scene, self.volume = slicer_scene, volume
        node = slicer_scene.add_volume(volume)
        display = node.GetDisplayNode()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevelMinMax(-1000, 1000)
        self.segmentation = slicer_scene.add_segmentation(node)
        self.nodes = PromptNodes(slicer_scene.scene, node, self.segmentation)
        self.views = {}
        for name, orientation in (("Red", "Axial"), ("Green", "Coronal"), ("Yellow", "Sagittal")):
            self.views[name] = view = slicer_scene.add_view(name, orientation, (300, 300))
            view.show(node)
            view.go_to((MIDDLE, MIDDLE, MIDDLE))
        self.plane = aligned_plane(volume, "axial", int(MIDDLE / 2))

    def write(self, number, segment, prompt):
        self.nodes.write(number, segment, prompt, "axial", self.volume)
        return self.nodes.find(number)[0]

    def look(self, chosen="first"):
        self.nodes.look(chosen, [view.node for view in self.views.values()], self.volume)

    def box(self, number, segment, low, high, deep=False):
        corners = [(*low, MIDDLE), (*high, MIDDLE)]
        return self.write(number, segment, (box_along_plane if deep else box_on_slice)(self.plane, corners))

    def grey(self, ras, radius, view="Red"):
        """Brightness 0..1 of the pixels around a place, (2 radius + 1)² of them."""
        view = self.views[view]
        x, y = view.xy_of(ras)
        pixels = view.pixels()[y - radius:y + radius + 1, x - radius:x + radius + 1]
        return pixels @ (0.299, 0.587, 0.114) / 255


@pytest.mark.parametrize("chosen", ["first", "second"])
def test_points_stand_out_on_any_picture_and_any_segment(bench, chosen):
    segment = bench.segmentation.GetSegmentation().GetSegment("first")
    places = [(10.0 + 20 * band, y, MIDDLE) for band in range(5) for y in (30.0, 60.0)]
    for number, place in enumerate(places, 1):
        bench.write(number, "first", PointPrompt(place, place[1] < 50))
    for color in COLOURS:
        segment.SetColor(*color)
        bench.look(chosen)
        for place in places:
            seen = bench.grey(place, 9)
            assert np.ptp(seen) > 0.5, f"at {place} on a segment of colour {color}"


def test_what_includes_and_what_excludes_differ_without_colour(bench):
    bench.write(1, "first", PointPrompt((50.0, 30.0, MIDDLE)))
    bench.write(2, "first", PointPrompt((50.0, 60.0, MIDDLE), False))
    bench.look()
    include, exclude = bench.grey((50.0, 30.0, MIDDLE), 9), bench.grey((50.0, 60.0, MIDDLE), 9)
    assert include[9, 9] > 0.6 and exclude[9, 9] < 0.3  # light and dark in the middle
    assert include.min() < 0.1 and exclude.max() > 0.9  # dark and light rims
    shapes = [np.abs(seen - 0.5) > 0.2 for seen in (include, exclude)]
    assert (shapes[0] != shapes[1]).mean() > 0.1


def test_points_are_larger_in_the_chosen_segment(bench):
    bench.write(1, "first", PointPrompt((50.0, 50.0, MIDDLE)))
    sizes = []
    for chosen in ("first", "second"):
        bench.look(chosen)
        sizes.append((np.abs(bench.grey((50.0, 50.0, MIDDLE), 14) - 0.5) > 0.2).sum() ** 0.5)
    assert sizes[0] > 10 and sizes[1] < 0.9 * sizes[0]  # pixels, about


def test_scribbles_stand_out_and_differ(bench):
    for number, y, positive in ((1, 30.0, True), (2, 60.0, False)):
        bench.write(number, "first", ScribblePrompt(tuple((x, y, MIDDLE) for x in range(5, 96, 5)), positive))
    bench.look()
    for band in range(5):
        light, dark = (bench.grey((10.0 + 20 * band, y, MIDDLE), 4) for y in (30.0, 60.0))
        assert np.ptp(light) > 0.5 and np.ptp(dark) > 0.5
        assert light[4, 4] > 0.6 > 0.35 > dark[4, 4]


def test_handles_are_where_the_box_is_drawn_and_only_for_the_chosen_segment(bench):
    def pictures():
        return {name: view.pixels() for name, view in bench.views.items()}

    empty = pictures()
    node = bench.box(1, "first", (25, 25), (75, 65))
    bench.look("second")
    plain = pictures()
    assert (plain["Red"] != empty["Red"]).any()
    bench.look("first")
    handled = pictures()
    changed = (handled["Red"] != plain["Red"]).any(axis=-1)
    for corner in ((25, 25), (25, 65), (75, 25), (75, 65)):
        x, y = bench.views["Red"].xy_of((*corner, MIDDLE))
        assert changed[y - 3:y + 4, x - 3:x + 4].any()
    for name in ("Green", "Yellow"):  # the views that cut across it
        assert (handled[name] == empty[name]).all()
    bench.views["Red"].go_to((50, 50, MIDDLE + 6))
    assert len(handles_of(node, bench.views["Red"].node)) == 0
    bench.views["Red"].turn((1, 0, 0.3), (0, -1, 0), (50, 50, MIDDLE))
    bench.look("first")
    assert not node.GetDisplayNode().GetHandlesInteractive()


def test_a_3d_box_has_handles_in_every_slice_view(bench):
    node = bench.box(1, "first", (25, 25), (75, 65), deep=True)
    bench.look("first")
    for view in bench.views.values():
        view.render()
        assert len(handles_of(node, view.node)) == 9
    bench.look("second")
    assert all(len(handles_of(node, view.node)) == 0 for view in bench.views.values())


def test_nothing_is_shown_in_3d_views(bench):
    bench.box(1, "first", (25, 25), (75, 65), deep=True)
    bench.write(2, "first", PointPrompt((50.0, 50.0, MIDDLE)))
    bench.write(3, "second", ScribblePrompt(((50.0, 50.0, MIDDLE), (60.0, 50.0, MIDDLE))))
    bench.look()
    for node in bench.nodes.nodes():
        for number in range(node.GetNumberOfDisplayNodes()):
            assert not node.GetNthDisplayNode(number).GetVisibility3D()


@pytest.mark.parametrize("deep", [False, True])
def test_handles_are_where_slicer_has_them(bench, deep):
    """A mouse on each of them wakes Slicer's own handle."""
    node = bench.box(1, "first", (25, 25), (75, 65), deep)
    bench.look()
    display = node.GetDisplayNode()
    kinds = (display.ComponentScaleHandle, display.ComponentTranslationHandle, display.ComponentControlPoint)
    for view in bench.views.values() if deep else [bench.views["Red"]]:
        view.render()
        for xy in handles_of(node, view.node):
            view.enter((2, 2))
            view.move((2, 2))
            assert display.GetActiveComponentType() not in kinds
            view.move(xy)
            assert display.GetActiveComponentType() in kinds
        view.leave()


def test_a_press_takes_a_handle_only_right_on_it(bench):
    node = bench.box(1, "first", (25, 25), (75, 65))
    bench.look()
    view = bench.views["Red"]
    screen = (1600, 1000)
    for corner in ((25, 25), (75, 65)):
        x, y = view.xy_of((*corner, MIDDLE))
        assert grabs(node, view.node, (x, y), screen) and grabs(node, view.node, (x - 3, y + 1), screen)
        for offset in ((-7, 0), (0, 7), (-5, -5)):
            assert not grabs(node, view.node, (x + offset[0], y + offset[1]), screen)
    bench.look("second")
    assert not grabs(node, view.node, view.xy_of((25, 25, MIDDLE)), screen)


def test_a_saved_scene_looks_the_same(bench, load_mrb, tmp_path):
    place = (50.0, 30.0, MIDDLE)
    bench.write(1, "first", PointPrompt(place))
    bench.write(2, "first", PointPrompt((50.0, 60.0, MIDDLE), False))
    bench.look()
    assert bench.scene.scene.WriteToMRB(str(tmp_path / "scene.mrb"), None)
    bench.scene.scene.Clear(False)
    load_mrb(tmp_path / "scene.mrb", bench.scene)
    view = bench.views["Red"]
    view.go_to(place)
    seen = bench.grey(place, 9)
    assert seen[9, 9] > 0.6 and seen.min() < 0.1  # the core still lies on its rim


def test_lists_of_older_scenes_get_their_rims(bench):
    node = bench.write(1, "first", PointPrompt((50.0, 30.0, MIDDLE)))
    bench.scene.scene.RemoveNode(node.GetNthDisplayNode(1))
    assert node.GetNumberOfDisplayNodes() == 1
    bench.look()
    assert node.GetNumberOfDisplayNodes() == 2
    assert np.ptp(bench.grey((50.0, 30.0, MIDDLE), 9)) > 0.5


def test_a_look_that_is_right_draws_nothing_anew(bench):
    bench.box(1, "first", (25, 25), (75, 65))
    bench.write(2, "first", PointPrompt((50.0, 50.0, MIDDLE)))
    bench.write(3, "second", PointPrompt((60.0, 50.0, MIDDLE), False))
    bench.look()
    before = [view.renders_asked_for for view in bench.views.values()]
    bench.look()
    assert [view.renders_asked_for for view in bench.views.values()] == before
