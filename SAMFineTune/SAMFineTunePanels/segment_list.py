"""Segments: Slicer's own table of them; prompts go to the selected one."""

import slicer
from slicer.i18n import tr as _

from .qt_helpers import Connections, choose_in, chosen_in, fill_menu, load_ui, quiet

OTHERS = (
    ("protected", _("Keep their voxels")),
    ("overwritten", _("May be overwritten")),
    ("editor", _("As in the Segment Editor")),
)


class SegmentsSection:
    """The table follows the session and the session follows the table."""

    def __init__(self, host, resource_path):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "Segments")
        self.widget.setMRMLScene(slicer.mrmlScene)
        self._connections = Connections()
        self._node = None
        self._agreed = None  # the segment that table and session had selected when last looked
        ui = self.ui
        fill_menu(ui.othersSelector, OTHERS)
        ui.segmentsTable.setSelectionMode(1)  # QAbstractItemView.SingleSelection
        for sender, signal, handler in (
            (ui.segmentsTable, "selectionChanged(QItemSelection,QItemSelection)", self._selected),
            (ui.addButton, "clicked()", self.add),
            (ui.removeButton, "clicked()", self.remove),
            (ui.othersSelector, "currentIndexChanged(int)", self._others_chosen),
            (ui.editorButton, "clicked()", self.open_editor),
        ):
            self._connections.add(sender, signal, handler)
        host.listen("Turn", self.refresh)
        host.listen("SessionStarted", self.show_session)

    def close(self):
        self._connections.close()
        self._show(None)
        self.widget.setMRMLScene(None)

    def refresh(self):
        session = self.host.session
        self._show(session.segmentation_node if session is not None else None)
        if session is None:
            return
        self._agree(session)
        there = self._node is not None
        for button, usable in (
            (self.ui.addButton, session.volume_node is not None),
            (self.ui.removeButton, there and bool(session.current_segment_id)),
            (self.ui.show3DButton, there),
            (self.ui.editorButton, there),
        ):
            if button.enabled != usable:
                button.setEnabled(usable)

    def _show(self, node):
        if node is self._node:
            return
        self._node = node
        self._agreed = None
        with quiet(self.ui.segmentsTable):
            self.ui.segmentsTable.setSegmentationNode(node)
        self.ui.show3DButton.setSegmentationNode(node)

    def _agree(self, session):
        """Whoever changed last is followed. Compared every turn: no version of Slicer can fail to tell. When both did,
        the session is: the table chooses a neighbour by itself when a segment goes."""
        selected = (list(self.ui.segmentsTable.selectedSegmentIDs()) or [None])[0]
        current = session.current_segment_id
        if selected is not None and selected != self._agreed and current == self._agreed:
            self._agreed = selected
            self.host.act(setattr, session, "current_segment_id", selected)
        elif current != self._agreed or (current and selected is None):
            self._agreed = current
            with quiet(self.ui.segmentsTable):
                self.ui.segmentsTable.setSelectedSegmentIDs([current] if current else [])
        if self._agreed:
            session.parameters.set("Segment", self._agreed)  # selected again when the scene is loaded

    def _selected(self, selected, deselected):
        if self.host.session is not None:
            self._agree(self.host.session)

    def add(self):
        """A new segment, selected; the segmentation is made with the first one."""
        session = self.host.start()
        if session.volume_node is None:
            self.host.warn(_("Choose a volume first."))
            return
        if session.segmentation_node is None:
            self.host.act(session.set_segmentation_node, new_segmentation(session.volume_node))
        if session.segmentation_node is not None:
            session.current_segment_id = session.segmentation_node.GetSegmentation().AddEmptySegment("")
        self.refresh()

    def remove(self):
        """The selected segment, with its prompts, which the session takes with it."""
        session = self.host.session
        if session is not None and session.current_segment_id:
            session.segmentation_node.GetSegmentation().RemoveSegment(session.current_segment_id)
            self.host.wake()

    # ---- other segments

    def _others_chosen(self, index):
        session = self.host.session
        if session is not None:
            session.parameters.set("OtherSegments", chosen_in(self.ui.othersSelector))
            self._apply_others(session)

    def show_session(self, session):
        """What the scene says was chosen."""
        with quiet(self.ui.othersSelector):
            choose_in(self.ui.othersSelector, session.parameters.get("OtherSegments"))
        self._apply_others(session)
        segmentation, selected = session.segmentation_node, session.parameters.get("Segment")
        if segmentation is not None and segmentation.GetSegmentation().GetSegment(selected) is not None:
            session.current_segment_id = selected

    def _apply_others(self, session):
        """Which segment editor node says where masks may go."""
        choice = chosen_in(self.ui.othersSelector)
        if choice == "protected":
            session.editor_node = None
        elif choice == "editor":
            session.editor_node = editor_node("SegmentEditor")
        else:
            node = editor_node("SAMFineTune")
            node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
            session.editor_node = node

    def open_editor(self):
        """Slicer's Segment Editor on the same segmentation and volume."""
        session = self.host.session
        if session is None or session.segmentation_node is None:
            return
        segmentation, volume = session.segmentation_node, session.volume_node
        slicer.util.selectModule("SegmentEditor")
        editor = getattr(getattr(slicer.modules, "SegmentEditorWidget", None), "editor", None)
        if editor is not None:
            editor.setSegmentationNode(segmentation)
            editor.setSourceVolumeNode(volume)


def save_undo_state(segmentation_node):
    """A step for the Segment Editor's own Undo, when the editor is on this segmentation."""
    editor = getattr(getattr(slicer.modules, "SegmentEditorWidget", None), "editor", None)
    if editor is not None and editor.segmentationNode() is segmentation_node:
        editor.saveStateForUndo()


def new_segmentation(volume_node):
    """An empty one in the geometry of a volume, moving with it."""
    scene = slicer.mrmlScene
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", scene.GenerateUniqueName("Segmentation"))
    node.CreateDefaultDisplayNodes()
    # The transform first: the geometry that follows is relative to it.
    node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
    return node


def editor_node(tag):
    """The vtkMRMLSegmentEditorNode of that singleton tag: Slicer's own module has "SegmentEditor"."""
    node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.vtkMRMLSegmentEditorNode()
        node.SetSingletonTag(tag)
        node = slicer.mrmlScene.AddNode(node)
    return node
