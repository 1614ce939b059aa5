"""The volume with its contrast, and the list of segments."""

from __future__ import annotations

import types

import pytest
import qt
import slicer
import vtk
from mrml.scenes import image_of, matrix_of
from test_clicks import KIDNEY, Work


@pytest.fixture
def work(desktop):
    return Work(desktop, aligned=True)


def test_loading_a_volume_makes_no_segmentation_before_the_first_click(work):
    assert work.panel.prompts.tool == "positive" and work.session.segmentation_node is None
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0
    ras = work.middle_of(KIDNEY)
    work.view("Red", ras)
    work.click("Red", ras)
    work.wait_for_voxels()
    assert work.covers(ras) and len(work.segment_ids()) == 1
    work.click("Red", ras)  # and goes on, into the segment's own list
    work.desktop.wait(lambda: len(work.session.prompts) == 2)


def test_the_contrast(work):
    ui = work.panel.input.ui
    assert "abdomen" in ui.windowLabel.text
    ui.windowSelector.setCurrentIndex(ui.windowSelector.findData("ct-lung"))
    assert "-1350" in ui.windowLabel.text and work.session.window.high == 150
    ui.windowSelector.setCurrentIndex(ui.windowSelector.findData("custom"))
    assert not ui.windowRangeRow.isHidden()
    ui.lowSpinBox.value, ui.highSpinBox.value = 0, 200
    assert (work.session.window.low, work.session.window.high) == (0, 200)
    ui.highSpinBox.value = -5
    assert "empty" in ui.windowLabel.text and (work.session.window.low, work.session.window.high) == (0, 200)
    ui.highSpinBox.value = 50  # nothing is left of what was said while it was wrong
    assert "white from 50" in ui.windowLabel.text and work.desktop.messages() == []
    ui.windowSelector.setCurrentIndex(1)  # as displayed
    assert work.session.window is None


def test_the_preview_is_what_the_model_sees(work):
    ui = work.panel.input.ui
    ui.contrastSection.collapsed = False
    work.desktop.wait(lambda: ui.previewLabel.pixmap is not None and not ui.previewLabel.pixmap.isNull())
    image = ui.previewLabel.pixmap.toImage()
    grey = [qt.QColor(image.pixel(image.width() // 2, y)).red() for y in range(image.height())]
    assert min(grey) == 0 and max(grey) > 150


def test_the_preview_follows_the_browsed_frame_of_a_sequence(work):
    logic = slicer.vtkSlicerSequencesLogic()
    logic.SetMRMLScene(work.desktop.scene)
    sequence = work.desktop.slicer_scene.add("vtkMRMLSequenceNode", "cine")
    for number in range(2):
        frame = slicer.vtkMRMLScalarVolumeNode()
        frame.SetAndObserveImageData(image_of(work.volume.array[..., :: 1 - 2 * number]))
        frame.SetIJKToRASMatrix(matrix_of(work.volume.affine))
        sequence.SetDataNodeAtValue(frame, str(number))
    browser = work.desktop.slicer_scene.add("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    logic.UpdateProxyNodesFromSequences(browser)
    ui = work.panel.input.ui
    ui.volumeSelector.setCurrentNode(browser.GetProxyNode(sequence))
    work.box_round()
    ui.contrastSection.collapsed = False
    work.desktop.wait(lambda: not ui.previewLabel.pixmap.isNull())
    shown = [ui.previewLabel.pixmap.toImage()]
    browser.SetSelectedItemNumber(1)
    logic.UpdateProxyNodesFromSequences(browser)
    work.desktop.wait(lambda: ui.previewLabel.pixmap.toImage() != shown[0])
    assert work.session.volume.array[12, 64].tolist() == work.volume.array[12, 64].tolist(), "the masks keep theirs"


def test_a_colour_image_is_refused_with_a_sentence(work):
    node = work.desktop.scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "photo")
    image = vtk.vtkImageData()
    image.SetDimensions(4, 4, 1)
    image.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    node.SetAndObserveImageData(image)
    work.panel.input.ui.volumeSelector.setCurrentNode(node)
    assert any("values a voxel" in text for text in work.desktop.messages())
    work.desktop.pass_time(0.3)
    assert work.panel.input.volume_node is work.session.volume_node


def test_the_surface_is_shown_only_where_there_is_something_to_show(work):
    button = work.ui.show3DButton
    assert not button.enabled
    work.panel.segments.add()
    work.desktop.wait(lambda: button.enabled)
    work.panel.segments.remove()
    work.desktop.pass_time(0.5)
    assert not button.enabled


def test_a_table_that_chooses_by_itself_does_not_move_prompts_to_another_segment(work):
    """As Qt's views do when the chosen row goes."""
    from SAMFineTunePanels.qt_helpers import quiet

    for _ in range(3):
        work.panel.segments.add()
    work.desktop.pass_time(0.2)
    table, ids = work.panel.segments.ui.segmentsTable, work.segment_ids()
    with quiet(table):
        table.setSelectedSegmentIDs([ids[0]])
    work.session.current_segment_id = ids[1]
    work.desktop.pass_time(0.2)
    assert work.session.current_segment_id == ids[1] and table.selectedSegmentIDs() == (ids[1],)
    table.setSelectedSegmentIDs([ids[2]])
    work.desktop.pass_time(0.2)
    assert work.session.current_segment_id == ids[2]
    work.panel.segments.remove()
    work.session.current_segment_id = ids[1]
    work.desktop.pass_time(0.2)
    assert work.session.current_segment_id == ids[1] and table.selectedSegmentIDs() == (ids[1],)


def test_the_segment_editors_own_undo_gets_a_state_before_our_masks(work, monkeypatch):
    """Slicer's editor is not in the stand-in; what counts is that it is asked, and only on the same segmentation."""
    from SAMFineTunePanels.segment_list import save_undo_state

    class Editor:
        def __init__(self, node):
            self.node, self.saved = node, 0

        def segmentationNode(self):
            return self.node

        def saveStateForUndo(self):
            self.saved += 1

    ours = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    for node, saved in ((ours, 1), (other, 0)):
        editor = Editor(node)
        monkeypatch.setattr(slicer.modules, "SegmentEditorWidget", types.SimpleNamespace(editor=editor), raising=False)
        save_undo_state(ours)
        assert editor.saved == saved
    monkeypatch.delattr(slicer.modules, "SegmentEditorWidget")
    save_undo_state(ours)  # without the module: nothing to ask
