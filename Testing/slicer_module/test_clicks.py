"""From a mouse event in a slice view to changed pixels, through a real worker process."""

from __future__ import annotations

import numpy as np
import pytest
import qt
import slicer
from mrml.scenes import segment_voxels

from SAMFineTuneLib.images import aligned_plane
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.session.events import MaskChanged

LIVER, KIDNEY = 1, 4


class Work:
    """The panel over a phantom, and what a test wants to know of it."""

    def __init__(self, desktop, aligned=False, **options):
        """Args: aligned: whether the views run along the slices of the volume."""
        self.desktop = desktop
        self.node, self.volume, self.labels = desktop.load_phantom(**options)
        self.panel = desktop.open()
        if aligned:
            self.panel.input.align_views()

    @property
    def session(self):
        return self.panel.host.session

    @property
    def ui(self):
        return self.panel.prompts.ui

    def button(self, tool):
        return self.panel.prompts.buttons[tool]

    def voxels(self, segment_id=None):
        node = self.session.segmentation_node
        segment_id = segment_id or self.session.current_segment_id
        if node is None or not segment_id:
            return np.zeros(self.volume.shape, bool)
        return segment_voxels(node, segment_id, self.volume)

    def middle_of(self, value):
        """RAS of a voxel of an organ near its middle."""
        places = np.argwhere(self.labels == value)
        nearest = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
        return self.volume.ijk_to_ras(nearest[::-1])

    def covers(self, ras):
        k, j, i = np.round(self.volume.ras_to_ijk(ras)).astype(int)[::-1]
        return self.voxels()[k, j, i]

    def view(self, name, ras):
        view = self.desktop.views[name]
        view.go_to(ras)
        return view

    def click(self, name, ras):
        view = self.view(name, ras)
        view.click(view.xy_of(ras))

    def box_round(self, value=KIDNEY):
        """Draw a box round an organ on its middle slice, and wait for its mask."""
        self.panel.prompts.choose("box")
        ras = self.middle_of(value)
        view = self.view("Red", ras)
        places = np.argwhere(self.labels == value)
        places = places[places[:, 0] == np.round(self.volume.ras_to_ijk(ras)[2])][:, ::-1]
        low, high = places.min(axis=0) - (1, 1, 0), places.max(axis=0) + (1, 1, 0)
        view.drag(view.xy_of(self.volume.ijk_to_ras(low)), view.xy_of(self.volume.ijk_to_ras(high)))
        self.panel.prompts.choose(None)
        self.wait_for_voxels()
        self.rest()

    def filled_slices(self):
        return np.flatnonzero(self.voxels().any(axis=(1, 2)))

    def segment_ids(self):
        node = self.session.segmentation_node
        return list(node.GetSegmentation().GetSegmentIDs()) if node is not None else []

    def wait_for_voxels(self):
        self.desktop.wait(lambda: self.voxels().any())

    def wait_for_list(self, column, *texts):
        """Until the list of prompts, which follows the masks a moment later, shows these texts."""
        table = self.ui.promptsTable

        def shown():
            items = [table.item(row, column) for row in range(table.rowCount)]
            return len(items) == len(texts) and all(
                item is not None and item.text().startswith(text) for item, text in zip(items, texts, strict=True)
            )

        self.desktop.wait(shown)

    def rest(self):
        """Until the worker has answered everything, and all of it is shown."""
        self.desktop.wait(lambda: self.session.at_rest and not self.panel.host.jobs)


@pytest.fixture
def work(desktop):
    return Work(desktop)


def test_the_first_click_makes_the_mask(desktop):
    panel = desktop.open()
    assert desktop.messages() == [] and panel.prompts.tool is None
    node, volume, labels = desktop.load_phantom()
    work = Work.__new__(Work)
    work.desktop, work.node, work.volume, work.labels, work.panel = desktop, node, volume, labels, panel
    desktop.wait(lambda: panel.prompts.tool == "positive")
    assert panel.input.volume_node is node
    assert panel.prompts.buttons["positive"].checked
    ras = work.middle_of(LIVER)
    view = work.view("Red", ras)
    x, y = view.xy_of(ras)
    before = view.pixels()[y - 3:y + 4, x + 6:x + 13].astype(int)  # beside the point itself
    view.click((x, y))
    work.wait_for_voxels()
    assert work.covers(ras)
    segmentation = work.session.segmentation_node.GetSegmentation()
    segmentation.GetSegment(work.session.current_segment_id).SetColor(0.9, 0.2, 0.1)  # it is a random one, even grey
    after = view.pixels()[y - 3:y + 4, x + 6:x + 13].astype(int)
    assert np.ptp(before, axis=-1).max() == 0 and np.ptp(after, axis=-1).min() > 20  # it was grey, and is coloured
    assert panel.input.segmentation_node is work.session.segmentation_node
    work.wait_for_list(0, "Include")


