"""Propagation, and answers for the whole object in 3-D."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
from test_clicks import KIDNEY, Work


@pytest.fixture
def work(desktop):
    return Work(desktop, aligned=True)


@pytest.fixture
def long_work(desktop):
    """A kidney on many slices, so that a busy machine sees a propagation before it has ended."""
    return Work(desktop, aligned=True, shape=(72, 128, 128), spacing=(2.7, 2.7, 5 / 3))


def test_a_box_in_3d_fills_the_organ_by_itself_and_undo_takes_all_of_it_back(work):
    button = work.panel.prompts.wholeButton
    button.click()
    assert button.checked and work.session.volumetric
    seen = []
    work.panel.host.listen("Busy", lambda event: seen.append(len(work.filled_slices())))
    work.box_round()
    truth = work.labels == KIDNEY
    assert 2 * (work.voxels() & truth).sum() / (work.voxels().sum() + truth.sum()) > 0.75
    assert len(set(seen)) > 2, "slices are seen while others are still to come"
    work.panel.prompt_list.undo()
    work.desktop.wait(lambda: not work.voxels().any())
    work.rest()
    button.click()
    work.box_round()
    assert len(work.filled_slices()) == 1 and not work.session.volumetric


def test_the_answer_in_3d_is_cancelled_in_the_strip(long_work):
    work = long_work
    work.panel.prompts.wholeButton.click()
    work.panel.host.listen("Busy", lambda event: event.done > 2 and work.panel.status.ui.cancelButton.click())
    work.box_round()
    assert 1 < len(work.filled_slices()) < len(np.flatnonzero((work.labels == KIDNEY).any(axis=(1, 2))))
    assert work.panel.status.ui.busyBar.isHidden()


def test_the_button_shows_what_the_scene_says(work):
    work.session.volumetric = True
    work.desktop.wait(lambda: work.panel.prompts.wholeButton.checked)
    slicer.mrmlScene.Clear(False)
    work.desktop.wait(lambda: not work.panel.prompts.wholeButton.checked)


def test_propagation_shows_progress_and_fills_slices(work):
    work.box_round()
    ui = work.panel.propagate.ui
    assert len(work.filled_slices()) == 1
    work.desktop.wait(lambda: ui.propagateButton.enabled)
    seen = []
    work.panel.host.listen("Turn", lambda: seen.append(work.panel.status.ui.statusLabel.text))
    ui.propagateButton.click()
    work.desktop.wait(lambda: work.panel.host.jobs)
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.rest()
    truth = work.labels == KIDNEY
    assert 2 * (work.voxels() & truth).sum() / (work.voxels().sum() + truth.sum()) > 0.75
    assert any(text for text in seen)
    assert work.panel.status.ui.busyBar.isHidden()


def test_propagation_within_a_range(work):
    work.box_round()
    ui = work.panel.propagate.ui
    middle = int(work.filled_slices()[0])
    ui.rangeBox.checked = True
    ui.firstSpinBox.value, ui.lastSpinBox.value = middle - 2, middle + 1
    work.desktop.wait(lambda: ui.propagateButton.enabled)
    ui.propagateButton.click()
    work.desktop.wait(lambda: len(work.filled_slices()) == 4)
    work.rest()
    assert list(work.filled_slices()) == list(range(middle - 2, middle + 2))
    work.view("Red", work.volume.ijk_to_ras((64, 64, middle - 3)))
    ui.firstHereButton.click()
    assert ui.firstSpinBox.value == middle - 3


def test_a_cancelled_propagation_keeps_what_it_has(long_work):
    work = long_work
    work.box_round()
    work.panel.propagate.propagate()
    work.desktop.wait(lambda: len(work.filled_slices()) > 2)
    strip = work.panel.status.ui
    strip.cancelButton.click()
    assert strip.statusLabel.text == "Cancelling…" and not strip.cancelButton.enabled
    work.panel.status.refresh()  # until the picture that is being read is done
    assert strip.statusLabel.text == "Cancelling…" and not strip.cancelButton.enabled
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.rest()
    assert len(work.filled_slices()) > 2 and strip.statusLabel.text.startswith("Ready")
    work.panel.propagate.propagate()
    work.desktop.wait(lambda: work.panel.host.jobs and not strip.cancelButton.isHidden())
    assert strip.statusLabel.text != "Cancelling…" and strip.cancelButton.enabled
    strip.cancelButton.click()
    work.desktop.wait(lambda: not work.panel.host.jobs)


def test_a_worker_that_is_killed_in_between_is_one_line(long_work):
    work, strip = long_work, long_work.panel.status.ui.statusLabel
    work.box_round()
    told, shown, done = [], [], []  # a notice leaves the panel after a while
    work.panel.host.listen("Notice", lambda event: told.append(event.text))
    work.panel.host.listen("Turn", lambda: shown.append(strip.toolTip))
    work.panel.host.listen("Busy", lambda event: done.append(event.fraction))
    work.panel.propagate.propagate()
    work.desktop.wait(lambda: any(busy.fraction for busy in work.panel.host.jobs.values()))
    work.panel.starter.kill()
    work.desktop.wait(lambda: not work.panel.host.jobs)
    work.rest()
    assert "The worker is started again. Then: Propagating" in shown
    assert None in done[1:], "not as far as it was before"
    truth = work.labels == KIDNEY
    assert 2 * (work.voxels() & truth).sum() / (work.voxels().sum() + truth.sum()) > 0.75
    assert sum("started again" in text for text in told) == 1
