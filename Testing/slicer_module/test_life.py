"""Coming and going: what the panel leaves behind, which is nothing."""

from __future__ import annotations

import ast
import subprocess
import sys

import numpy as np
import pytest
import qt
import slicer
import vtk
from desktop import Desktop
from mrml.scenes import SlicerScene, image_of
from test_clicks import KIDNEY, LIVER, Work

from SAMFineTuneLib.images.phantom import body_phantom


def observers_of(thing) -> int:
    """The number of observers of a VTK object, from any code."""
    text = str(thing)
    return text.count("vtkObserver (")


def count(desktop):
    """What must not grow."""
    window = slicer.util.mainWindow()
    return {
        "scene observers": observers_of(desktop.scene),
        "view observers": sum(observers_of(view.interactor) for view in desktop.views.values()),
        "shortcuts": len(window.findChildren(qt.QShortcut)),
        "timers": len([t for t in desktop.widget.parent.findChildren(qt.QTimer) if t.active]) if desktop.widget else 0,
        "processes": len(desktop.processes()),
    }


def settle(desktop):
    """Deferred deletions happen."""
    slicer.app.sendPostedEvents(None, int(qt.QEvent.DeferredDelete))
    desktop.pass_time(0.1)


@pytest.fixture
def slicer_scene():
    scene = SlicerScene()
    yield scene
    scene.close()


@pytest.fixture
def work(desktop):
    return Work(desktop)


def clicked(work):
    work.click("Red", work.middle_of(LIVER))
    work.wait_for_voxels()


def test_observers_are_counted(desktop):
    before = observers_of(desktop.scene)
    tag = desktop.scene.AddObserver("ModifiedEvent", lambda *_: None)
    assert observers_of(desktop.scene) == before + 1
    desktop.scene.RemoveObserver(tag)
    assert observers_of(desktop.scene) == before


def test_nothing_is_left_when_the_module_goes(desktop):
    settle(desktop)
    before = count(desktop)
    work = Work(desktop)
    clicked(work)
    work.panel.prompts.choose("box")
    assert count(desktop)["processes"] == before["processes"] + 1
    nodes = work.session
    desktop.widget.cleanup()
    desktop.wait(lambda: count(desktop)["processes"] == before["processes"])
    settle(desktop)
    after = count(desktop)
    assert after["timers"] == 0
    # The views' managers observe the nodes that prompts and masks have left in the scene; the scene itself less.
    assert after == before | {"scene observers": after["scene observers"]}
    assert nodes.pump() == []
    desktop.scene.Clear(False)
    settle(desktop)
    assert count(desktop)["scene observers"] <= before["scene observers"]


def test_leaving_and_entering_adds_nothing(work):
    clicked(work)
    desktop = work.desktop
    work.panel.prompts.choose("box")
    desktop.leave()
    settle(desktop)
    away = count(desktop)
    assert away["shortcuts"] == 0
    assert work.panel.prompts.tool is None
    interaction = desktop.scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
    assert interaction.GetCurrentInteractionMode() != interaction.Place
    desktop.open()
    settle(desktop)
    assert work.panel.prompts.tool == "box"  # taken up again
    here = count(desktop)
    for _ in range(3):
        desktop.leave()
        settle(desktop)
        assert count(desktop) == away
        desktop.open()
        settle(desktop)
        assert count(desktop) == here


def test_a_prompt_that_is_deleted_elsewhere_takes_its_mask_along(work):
    clicked(work)
    work.rest()
    work.desktop.leave()
    scene = work.desktop.scene
    list_node = scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    list_node.RemoveNthControlPoint(0)
    work.desktop.wait(lambda: not work.voxels().any())


