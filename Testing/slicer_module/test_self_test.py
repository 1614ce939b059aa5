"""Slicer's self test, as far as it runs without Slicer's window."""

import pytest
from desktop import Desktop
from mrml.scenes import SlicerScene

import SAMFineTune


def test_the_self_test_passes(desktop):
    SAMFineTune.SAMFineTuneTest().runTest()


def test_what_fails_is_told_with_its_step(desktop, monkeypatch):
    from SAMFineTunePanels import self_test, simulated_user

    monkeypatch.setattr(simulated_user, "PATIENCE", 0.5)
    monkeypatch.setattr(self_test.SelfTest, "click", lambda *_: None)  # as if the views did not hear the mouse
    with pytest.raises(AssertionError, match="step “The first click .* failed.*Waited in vain for the first mask"):
        SAMFineTune.SAMFineTuneTest().runTest()
    assert desktop.scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


@pytest.mark.parametrize("size", [(350, 200), (2000, 1500)])
def test_its_mouse_works_in_views_of_any_size(size):
    """What it does in the views; in small ones things lie close together."""
    from SAMFineTunePanels.self_test import SelfTest

    scene = SlicerScene()
    desktop = Desktop(scene, size=size)
    steps = SelfTest(SAMFineTune.SAMFineTuneTest())
    try:
        steps.open()
        steps.first_click()
        steps.three_orientations()
        steps.turned_view()
        steps.neighbour_is_kept()
        steps.undo_and_redo()
        steps.finish()
    finally:
        desktop.close()
        scene.close()