@pytest.mark.parametrize("name", ["Red", "Green", "Yellow"])
def test_a_click_in_each_view_covers_its_pixel(work, name):
    ras = work.middle_of(KIDNEY)
    work.click(name, ras)
    work.wait_for_voxels()
    assert work.covers(ras)


def test_a_view_turned_by_20_degrees(work):
    ras = work.middle_of(LIVER)
    angle = np.radians(20)
    right, down = (np.cos(angle), 0, np.sin(angle)), (0, -1, 0)
    work.desktop.views["Red"].turn(right, down, ras)
    work.desktop.views["Red"].click(work.desktop.views["Red"].xy_of(ras))
    work.wait_for_voxels()
    assert work.covers(ras)
    work.wait_for_list(2, "oblique")


def test_views_are_aligned_with_the_volume_on_request(work):
    ui = work.panel.input.ui
    work.desktop.wait(lambda: ui.alignButton.enabled)
    ui.alignButton.click()
    work.desktop.wait(lambda: not ui.alignButton.enabled)
    work.click("Red", work.middle_of(KIDNEY))
    work.wait_for_voxels()
    assert len(np.flatnonzero(work.voxels().any(axis=(1, 2)))) == 1
    work.wait_for_list(2, "axial ")


def test_a_box_is_dragged(work):
    work.panel.segments.add()  # the views draw it from now on
    work.button("box").click()
    assert work.panel.prompts.tool == "box" and not work.button("positive").checked
    ras = work.middle_of(KIDNEY)
    view = work.view("Red", ras)
    x, y = view.xy_of(ras)
    props = view.renderer.GetViewProps().GetNumberOfItems()
    view.enter((x - 22, y + 22))
    view.press((x - 22, y + 22))
    view.move((x + 22, y - 22))
    assert view.renderer.GetViewProps().GetNumberOfItems() == props + 1
    assert not work.voxels().any()
    view.release((x + 22, y - 22))
    assert view.renderer.GetViewProps().GetNumberOfItems() <= props + 1  # the ROI's own pipeline may come
    work.wait_for_voxels()
    assert work.covers(ras)
    work.wait_for_list(0, "Box")


@pytest.mark.parametrize("segment", ["same", "another"])
def test_a_box_close_to_another_is_drawn_and_a_handle_is_pulled(work, segment):
    work.panel.input.align_views()
    work.panel.prompts.choose("box")
    view = work.view("Red", work.middle_of(KIDNEY))
    x, y = view.xy_of(work.middle_of(KIDNEY))
    view.drag((x - 22, y + 22), (x + 22, y - 22))
    work.wait_for_list(0, "Box")
    work.rest()
    if segment == "another":
        work.panel.segments.add()
        work.desktop.pass_time(0.1)
    view.drag((x - 27, y + 27), (x + 45, y - 45))  # seven pixels from the corner of the first one
    work.wait_for_list(0, "Box", "Box")
    work.rest()
    first, second = (info.prompt for info in work.session.prompts)
    width = np.ptp([first.corner_a, first.corner_b], axis=0)[0]
    assert np.isclose(np.ptp([second.corner_a, second.corner_b], axis=0)[0] / width, 72 / 44, rtol=0.05)
    view.drag((x + 45, y - 45), (x + 53, y - 53))  # right on a corner of the second one
    work.desktop.wait(lambda: work.session.prompts[1].prompt != second)
    assert len(work.session.prompts) == 2 and work.session.prompts[0].prompt == first


def test_a_click_with_the_box_tool_is_no_box(work):
    work.panel.prompts.choose("box")
    ras = work.middle_of(KIDNEY)
    work.click("Red", ras)
    work.desktop.pass_time(0.2)
    assert work.session.prompts == ()


def test_a_3d_box_goes_through_slices(work):
    work.panel.input.align_views()
    work.panel.prompts.choose("box3d")
    ras = work.middle_of(KIDNEY)
    view = work.view("Red", ras)
    x, y = view.xy_of(ras)
    view.drag((x - 20, y + 20), (x + 20, y - 20))
    work.desktop.wait(lambda: work.voxels().any(axis=(1, 2)).sum() > 3)


