"""Train: from the panel, through a process of its own, to an adapter that answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import qt
import slicer
from mrml.scenes import oriented_image_of
from test_clicks import KIDNEY, LIVER, Work

pytest.importorskip("torch")
pytest.importorskip("peft")

from case_files import case_folder

from SAMFineTuneLib.images.phantom import body_phantom

PATIENCE = 180.0  # s for a training of few steps, on a computer that does other things as well


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class TrainWork(Work):
    """Two annotated phantoms in the scene, and the Train section open with the least of trainings."""

    def __init__(self, desktop):
        super().__init__(desktop, shape=(8, 64, 64), spacing=(5.4, 5.4, 15.0))
        self.annotated = [self.annotate(self.node, self.volume, self.labels, 1)]
        volume, labels, _ = body_phantom(seed=2, shape=(8, 64, 64), spacing=(5.4, 5.4, 15.0))
        node = desktop.slicer_scene.add_volume(volume, "second")
        self.annotated.append(self.annotate(node, volume, labels, 2))
        self.train = self.panel.train
        self.brief(self.train.ui)
        self.open()

    def annotate(self, node, volume, labels, number):
        segmentation = self.desktop.slicer_scene.add_segmentation(node, (), f"annotation {number}")
        for value, name in ((LIVER, "liver"), (KIDNEY, "kidney")):
            image = oriented_image_of((labels == value).astype(np.uint8), volume.affine)
            segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, name)
        return segmentation

    @staticmethod
    def brief(ui, steps=2):
        """Few steps, no test."""
        ui.headsSelector.setCurrentIndex(1)
        ui.evidenceSelector.setCurrentIndex(2)
        ui.stepsSpinBox.setValue(steps)
        ui.batchSpinBox.setValue(1)

    def open(self):
        self.panel.open_tab("train")
        self.desktop.wait(lambda: self.train.ui.casesTable.rowCount == 2)

    def begin(self, name, steps=2):
        self.train.ui.stepsSpinBox.setValue(steps)
        self.train.ui.nameEdit.setText(name)
        self.desktop.wait(lambda: self.train.ui.startButton.enabled)
        self.train.ui.startButton.click()

    def until(self, state):
        self.desktop.wait(lambda: self.train.runs.run is not None and self.train.runs.run.state == state, PATIENCE)

    def steps(self):
        return [step for _, points in sorted(self.train.runs.curves.points.items()) for step, _ in points]


@pytest.fixture
def work(desktop):
    return TrainWork(desktop)


def test_from_the_panel_to_an_adapter_that_answers(work):
    train = work.train
    table, labels = train.ui.casesTable, train.ui.labelsList
    assert [table.item(row, 1).text() for row in (0, 1)] == ["liver, kidney"] * 2
    assert [labels.item(row).text() for row in (0, 1)] == ["kidney", "liver"]
    labels.item(0).setCheckState(qt.Qt.Unchecked)
    work.panel.input.align_views()
    ras = work.middle_of(LIVER)
    work.panel.segments.add()
    work.panel.prompts.choose("positive")
    work.click("Red", ras)
    work.wait_for_voxels()
    work.rest()
    before = work.voxels()
    seen = []
    strip, said = work.panel.status.ui.statusLabel, []
    work.panel.host.listen("Turn", lambda: seen.append(train.ui.runLabel.text))
    work.panel.host.listen("Turn", lambda: said.append(strip.toolTip))
    work.begin("mine", 6)
    work.until("done")
    assert any(text.startswith("Step ") and "loss" in text for text in seen)
    assert any(text.startswith("mine: Step ") for text in said), "seen wherever the panel is scrolled to"
    work.desktop.wait(lambda: "mine: " not in strip.toolTip)
    assert train.runs.run.last["labels"] == ["liver"], "what is not ticked is not learned"
    assert work.panel.model.adapter_id == "mine", "selected at once"
    work.desktop.wait(lambda: work.panel.model.ui.adapterSelector.findData("mine") > 0)
    assert work.panel.model.ui.adapterSelector.currentText == "mine"
    work.desktop.wait(lambda: (work.voxels() != before).any())
    assert "mine" in " ".join(work.desktop.messages())
    assert not (train.runs.run.folder / "cases").exists(), "copies of the images are gone"
    assert Path(train.runs.results.report).is_file() and "No case was held out" in train.ui.evidenceText.text
    train.ui.nameEdit.setText("mine")
    train.ui.startButton.click()
    assert "already" in work.desktop.messages()[-1]
    train.ui.deleteButton.click()
    assert train.ui.runFrame.isHidden() and train.runs.run is None


def test_killed_resumed_and_found_by_a_later_panel(work):
    train = work.train
    work.begin("long", 400)
    work.desktop.wait(lambda: len(work.steps()) >= 2, PATIENCE)
    os.kill(train.runs.run._pid, signal.SIGKILL)
    work.until("interrupted")
    said = work.desktop.messages()
    assert len(said) == 1 and "Resume" in said[0]
    train.ui.resumeButton.click()
    work.desktop.wait(lambda: train.runs.is_running and train.runs.run._pid)
    work.desktop.reload()  # another panel; the training goes on
    work.panel = work.desktop.panel
    work.train = train = work.panel.train
    work.panel.enter()
    work.panel.open_tab("train")
    work.desktop.wait(lambda: train.runs.is_running and len(work.steps()) > 2, PATIENCE)
    assert train.runs.run.name == "long" and train.ui.resumeButton.isHidden()
    assert work.steps() == sorted(set(work.steps())), "the curve goes on where it was"
    train.ui.stopButton.click()
    assert train.ui.stopButton.text == "Stop at once"
    work.until("stopped")
    assert work.desktop.messages() == [] and not train.ui.resumeButton.isHidden()
    train.ui.resumeButton.click()
    run = train.runs.run
    work.desktop.wait(lambda: train.runs.is_running and run._pid)
    slicer.app.aboutToQuit.emit()
    assert work.desktop.widget.panel is None
    work.desktop.wait(lambda: not run.is_running, PATIENCE)
    run.rewind()
    work.desktop.wait(lambda: run.poll() == [] and run.state == "stopped")
    assert run.can_resume


def test_trainings_of_another_window_come_and_go(work):
    from SAMFineTuneLib.service.trainings import TrainingJob, new_run

    runs, ui, theirs = work.train.runs, work.train.ui, []
    for name in ("one", "two"):
        theirs.append(new_run(name))
        TrainingJob(name).write(theirs[-1].folder)
        work.desktop.wait(lambda: ui.runSelector.count == len(theirs))
    assert runs.run.name == "one" and ui.runSelector.currentText == "one", "what is shown stays"
    theirs[0].discard()
    work.desktop.wait(lambda: ui.runSelector.count == 1 and runs.run.name == "two")
    theirs[1].discard()
    work.desktop.wait(lambda: ui.runFrame.isHidden() and runs.run is None)


def test_cases_are_checked_with_sentences(work, tmp_path):
    train = work.train
    train.ui.checkButton.click()
    work.desktop.wait(lambda: "labelled slices" in train.ui.checkLabel.text)
    assert "2 cases of 2 patients" in train.ui.checkLabel.text and "kidney, liver" in train.ui.checkLabel.text
    work.annotated[1].GetSegmentation().RemoveSegment(work.annotated[1].GetSegmentation().GetNthSegmentID(0))
    work.desktop.wait(lambda: train.ui.casesTable.item(1, 1).text() == "kidney")
    train.ui.labelsList.item(0).setCheckState(qt.Qt.Unchecked)
    train.ui.checkButton.click()
    work.desktop.wait(lambda: "second" in train.ui.checkLabel.text)
    assert "label it, or leave the case out" in train.ui.checkLabel.text
    train.ui.sourceSelector.setCurrentIndex(1)
    train.ui.startButton.click()
    assert "No folder is chosen" in work.desktop.messages()[-1]
    train.ui.folderEdit.currentPath = str(tmp_path)
    train.ui.checkButton.click()
    work.desktop.wait(lambda: "holds no cases" in train.ui.checkLabel.text)
    train.ui.folderEdit.currentPath = str(case_folder(tmp_path / "cases", 2, shape=(4, 32, 32)))
    train.ui.checkButton.click()
    work.desktop.wait(lambda: "2 cases" in train.ui.checkLabel.text)
    assert train.ui.labelsList.item(0).text() == "label 1" and train.cases.wanted == []
    train.ui.windowEdit.setText("nonsense")
    train.ui.startButton.click()
    assert "not an intensity window" in work.desktop.messages()[-1]
    assert not (Path(os.environ["SAMFINETUNE_HOME"]) / "trainings" / "label-1-quick").exists()


def test_the_button_beside_the_path_asks_for_what_is_wanted(work, monkeypatch):
    """Slicer's opens a dialog for files where both are, in which no folder can be chosen."""
    ui = work.train.ui
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *_: ("/cases.csv", ""))
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_: "/cases")
    for source, path in (("folder", "/cases"), ("list", "/cases.csv")):
        ui.sourceSelector.setCurrentIndex(ui.sourceSelector.findData(source))
        ui.folderEdit.browse()
        assert work.train.cases.folder == path
    ui.folderEdit.currentPath = ""
    ui.startButton.click()
    assert "No list is chosen" in work.desktop.messages()[-1]


