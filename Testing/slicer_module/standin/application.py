"""The application around a module: `slicer.app`, its layout with slice views, settings, the module classes."""

from __future__ import annotations

import os
import sys
import tempfile
import types
import unittest
from pathlib import Path

import slicer
from PySide6 import QtCore, QtGui, QtWidgets

from . import widgets


class _SliceView(QtWidgets.QWidget):
    """A `mrml.views.SliceView` as the application's qMRMLSliceView."""

    def __init__(self, view, parent=None):
        super().__init__(parent)
        self._view = view

    def interactor(self):
        return self._view.interactor

    def renderWindow(self):
        return self._view.window

    def scheduleRender(self):
        self._view.renders_asked_for += 1

    def forceRender(self):
        self._view.render()


class _SliceWidget(QtWidgets.QWidget):
    def __init__(self, view, parent=None):
        super().__init__(parent)
        self._view, self._slice_view = view, _SliceView(view, self)
        column = QtWidgets.QVBoxLayout(self)  # the controller, and below it the view beside another controller
        column.setSpacing(0)
        column.setContentsMargins(0, 0, 0, 0)
        column.addWidget(QtWidgets.QSlider(QtCore.Qt.Horizontal))
        row = QtWidgets.QHBoxLayout()
        row.addWidget(self._slice_view)
        column.addLayout(row)

    def sliceView(self):
        return self._slice_view

    def mrmlSliceNode(self):
        return self._view.node

    def sliceLogic(self):
        return self._view.logic

    def interactorStyle(self):
        return self._view.style


class LayoutManager(QtCore.QObject):
    """The views that a test has put on the screen."""

    layoutChanged = QtCore.Signal(int)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._widgets: dict[str, _SliceWidget] = {}

    def sliceViewNames(self):
        return tuple(self._widgets)

    def sliceWidget(self, name):
        return self._widgets.get(name)

    def mrmlSliceLogics(self):
        import vtk

        logics = vtk.vtkCollection()
        for widget in self._widgets.values():
            logics.AddItem(widget.sliceLogic())
        return logics

    def show(self, views) -> None:
        """Exchange what is on the screen."""
        for widget in self._widgets.values():
            widget.mrmlSliceNode().SetMappedInLayout(False)
        for view in views:
            view.node.SetMappedInLayout(True)
        self._widgets = {view.name: _SliceWidget(view) for view in views}
        self.layoutChanged.emit(0)


class ModuleManager(QtCore.QObject):
    moduleAboutToBeUnloaded = QtCore.Signal(str)


class Application(QtWidgets.QApplication):
    """`slicer.app`."""

    startupCompleted = QtCore.Signal()

    def __init__(self, arguments):
        super().__init__(arguments)
        self.setOrganizationName("SAMFineTune")
        self.setApplicationName("Slicer stand-in")
        self._folder = tempfile.mkdtemp(prefix="stand-in-")
        QtCore.QSettings.setDefaultFormat(QtCore.QSettings.IniFormat)
        QtCore.QSettings.setPath(QtCore.QSettings.IniFormat, QtCore.QSettings.UserScope, self._folder)
        self._layout, self._modules = LayoutManager(), ModuleManager()
        self._window = QtWidgets.QMainWindow()
        self._window.setObjectName("qSlicerMainWindow")
        self.slicer_scene = None

    temporaryPath = QtCore.Property(str, lambda self: self._folder)
    slicerUserSettingsFilePath = QtCore.Property(str, lambda self: os.path.join(self._folder, "Slicer.ini"))
    majorVersion = QtCore.Property(int, lambda self: 5)
    minorVersion = QtCore.Property(int, lambda self: 11)

    @staticmethod
    def processEvents():
        """PySide's own loses a reference to None at every call, which sooner or later aborts Python before 3.12."""
        QtCore.QEventLoop().processEvents()

    def layoutManager(self):
        return self._layout

    def moduleManager(self):
        return self._modules

    def applicationLogic(self):
        return self.slicer_scene.application if self.slicer_scene else None

    def userSettings(self):
        return QtCore.QSettings()

    def startupEnvironment(self):
        environment = QtCore.QProcessEnvironment.systemEnvironment()
        return types.SimpleNamespace(keys=environment.keys, value=environment.value)

    def testingEnabled(self):
        return True

    def translate(self, context, text):
        return text

    def mainWindow(self):
        return self._window


class ScriptedLoadableModule:
    def __init__(self, parent):
        self.parent = parent
        self.moduleName = type(self).__name__

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        return ""


class ScriptedLoadableModuleWidget:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False
        made_here = parent is None
        if made_here:
            parent = widgets.qMRMLWidget()
            QtWidgets.QWidget.setLayout(parent, QtWidgets.QVBoxLayout())
            parent.setMRMLScene(slicer.mrmlScene)
        self.parent = parent
        self.layout = parent.layout()
        if made_here:
            self.setup()
            self.parent.show()

    def resourcePath(self, filename):
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self):
        pass

    def cleanup(self):
        pass


class ScriptedLoadableModuleLogic:
    def __init__(self, parent=None):
        self.moduleName = type(self).__name__.removesuffix("Logic")


class ScriptedLoadableModuleTest(unittest.TestCase):
    def __init__(self, *args, **kwargs):
        super().__init__("runTest")
        self.messageDelay = 0

    def delayDisplay(self, message, *args, **kwargs):
        print(message)

    def runTest(self):
        pass


class MRMLUtils:
    """slicer.qMRMLUtils, of which the panel uses one conversion."""

    def vtkImageDataToQImage(self, image, target):
        from vtk.util.numpy_support import vtk_to_numpy

        width, height, _ = image.GetDimensions()
        pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3].copy()
        made = QtGui.QImage(pixels.data, width, height, 3 * width, QtGui.QImage.Format_RGB888).copy()
        target.swap(made)


def install() -> None:
    """Complete the `slicer` of slicer-core."""
    app = Application(["stand-in"])
    slicer.app = app
    slicer.modules = types.SimpleNamespace(sampleDataSources={})
    slicer.selfTests = {}
    for kind in widgets.UI_WIDGETS:
        if kind.__name__.startswith("q"):
            setattr(slicer, kind.__name__, kind)
    slicer.qMRMLUtils = MRMLUtils
    _submodule("ScriptedLoadableModule", ScriptedLoadableModule=ScriptedLoadableModule,
               ScriptedLoadableModuleWidget=ScriptedLoadableModuleWidget,
               ScriptedLoadableModuleLogic=ScriptedLoadableModuleLogic,
               ScriptedLoadableModuleTest=ScriptedLoadableModuleTest)
    _submodule("i18n", tr=lambda text: text, translate=lambda context, text: text)
    module_file = Path(__file__).resolve().parents[3] / "SAMFineTune" / "SAMFineTune.py"
    slicer.util.modulePath = lambda name: str(module_file)


def _submodule(name: str, **contents) -> None:
    module = types.ModuleType(f"slicer.{name}")
    vars(module).update(contents)
    module.__all__ = list(contents)
    sys.modules[module.__name__] = module
    setattr(slicer, name, module)
