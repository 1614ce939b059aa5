"""The whole panel: its tabs, and the start and end of what they use."""

import sys
import time

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from . import packages
from .automatic_tab import AutomaticTab
from .cohort_tab import CohortTab
from .contrast_controls import ContrastControls
from .export_dialog import ExportDialog
from .model_settings import ModelSettings
from .prompt_list import PromptList
from .prompt_tools import PromptTools
from .propagation_controls import PropagationControls
from .qt_helpers import load_ui
from .segment_list import SegmentList, save_undo_state
from .server_settings import ServerSettings
from .session_host import Host
from .shown_views import shown_volume
from .status_strip import StatusStrip
from .train_tab import TrainTab
from .volume_controls import VolumeControls

TABS = {"segment": _("Segment"), "automatic": _("Automatic"), "train": _("Train"), "cohort": _("Cohort"),
        "settings": _("Settings")}
OFFER_EVERY = 0.2  # s between two checks for a volume
NARROWEST = 320  # pixels: the smallest width of the panel


class Panel(slicer.util.VTKObservationMixin):
    """Made in the module's setup(), closed in its cleanup(). `enter` and `leave` may come in any order and number."""

    def __init__(self, layout, parent, resource_path):
        super().__init__()
        self.shown = False
        self._loading = False
        self._offer_after = 0.0
        self._offered = None  # the volume that was chosen for the user last, and as what
        self.starter = None  # of the worker's process, None when it runs elsewhere
        self.host = host = Host(parent, self._make_client, self._make_session)
        self.status = StatusStrip(host, resource_path, parent)
        self.segment_tab, ui = load_ui(resource_path, "SegmentTab")
        self.segment_tab.setMRMLScene(slicer.mrmlScene)
        self.contrast = ContrastControls(host, ui)
        self.input = VolumeControls(host, ui, self.contrast)
        self.segments = SegmentList(host, ui)
        self.prompt_list = PromptList(host, ui)
        self.prompts = PromptTools(host, ui, resource_path, lambda action: getattr(self.prompt_list, action)())
        self.propagate = PropagationControls(host, ui)
        self.export = ExportDialog(host, ui.openExportButton, resource_path, self.status.ask_to_install)
        self.automatic = AutomaticTab(host, resource_path)
        settings_tab, ui = load_ui(resource_path, "SettingsTab")
        self.model = ModelSettings(host, ui)
        self.server = ServerSettings(host, ui, self._server_changed, self._remove_packages)
        self.train = TrainTab(host, resource_path, self.status.install, self.model.use_adapter)
        self.cohort = CohortTab(host, self.input, resource_path, self.status.ask_to_install, self.server)
        self.widget, self.tabs = qt.QWidget(), qt.QTabWidget()
        own = (self.automatic.widget, self.train.widget, self.cohort.widget)
        self._lay_out(layout, (self.segment_tab, *own, settings_tab))
        host.connect((self.tabs, "currentChanged(int)", lambda index: host.tell("TabShown", index)))
        host.remote = self.server.remote
        self.status.check_runtime()
        host.listen("VolumeLeft", lambda event: self.prompts.rest())
        host.listen("VolumeChosen", self._volume_chosen)
        host.listen("Turn", self._offer)
        host.listen("Dismiss", lambda event: self.status.dismiss_warnings())
        host.listen("RuntimeInstalled", lambda event: self._server_changed())
        host.listen("Installed", lambda event: self.server.show_packages())
        self._observe()

    def _lay_out(self, layout, pages):
        """Put the pages into tabs that scroll, and the status strip below them, where it is always visible.

        Slicer makes its panel as wide as the module asks for. The tabs ignore the width that their contents would like,
        so that the panel never changes its width by itself.
        """
        for title, page in zip(TABS.values(), pages, strict=True):
            area = qt.QScrollArea()
            area.setWidgetResizable(True)
            area.setFrameShape(qt.QFrame.NoFrame)
            area.setHorizontalScrollBarPolicy(qt.Qt.ScrollBarAlwaysOff)
            area.setWidget(page)
            self.tabs.addTab(area, title)
        self.tabs.setDocumentMode(True)
        self.tabs.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Expanding)
        self.tabs.setMinimumSize(NARROWEST, 150)
        column = qt.QVBoxLayout(self.widget)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(self.tabs)
        column.addWidget(self.status.widget)
        layout.addWidget(self.widget)

    def open_tab(self, name):
        """Bring a tab to the front: a key of `TABS`."""
        self.tabs.setCurrentIndex(list(TABS).index(name))

    def _observe(self):
        for event, callback in (
            (slicer.vtkMRMLScene.StartCloseEvent, self._scene_starts_closing),
            (slicer.vtkMRMLScene.EndCloseEvent, self._scene_closed),
            (slicer.vtkMRMLScene.StartImportEvent, self._scene_starts_importing),
            (slicer.vtkMRMLScene.EndImportEvent, self._scene_imported),
            (slicer.vtkMRMLScene.NodeAddedEvent, self._node_added),
            # Before and after the selectors are notified; they observe the scene longer than the panel does.
            (slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._node_goes),
            (slicer.vtkMRMLScene.NodeRemovedEvent, self._node_is_gone),
        ):
            self.addObserver(slicer.mrmlScene, event, callback)
        manager = slicer.app.layoutManager()
        if manager is not None:
            self.host.connect((manager, "layoutChanged(int)", lambda layout: self.prompts.views_changed()))

    def close(self):
        """Remove every observer, connection, shortcut and timer, and end the worker."""
        self.leave()
        self.removeObservers()
        self.host.disconnect()
        for part in (self.status, self.segments, self.export, self.automatic, self.train, self.cohort, self.server):
            part.close()
        self.segment_tab.setMRMLScene(None)  # no widget may observe the scene any longer than the panel lives
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
        """Start a session on the input that the scene names, or else on the volume that is shown."""
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
        """Activate the chosen tool, which stays active on every volume until the user puts it away."""
        if self.shown:
            self.prompts.resume()

    # ---- the worker

    def _make_client(self):
        from SAMFineTuneLib.service.child_process import ChildProcess
        from SAMFineTuneLib.service.client import SessionClient
        from SAMFineTuneLib.service.worker import LocalWorker

        self.starter = None
        if self.server.remote:
            return SessionClient(self.server.connection(self.server.used), segments_are_steps=False)
        # The standard library starts the worker rather than QProcess: checking whether it lives and closing its pipe do
        # not block, and no signal can arrive after the panel is gone. The worker ends when its standard input closes: a
        # crash of Slicer therefore leaves no worker behind, and neither does ending it, although a kill would only hit
        # the launcher that stands before Slicer's Python.
        self.starter = ChildProcess()
        worker = LocalWorker(sys.executable, packages.environment(), self.starter)
        return SessionClient(worker, segments_are_steps=False)

    def _make_session(self, scene, client):
        from SAMFineTuneLib.mrml.scene_session import SceneSession

        session = SceneSession(scene, client)
        session.device = self.model.device
        session.save_undo_state = lambda: save_undo_state(session.segmentation_node)
        return session

    def _server_changed(self):
        """End the session, and continue it on the other server from what the scene holds."""
        self.prompts.rest()
        self.host.stop()
        self.host.remote = self.server.remote
        self.status.check_runtime()
        if self.shown:
            self.host.enter()
            self._begin()

    def _remove_packages(self):
        """Delete the installed packages. The worker uses them, so it ends first and starts again afterwards."""
        if self.status.installer.running:
            self.host.warn(_("An installation is running; wait for it or cancel it."), "install")
            return
        self.host.stop()
        try:
            packages.remove_all()
        finally:
            self._server_changed()

    # ---- the scene

    def _scene_starts_closing(self, caller, event):
        self.input.rebuilding = True
        self.status.dismiss()
        self.prompts.rest()
        self.cohort.scene_closes()
        self.host.finish_reading()
        self.host.stop()
        self.train.scene_closes()
        self.input.declined = False

    def _scene_closed(self, caller, event):
        self.input.rebuilding = False
        if self.shown:  # Slicer does not call enter() again
            self.host.enter()
            self._begin()

    def _scene_starts_importing(self, caller, event):
        self._loading = True
        self.input.rebuilding = True
        self.prompts.rest()

    def _scene_imported(self, caller, event):
        self._loading = False
        self.input.rebuilding = False
        self.train.show_stored()
        if self.shown:
            self._begin()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_added(self, caller, event, node):
        if node.IsA("vtkMRMLScalarVolumeNode"):
            self.input.declined = False

    def _node_goes(self, caller, event):
        self.input.removing += 1

    def _node_is_gone(self, caller, event):
        self.input.removing -= 1

    def _offer(self):
        """Take the first volume that is loaded while there is no input, once it has voxels."""
        session = self.host.session
        waiting = self.shown and not (self._loading or self.input.declined or self.cohort.is_opening)
        if not waiting or time.monotonic() < self._offer_after:
            return
        if session is None or session.volume_node is not None or slicer.mrmlScene.IsBatchProcessing():
            return
        self._offer_after = time.monotonic() + OFFER_EVERY
        node = shown_volume()
        state = None if node is None else (node.GetID(), node.GetMTime(), node.GetImageData().GetMTime())
        if state is not None and state != self._offered:  # a refused one is not offered again until it changes
            self._offered = state
            self.input.choose_volume(node)