def test_what_belongs_to_the_scene_is_saved_with_it(work, tmp_path):
    train = work.train
    train.ui.presetSelector.setCurrentIndex(1)
    train.ui.rankSpinBox.setValue(7)
    train.ui.casesTable.item(1, 0).setCheckState(qt.Qt.Unchecked)
    train.ui.labelsList.item(0).setCheckState(qt.Qt.Unchecked)
    train.store()
    work.session.store(5.0)
    work.desktop.save(tmp_path / "scene.mrb")
    slicer.mrmlScene.Clear(False)
    train.ui.rankSpinBox.setValue(1)
    train.ui.presetSelector.setCurrentIndex(0)
    work.desktop.load(tmp_path / "scene.mrb")
    work.desktop.wait(lambda: train.ui.casesTable.rowCount == 2)
    assert train.ui.rankSpinBox.value == 7 and train.ui.presetSelector.currentIndex == 1
    assert [case.volume_node.GetName() for case in train.cases.chosen] == ["phantom"]
    work.desktop.wait(lambda: train.cases.wanted == ["liver"])


def axes_as_slicer_draws_them(chart_node, series):
    """Ranges of both axes as qMRMLPlotView leaves them: automatic ones are those of the first two rows for ever."""
    def range_of(auto, given, column):
        rows = [one.GetTableNode().GetTable().GetValue(row, column).ToDouble() for one in series for row in (0, 1)]
        return (min(rows), max(rows)) if auto else given

    x = range_of(chart_node.GetXAxisRangeAuto(), chart_node.GetXAxisRange(), 0)
    y = range_of(chart_node.GetYAxisRangeAuto(), chart_node.GetYAxisRange(), 1)
    return x, y


