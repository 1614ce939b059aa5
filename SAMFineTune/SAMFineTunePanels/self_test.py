"""Slicer's self test: uses the module with mouse events in real slice views, without network."""

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import qt
import slicer

from .open_case import TWICE
from .qt_helpers import choose_in, read_setting, write_setting
from .shown_views import shown_slice
from .simulated_user import SimulatedUser, dice_of

SHAPE, SPACING = (28, 160, 160), (2.2, 2.2, 5.0)
LIVER, KIDNEY = 1, 4  # label values of the phantom
VIEWS = ("Red", "Green", "Yellow")


def run(test):
    """Run all steps in order; `test` is a unittest.TestCase. A failure names the step in which it happened."""
    if slicer.app.layoutManager() is None:
        test.delayDisplay("There are no slice views without Slicer's main window: nothing was tested")
        return
    selfTest = SelfTest(test)
    try:
        selfTest.run()
    except Exception as error:
        why = str(error) or type(error).__name__
        test.fail(f"The step “{selfTest.step}” failed, and those after it were not run: {why}")
    finally:
        selfTest.finish()


class SelfTest(SimulatedUser):
    """The steps share one scene, as a user's work does."""

    def __init__(self, test):
        super().__init__(test)
        self.folder = tempfile.mkdtemp(prefix="samfinetune-self-test-")
        self.cohort_folder = read_setting("CohortFolder")  # the user's, which the test changes

    def run(self):
        self.open()
        self.first_click()
        self.three_orientations()
        self.turned_view()
        self.three_dimensions()
        self.neighbour_is_kept()
        self.undo_and_redo()
        self.propagate_through_a_crash()
        self.save_and_load()
        self.export()
        self.transformed_volume()
        self.training()
        self.cohort()
        self.close_the_scene()

    def finish(self):
        if self.panel is not None:
            self.panel.cohort.close_cohort()
            self.panel.prompts.rest()
            self.panel.prompts.chosen = "positive"
        write_setting("CohortFolder", self.cohort_folder or None)
        slicer.mrmlScene.Clear(False)
        shutil.rmtree(self.folder, ignore_errors=True)

    # ---- steps

    def open(self):
        self.say("A volume is loaded and the module opened")
        manager = slicer.app.layoutManager()
        if hasattr(manager, "setLayout"):
            manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
        slicer.util.selectModule("SAMFineTune")
        self.passing(0.1)
        self.test.assertFalse(
            self.panel.status.runtime_missing(), "ONNX Runtime is missing: press Install in the panel first"
        )
        self.test.assertFalse(
            self.panel.server.remote, "models run on a server: choose This computer in the Settings tab first"
        )
        self.panel.prompts.chosen = "positive"  # as when Slicer has just been started
        self.load()

    def load(self, parent=None):
        """The phantom, shown along its own axes."""
        from SAMFineTuneLib.images.phantom import body_phantom
        from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

        from .sample_data import make_phantom

        _, self.labels, _ = body_phantom(shape=SHAPE, spacing=SPACING)
        (self.node,) = make_phantom(shape=SHAPE, spacing=SPACING)
        if parent is not None:
            self.node.SetAndObserveTransformNodeID(parent.GetID())
        for name in VIEWS:
            widget = slicer.app.layoutManager().sliceWidget(name)
            widget.mrmlSliceNode().RotateToVolumePlane(self.node)
            widget.sliceLogic().FitSliceToAll()
        if self.panel.input.volume_node is not self.node:
            self.panel.input.choose_volume(self.node)
        self.wait(lambda: self.session.volume_node is self.node, "the volume is the input")
        self.volume = volume_from_node(self.node)

    def first_click(self):
        self.say("The first click makes segmentation, segment and mask")
        self.test.assertEqual(self.panel.prompts.tool, "positive")
        ras = self.middle_of(LIVER)
        self.click("Red", ras)
        self.wait(lambda: self.voxels().any(), "the first mask")
        self.assert_covered(ras)
        self.clear()

    def three_orientations(self):
        self.say("Boxes in three orientations")
        for name in VIEWS:
            for value in (LIVER, KIDNEY):
                self.panel.segments.add()
                self.go_to(name, self.middle_of(value))
                plane = self.plane(name)
                self.drag_box(name, *self.box_round(value, plane))
                self.wait(lambda: self.voxels().any(), f"a mask in view {name}")
                truth = self.labels == value
                dice = self.dice_on(plane, self.voxels(), truth)
                self.test.assertGreater(dice, 0.8, f"Dice in view {name}")
                off = self.voxels() & ~self.slab(plane)
                self.test.assertFalse(off.any(), f"voxels off the slice of view {name}")
                self.clear()

    def turned_view(self):
        self.say("A view turned by 20 degrees")
        import vtk

        ras = self.middle_of(LIVER)
        node = self.slice_node("Red")
        before = vtk.vtkMatrix4x4()
        before.DeepCopy(node.GetSliceToRAS())
        turn = vtk.vtkTransform()
        turn.Concatenate(before)
        turn.RotateX(20)
        turn.RotateY(10)
        node.GetSliceToRAS().DeepCopy(turn.GetMatrix())
        node.UpdateMatrices()
        self.panel.segments.add()
        self.click("Red", ras)
        self.wait(lambda: self.voxels().any(), "a mask in the turned view")
        self.assert_covered(ras)
        self.clear()
        node.GetSliceToRAS().DeepCopy(before)
        node.UpdateMatrices()

    def three_dimensions(self):
        self.say("In 3-D a box on one slice segments the whole organ, and undo takes all of it back")
        button = self.panel.prompts.wholeButton
        self.panel.segments.add()
        self.go_to("Red", self.middle_of(KIDNEY))
        button.click()
        self.drag_box("Red", *self.box_round(KIDNEY, self.plane("Red")))
        # A slice beside the box's: Cancel, which the panel offers meanwhile, ends this test with a low Dice.
        self.wait(lambda: len(self.slices_of(self.voxels())) > 1, "slices beside the box")
        self.wait(lambda: self.settled() and not self.panel.host.jobs, "the whole organ")
        self.test.assertGreater(dice_of(self.voxels(), self.labels == KIDNEY), 0.8, "Dice in 3-D")
        self.panel.prompt_list.undo()
        self.wait(lambda: not self.voxels().any(), "nothing after undo")
        button.click()
        self.test.assertFalse(self.session.volumetric, "In 3-D is still on")
        self.clear()

    def neighbour_is_kept(self):
        self.say("A neighbour keeps its voxels")
        self.panel.segments.add()
        ras = self.middle_of(KIDNEY)
        self.go_to("Red", ras)
        box = self.box_round(KIDNEY, self.plane("Red"))
        self.drag_box("Red", *box)
        self.wait(lambda: self.voxels().any(), "the first of two segments")
        first, kept = self.session.current_segment_id, self.voxels()
        self.panel.segments.add()
        outwards = (box[1] - box[0]) / 5  # not from a handle of the other box, which would move that
        self.drag_box("Red", box[0] - outwards, box[1] + outwards)
        self.passing(1.0)
        self.wait(lambda: self.settled(), "the second of two segments")
        self.test.assertTrue((self.voxels(first) == kept).all(), "the neighbour changed")
        self.test.assertFalse((self.voxels() & kept).any(), "both have a voxel")
        self.panel.segments.remove()
        self.passing(0.2)
        self.session.current_segment_id = first
        self.first, self.kept = first, kept

    def undo_and_redo(self):
        self.say("Undo and redo")
        self.click("Red", self.middle_of(KIDNEY), "negative")
        self.test.assertEqual(self.session.current_segment_id, self.first, "another segment was chosen by itself")
        self.wait(lambda: (self.voxels(self.first) != self.kept).any(), "what a negative point changes")
        self.wait(self.settled, "rest after a negative point")
        changed = self.voxels(self.first)
        self.panel.prompts.act("undo")
        self.wait(lambda: (self.voxels(self.first) == self.kept).all(), "undo")
        self.panel.prompts.act("redo")
        self.wait(lambda: (self.voxels(self.first) == changed).all(), "redo")
        self.panel.prompts.act("undo")
        self.wait(lambda: (self.voxels(self.first) == self.kept).all(), "undo, again")
        self.panel.prompts.choose(None)

    def propagate_through_a_crash(self):
        self.say("Propagation; the worker is killed in between")
        self.propagate(meanwhile=lambda: self.panel.starter.kill())  # as if it had run out of memory
        if len(self.slices_of(self.voxels())) < 4:  # it ended with the worker: the user presses again
            self.propagate()
        dice = dice_of(self.voxels(), self.labels == KIDNEY)
        self.test.assertGreater(dice, 0.75, "Dice of the propagated kidney")
        self.propagated = self.voxels()

    def save_and_load(self):
        self.say("Save, close, load")
        path = os.path.join(self.folder, "scene.mrb")
        self.wait(lambda: self.session.at_rest, "rest before saving")
        prompts = len(self.session.prompts)
        self.test.assertTrue(slicer.util.saveScene(path))
        slicer.mrmlScene.Clear(False)
        self.passing(0.2)
        slicer.util.loadScene(path)
        self.wait(lambda: self.session is not None and self.session.volume_node is not None, "the loaded volume")
        self.node = self.session.volume_node
        self.wait(lambda: len(self.session.prompts) == prompts, "the loaded prompts")
        self.test.assertTrue((self.voxels() == self.propagated).all(), "the loaded segment")
        for name in VIEWS:
            slicer.app.layoutManager().sliceWidget(name).sliceLogic().FitSliceToAll()
        before = self.voxels()
        self.click("Red", self.middle_of(KIDNEY), "negative")
        self.wait(lambda: (self.voxels() != before).any(), "a click after loading")
        self.panel.prompts.choose(None)

    def export(self):
        self.say("Export")
        export = self.panel.export
        export.ui.folderEdit.currentPath = self.folder
        for ending in (".nii.gz", ".seg.nrrd"):
            choose_in(export.ui.formatSelector, ending)
            self.press_export()
            self.test.assertTrue(export.last and export.last.endswith(ending), self.panel.status.messages)
            self.assert_same_geometry(export.last)
        choose_in(export.ui.formatSelector, "")
        self.press_export()
        self.test.assertIsNotNone(slicer.mrmlScene.GetNodeByID(export.last.GetID()))

    def press_export(self):
        self.panel.export.export()
        self.wait(lambda: self.panel.host.task is None, "the export to end")

    def assert_same_geometry(self, path):
        import SimpleITK as sitk

        image = sitk.ReadImage(path)
        self.test.assertEqual(image.GetSize(), self.volume.shape[::-1])
        self.test.assertTrue(np.allclose(image.GetSpacing(), self.volume.spacing, atol=1e-3), "spacing")
        lps = np.array(image.TransformIndexToPhysicalPoint((0, 0, 0)))
        self.test.assertTrue(np.allclose(lps * (-1, -1, 1), self.volume.affine[:3, 3], atol=1e-3), "origin")
        written = sitk.GetArrayFromImage(image) > 0
        self.test.assertTrue((written == self.voxels(every=True)).all(), "voxels of " + path)

    def transformed_volume(self):
        self.say("A volume under a transform")
        slicer.mrmlScene.Clear(False)
        self.passing(0.2)
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "moved")
        matrix = np.eye(4)
        angle = np.radians(25)
        matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        matrix[:3, 3] = (40, -25, 30)
        transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
        self.load(transform)
        ras = self.middle_of(LIVER)
        self.click("Red", ras)
        self.wait(lambda: self.voxels().any(), "a mask below a transform")
        self.assert_covered(ras)

    def training(self):
        """Two steps on one case, from the scene to an adapter that answers; it is removed again."""
        from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore
        from SAMFineTuneLib.service.trainings import free_name

        train = self.panel.train
        self.panel.open_tab("train")
        self.passing(1.5)
        missing = "" if train.ui.packagesFrame.isHidden() else train.ui.packagesLabel.text
        if missing or train.runs.is_running:
            self.say(f"Training is not tested: {missing or 'another one runs.'}")
            self.panel.open_tab("segment")
            return
        self.say("Two steps of training")
        self.propagate()
        name = free_name("self-test")
        ui = train.ui
        ui.nameEdit.setText(name)
        choose_in(ui.evidenceSelector, "none")
        choose_in(ui.headsSelector, "promptable")
        for box, value in ((ui.stepsSpinBox, 2), (ui.batchSpinBox, 1)):
            box.setValue(value)
        self.wait(lambda: ui.startButton.enabled, "the button that starts a training")
        ui.startButton.click()
        self.wait(lambda: train.runs.run is not None and train.runs.run.name == name, "the training to begin")
        self.wait(lambda: train.runs.run.state not in ("new", "running"), "the training to end")
        self.test.assertEqual(train.runs.run.state, "done", str(train.runs.run.last))
        self.test.assertEqual(self.panel.model.adapter_id, name)
        self.wait(self.settled, "masks with the adapter")
        self.panel.model.use_adapter("compact", "")
        self.wait(self.settled, "masks without it")
        ui.deleteButton.click()
        self.panel.open_tab("segment")
        AdapterStore().remove(name)

    def cohort(self):
        """A cohort of two scans: a proposal is looked at where it is doubtful, corrected with a click, and accepted."""
        from SAMFineTuneLib.images import read_volume

        self.say("A proposal of a cohort is corrected and accepted")
        slicer.mrmlScene.Clear(False)
        tab, ui = self.panel.cohort, self.panel.cohort.ui
        self.panel.open_tab("cohort")
        scans, self.volume, truth = self.write_scans()
        ui.folderEdit.currentPath = str(scans)
        ui.labelsEdit.setText("liver")
        self.wait(lambda: ui.openButton.enabled, "the button that makes a cohort")
        ui.openButton.click()
        self.wait(lambda: tab.review is not None, "the cohort to be made")
        cohort, review = tab.review.cohort, tab.review
        key, doubtful = self.propose(cohort, truth)
        review.choose(key)
        self.wait(lambda: review.open is not None and review.open.key == key, "the case")
        self.panel.input.align_views()
        ui.doubtButton.click()
        self.test.assertEqual(shown_slice(self.session.volume, "axial"), doubtful, "the slice of the doubtful place")
        strip = review.strip.widget
        self.wait(lambda: strip.width > 20 and not strip.isHidden(), "the strip of confidence")
        at = strip.width // 4
        where = qt.QPointF(at, 3.0)
        qt.QCoreApplication.sendEvent(strip, qt.QMouseEvent(
            qt.QEvent.MouseButtonPress, where, where, qt.Qt.LeftButton, qt.Qt.LeftButton, qt.Qt.NoModifier))
        self.test.assertEqual(shown_slice(self.session.volume, "axial"), review.strip.slice_at(at), "the strip's slice")
        rows, columns = truth[doubtful].nonzero()
        middle = np.abs(rows - rows.mean()) + np.abs(columns - columns.mean())
        self.click("Red", self.volume.ijk_to_ras((columns[middle.argmin()], rows[middle.argmin()], doubtful)))
        self.panel.prompts.choose(None)
        self.wait(lambda: self.voxels()[doubtful].any(), "the slice that the proposal lacks")
        self.passing(TWICE)  # the case counts as looked at
        ui.acceptButton.click()
        self.wait(lambda: cohort.state.case(key).state == "accepted", "the case to be accepted")
        accepted = read_volume(cohort.accepted(key)).array
        self.test.assertGreater(dice_of(accepted == 1, truth), 0.95, "Dice of the accepted labels")
        ui.closeButton.click()
        self.wait(lambda: not any(case.lease for case in cohort.state.cases), "the cases to be given back")
        self.panel.open_tab("segment")

    def write_scans(self):
        """(folder, Volume of its first scan, where its liver is)"""
        from SAMFineTuneLib.images import write_labelmap
        from SAMFineTuneLib.images.phantom import body_phantom

        folder = Path(self.folder) / "scans"
        folder.mkdir()
        made = [body_phantom(seed=seed, shape=SHAPE, spacing=SPACING)[:2] for seed in (1, 2)]
        for number, (volume, _) in enumerate(made):
            write_labelmap(folder / f"scan{number}.nii.gz", (volume.array.astype(int) + 1024).astype(np.uint16), volume)
        return folder, made[0][0], made[0][1] == LIVER

    def propose(self, cohort, truth):
        """Give the first case a proposal like an adapter's that lacks a slice. Returns its key and that slice."""
        from SAMFineTuneLib.cohort.cohort_state import Proposal
        from SAMFineTuneLib.cohort.review import PROPOSED_LABELS
        from SAMFineTuneLib.images import write_labelmap

        there = self.slices_of(truth)
        doubtful = int(there[len(there) // 2])
        proposed = truth.astype(np.uint8)
        proposed[doubtful] = 0
        confidence = [0.9 if index in there else None for index in range(len(truth))]
        confidence[doubtful] = 0.3
        key = cohort.state.case("scan0").key
        write_labelmap(cohort.proposal(key) / PROPOSED_LABELS, proposed, self.volume)
        said = {"orientation": "axial", "slices": {"liver": confidence}}
        (cohort.proposal(key) / "confidence.json").write_text(json.dumps(said), encoding="utf-8")
        cohort.change(lambda state: state.with_case(key, state="proposed", proposal=Proposal(1, {"liver": 0.5}, 1)))
        return key, doubtful

    def close_the_scene(self):
        self.say("Closing the scene ends the session")
        slicer.mrmlScene.Clear(False)
        self.passing(0.2)
        self.test.assertEqual(self.panel.host.jobs, {})
        self.test.assertTrue(self.session is None or self.session.volume_node is None)
