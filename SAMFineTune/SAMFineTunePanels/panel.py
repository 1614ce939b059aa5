"""The whole panel: the sections in their order, and the life of what is behind them."""

import time

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from . import packages, worker
from .automatic_tab import AutomaticSection
from .export_dialog import ExportSection
from .host import Host
from .model_settings import ModelSection
from .prompt_tools import PromptsSection
from .propagation_controls import PropagateSection
from .qt_helpers import Connections, NodeObservers, load_ui
from .segment_list import SegmentsSection, save_undo_state
from .server_settings import ServerSection
from .status_strip import StatusSection
from .train_tab import TrainSection
from .volume_controls import InputSection

_VOLUME = "vtkMRMLScalarVolumeNode"
OFFER_EVERY = 0.2  # s between two looks for a volume


class Panel:
    """Made in the module's setup(), closed in its cleanup(). `enter` and `leave` may come in any order and number."""

    def __init__(self, layout, parent, resource_path):
        self.shown = False
        self._loading = False
        self._offer_after = 0.0
        self.starter = None  # of the worker's process, None when it runs elsewhere
        self._connections = Connections()
        self._observers = NodeObservers()
        self.host = Host(parent, self._make_client, self._make_session)
        self.host.remote = False
        self.status = StatusSection(self.host, resource_path, parent)
        self.input = InputSection(self.host, resource_path)
        self.segments = SegmentsSection(self.host, resource_path)
        self.prompts = PromptsSection(self.host, resource_path)
        self.propagate = PropagateSection(self.host, resource_path)
        self.automatic = AutomaticSection(self.host, resource_path)
        self.model = ModelSection(self.host, resource_path, self.status.install)
        self.train = TrainSection(self.host, resource_path, self.status.install, self.model.use_adapter)
        self.server = ServerSection(self.host, resource_path, self._server_changed, self._remove_packages)
        self.export = ExportSection(self.host, resource_path, self.status.ask_to_install)
        self.sections = (
            self.status, self.input, self.prompts, self.segments, self.propagate, self.automatic, self.model,
            self.train, self.server, self.export,
        )  # fmt: skip
        self.widget, self.ui = load_ui(resource_path, "Panel")
        self._lay_out(layout)
        self.host.remote = self.server.remote
        self.status.check_runtime()
        self.host.listen("VolumeChosen", self._volume_chosen)
        self.host.listen("Turn", self._offer)
        self.host.listen("Dismiss", lambda event: self.status.dismiss_warnings())
        self.host.listen("RuntimeInstalled", lambda event: self._server_changed())
        self.host.listen("Installed", lambda event: self.server.show_packages())
        self._observe()

    def _lay_out(self, layout):
        """The strip of the status stays where it is; the sections scroll below it.

        Slicer puts a module into a scroll area that fits it to the room there is, as long as the module can be made
        that small. It can: what scrolls is inside. Slicer's own bar comes only when the window is hardly higher than
        the strip.
        """
        self.widget.layout().insertWidget(0, self.status.widget)
        sections = self.ui.sections.layout()
        for section in self.sections[1:]:
            # As high as it should be, neither squeezed when there is little room nor spread when there is much.
            section.widget.setSizePolicy(qt.QSizePolicy.Preferred, qt.QSizePolicy.Fixed)
            sections.addWidget(section.widget)
        sections.addStretch(1)
        layout.addWidget(self.widget)
        # Whatever the sections say later, they are never cut, nor make the panel wider: nothing is said yet.
        bar = self.widget.style().pixelMetric(qt.QStyle.PM_ScrollBarExtent)
        self.ui.sectionsArea.setMinimumWidth(sections.minimumSize().width() + bar)

    def _observe(self):
        scene = slicer.mrmlScene
        for event, callback in (
            (slicer.vtkMRMLScene.StartCloseEvent, self._scene_starts_closing),
            (slicer.vtkMRMLScene.EndCloseEvent, self._scene_closed),
            (slicer.vtkMRMLScene.StartImportEvent, self._scene_starts_importing),
            (slicer.vtkMRMLScene.EndImportEvent, self._scene_imported),
        ):
            self._observers.add(scene, event, callback)
        self._observers.add(scene, slicer.vtkMRMLScene.NodeAddedEvent, _with_node(self._node_added))
        manager = slicer.app.layoutManager()
        if manager is not None:
            self._connections.add(manager, "layoutChanged(int)", self._layout_changed)

    def close(self):
        """No observer, connection, shortcut, timer or process is left."""
        self.leave()
        self._observers.close()
        self._connections.close()
        for section in self.sections:
            section.close()
        self.host.close()
        self.widget.hide()
        self.widget.deleteLater()

    # ---- shown and not

    def enter(self):
        self.shown = True
        self.host.enter()
        self.prompts.enter()
        self.status.check_runtime()
        if not self._loading:
            self._begin()

    def leave(self):
        self.shown = False
        self.prompts.leave()
        self.host.leave()

    def _begin(self):
        """A session on what is there: on the scene's own input, else on the volume that is shown."""
        if self.status.runtime_missing():
            return
        session = self.host.start()
        if session.volume_node is None:
            self.host.act(session.attach)
        if session.volume_node is None:
            node = shown_volume()
            if node is not None:
                self.input.choose_volume(node)
                return
        self.input.show_session()
        self.segments.show_session(session)
        if session.volume_node is not None:
            self._volume_chosen(session.volume_node)

    def _volume_chosen(self, node):
        """The tool that the user has chosen works on every volume, until the user puts it away."""
        if self.shown:
            self.prompts.resume()

    # ---- the worker

    def _make_client(self):
        from SAMFineTuneLib.service.client import SessionClient

        self.starter = None
        if self.server.remote:
            return SessionClient(self.server.connection(self.server.used), segments_are_steps=False)
        self.starter = worker.make_starter()
        return SessionClient(worker.local_connection(self.starter), segments_are_steps=False)

    def _make_session(self, scene, client):
        from SAMFineTuneLib.mrml.scene_session import SceneSession

        session = SceneSession(scene, client)
        session.save_undo_state = lambda: save_undo_state(session.segmentation_node)
        return session

    def _server_changed(self):
        """End the session here and go on with it there: the scene knows all there is to know."""
        self.prompts.rest()
        self.host.stop()
        self.host.remote = self.server.remote
        self.status.check_runtime()
        if self.shown:
            self.host.enter()
            self._begin()

    def _remove_packages(self):
        """The worker, which runs from them, ends before, and begins again with what is left."""
        if self.status.installer.running:
            self.status.warn(_("An installation is running; wait for it or cancel it."), "install")
            return
        self.host.stop()
        try:
            packages.remove_all()
        finally:
            self._server_changed()

    # ---- the scene

    def _scene_starts_closing(self, caller, event):
        self.prompts.rest()
        self.host.stop()
        self.train.scene_closes()
        self.input.declined = False
        self.status.dismiss()

    def _scene_closed(self, caller, event):
        if self.shown:  # enter() does not come again
            self.host.enter()
            self._begin()

    def _scene_starts_importing(self, caller, event):
        self._loading = True
        self.prompts.rest()

    def _scene_imported(self, caller, event):
        self._loading = False
        self.train.show_stored()
        if self.shown:
            self._begin()

    def _node_added(self, caller, event, node):
        if node.IsA(_VOLUME):
            self.input.declined = False

    def _offer(self):
        """The first volume that is loaded while the panel waits for one is the input, once it has voxels."""
        session = self.host.session
        waiting = self.shown and not self._loading and not self.input.declined and time.monotonic() >= self._offer_after
        if not waiting or session is None or session.volume_node is not None or slicer.mrmlScene.IsBatchProcessing():
            return
        self._offer_after = time.monotonic() + OFFER_EVERY
        node = shown_volume()
        if node is not None:
            self.input.choose_volume(node)

    def _layout_changed(self, layout):
        self.prompts.views_changed()


def _with_node(callback):
    """VTK hands the node over only to a function that says so."""

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def called(caller, event, node):
        callback(caller, event, node)

    return called


def shown_volume():
    """The volume in the background of a slice view, else the only or first one there is; None without."""
    scene = slicer.mrmlScene
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
        volume_id = scene.GetNthNodeByClass(n, "vtkMRMLSliceCompositeNode").GetBackgroundVolumeID()
        node = scene.GetNodeByID(volume_id) if volume_id else None
        if _usable(node):
            return node
    count = scene.GetNumberOfNodesByClass(_VOLUME)
    return next((node for node in (scene.GetNthNodeByClass(n, _VOLUME) for n in range(count)) if _usable(node)), None)


def _usable(node):
    from SAMFineTuneLib.errors import UserError
    from SAMFineTuneLib.mrml.volume_nodes import require_volume

    try:
        require_volume(node)
    except UserError:
        return False
    return not node.IsA("vtkMRMLLabelMapVolumeNode")