def test_curves_are_shown_only_when_asked_for(work, monkeypatch):
    desktop, curves = work.desktop, work.train.runs.curves
    logic = slicer.vtkSlicerPlotsLogic()
    logic.SetMRMLScene(desktop.scene)
    logic.SetMRMLApplicationLogic(desktop.slicer_scene.application)
    monkeypatch.setattr(slicer.modules, "plots", SimpleNamespace(logic=lambda: logic), raising=False)
    layout = desktop.scene.AddNode(slicer.vtkMRMLLayoutNode())
    conventional = slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalView
    for kind in (conventional, logic.GetLayoutWithPlot(conventional)):
        layout.AddLayoutDescription(kind, "<layout/>")
    layout.SetViewArrangement(conventional)
    before = layout.GetViewArrangement()
    for step in (1, 2, 3):
        curves.take({"event": "progress", "stage": "training", "part": 1, "step": step, "loss": 1 / step,
                     "dice": 0.5 if step > 1 else None})  # fmt: skip
        assert curves.drawable == (step > 1)
    assert layout.GetViewArrangement() == before
    assert desktop.scene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode") == 0
    curves.show()
    series = [desktop.scene.GetNthNodeByClass(n, "vtkMRMLPlotSeriesNode") for n in (0, 1)]
    assert [one.GetName() for one in series] == ["Loss, training 1", "Validation Dice, training 1"]
    assert not any(one.GetSaveWithScene() for one in series)
    assert layout.GetViewArrangement() != before
    curves.take({"event": "progress", "stage": "training", "part": 1, "step": 4, "loss": 0.1, "dice": 0.6})
    table = series[0].GetTableNode().GetTable()
    assert [table.GetValue(row, 0).ToInt() for row in range(table.GetNumberOfRows())] == [1, 2, 3, 4]
    curves.take({"event": "start"})
    for step in (3, 4):  # taken up from a checkpoint after step 2
        curves.take({"event": "progress", "stage": "training", "part": 1, "step": step, "loss": 0.2, "dice": None})
    assert [table.GetValue(row, 0).ToInt() for row in range(table.GetNumberOfRows())] == [1, 2, 3, 4]
    assert table.GetValue(2, 1).ToFloat() == pytest.approx(0.2)
    for step in range(5, 17):
        curves.take({"event": "progress", "stage": "training", "part": 1, "step": step, "loss": 1.5, "dice": None})
    (first, last), (low, high) = axes_as_slicer_draws_them(curves.chart, series)
    assert first <= 1 and last >= 16 and low <= 0.1 and high >= 1.5
    curves.hide()
    assert layout.GetViewArrangement() == before
    assert desktop.scene.GetNumberOfNodesByClass("vtkMRMLPlotSeriesNode") == 0
    assert desktop.scene.GetNumberOfNodesByClass("vtkMRMLTableNode") == 0


def test_without_pytorch_the_section_says_what_it_needs(work, monkeypatch):
    from SAMFineTunePanels import train_tab as section

    monkeypatch.setattr(section, "torch_is_there", lambda: False)
    work.desktop.wait(lambda: not work.train.ui.packagesFrame.isHidden())
    assert "PyTorch" in work.train.ui.packagesLabel.text and not work.train.ui.startButton.enabled
    work.train.ui.packagesButton.click()
    assert "extension PyTorch" in work.desktop.messages()[-1]
