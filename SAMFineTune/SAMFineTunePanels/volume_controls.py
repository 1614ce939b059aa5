"""The volume, and the segmentation that masks go into."""

import time

import slicer

from .qt_helpers import enable, quiet, succeeded
from .shown_views import show_volume, shown_slice_nodes, views_are_oblique

LOOK_EVERY = 0.3  # s between two checks of the views
# With Qt 6 a selector emits the first one only when the name of the node differs, too.
_CHOSEN = ("currentNodeChanged(vtkMRMLNode*)", "nodeActivated(vtkMRMLNode*)")


class VolumeControls:
    """Both selectors follow the session, and the session follows them."""

    def __init__(self, host, ui, contrast):
        self.host, self.ui = host, ui
        self._contrast = contrast
        self.declined = False  # whether the user has chosen to have no volume
        self._look_after = 0.0
        self.removing = 0  # nodes that the scene is removing at the moment, one because of another
        self.rebuilding = False  # whether the scene is being loaded or closed
        for selector, choose in (
            (ui.volumeSelector, self.choose_volume), (ui.segmentationSelector, self._segmentation_chosen)
        ):  # fmt: skip
            host.connect(*((selector, signal, self._if_chosen(choose)) for signal in _CHOSEN))
        host.connect((ui.alignButton, "clicked()", self.align_views))
        host.listen("Turn", self._refresh)
        host.listen("SessionStarted", lambda session: self.show_session())

    def _if_chosen(self, choose):
        """Wrap a handler of the selectors. When a node is removed they move to a neighbour, and when a scene is loaded
        or closed to none: the user has not chosen that.
        """
        return lambda node: None if self.removing or self.rebuilding else choose(node)

    @property
    def volume_node(self):
        return self.ui.volumeSelector.currentNode()

    @property
    def segmentation_node(self):
        return self.ui.segmentationSelector.currentNode()

    def show_session(self):
        """Select what the session works on, without choosing it again."""
        session = self.host.session
        if session is not None:
            self._follow(session)
            self._contrast.show_session(session)

    def choose_volume(self, node):
        """Work on a volume from now on; None for no volume."""
        for _step in self.choosing_steps(node):
            pass

    def choosing_steps(self, node, window=None):
        """Steps to another volume: with its own segmentation and its own contrast, `window` where that is known."""
        from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

        session = self.host.start()
        if node is session.volume_node:
            return
        if node is not None and not succeeded(self.host, volume_from_node, node):
            return  # the former volume stays; the panel offers one that is still loading again
        self.declined = node is None
        self.host.tell("Dismiss", None)
        self.host.tell("VolumeLeft", None)  # otherwise placing prompts would restart at each step
        yield
        self.host.act(session.set_segmentation_node, None)
        yield
        self.host.act(session.set_volume_node, node)
        if node is not None and session.volume_node is node:
            yield
            self.host.act(session.set_segmentation_node, segmentation_of(node))
            self._contrast.begin(window)
            yield
            show_volume(node)
        self.show_session()
        if session.volume_node is not None:
            yield
            self.host.tell("VolumeChosen", node)

    def _segmentation_chosen(self, node):
        from SAMFineTuneLib.mrml.segments.labelmaps import set_up_on

        session = self.host.start()
        if node is not session.segmentation_node:
            if node is not None and session.volume_node is not None:
                if node.GetSegmentation().GetNumberOfSegments() == 0:
                    set_up_on(node, session.volume_node)
                node.CreateDefaultDisplayNodes()  # a segmentation that a script has made may have none
            self.host.act(session.set_segmentation_node, node)
            self.show_session()

    def _refresh(self):
        session = self.host.session
        if session is not None:
            self._follow(session)
        if time.monotonic() >= self._look_after:
            self._look_after = time.monotonic() + LOOK_EVERY
            has_volume = session is not None and session.volume is not None
            enable((self.ui.alignButton, has_volume and views_are_oblique(session.volume)))

    def _follow(self, session):
        """Follow nodes that come and go elsewhere: the first click makes a segmentation, another module deletes one."""
        for selector, node in (
            (self.ui.volumeSelector, session.volume_node),
            (self.ui.segmentationSelector, session.segmentation_node),
        ):
            if selector.currentNode() is not node:
                with quiet(selector):
                    selector.setCurrentNode(node)

    def align_views(self):
        """Turn the slice views along the slices of the volume."""
        session = self.host.session
        if session is not None and session.volume_node is not None:
            for node in shown_slice_nodes():
                node.RotateToVolumePlane(session.volume_node)
            self._look_after = 0.0


def segmentation_of(volume_node):
    """The segmentation that was made on a volume, the newest first; None when there is none."""
    for node in reversed(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")):
        reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
        if reference is volume_node and not node.GetHideFromEditors():
            return node
    return None
