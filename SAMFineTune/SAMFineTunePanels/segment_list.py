"""The list of segments, which is Slicer's own; prompts go to the selected one."""

import slicer
from slicer.i18n import tr as _

from .qt_helpers import choose_in, chosen_in, enable, fill_menu, fit_height, quiet, set_elided

OTHERS = (
    ("protected", _("Keep their voxels")),
    ("overwritten", _("May be overwritten")),
    ("editor", _("As in the Segment Editor")),
)
_ROWS = (3, 5)  # segments seen at once: at least, at most


class SegmentList:
    """The list follows the session and the session follows the list."""

    def __init__(self, host, ui):
        self.host, self.ui = host, ui
        self._node = None
        self._doubtful = {}  # low predicted IoU by segment and plane
        self._agreed = None  # the segment that list and session had selected when last compared
        fill_menu(ui.othersSelector, OTHERS)
        ui.segmentsTable.setSelectionMode(1)  # QAbstractItemView.SingleSelection
        self._count = 0  # number of segments for which the list has its height
        fit_height(ui.segmentsTable, 0, *_ROWS)
        host.connect(
            (ui.segmentsTable, "selectionChanged(QItemSelection,QItemSelection)", self._selected),
            (ui.addButton, "clicked()", self.add),
            (ui.removeButton, "clicked()", self.remove),
            (ui.othersSelector, "currentIndexChanged(int)", self._others_chosen),
            (ui.editorButton, "clicked()", self.open_editor),
        )
        host.listen("Turn", self.refresh)
        host.listen("SessionStarted", self.show_session)
        host.listen("MaskChanged", self._judge)

    def close(self):
        self._show(None)

    def refresh(self):
        session = self.host.session
        self._show(session.segmentation_node if session is not None else None)
        if session is None:
            return
        self._agree(session)
        self._show_doubts(session)
        there = self._node is not None
        count = self._node.GetSegmentation().GetNumberOfSegments() if there else 0
        if count != self._count:
            self._count = count
            fit_height(self.ui.segmentsTable, count, *_ROWS)
        enable(
            (self.ui.addButton, session.volume_node is not None),
            (self.ui.removeButton, there and session.current_segment_id),
            (self.ui.editorButton, there),
        )

    # ---- doubtful answers

    def _judge(self, event):
        """Remember which answers are doubtful: the user should check those."""
        from SAMFineTuneLib.session.doubts import is_doubtful

        place = event.segment, event.plane.key
        self._doubtful.pop(place, None)
        if event.packed is not None and event.score is not None and is_doubtful(event.score, event.packed):
            self._doubtful[place] = event.plane, event.score

    def _show_doubts(self, session):
        names = {info.value: info.name for info in session.state.segments} if session.state is not None else {}
        doubts = [
            _("{segment} on {slice} (predicted IoU {score:.2f})").format(segment=names[value], slice=plane, score=score)
            for (value, _key), (plane, score) in sorted(self._doubtful.items(), key=lambda item: item[1][1])
            if value in names
        ]
        text = _("Doubtful, please check: {answers}").format(answers="; ".join(doubts)) if doubts else ""
        self.ui.doubtLabel.setVisible(bool(doubts))
        set_elided(self.ui.doubtLabel, text)

    def _show(self, node):
        if node is not self._node:
            self._node = node
            self._agreed = None
            with quiet(self.ui.segmentsTable):
                self.ui.segmentsTable.setSegmentationNode(node)
            self.ui.show3DButton.setSegmentationNode(node)

    def _agree(self, session):
        """Follow whichever selection changed last, comparing at every turn, because some versions of Slicer send no
        signal. When both changed, follow the session: the list selects a neighbour by itself when a segment is removed.
        """
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
        """Add a segment and select it; the first one comes with a segmentation."""
        session = self.host.start()
        if session.volume_node is None:
            self.host.warn(_("Choose a volume first."))
            return
        if session.segmentation_node is None:
            self.host.act(session.make_segmentation)
        if session.segmentation_node is not None:
            added = session.segmentation_node.GetSegmentation().AddEmptySegment("")
            self.host.act(setattr, session, "current_segment_id", added)
        self.refresh()

    def remove(self):
        """Remove the selected segment; the session removes its prompts."""
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
        """Select what the scene says was chosen."""
        self._doubtful = {}
        with quiet(self.ui.othersSelector):
            choose_in(self.ui.othersSelector, session.parameters.get("OtherSegments"))
        self._apply_others(session)
        segmentation, selected = session.segmentation_node, session.parameters.get("Segment")
        if segmentation is not None and segmentation.GetSegmentation().GetSegment(selected) is not None:
            session.current_segment_id = selected

    def _apply_others(self, session):
        """Choose the segment editor node whose masking says where masks may go."""
        choice, node = chosen_in(self.ui.othersSelector), None
        if choice == "editor":
            node = _editor_node("SegmentEditor")
        elif choice == "overwritten":
            node = _editor_node("SAMFineTune")
            node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteAllSegments)
        session.editor_node = node

    def open_editor(self):
        """Open Slicer's Segment Editor on the same segmentation and volume."""
        session = self.host.session
        if session is None or session.segmentation_node is None:
            return
        segmentation, volume = session.segmentation_node, session.volume_node
        slicer.util.selectModule("SegmentEditor")
        editor = _segment_editor()
        if editor is not None:
            editor.setSegmentationNode(segmentation)
            editor.setSourceVolumeNode(volume)


def save_undo_state(segmentation_node):
    """Save a state for the Segment Editor's own Undo, when the editor is on this segmentation."""
    editor = _segment_editor()
    if editor is not None and editor.segmentationNode() is segmentation_node:
        editor.saveStateForUndo()


def _segment_editor():
    return getattr(getattr(slicer.modules, "SegmentEditorWidget", None), "editor", None)


def _editor_node(tag):
    """The vtkMRMLSegmentEditorNode of that singleton tag: Slicer's own module has "SegmentEditor"."""
    node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.vtkMRMLSegmentEditorNode()
        node.SetSingletonTag(tag)
        node = slicer.mrmlScene.AddNode(node)
    return node