def test_the_worker_rests_when_nobody_comes_back(work, monkeypatch):
    from SAMFineTunePanels import session_host as host

    clicked(work)
    work.rest()
    kept = work.voxels()
    monkeypatch.setattr(host, "END_WORKER_AFTER", 0.3)
    work.desktop.leave()
    work.desktop.wait(lambda: not work.desktop.processes())
    assert not work.panel.host.timer.active and work.panel.host.session is None
    work.desktop.open()
    work.desktop.wait(lambda: work.session is not None and len(work.session.prompts) == 1)
    assert (work.voxels() == kept).all()
    work.panel.prompts.choose("negative")
    work.click("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: len(work.session.prompts) == 2)
    work.rest()


def test_a_slow_answer_is_seen_to_be_awaited(work):
    clicked(work)
    work.rest()
    label, bar = work.panel.status.ui.statusLabel, work.panel.status.ui.busyBar
    (worker,) = work.desktop.processes()
    worker.suspend()
    work.panel.prompts.choose("negative")
    work.click("Red", work.middle_of(KIDNEY))
    work.desktop.wait(lambda: label.text.startswith("Waiting for the model: ") and label.text.endswith(" s"))
    assert not bar.isHidden() and work.panel.status.ui.cancelButton.isHidden()
    worker.resume()
    work.rest()
    work.desktop.wait(lambda: label.text.startswith("Ready") and bar.isHidden())


def test_the_timer_rests_with_a_tool_in_hand_and_wakes_at_a_change(work):
    clicked(work)
    host = work.panel.host
    work.panel.prompts.choose("positive")
    work.desktop.wait(lambda: host.timer.interval == 100)
    assert work.panel.prompts.tool is not None
    work.session.segmentation_node.GetSegmentation().GetNthSegment(0).SetName("liver")
    assert host.timer.interval == 1
    work.desktop.wait(lambda: host.timer.interval == 100)
    work.desktop.leave()
    work.desktop.wait(lambda: host.timer.interval == 400)
    work.session.segmentation_node.GetSegmentation().GetNthSegment(0).SetName("spleen")
    assert host.timer.interval == 400


def test_closing_the_scene_and_starting_anew(work):
    clicked(work)
    work.panel.prompts.choose("scribble+")
    desktop = work.desktop
    before = count(desktop)
    desktop.scene.Clear(False)
    desktop.pass_time(0.2)
    assert work.panel.prompts.tool is None
    ui = work.panel.input.ui
    assert ui.windowLabel.text == "" and ui.contrastSection.text == "Contrast"
    assert count(desktop)["view observers"] < before["view observers"]
    desktop.wait(lambda: not desktop.processes())
    node, volume, labels = desktop.load_phantom()
    work.node, work.volume, work.labels = node, volume, labels
    desktop.wait(lambda: work.panel.prompts.tool == "scribble+")
    work.panel.prompts.choose("positive")
    clicked(work)
    assert len(desktop.processes()) == 1
    assert "240" in ui.contrastSection.text


@pytest.mark.parametrize("tool", ["negative", "box"])
def test_the_chosen_tool_stays_until_it_is_put_away(work, tool):
    """On another volume, in another segment, after leaving the module, in another scene."""
    desktop, prompts, scene = work.desktop, work.panel.prompts, work.desktop.scene
    prompts.choose(tool)
    button = work.button(tool)
    interaction = scene.GetFirstNodeByClass("vtkMRMLInteractionNode")

    def active():
        desktop.pass_time(0.3)
        placing = interaction.GetCurrentInteractionMode() == interaction.Place
        return prompts.tool == tool and button.checked and placing == (tool == "negative")

    other = desktop.load_phantom(seed=2)[0]
    work.panel.input.ui.volumeSelector.setCurrentNode(other)
    assert active()
    work.panel.segments.add()
    assert active()
    desktop.leave()
    assert prompts.tool is None and not button.checked
    desktop.open()
    assert active()
    scene.RemoveNode(other)
    desktop.pass_time(0.3)
    assert work.session.volume_node is not None or prompts.tool is None
    scene.Clear(False)
    desktop.load_phantom()
    interaction = scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
    desktop.wait(lambda: work.session is not None and work.session.volume_node is not None)
    assert active()
    prompts.act("stop")
    desktop.leave()
    desktop.open()
    work.panel.input.ui.volumeSelector.setCurrentNode(desktop.load_phantom(seed=2)[0])
    desktop.pass_time(0.3)
    assert prompts.tool is None  # put away


@pytest.mark.parametrize("clicked_before", [True, False])
def test_a_loaded_scene_does_not_place_prompts_without_the_panel(work, tmp_path, clicked_before):
    """Scenes hold Slicer's place mode, in which they were saved."""
    from SAMFineTune import _slicer_has_started

    desktop, scene = work.desktop, work.desktop.scene
    if clicked_before:
        clicked(work)
        work.rest()
    interaction = scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
    assert interaction.GetCurrentInteractionMode() == interaction.Place
    desktop.save(tmp_path / "scene.mrb")
    _slicer_has_started()
    desktop.select("Data")
    scene.Clear(False)
    desktop.load(tmp_path / "scene.mrb")
    desktop.pass_time(0.3)
    assert interaction.GetCurrentInteractionMode() != interaction.Place
    desktop.open()
    desktop.wait(lambda: work.panel.prompts.tool == "positive")
    assert interaction.GetCurrentInteractionMode() == interaction.Place


def test_a_scene_that_is_added_does_not_take_the_volume_away(work, tmp_path, slicer_scene):
    """Slicer's selectors choose nothing when a scene is added to the present one."""
    slicer_scene.add_volume(work.volume, "of a colleague")
    slicer_scene.scene.WriteToMRB(str(tmp_path / "colleague.mrb"), None)
    clicked(work)
    work.rest()
    kept, ended = work.voxels(), []
    work.panel.host.listen("VolumeLeft", ended.append)
    work.panel.propagate.propagate()
    work.desktop.load(tmp_path / "colleague.mrb")
    assert work.desktop.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2
    work.desktop.pass_time(0.3)
    assert work.session.volume_node is work.node and work.panel.input.volume_node is work.node and not ended
    work.rest()
    assert (work.voxels() & kept).sum() == kept.sum() < work.voxels().sum()
    assert work.panel.prompts.tool == "positive" and len(work.session.prompts) == 1


def test_switching_volumes_and_back(work):
    clicked(work)
    work.rest()
    first, kept = work.node, work.voxels()
    segmentation = work.session.segmentation_node
    other, volume, labels = work.desktop.load_phantom(seed=2)
    work.panel.input.ui.volumeSelector.setCurrentNode(other)
    work.desktop.wait(lambda: work.session.volume_node is other)
    assert work.session.segmentation_node is not segmentation
    assert work.panel.input.ui.volumeSelector.currentNode() is other
    assert work.session.prompts == ()
    mine = work.volume, work.labels
    work.volume, work.labels = volume, labels
    work.panel.prompts.choose("positive")
    clicked(work)
    work.panel.input.ui.volumeSelector.setCurrentNode(first)
    work.volume, work.labels = mine
    work.desktop.wait(lambda: work.session.segmentation_node is segmentation and len(work.session.prompts) == 1)
    work.rest()
    assert (work.voxels() == kept).all()


def test_nodes_of_one_name_are_told_apart_in_both_selectors(work):
    """As two exams of a patient are, or the segmentations that two of Slicer's modules made."""
    ui, scene = work.panel.input.ui, work.desktop.scene
    same, *_ = work.desktop.load_phantom(seed=2)
    same.SetName(work.node.GetName())
    first, second = (work.desktop.slicer_scene.add_segmentation(same, name="Segmentation") for _ in range(2))
    menu = ui.volumeSelector.findChild(qt.QComboBox)
    qt.QTest.keyClick(menu, qt.Qt.Key_Down)
    assert ui.volumeSelector.currentNode() is same
    work.desktop.wait(lambda: work.session.volume_node is same)
    assert work.session.segmentation_node is second  # the newer one
    qt.QTest.keyClick(ui.segmentationSelector.findChild(qt.QComboBox), qt.Qt.Key_Up)
    work.desktop.pass_time(0.2)
    assert work.session.segmentation_node is first and ui.segmentationSelector.currentNode() is first
    assert scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 2


def test_another_segmentation_is_not_taken_when_the_one_worked_on_is_deleted(work):
    """Slicer's selector goes to a neighbour by itself: the next click would change a segmentation that the user has not
    chosen.
    """
    scene = work.desktop.slicer_scene
    other = scene.add_segmentation(work.node, ("reference",), "drawn by an expert")
    work.panel.segments.add()
    selector = work.panel.input.ui.segmentationSelector
    work.desktop.wait(lambda: selector.currentNode() is work.session.segmentation_node is not other)
    display = work.session.segmentation_node.GetDisplayNode()  # which Slicer removes in between
    gone = scene.scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, lambda *_: (
        scene.scene.RemoveObserver(gone), scene.scene.RemoveNode(display)))  # fmt: skip
    scene.scene.RemoveNode(work.session.segmentation_node)
    work.desktop.pass_time(0.3)
    work.desktop.wait(lambda: selector.currentNode() is None)
    assert work.session.segmentation_node is None
    work.panel.prompts.choose("positive")
    work.click("Red", work.middle_of(LIVER))
    work.desktop.wait(lambda: work.session.prompts)
    assert work.session.segmentation_node is not other and other.GetSegmentation().GetNumberOfSegments() == 1


