"""Train, Propose and Stop of the Cohort tab, and a line about the work in the background."""

from slicer.i18n import tr as _

from . import packages
from .background_work import BackgroundWork
from .model_settings import torch_is_there
from .qt_helpers import enable, keep_lines, read_flag, read_setting, set_elided, set_text
from .served_cohorts import ServedBackground

_LINES = 3  # of the text
_TOPIC = "cohort"


class BackgroundControls:
    """Trains and proposes, and meanwhile adds, exports and reports; `begun()` is called when one of these begins."""

    def __init__(self, host, ui, environment, begun):
        self.host, self.ui = host, ui
        self._environment_of, self._begun = environment, begun
        self._folder = None  # of the cohort that is open
        self._main = self._beside = None  # `BackgroundWork`: training and proposing, and what runs meanwhile
        keep_lines(ui.workLabel, _LINES)
        host.connect(
            (ui.trainButton, "clicked()", self.train),
            (ui.proposeButton, "clicked()", self.propose),
            (ui.stopButton, "clicked()", self.stop),
        )

    def open(self, review):
        """Follow the background work for the cohort of a `CohortReview`."""
        from SAMFineTuneLib.service.cohort_client import place_of
        from SAMFineTuneLib.service.cohort_work import BESIDE, CohortWork

        self._folder = folder = review.cohort.folder
        if place_of(folder) is not None:
            self._main = BackgroundWork(ServedBackground(review.work))
            self._beside = BackgroundWork(CohortWork(folder, f"{review.word}-{BESIDE}"))
        else:
            self._main = BackgroundWork(CohortWork(folder))
            self._beside = BackgroundWork(CohortWork(folder, BESIDE))

    def close(self):
        """Stop following; the work goes on."""
        self._folder = self._main = self._beside = None

    @property
    def is_here(self):
        """Whether training and proposing run on this computer, rather than on the cohort's server."""
        return not isinstance(self._main.queue, ServedBackground)

    @property
    def is_busy(self):
        """Whether a training or proposing is under way."""
        return self._main.is_busy

    # ---- what the buttons do

    def train(self):
        """Train on the accepted cases, then propose with the new adapter."""
        if self.is_here and (not torch_is_there() or packages.TRAINING.missing()):
            self.host.warn(_("Training needs PyTorch and PEFT; press Install under Train."), _TOPIC)
            return
        self.begin("train", preset="quick", device=read_setting("TrainDevice", "auto"),
                   then_propose=read_setting("Device", "auto"))

    def propose(self):
        """Propose labels for untouched cases and for those that an earlier adapter proposed."""
        self.begin("propose", again=True, device=read_setting("Device", "auto"))

    def begin(self, what, **values):
        """Start a training or proposing, or other work that may run meanwhile."""
        if self._folder is None:
            return
        work = self._main if what in ("train", "propose") else self._beside
        if work.is_busy:
            self.host.warn(_("Other work is running in the background; wait for it, or press Stop."), _TOPIC)
            return
        self.host.act(lambda: work.begin(what, self._environment(), read_flag("TrainOutlives"), **values))
        self._begun()

    def stop(self):
        """Stop the work that is shown at its next step; a second press ends its process."""
        if self._folder is not None:
            self._shown.stop()

    # ---- every turn

    def refresh(self):
        """Handle the events since the last call."""
        for work in (self._main, self._beside):
            work.look(self.host, _TOPIC)
        if self.host.training is None and not self.ui.workBar.isHidden():  # for the status strip
            self.host.training = self._shown.text, self._shown.part

    def keep_running(self):
        """Restart processes that ended with work left, here or before this window."""
        for work in (self._main, self._beside):
            work.keep_running(self.host, _TOPIC, self._environment(), read_flag("TrainOutlives"))

    def hear(self, event):
        """Take what the cohort's server reports of its work."""
        self._main.queue.hear(event)

    def show(self, state, problem=""):
        """Show the work for a cohort in this state, or without any the problem. Returns whether any runs besides
        training."""
        from SAMFineTuneLib.cohort.running_work import running

        ui, busy, beside = self.ui, self._main.is_busy, self._beside.is_busy
        elsewhere = {} if busy or not self.is_here else running(self._folder)
        enable((ui.trainButton, state.accepted and "train" not in elsewhere),
               (ui.proposeButton, state.adapter and "propose" not in elsewhere))
        for widget in (ui.trainButton, ui.proposeButton):
            widget.setVisible(not busy)
        for widget in (ui.stopButton, ui.workBar):
            widget.setVisible(busy or beside)
        if busy or beside:
            set_text(ui.stopButton, self._shown.stop_text)
            texts = [work.text for work in (self._beside, self._main) if work.is_busy]
            set_elided(ui.workLabel, " ".join(texts), _LINES)
            part = self._shown.part
            ui.workBar.setMaximum(0 if part is None else 1000)
            ui.workBar.value = int(1000 * (part or 0))
        else:
            problem = problem or ("" if self.is_here else self._main.queue.problem)
            set_elided(ui.workLabel, problem or " · ".join(elsewhere.values()) or standing_of(state), _LINES)
        return beside

    @property
    def _shown(self):
        """The work that is shown, and that Stop stops: the shorter one first."""
        return self._beside if self._beside.is_busy else self._main

    def _environment(self):
        return self._environment_of(self._folder)


def standing_of(state):
    """The state of a cohort's adapters, as a sentence."""
    if not state.accepted:
        return _("Segment and accept a few cases first; then train.")
    if state.adapters:
        last = state.adapters[-1]
        known = {*last.learned, *last.held_out}
        new = sum(case.key not in known for case in state.accepted)
        return _("Training {number}: {reason} Newly accepted since: {new}.").format(
            number=last.number, reason=last.reason, new=new)
    return _("{count} accepted; no adapter yet.").format(count=len(state.accepted))
