"""The desktop as a test uses it: views with a mouse, the module, time that passes."""

from __future__ import annotations

import time

import psutil
import qt
import slicer
from mrml.scene_files import read_mrb

from SAMFineTuneLib.images.phantom import body_phantom

VIEWS = (("Red", "Axial"), ("Green", "Coronal"), ("Yellow", "Sagittal"))
PATIENCE = 60.0  # s


def _runs(process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Desktop:
    """Stands where Slicer's main window stands."""

    def __init__(self, slicer_scene, views=VIEWS, size=(300, 300)):
        self.slicer_scene, self.scene = slicer_scene, slicer_scene.scene
        self._others = set(psutil.Process().children(recursive=True))  # earlier tests', such as a resource tracker
        slicer.mrmlScene = self.scene
        slicer.app.slicer_scene = slicer_scene
        slicer.modules.sampleDataSources = {}
        qt.QSettings().clear()
        for name in ("Selection", "Interaction", "Crosshair"):  # the application has them from its start
            if self.scene.GetFirstNodeByClass(f"vtkMRML{name}Node") is None:
                self.scene.AddNode(getattr(slicer, f"vtkMRML{name}Node")())
        self.views = {name: slicer_scene.add_view(name, orientation, size) for name, orientation in views}
        slicer.app.layoutManager().show(self.views.values())
        self.widget = None
        self.selected = ""
        slicer.util.selectModule = self.select
        slicer.util.selectedModule = lambda: self.selected
        slicer.util.saveScene = self.save
        slicer.util.loadScene = self.load

    def processes(self) -> set:
        """Those that were started since the desktop was there, and still run.

        One that was killed on a busy machine may wait to be seen as ended until the next one is started.
        """
        return {one for one in set(psutil.Process().children(recursive=True)) - self._others if _runs(one)}

    # ---- the module

    def select(self, name):
        """What the module selector does."""
        if self.selected == "SAMFineTune" != name:
            self.leave()
        self.selected = name
        if name == "SAMFineTune":
            self.open()

    def open(self):
        """Choose the module: it is made at the first time, and entered."""
        from SAMFineTune import SAMFineTuneWidget

        self.selected = "SAMFineTune"
        if self.widget is None:
            parent = slicer.qMRMLWidget()
            qt.QWidget.setLayout(parent, qt.QVBoxLayout())
            parent.setMRMLScene(self.scene)
            parent.resize(480, 1100)
            self.widget = SAMFineTuneWidget(parent)
            slicer.modules.SAMFineTuneWidget = self.widget
            self.widget.setup()
            parent.show()
        self.widget.enter()
        return self.widget.panel

    @property
    def panel(self):
        return self.widget.panel

    def leave(self):
        self.widget.exit()

    def reload(self):
        """As slicer.util.reloadScriptedModule: a new widget in the old parent; neither exit() nor enter()."""
        from SAMFineTune import SAMFineTuneWidget

        parent = self.widget.parent
        for child in parent.children():
            if hasattr(child, "hide"):
                child.hide()
        self.widget.cleanup()
        self.widget = SAMFineTuneWidget(parent)
        slicer.modules.SAMFineTuneWidget = self.widget
        self.widget.setup()

    def close(self):
        if self.widget is not None:
            self.widget.cleanup()
            self.widget.parent.deleteLater()
            self.widget = None
        self.pass_time(0.01)
        slicer.app.layoutManager().show([])

    # ---- data

    def save(self, path):
        return self.scene.WriteToMRB(str(path), None)

    def load(self, path):
        read_mrb(path, self.slicer_scene)

    def load_phantom(self, parent=None, **options):
        """(volume node, Volume, labels) of a phantom, shown in all views."""
        options = {"seed": 1, "shape": (24, 128, 128), "spacing": (2.7, 2.7, 5.0)} | options
        volume, labels, _ = body_phantom(**options)
        node = self.slicer_scene.add_volume(volume, "phantom", parent)
        self.pass_time(0.01)
        for view in self.views.values():
            view.show(node)
        return node, volume, labels

    # ---- time

    def pass_time(self, seconds):
        """Let the application run for so long; a moment in which a busy machine stops it counts as a short one."""
        while seconds > 0:
            begun = time.monotonic()
            slicer.app.processEvents()
            time.sleep(0.001)
            seconds -= min(time.monotonic() - begun, 0.02)

    def wait(self, condition, seconds=PATIENCE):
        """Let the application run until the condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            slicer.app.processEvents()
            assert time.monotonic() < end, f"waited {seconds} s in vain; the panel says {self.messages()}"
            time.sleep(0.001)

    def messages(self):
        return self.panel.status.messages if self.widget is not None and self.panel is not None else []