@pytest.mark.parametrize("reason", ["holds no voxels", "non-linear transform"])
def test_a_volume_that_cannot_be_segmented_leaves_the_one_before(work, reason):
    work.click("Red", work.middle_of(LIVER))
    work.desktop.wait(lambda: work.session.prompts)
    scene = work.desktop.slicer_scene
    if reason == "holds no voxels":
        other = scene.add("vtkMRMLScalarVolumeNode", "other")
    else:
        other = scene.add_volume(work.volume, "other", scene.add("vtkMRMLBSplineTransformNode", "bent"))
        grid = slicer.vtkOrientedGridTransform()
        grid.SetDisplacementGridData(vtk.vtkImageData())
        other.GetParentTransformNode().SetAndObserveTransformToParent(grid)
    selector = work.panel.input.ui.volumeSelector
    selector.setCurrentNode(other)
    work.desktop.pass_time(0.5)
    assert work.session.volume_node is work.node and selector.currentNode() is work.node
    assert len(work.session.prompts) == 1
    assert [reason in text for text in work.desktop.messages()] == [True]
    assert work.panel.prompts.tool == "positive"


@pytest.mark.parametrize("what", ["volume", "segmentation", "prompts"])
def test_nodes_that_are_deleted_under_it(work, what):
    clicked(work)
    work.rest()
    scene, session = work.desktop.scene, work.session
    node = {
        "volume": session.volume_node,
        "segmentation": session.segmentation_node,
        "prompts": scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode"),
    }[what]
    scene.RemoveNode(node)
    work.desktop.pass_time(0.5)
    said = work.desktop.messages()
    assert [f"The {what} “" in text and "was deleted" in text for text in said] == [True] * (what != "prompts")
    assert work.session.prompts == ()
    if what == "volume":
        assert work.panel.input.volume_node is None and work.panel.prompts.tool is None
        return
    work.panel.prompts.choose("positive")
    clicked(work)