def test_a_scribble_and_one_to_exclude(work):
    ras = work.middle_of(LIVER)
    view = work.view("Red", ras)
    x, y = view.xy_of(ras)
    work.panel.prompts.choose("scribble+")
    view.drag((x - 15, y), (x + 15, y + 5), steps=8)
    work.wait_for_voxels()
    assert work.covers(ras)
    work.rest()
    before = work.voxels()
    work.panel.prompts.choose("scribble-")
    view.drag((x + 10, y - 20), (x + 10, y + 20), steps=8)
    work.desktop.wait(lambda: (work.voxels() != before).any())
    work.wait_for_list(0, "Scribble", "Scribble −")


def test_a_lasso_and_one_to_exclude(work):
    work.panel.input.align_views()
    ras = work.middle_of(LIVER)
    view = work.view("Red", ras)
    x, y = view.xy_of(ras)
    loop = [(x + 14 * np.cos(angle), y + 14 * np.sin(angle)) for angle in np.linspace(0, 2 * np.pi, 14)]
    for tool, center in (("lasso+", (0, 0)), ("lasso-", (20, 0))):
        work.button(tool).click()
        assert work.panel.prompts.tool == tool
        corners = [(int(a + center[0]), int(b + center[1])) for a, b in loop]
        view.enter(corners[0])
        view.press(corners[0])
        for corner in corners[1:]:
            view.move(corner)
        view.release(corners[-1])
        work.wait_for_voxels()
        work.rest()
    k, j, i = np.round(work.volume.ras_to_ijk(ras)).astype(int)[::-1]
    assert work.voxels()[k, j - 1:j + 2, i - 2:i + 1].all(), "what the first one encloses"
    excluded = np.round(work.volume.ras_to_ijk(view.ras_of((x + 24, y)))).astype(int)[::-1]
    assert not work.voxels()[tuple(excluded)], "what the second one encloses"
    work.wait_for_list(0, "Lasso", "Lasso −")


def test_zoom_and_slice_changes_pass_while_a_box_is_the_tool(work):
    work.panel.prompts.choose("box")
    view = work.view("Red", work.middle_of(LIVER))
    offset, width = view.node.GetSliceOffset(), view.node.GetFieldOfView()[0]
    view.enter((100, 100))
    view._event((100, 100), "MouseWheelForwardEvent")
    assert view.node.GetSliceOffset() != offset
    view._event((100, 100), "RightButtonPressEvent")
    view._event((100, 150), "MouseMoveEvent")
    view._event((100, 150), "RightButtonReleaseEvent")
    assert view.node.GetFieldOfView()[0] != width


