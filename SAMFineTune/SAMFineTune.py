"""SAMFineTune: segmentation from points, boxes, scribbles and lassos with Segment Anything models.

Slicer imports this file when it starts. The file loads nothing but Slicer's own modules; the panel and the library are
loaded when the module is opened.
"""

import os
import sys

import slicer
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

_FOLDER = os.path.dirname(os.path.abspath(__file__))
_DOCUMENTS = "https://github.com/SAMFineTune/SlicerSAMFineTune/blob/main/docs/"


def _find_library():
    """Put SAMFineTuneLib first on the path, because another version, installed with pip, does not fit this panel.

    It lies beside this file when it is installed, and one folder up in a copy of the repository.
    """
    library = next(
        (
            folder
            for folder in (_FOLDER, os.path.dirname(_FOLDER))
            if os.path.isfile(os.path.join(folder, "SAMFineTuneLib", "__init__.py"))
        ),
        _FOLDER,
    )
    for folder in (library, _FOLDER):
        if folder not in sys.path:
            sys.path.insert(0, folder)


_find_library()


class SAMFineTune(ScriptedLoadableModule):
    """The entry of the module in Slicer's lists."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "SAMFineTune"
        parent.categories = ["Segmentation"]
        parent.dependencies = [  # whose nodes, logics and widgets the panel uses
            "Volumes", "Segmentations", "SegmentEditor", "SubjectHierarchy", "Markups", "Tables", "Plots",
        ]  # fmt: skip
        parent.contributors = [_("The SAMFineTune contributors")]
        parent.helpText = _(
            "Segments CT, MR and other volumes from points, boxes, scribbles and lassos, with Segment Anything (SAM) "
            "and its medical variants. Choose a volume, choose Include, and click inside a structure in a slice view. "
            "For research; not a medical device."
        ) + _('<p>More in the <a href="{guide}">user guide</a> and the <a href="{tutorial}">tutorial</a>.</p>').format(
            guide=_DOCUMENTS + "user-guide.md", tutorial=_DOCUMENTS + "tutorial.md"
        )
        parent.acknowledgementText = _(
            "Segment Anything is by Kirillov et al., ICCV 2023. Please cite it, and the paper of the model you use."
        )
        slicer.app.connect("startupCompleted()", _slicer_has_started)


def _slicer_has_started():
    from SAMFineTunePanels import sample_data

    sample_data.register()
    slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, _end_stored_place_mode)


def _end_stored_place_mode(scene, event):
    """Give the mouse back after a scene was loaded that was saved while prompts were being placed.

    Scenes hold Slicer's place mode, too. Without the panel, which chooses its tool anew, the next click would place a
    prompt, or a point of a list that nobody asked for.
    """
    interaction = scene.GetSingletonNode("Singleton", "vtkMRMLInteractionNode")
    selection = scene.GetSingletonNode("Singleton", "vtkMRMLSelectionNode")
    if None in (interaction, selection) or interaction.GetCurrentInteractionMode() != interaction.Place:
        return
    into = scene.GetNodeByID(selection.GetActivePlaceNodeID() or "")
    was_used = scene.GetSingletonNode("SAMFineTune", "vtkMRMLScriptedModuleNode") is not None
    if was_used if into is None else into.GetAttribute("SAMFineTune.kind"):
        interaction.SetCurrentInteractionMode(interaction.ViewTransform)
        selection.SetActivePlaceNodeID(None)


def _trainings():
    """Trainings and work on cohorts that this Slicer has started, also before a reload of the module."""
    module = sys.modules.get("SAMFineTuneLib.service.folder_process")
    before = [one for one in getattr(slicer.modules, "SAMFineTuneTrainings", ()) if one.alive()]
    return [*before, *(module.started() if module is not None else ())]


class SAMFineTuneWidget(ScriptedLoadableModuleWidget):
    """Makes the panel, and notifies it when it is shown, left and closed."""

    def __init__(self, parent=None):
        self.panel = None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from SAMFineTunePanels.panel import Panel

        self.panel = Panel(self.layout, self.parent, self.resourcePath)
        slicer.app.connect("aboutToQuit()", self._quit)
        # After a reload the module is already shown, and Slicer does not call enter().
        if slicer.util.mainWindow() is not None and slicer.util.selectedModule() == self.moduleName:
            self.enter()

    def enter(self):
        if self.panel is not None:
            self.panel.enter()

    def exit(self):
        if self.panel is not None:
            self.panel.leave()

    def cleanup(self):
        panel, self.panel = self.panel, None
        if panel is not None:
            slicer.app.disconnect("aboutToQuit()", self._quit)
            panel.close()

    def _quit(self):
        """Keep what is open, and stop trainings that must not outlive Slicer, before its last window is closed."""
        self.cleanup()
        for training in _trainings():
            training.close()

    def onReload(self):
        """Reload the panel and the library too, which Slicer would keep; their old code closes them first."""
        slicer.modules.SAMFineTuneTrainings = _trainings()  # they go on, because their pipes stay open
        self.cleanup()
        for name in list(sys.modules):
            if name.split(".")[0] in ("SAMFineTunePanels", "SAMFineTuneLib"):
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class SAMFineTuneLogic(ScriptedLoadableModuleLogic):
    """For scripts: the session of the scene, which is what the panel shows.

    Everything worth calling is in SAMFineTuneLib (`mrml.scene_session` in Slicer, `session.session` elsewhere).
    """

    def session(self):
        """The SceneSession behind the panel; opens the module when it has not been opened yet."""
        panel = slicer.util.getModuleWidget("SAMFineTune").panel
        return panel.host.start()


class SAMFineTuneTest(ScriptedLoadableModuleTest):
    """Slicer's self test: the real application, real mouse events in its views, no network."""

    def setUp(self):
        slicer.mrmlScene.Clear(False)

    def runTest(self, **kwargs):
        from SAMFineTunePanels.self_test import run

        self.setUp()
        run(self)