def test_what_is_said_of_a_deleted_volume_stays_when_another_one_takes_its_place(work):
    other, *_ = work.desktop.load_phantom(seed=2)
    work.panel.input.ui.volumeSelector.setCurrentNode(work.node)
    work.desktop.wait(lambda: work.session.volume_node is work.node)
    clicked(work)
    work.rest()
    work.desktop.scene.RemoveNode(work.node)
    work.desktop.wait(lambda: work.session.volume_node is other)
    work.rest()
    work.desktop.pass_time(0.3)
    assert ["was deleted" in text for text in work.desktop.messages()] == [True]


def test_the_tool_goes_on_when_the_segment_it_draws_into_is_removed(work):
    clicked(work)
    work.rest()
    assert work.panel.prompts.tool == "positive"
    work.panel.segments.ui.removeButton.click()
    work.desktop.pass_time(0.3)
    assert work.panel.prompts.tool == "positive" and work.session.prompts == ()
    clicked(work)
    assert len(work.session.prompts) == 1


def test_a_reload_while_it_is_shown(work):
    clicked(work)
    work.rest()
    kept = work.voxels()
    desktop = work.desktop
    settle(desktop)
    before = count(desktop)
    desktop.reload()
    work.panel = desktop.panel
    desktop.wait(lambda: work.session is not None and len(work.session.prompts) == 1)
    settle(desktop)
    desktop.wait(lambda: count(desktop)["processes"] <= before["processes"])
    after = count(desktop)
    assert after["shortcuts"] == before["shortcuts"] and after["timers"] == before["timers"]
    assert after["scene observers"] <= before["scene observers"]
    assert (work.voxels() == kept).all()