def test_undo_redo_delete_and_jump(work):
    ras = work.middle_of(LIVER)
    work.click("Red", ras)
    work.wait_for_voxels()
    work.rest()
    one = work.voxels()
    work.panel.prompts.choose("negative")
    work.click("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    work.rest()
    work.panel.prompts.choose(None)
    work.desktop.wait(lambda: work.ui.undoButton.enabled)
    assert "Undo: " in work.ui.undoButton.toolTip
    work.ui.undoButton.click()
    work.desktop.wait(lambda: len(work.session.prompts) == 1 and (work.voxels() == one).all())
    work.desktop.wait(lambda: work.ui.redoButton.enabled)
    work.ui.redoButton.click()
    work.desktop.wait(lambda: work.ui.promptsTable.rowCount == 2)
    work.rest()
    work.ui.promptsTable.selectRow(1)
    work.ui.deleteButton.click()
    work.desktop.wait(lambda: work.ui.promptsTable.rowCount == 1 and (work.voxels() == one).all())
    work.desktop.views["Red"].go_to(ras + (0, 0, 30))
    work.ui.promptsTable.cellActivated.emit(0, 0)
    assert abs(work.desktop.views["Red"].node.GetSliceOffset() - ras[2]) < 0.1


def test_clearing(work):
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    first = work.session.current_segment_id
    work.panel.segments.add()
    work.click("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    work.wait_for_voxels()
    work.panel.prompt_list.clear_segment()
    work.desktop.wait(lambda: not work.voxels().any() and len(work.session.prompts) == 1)
    work.panel.prompt_list.clear_all()
    work.desktop.wait(lambda: not work.voxels(first).any() and work.session.prompts == ())


def test_a_second_segment_leaves_the_first_alone(work):
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    work.rest()
    first, kept = work.session.current_segment_id, work.voxels()
    work.panel.segments.ui.addButton.click()
    assert work.session.current_segment_id != first
    work.click("Red", work.middle_of(LIVER))  # the same place
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    work.rest()
    assert (work.voxels(first) == kept).all()
    assert not (work.voxels() & kept).any()
    work.panel.segments.ui.othersSelector.setCurrentIndex(1)  # may be overwritten
    work.click("Red", work.middle_of(LIVER) + (3, 0, 0))
    work.desktop.wait(lambda: (work.voxels(first) != kept).any())


def test_a_doubtful_answer_is_shown_as_doubtful_until_it_is_better(work):
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    work.rest()
    label = work.panel.segments.ui.doubtLabel
    assert not label.visible
    plane = aligned_plane(work.volume, "axial", 5)
    mask = np.zeros(plane.shape, bool)
    mask[5:9, 5:9] = True
    [info] = work.session.state.segments
    for score, shown in ((0.31, True), (0.82, False)):
        event = MaskChanged(info.value, plane, PackedMask.of(mask), score)
        work.panel.host.tell("MaskChanged", event)
        work.panel.segments.refresh()
        assert label.visible == shown
        assert (f"{info.name} on {plane} (predicted IoU 0.31)" in label.toolTip) == shown


def test_choosing_a_segment_in_the_table_directs_the_next_click(work):
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()
    first = work.session.current_segment_id
    work.panel.segments.add()
    work.panel.segments.ui.segmentsTable.setSelectedSegmentIDs([first])
    work.desktop.wait(lambda: work.session.current_segment_id == first)
    work.click("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    assert {info.segment_id for info in work.session.prompts} == {first}


def test_a_right_click_puts_the_tool_away(work):
    assert work.panel.prompts.tool == "positive"
    view = work.view("Red", work.middle_of(LIVER))
    view.enter((150, 150))
    view.move((150, 150))
    view._event((150, 150), "RightButtonPressEvent")
    view._event((150, 150), "RightButtonReleaseEvent")
    work.desktop.wait(lambda: work.panel.prompts.tool is None)
    assert not work.button("positive").checked


@pytest.mark.parametrize("tool", ["positive", "negative"])
def test_a_double_click_is_one_click_and_the_tool_stays(work, tool):
    """Slicer ends its place mode with it."""
    work.panel.prompts.choose(tool)
    ras = work.middle_of(LIVER)
    view = work.view("Red", ras)
    view.double_click(view.xy_of(ras))
    work.desktop.wait(lambda: work.session.prompts)
    work.rest()
    assert len(work.session.prompts) == 1 and work.panel.prompts.tool == tool and work.button(tool).checked
    view.click(view.xy_of(work.middle_of(LIVER)) + (12, 0))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)


def test_a_quick_second_drag_draws_too(work):
    work.panel.prompts.choose("box")
    x, y = work.view("Red", work.middle_of(LIVER)).xy_of(work.middle_of(LIVER))
    view = work.desktop.views["Red"]
    view.double_click((x, y))
    assert work.session.prompts == () and work.panel.prompts.tool == "box"
    view.click((x, y))
    view._event((x, y), "LeftButtonDoubleClickEvent")
    for step in (10, 20):
        view.move((x + step, y + step))
    view.release((x + 20, y + 20))
    work.desktop.wait(lambda: len(work.session.prompts) == 1)


def test_a_click_outside_the_volume_is_a_sentence(work):
    view = work.desktop.views["Red"]
    view.node.SetFieldOfView(900.0, 900.0, 1.0)
    view.click((8, 8))
    work.desktop.wait(lambda: work.desktop.messages())
    assert "outside the volume" in work.desktop.messages()[0]
    assert work.session.prompts == () and not work.voxels().any()


def test_keys(work):
    window = slicer.util.mainWindow()
    window.show()
    window.activateWindow()
    work.desktop.wait(lambda: window.isActiveWindow)
    work.panel.prompts.choose(None)
    qt.QTest.keyClick(window, qt.Qt.Key_P)
    assert work.panel.prompts.tool == "positive"
    qt.QTest.keyClick(window, qt.Qt.Key_O, qt.Qt.ShiftModifier)
    assert work.panel.prompts.tool == "box3d"
    qt.QTest.keyClick(window, qt.Qt.Key_Escape)
    assert work.panel.prompts.tool is None
    work.desktop.leave()
    qt.QTest.keyClick(window, qt.Qt.Key_P)
    assert work.panel.prompts.tool is None
    window.hide()
