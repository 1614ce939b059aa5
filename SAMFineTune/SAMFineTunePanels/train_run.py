"""The trainings on this computer: progress of the chosen one, stopping and resuming it."""

import sys
import time

from slicer.i18n import tr as _

from . import packages
from .qt_helpers import fill_menu, read_flag, set_text, succeeded
from .status_strip import time_left
from .train_curves import Curves
from .train_results import TrainResults

LOOK_EVERY = 0.25  # s between two checks at a training
BUDGET = 0.01  # s of a turn in which events are read
_STAGES = {"cases": _("Reading the cases"), "before": _("Testing the base model"), "testing": _("Testing the adapter"),
           "report": _("Writing the report"), "export": _("Making the adapter ready for use")}  # fmt: skip


class TrainRuns:
    """Follows one training through its folder; calls `finished(run)` when one ends that the panel has seen running."""

    def __init__(self, host, ui, finished):
        self.host, self.ui = host, ui
        self._finished = finished
        self._runs = []
        self._look_after = 0.0
        self._asked_to_stop = False
        self._watched = False  # whether this panel has seen it running
        self._progress = {}
        self.run = None
        self.curves = Curves()
        self.results = TrainResults(ui)
        host.connect(
            (ui.runSelector, "activated(int)", self._chosen),
            (ui.deleteButton, "clicked()", self.delete),
            (ui.stopButton, "clicked()", self.stop),
            (ui.resumeButton, "clicked()", self.resume),
            (ui.curvesButton, "toggled(bool)", self._show_curves),
            (ui.pictureSelector, "currentIndexChanged(int)", self.results.show_picture),
            (ui.reportButton, "clicked()", self.results.open_report),
        )
        ui.runFrame.setVisible(False)

    def close(self):
        """Leave the training to itself: `TrainingRun.start` decides whether it goes on."""
        self.curves.close()

    # ---- which one

    def find(self):
        """List the trainings on this computer, those of other windows, too; show the latest unless one is shown
        already."""
        from SAMFineTuneLib.service.trainings import find_runs

        known = {run.folder: run for run in self._runs}
        runs = [known.get(run.folder, run) for run in find_runs()]
        if runs == self._runs and self.run in (runs or [None]):
            return
        self._runs = runs
        fill_menu(self.ui.runSelector, [(run.name, run.name) for run in runs], self.run and self.run.name)
        self.ui.runFrame.setVisible(bool(runs))
        if self.run not in runs:
            self.look_at(runs[0] if runs else None)

    def add(self, run):
        """Add a training that is about to begin, and show it."""
        self._runs = [run, *(other for other in self._runs if other.folder != run.folder)]
        self.run = None
        self.find()
        self.look_at(run)
        self._watched = True

    def _chosen(self, index):
        if 0 <= index < len(self._runs):
            self.look_at(self._runs[index])

    def look_at(self, run):
        """Show a training from its first event on."""
        self.run, self._progress = run, {}
        self._watched = self._asked_to_stop = False
        self._look_after = 0.0
        self.ui.curvesButton.setChecked(False)
        self.curves.clear()
        self.results.hide()
        if run is not None:
            run.rewind()
            self.ui.runSelector.setCurrentIndex(self._runs.index(run))

    @property
    def is_running(self):
        return self.run is not None and self.run.state == "running"

    @property
    def going_on(self):
        """(name and stage, fraction) while the training that is shown runs, else None."""
        if not self.is_running:
            return None
        return f"{self.run.name}: {self._sentence()}", fraction_of(self._progress) if self._progress else None

    # ---- following

    def refresh(self):
        """Look at the training now and then; called at every turn."""
        run = self.run
        if run is None or time.monotonic() < self._look_after:
            return
        before, self._look_after = run.state, time.monotonic() + LOOK_EVERY
        end = time.monotonic() + BUDGET
        while events := run.poll():
            for event in events:
                self.curves.take(event)
                if event.get("event") in ("progress", "start"):
                    self._progress = event
            if time.monotonic() > end:
                self._look_after = 0.0
                return
        self._watched = self._watched or (run.state == "running" and run.is_running)
        if run.state not in (before, "running", "new"):
            self._ended()
        self._show()

    def _ended(self):
        run, watched = self.run, self._watched
        self._asked_to_stop = False
        if run.state == "done":
            self.results.show(run.last, str(run.report))
        if not watched:
            return
        if run.state == "failed":
            self.host.warn(self._failure())
        elif run.state == "interrupted":
            self.host.warn(self._interrupted())
        self._watched = False
        self._finished(run)

    def _failure(self):
        """A sentence about what went wrong, and whether the training can be resumed."""
        text = self.run.last.get("text", "")
        return text + _(" Resume continues from its last checkpoint.") if self.run.can_resume else text

    def _interrupted(self):
        run = self.run
        if run.can_resume:
            return _(
                "The training {name} was ended from outside, or ran out of memory; press Resume to go on from its "
                "last checkpoint."
            ).format(name=run.name)
        said = run.last_words()
        return _("The training {name} ended before it had begun{said}; start it again.").format(
            name=run.name, said=f" ({said})" if said else "")

    def _show(self):
        run, ui = self.run, self.ui
        running, resumable = run.state == "running", run.state != "running" and run.can_resume
        set_text(ui.runLabel, self._sentence())
        ui.runBar.setVisible(running)
        if running:
            ui.runBar.value = int(1000 * fraction_of(self._progress))
        set_text(ui.stopButton, _("Stop at once") if self._asked_to_stop else _("Stop"))
        for widget, visible in ((ui.stopButton, running), (ui.resumeButton, resumable), (ui.deleteButton, not running),
                                (ui.curvesButton, self.curves.drawable)):  # fmt: skip
            widget.setVisible(bool(visible))

    def _sentence(self):
        run = self.run
        if run.state == "running":
            return _("Stopping.") if self._asked_to_stop else describe(self._progress)
        if run.state == "done":
            labels = ", ".join(run.last.get("labels", []))
            return _("The adapter {adapter} is ready; it segments {labels}.").format(
                adapter=run.last.get("adapter"), labels=labels)
        if run.state == "stopped":
            return _("Stopped. Resume continues from there.") if run.can_resume else _("Stopped before it had begun.")
        if run.state == "failed":
            return self._failure()
        return self._interrupted() if run.state == "interrupted" else _("Not begun.")

    # ---- doing

    def start(self, outlives=False):
        """Start or resume the training that is shown."""
        self._watched, self._asked_to_stop = True, False
        if succeeded(self.host, self.run.start, sys.executable, packages.environment(), outlives):
            self._look_after = 0.0
            self.refresh()

    def resume(self):
        if self.run is not None:
            self.start(read_flag("TrainOutlives"))

    def stop(self):
        """Stop the training at its next step, or at once when pressed again."""
        if self.run is None:
            return
        self.run.kill() if self._asked_to_stop else self.run.stop()
        self._asked_to_stop = True
        self._show()

    def delete(self):
        run = self.run
        if run is not None and succeeded(self.host, run.discard):
            self.run = None
            self.find()

    def _show_curves(self, wanted):
        set_text(self.ui.curvesButton, _("Hide curves") if wanted else _("Show curves"))
        if wanted != self.curves.shown:
            self.host.act(self.curves.show if wanted else self.curves.hide)

    def scene_closes(self):
        """Hide the curves, whose nodes belong to the scene."""
        self.ui.curvesButton.setChecked(False)


def describe(progress):
    """One line about the progress of a training."""
    stage = progress.get("stage")
    if stage is None:
        return _("Starting.")
    if stage == "training":
        text = _("Step {step} of {steps}, loss {loss:.3f}").format(
            step=progress["step"], steps=progress["steps"], loss=progress["loss"])
        if progress.get("dice") is not None:
            text += _(", validation Dice {dice:.3f}").format(dice=progress["dice"])
    else:
        text = _STAGES.get(stage, stage)
    if progress["parts"] > 1 and stage not in ("cases", "report", "export"):
        text = _("Training {part} of {parts}: {what}").format(
            part=progress["part"], parts=progress["parts"], what=text[0].lower() + text[1:])
    return text + time_left(progress.get("seconds_left"))


def fraction_of(progress):
    """Fraction of all trainings that is done, by steps."""
    if progress.get("stage") in ("report", "export"):
        return 1.0
    parts = max(1, progress.get("parts", 1))
    own = progress["step"] / progress["steps"] if progress.get("steps") else float(progress.get("stage") == "testing")
    return min(1.0, (progress.get("part", 1) - 1 + own) / parts)