def test_the_layout_changes_while_a_tool_is_active(work):
    work.panel.prompts.choose("box")
    views = list(work.desktop.views.values())
    before = [observers_of(view.interactor) for view in views]
    slicer.app.layoutManager().show(views[:1])
    after = [observers_of(view.interactor) for view in views]
    assert after[0] == before[0] and after[1] == before[1] - 4 and after[2] == before[2] - 4


def test_a_server_in_the_settings_that_cannot_be_used_is_said(desktop):
    for name, value in (("UseServer", "true"), ("ServerAddress", "gpu.example.org:99999999")):
        qt.QSettings().setValue("SAMFineTune/" + name, value)
    panel = desktop.open()
    (said,) = desktop.messages()
    assert "99999999" in said and "not a server address" in said and "on this computer" in said
    assert panel.host.session is not None and not panel.server.remote and panel.server.ui.localButton.checked


def test_without_a_main_window_it_is_made_and_goes_again(slicer_scene, monkeypatch, caplog):
    """As Slicer's own tests of every module do: `--no-main-window`, and therefore no views."""
    desktop = Desktop(slicer_scene, views=())
    with monkeypatch.context() as patch:
        patch.setattr(slicer.util, "mainWindow", lambda: None)
        patch.setattr(slicer.app, "_layout", None)
        panel = desktop.open()
        for name in ("automatic", "train", "cohort", "settings"):
            panel.open_tab(name)
            desktop.pass_time(0.2)
        slicer_scene.add_volume(body_phantom(shape=(8, 32, 32), spacing=(10.0, 10.0, 15.0))[0])
        desktop.wait(lambda: panel.host.session.volume_node is not None)
        panel.prompts.choose("box")
        desktop.pass_time(0.2)
        desktop.widget.cleanup()
    desktop.close()
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_importing_the_module_loads_nothing_of_others():
    program = """
import sys
sys.path[:0] = [{standin!r}, {testing!r}]
import standin
standin.install()
import slicer.util
before = set(sys.modules)
sys.path.insert(0, {module!r})
import SAMFineTune
new = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(sorted(new - set(sys.stdlib_module_names)))
"""
    from pathlib import Path

    here = Path(__file__).resolve().parent
    text = program.format(standin=str(here), testing=str(here.parent), module=str(here.parents[1] / "SAMFineTune"))
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "['SAMFineTune']"


def test_the_library_is_found_beside_the_module_and_above_it(tmp_path):
    """As installed, and as a copy of the repository whose module folder was added to Slicer's paths."""
    from pathlib import Path

    root = Path(__file__).resolve().parents[2]
    for layout in ("beside", "above"):
        folder = tmp_path / layout / "modules"
        folder.mkdir(parents=True)
        (folder / "SAMFineTune.py").write_text((root / "SAMFineTune/SAMFineTune.py").read_text(encoding="utf-8"))
        library = (folder if layout == "beside" else folder.parent) / "SAMFineTuneLib"
        library.mkdir()
        (library / "__init__.py").write_text(f"where = {layout!r}\n")
        text = (
            "import sys, types\n"
            "names = ['', 'Widget', 'Logic', 'Test']\n"
            "classes = {'ScriptedLoadableModule' + name: object for name in names}\n"
            "sys.modules['slicer'] = types.ModuleType('slicer')\n"
            "sys.modules['slicer.i18n'] = types.SimpleNamespace(tr=str)\n"
            "sys.modules['slicer.ScriptedLoadableModule'] = types.SimpleNamespace(**classes)\n"
            f"sys.path.insert(0, {str(folder)!r})\n"
            "import SAMFineTune, SAMFineTuneLib\nprint(SAMFineTuneLib.where)"
        )
        run = [sys.executable, "-P", "-c", text]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.stdout.strip() == layout, done.stderr


# ---- volumes that cannot be used, and what the window loads


def test_a_volume_without_numbers_is_refused_at_once_and_the_one_before_stays(work):
    values = np.full(work.volume.shape, np.nan, np.float32)
    hollow = work.desktop.slicer_scene.add_volume(work.volume, "hollow")
    hollow.SetAndObserveImageData(image_of(values))
    work.panel.input.ui.volumeSelector.setCurrentNode(hollow)
    work.desktop.pass_time(0.5)
    assert work.session.volume_node is work.node and work.panel.input.volume_node is work.node
    assert ["hollow" in text for text in work.desktop.messages()] == [True]
    clicked(work)


