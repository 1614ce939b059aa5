"""Input: the volume, where masks go, and in which grey values the model sees it."""

import time

import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import Connections, choose_in, chosen_in, fill_menu, load_ui, pixmap_of, quiet, set_text, set_visible

AUTOMATIC, DISPLAYED, CUSTOM = "auto", "displayed", "custom"
LOOK_EVERY = 0.3  # s between two looks at the views


class InputSection:
    """Volume, segmentation and window of the session, and a picture of what the model sees."""

    def __init__(self, host, resource_path):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "Input")
        self.widget.setMRMLScene(slicer.mrmlScene)
        self._connections = Connections()
        self._windows = []  # what the entries of the selector mean
        self._window = None  # in which the model sees the volume
        self.declined = False  # whether the user has chosen to have no volume
        self._previewed = None
        self._look_after = 0.0
        self._fill_windows(None)
        ui = self.ui
        for sender, signal, handler in (
            (ui.volumeSelector, "currentNodeChanged(vtkMRMLNode*)", self._volume_chosen),
            (ui.segmentationSelector, "currentNodeChanged(vtkMRMLNode*)", self._segmentation_chosen),
            (ui.windowSelector, "currentIndexChanged(int)", self._window_chosen),
            (ui.alignButton, "clicked()", self.align_views),
            (ui.lowSpinBox, "valueChanged(double)", self._range_changed),
            (ui.highSpinBox, "valueChanged(double)", self._range_changed),
        ):
            self._connections.add(sender, signal, handler)
        host.listen("Turn", self.refresh)
        host.listen("StateChanged", self._state_changed)
        host.listen("SessionStarted", lambda session: self.show_session())
        set_visible(ui.rangeRow, False)
        set_visible(ui.alignRow, False)

    def close(self):
        self._connections.close()
        # No widget may observe the scene any longer than the section lives.
        self.widget.setMRMLScene(None)

    # ---- volume and segmentation

    @property
    def volume_node(self):
        return self.ui.volumeSelector.currentNode()

    @property
    def segmentation_node(self):
        return self.ui.segmentationSelector.currentNode()

    def show_session(self):
        """Select what the session works on, without choosing anything anew."""
        session = self.host.session
        if session is not None:
            self._follow_session(session)
            self._fill_windows(session.volume)
            self._show_choice(session)

    def choose_volume(self, node):
        self.ui.volumeSelector.setCurrentNode(node)

    def _volume_chosen(self, node):
        """Another volume: with its own segmentation, seen in its own window."""
        session = self.host.start()
        if node is session.volume_node:
            return
        if node is not None and node.GetImageData() is None:
            return  # it is being loaded; `offer` comes back to it
        self.declined = node is None
        self.host.tell("Dismiss", None)
        self.host.act(session.set_segmentation_node, None)
        self.host.act(session.set_volume_node, node)
        if node is not None and session.volume_node is node:
            self.host.act(session.set_segmentation_node, segmentation_of(node))
            if self.window_choice == CUSTOM:
                choose_in(self.ui.windowSelector, AUTOMATIC)
            self._apply_window()
            self._show_in_views(node)
        self.show_session()
        if session.volume_node is not None:
            self.host.tell("VolumeChosen", node)

    def _show_in_views(self, node):
        """Somebody who picks a volume wants to see it; views that show it already are left alone."""
        composites = slicer.mrmlScene.GetNodesByClass("vtkMRMLSliceCompositeNode")
        composites.UnRegister(None)
        shown = [composites.GetItemAsObject(n).GetBackgroundVolumeID() for n in range(composites.GetNumberOfItems())]
        if node.GetID() not in shown and shown:
            slicer.util.setSliceViewerLayers(background=node, fit=True)

    def _segmentation_chosen(self, node):
        session = self.host.start()
        if node is not session.segmentation_node:
            if node is not None and session.volume_node is not None:
                _prepare(node, session.volume_node)
            self.host.act(session.set_segmentation_node, node)
            self.show_session()

    # ---- window

    def _fill_windows(self, volume):
        from SAMFineTuneLib.images.intensity_window import CT_PRESETS

        entries = [(AUTOMATIC, _("Automatic")), (DISPLAYED, _("As displayed"))]
        if volume is None or volume.modality in ("", "CT"):
            for name, (level, width) in CT_PRESETS.items():
                label = _("CT {name} (level {level:g}, width {width:g})").format(name=name, level=level, width=width)
                entries.append(("ct-" + name, label))
        entries += [("percentiles", _("Percentiles 0.5 to 99.5")), ("minmax", _("Lowest to highest value"))]
        entries.append((CUSTOM, _("Range…")))
        names = [name for name, label in entries]
        if names == self._windows:
            return
        selector = self.ui.windowSelector
        before = chosen_in(selector)
        self._windows = names
        with quiet(selector):
            fill_menu(selector, entries, before)

    @property
    def window_choice(self):
        return chosen_in(self.ui.windowSelector)

    def _show_choice(self, session):
        """What the scene says was chosen, as after loading it."""
        choice = session.parameters.get("Contrast")
        if choice in self._windows and choice != self.window_choice:
            with quiet(self.ui.windowSelector):
                choose_in(self.ui.windowSelector, choice)
        set_visible(self.ui.rangeRow, self.window_choice == CUSTOM)
        if session.window is not None:
            self._show_window(session.window)
            if self.window_choice == CUSTOM:
                with quiet(self.ui.lowSpinBox, self.ui.highSpinBox):
                    self.ui.lowSpinBox.value, self.ui.highSpinBox.value = session.window.low, session.window.high

    def _window_chosen(self, index):
        set_visible(self.ui.rangeRow, self.window_choice == CUSTOM)
        self._apply_window()

    def _range_changed(self, value):
        if self.window_choice == CUSTOM:
            self._apply_window()

    def _apply_window(self):
        session = self.host.session
        if session is None or session.volume is None:
            return
        self.host.act(self._set_window, session)

    def _set_window(self, session):
        from SAMFineTuneLib.images.intensity_window import IntensityWindow, choose_window

        choice = self.window_choice
        if choice == DISPLAYED:
            window = None  # the session follows it
        elif choice == CUSTOM:
            window = IntensityWindow(self.ui.lowSpinBox.value, self.ui.highSpinBox.value, _("as given"))
        else:
            window = choose_window(session.volume, None if choice == AUTOMATIC else choice)
        session.set_window(window)
        session.parameters.set("Contrast", choice)
        if window is not None:
            self._show_window(window)

    def _state_changed(self, event):
        if event.window is not None:
            self._show_window(event.window)

    def _show_window(self, window):
        self._window = window
        sentence = _("Black up to {low:g}, white from {high:g}{name}.").format(
            low=window.low, high=window.high, name=f": {window.name}" if window.name else "")
        set_text(self.ui.windowLabel, sentence)
        set_text(self.ui.shortWindowLabel, _("{low:g} to {high:g}").format(low=window.low, high=window.high))
        self.ui.shortWindowLabel.toolTip = sentence
        if self.window_choice != CUSTOM:
            with quiet(self.ui.lowSpinBox, self.ui.highSpinBox):
                self.ui.lowSpinBox.value = window.low
                self.ui.highSpinBox.value = window.high

    def _forget_window(self):
        """Forget the contrast: its volume is gone."""
        self._window = self._previewed = None
        for label in (self.ui.windowLabel, self.ui.shortWindowLabel):
            set_text(label, "")
        self.ui.shortWindowLabel.toolTip = ""
        self.ui.previewLabel.clear()

    # ---- preview

    def refresh(self):
        session = self.host.session
        if session is None:
            set_visible(self.ui.alignRow, False)
            if self._window is not None:
                self._forget_window()
            return
        self._follow_session(session)
        if time.monotonic() < self._look_after:
            return
        self._look_after = time.monotonic() + LOOK_EVERY
        set_visible(self.ui.alignRow, session.volume is not None and self._views_are_oblique(session.volume))
        if not self.ui.previewBox.collapsed and self.ui.previewLabel.visible and session.volume is not None:
            self._show_preview(session)

    def _follow_session(self, session):
        """Nodes come and go by others' hands: the first click makes a segmentation, another module deletes one."""
        for selector, node in (
            (self.ui.volumeSelector, session.volume_node),
            (self.ui.segmentationSelector, session.segmentation_node),
        ):
            if selector.currentNode() is not node:
                with quiet(selector):
                    selector.setCurrentNode(node)
        if session.volume is None and self._window is not None:
            self._forget_window()

    def _views_are_oblique(self, volume):
        from SAMFineTuneLib.mrml.slice_views import view_kind

        nodes = shown_slice_nodes()
        return bool(nodes) and all(view_kind(node, volume) == "oblique" for node in nodes)

    def align_views(self):
        session = self.host.session
        if session is not None and session.volume_node is not None:
            for node in shown_slice_nodes():
                node.RotateToVolumePlane(session.volume_node)
            self._look_after = 0.0

    def _show_preview(self, session):
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.images.slice_extraction import picture
        from SAMFineTuneLib.mrml.slice_views import plane_of_view

        node = view_under_mouse() or first_slice_node()
        if node is None or session.volume is None or self._window is None:
            return
        try:
            plane = plane_of_view(node, session.volume)
        except UserError:
            return
        state = (session.volume_node.GetID(), plane.key, self._window.low, self._window.high)
        if state == self._previewed:
            return
        self._previewed = state
        pixels = picture(session.volume, plane, self._window)
        pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
        step = max(1, max(pixels.shape) // 512)
        size = qt.QSize(360, 220)
        self.ui.previewLabel.setPixmap(
            pixmap_of(pixels[::step, ::step]).scaled(size, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation))


def _prepare(segmentation_node, volume_node):
    """A segmentation that was just made, by the selector's own menu, lies nowhere and is not displayed."""
    if segmentation_node.GetDisplayNode() is None:
        segmentation_node.CreateDefaultDisplayNodes()
    if segmentation_node.GetSegmentation().GetNumberOfSegments() == 0:
        # The transform first: the geometry that follows is relative to it.
        segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
        segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)


def segmentation_of(volume_node):
    """The segmentation that was made on a volume, the newest first; None when there is none."""
    scene = slicer.mrmlScene
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    for n in reversed(range(count)):
        node = scene.GetNthNodeByClass(n, "vtkMRMLSegmentationNode")
        reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
        if reference is volume_node and not node.GetHideFromEditors():
            return node
    return None


def view_under_mouse():
    """The slice node whose view the mouse is or was in last, None before."""
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    return None if crosshair is None else crosshair.GetCursorPositionXYZ([0.0, 0.0, 0.0])


def first_slice_node():
    return next(iter(shown_slice_nodes()), None)


def shown_slice_nodes():
    """Of the views of the present layout, in the scene's order; those of other layouts stay in the scene.

    All of them when none says so: closing the scene makes some versions of Slicer forget it.
    """
    scene = slicer.mrmlScene
    count = scene.GetNumberOfNodesByClass("vtkMRMLSliceNode")
    nodes = [scene.GetNthNodeByClass(n, "vtkMRMLSliceNode") for n in range(count)]
    return [node for node in nodes if node.IsMappedInLayout()] or nodes