def test_a_volume_put_aside_is_not_exchanged_for_another_one_behind_the_users_back(work):
    work.desktop.slicer_scene.add_volume(work.volume, "another")
    clicked(work)
    bend = vtk.vtkThinPlateSplineTransform()
    points, moved = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((0, 0, 0), (50, 0, 0), (0, 50, 0), (0, 0, 50), (30, 30, 30)):
        points.InsertNextPoint(point)
        moved.InsertNextPoint(point[0] + point[1] ** 2 / 100, point[1], point[2])
    bend.SetSourceLandmarks(points)
    bend.SetTargetLandmarks(moved)
    bend.SetBasisToR()
    transform = work.desktop.slicer_scene.add("vtkMRMLTransformNode", "bend")
    transform.SetAndObserveTransformToParent(bend)
    work.node.SetAndObserveTransformNodeID(transform.GetID())
    work.desktop.wait(lambda: work.session.volume_node is None)
    work.desktop.pass_time(1.0)
    assert work.session.volume_node is None and any("deselected" in text for text in work.desktop.messages())
    work.node.SetAndObserveTransformNodeID(None)
    work.desktop.wait(lambda: work.session.volume_node is work.node)
    assert len(work.session.prompts) == 1


def test_a_volume_that_is_refused_is_offered_once(desktop, caplog):
    panel = desktop.open()
    flat = desktop.slicer_scene.add_volume(body_phantom(seed=1, shape=(8, 32, 32), spacing=(8, 8, 9))[0], "flat")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(2, 2, 0)
    flat.SetIJKToRASMatrix(matrix)
    desktop.wait(lambda: any("geometry" in text for text in desktop.messages()))
    desktop.pass_time(1.0)
    assert len([record for record in caplog.records if "geometry" in record.getMessage()]) == 1
    flat.SetIJKToRASMatrix(vtk.vtkMatrix4x4())
    desktop.wait(lambda: panel.host.session.volume_node is flat)


@pytest.mark.parametrize("aligned", [True, False])
def test_why_a_model_cannot_be_used_is_seen_until_the_prompts_change(work, aligned):
    if aligned:
        work.panel.input.align_views()
    clicked(work)
    work.rest()
    work.panel.model.use({"id": "no-such-model", "where": "installed"})
    work.desktop.wait(lambda: work.desktop.messages())
    work.rest()
    work.desktop.pass_time(0.5)
    assert ["no-such-model" in text for text in work.desktop.messages()] == [True]


def test_a_scene_with_an_unknown_adapter_says_that_no_model_is_open(desktop):
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag("SAMFineTune")
    node.SetModuleName("SAMFineTune")
    node.SetParameter("Model", "compact")
    node.SetParameter("Adapter", "of-a-colleague")
    desktop.scene.AddNode(node)
    work = Work(desktop)
    work.click("Red", work.middle_of(LIVER))
    desktop.wait(lambda: len(work.session.prompts) == 1)
    desktop.wait(lambda: "No model is open" in work.panel.status.ui.statusLabel.text)
    work.panel.model.use({"id": "compact", "where": "bundled"})
    work.wait_for_voxels()


def test_a_scene_whose_nodes_are_of_the_wrong_kind_opens(desktop):
    volume = desktop.load_phantom()[0]
    node = slicer.vtkMRMLScriptedModuleNode()
    node.SetSingletonTag("SAMFineTune")
    node.SetModuleName("SAMFineTune")
    node = desktop.scene.AddNode(node)
    for role in ("Volume", "Segmentation", "SegmentEditor"):
        node.SetNodeReferenceID(role, volume.GetID())
    panel = desktop.open()
    assert panel.host.session.volume_node is volume and panel.host.session.segmentation_node is None


def test_the_panel_loads_no_library_that_stops_the_window_for_long(root):
    files = (root / "SAMFineTune").rglob("*.py")
    found = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    names = sorted({node.module for node in found if isinstance(node, ast.ImportFrom) and node.module is not None
                    and node.module.startswith("SAMFineTuneLib")})  # fmt: skip
    assert len(names) > 20
    code = f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
    code += "print({name.split('.')[0] for name in sys.modules} & {'scipy', 'torch', 'onnxruntime', 'matplotlib'})"
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "set()", result.stdout + result.stderr
