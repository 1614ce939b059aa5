"""The Cohort tab: many scans, proposed by a model that learns from those which are accepted."""

import os
import sys
import time

import ctk
import qt
from slicer.i18n import tr as _

from . import packages
from .background_work import BackgroundWork
from .cohort_curve import LearningCurve
from .cohort_list import FILTERS, CohortList
from .cohort_menu import CohortMenu
from .cohort_review import CohortReview
from .dicomweb_dialog import DicomwebDialog
from .model_settings import torch_is_there
from .qt_helpers import (
    choose_in,
    chosen_in,
    enable,
    fill_menu,
    load_ui,
    read_flag,
    read_setting,
    set_elided,
    set_text,
    write_setting,
)
from .served_cohorts import ServedBackground, ServedCohorts
from .shortcuts import KeyShortcuts

WAYS = (
    ("random", _("Next: at random")),
    ("teaching", _("Next: what teaches most")),
    ("easiest", _("Next: what is nearest to done")),
    ("order", _("Next: in order")),
)
KEYS = (("Return", "accept"), ("Enter", "accept"), ("Tab", "next_doubtful"))
LOOK_EVERY = 1.0  # s between two looks at the cohort's file
_REASON, _WORK = 2, 3  # lines of the two texts, which keep their height so that no button moves
_TOPIC = "cohort"
_TYPING = ("QLineEdit", "QTextEdit", "QPlainTextEdit", "QAbstractSpinBox")


class CohortTab:
    """Opens cohorts, lists their cases, and has models trained and cases proposed; `CohortReview` does the rest."""

    def __init__(self, host, volumes, resource_path, ask_to_install, server):
        self.host, self.volumes = host, volumes
        self.widget, self.ui = load_ui(resource_path, "CohortTab")
        self.review = None  # while a cohort is open
        self._closing = []  # reviews that still write the labels of their last case
        self._creating = None  # (queue, number) while a cohort is being made
        self._background = self._beside = None  # `BackgroundWork`: training and proposing, and what goes on beside it
        self._pictures = None  # a queue
        self._picturing = False
        self._created = {}  # the last event of progress while a cohort is being made
        self._look_after = 0.0
        self._segments = []  # (ID, name) in the menu
        self._chosen = None  # what the folder that was typed holds: "cohort", "images", ""
        self.list = CohortList(self.ui.casesTable)
        self.curve = LearningCurve()
        self._keys = KeyShortcuts(KEYS, self._key)
        ui = self.ui
        self.served = ServedCohorts(host, ui, server, self._open)
        ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        fill_menu(ui.filterSelector, FILTERS)
        fill_menu(ui.waySelector, WAYS, read_setting("CohortWay"))
        self.dicomweb = DicomwebDialog(host, resource_path, ask_to_install, self.served.environment)
        self.menu = CohortMenu(
            ui.moreButton, resource_path, ask_to_install, self._begin, self._show_curve, self.dicomweb
        )
        for label, lines in ((ui.reasonLabel, _REASON), (ui.workLabel, _WORK)):
            label.setFixedHeight(lines * label.fontMetrics().lineSpacing() + 2)
        host.connect(
            (ui.folderEdit, "currentPathChanged(QString)", lambda path: self._look_at(path)),
            (ui.openButton, "clicked()", self.open),
            (ui.servedButton, "clicked()", self.served.open),
            (ui.pacsButton, "clicked()", lambda: self.dicomweb.fetch(self._fetched)),
            (ui.cancelButton, "clicked()", self.cancel),
            (ui.closeButton, "clicked()", self.close_cohort),
            (ui.filterSelector, "activated(int)", lambda index: self._show(True)),
            (ui.waySelector, "activated(int)", self._way_chosen),
            (ui.casesTable, "cellDoubleClicked(int,int)", self._case_chosen),
            (ui.acceptButton, "clicked()", lambda: self._do("accept")),
            (ui.skipButton, "clicked()", lambda: self._do("skip")),
            (ui.refuseButton, "clicked()", lambda: self._do("refuse")),
            (ui.nextButton, "clicked()", lambda: self._do("next")),
            (ui.doubtButton, "clicked()", lambda: self._do("next_doubtful")),
            (ui.segmentSelector, "activated(int)", self._segment_chosen),
            (ui.trainButton, "clicked()", self.train),
            (ui.proposeButton, "clicked()", self.propose),
            (ui.stopButton, "clicked()", self.stop),
        )
        host.listen("Turn", self.refresh)
        ui.folderEdit.currentPath = read_setting("CohortFolder")
        self._look_at(ui.folderEdit.currentPath)
        self._show(False)

    def close(self):
        self.curve.close()
        self._end_cohort()
        self.menu.close()
        self.dicomweb.close()
        for review in self._closing:
            review.close()
        self.served.close()
        if self._creating is not None:
            self._creating[0].close()

    # ---- opening

    def _look_at(self, path):
        """Say what Open will do with the folder that was chosen."""
        path, ui = typed_folder(path), self.ui
        self._chosen = what_is_in(path)
        ui.labelsFrame.setVisible(self._chosen == "images")
        set_text(ui.openButton, _("Create cohort") if self._chosen == "images" else _("Open"))
        if self._chosen == "images":
            where = _("Makes the cohort in {folder}, beside the scans, which stay as they are.")
            set_text(ui.whereLabel, where.format(folder=beside(path)))
        enable((ui.openButton, self._chosen))

    def _fetched(self, folder):
        """Choose the folder of fetched scans."""
        self.ui.folderEdit.currentPath = folder

    def open(self):
        """Open the cohort of the folder that is chosen, or make one of its scans."""
        path = typed_folder(self.ui.folderEdit.currentPath)
        if self._chosen == "cohort":
            self._open(cohort_in(path))
        elif self._chosen == "images":
            self.host.act(self._create, path)

    def _create(self, images):
        from SAMFineTuneLib.service.cohort_work import CohortWork

        folder = beside(images)
        work = CohortWork(folder, "create")
        work.forget()
        number = work.put("create", images=images, labels=self.ui.labelsEdit.text.split(","))
        work.start(sys.executable, self.served.environment(folder))
        self._creating, self._created = (work, number), {}

    def cancel(self):
        """Give up making a cohort."""
        if self._creating is not None:
            self._creating[0].stop()

    def _follow_creation(self):
        if self._creating is None:
            return
        work, number = self._creating
        for event in work.poll():
            if event.get("number") != number:
                continue
            if event["event"] == "progress":
                self._created = event
            elif event["event"] in ("done", "failed"):
                self._creating = None
                work.close()
                for note in event.get("notes", []):
                    self.host.warn(note)
                if event["event"] == "failed":
                    self.host.warn(event["text"], _TOPIC)
                else:
                    self._open(str(work.cohort))
        if self._creating is not None and not work.is_running:
            self._creating = None
            self.host.warn(_("The cohort was not created ({why}); try again.").format(
                why=work.last_words() or _("its process ended")), _TOPIC)

    def _open(self, folder):
        from SAMFineTuneLib.cohort.cohort_folder import Cohort

        cohort = self.host.act(Cohort, folder)
        if cohort is not None:
            self.show_cohort(cohort)

    def show_cohort(self, cohort):
        """Work on a cohort."""
        from SAMFineTuneLib.service.cohort_client import place_of
        from SAMFineTuneLib.service.cohort_work import BESIDE, CohortWork, take_up

        self._end_cohort()
        self.menu.folder = str(cohort.folder)
        take_up(cohort.folder, sys.executable, self.served.environment(cohort.folder))
        self.review = CohortReview(self.host, self.volumes, cohort, self._told, self.served.environment)
        self.review.way = chosen_in(self.ui.waySelector)
        if place_of(cohort.folder) is not None:
            self.review.follow()
            self._background = BackgroundWork(ServedBackground(self.review.work))
            self._beside = BackgroundWork(CohortWork(cohort.folder, f"{self.review.word}-{BESIDE}"))
        else:
            write_setting("CohortFolder", str(cohort.folder))
            self._background = BackgroundWork(CohortWork(cohort.folder))
            self._beside = BackgroundWork(CohortWork(cohort.folder, BESIDE))
        self._pictures = CohortWork(cohort.folder, self.review.word + "-pictures")
        self._pictures.put("check")
        self.host.act(self._pictures.start, sys.executable, self._environment())
        self._show(True)

    def close_cohort(self):
        """Keep the correction of the open case, and give it back; work in the background goes on."""
        self._end_cohort()
        self._look_at(self.ui.folderEdit.currentPath)
        self._show(False)

    def _end_cohort(self):
        review, self.review = self.review, None
        self._keys.remove()
        if review is not None:
            review.leave()
            self._closing.append(review)
            self._pictures.close()
        self._background = self._beside = self._pictures = None
        self._picturing = False
        self.menu.curveAction.setChecked(False)
        self.list.clear()

    def scene_closes(self):
        """Keep the correction of the open case before its nodes go."""
        self.menu.curveAction.setChecked(False)
        if self.review is not None:
            self.review.leave()
            if not self.host.timer.active:  # nobody has looked at the module for a while
                self.host.timer.start()

    # ---- every turn

    def refresh(self):
        self._follow_creation()
        self.dicomweb.refresh()
        self._closing = [review for review in self._closing if not review.close_some()]
        self._keys.set_active(self._keys_work())
        if self.review is None:
            self._show_creating()
            self.served.refresh(self.host.shown and self.widget.visible)
            return
        before = self.review.open, self.review.waits
        self.review.turn(self.host.shown)
        if (self.review.open, self.review.waits) != before:
            self._look_after = 0.0
        for work in (self._background, self._beside):
            work.look(self.host, _TOPIC)
        if self.list.go_on():
            self.host.go_on()
        if self.host.training is None and not self.ui.workBar.isHidden():  # for the status strip
            self.host.training = self._shown.text, self._shown.part
        self._follow_segments()
        if time.monotonic() > self._look_after and not self.host.drawing():
            self._look_after = time.monotonic() + LOOK_EVERY
            self.host.act(self._keep_running)
            self._show(False)
            self._show_some_pictures()

    def _keep_running(self):
        """Start processes anew that ended with work to do, here or before this window."""
        for work in (self.review.work, self._background.queue, self._beside.queue):
            if not work.is_empty and not work.is_running:
                outlives = work is not self.review.work and read_flag("TrainOutlives")
                work.start(sys.executable, self._environment(), outlives)
        if not self._is_here and not self.review.work.is_running:
            self.review.follow()

    def _keys_work(self):
        """Whether Enter and Tab are for this tab: it is seen, and nobody types."""
        if self.review is None or not self.host.shown or not self.widget.visible:
            return False
        focused = qt.QApplication.focusWidget()
        if focused is None:
            return True
        if focused.inherits("QComboBox"):  # it has the focus when somebody types into its line
            return not focused.editable
        return not any(focused.inherits(kind) for kind in _TYPING)

    def _key(self, action):
        if self._keys_work():
            self._do(action)

    def _do(self, action):
        if self.review is not None:
            self.host.act(getattr(self.review, action))
            self._show(False)

    def _case_chosen(self, row, column):
        if self.review is not None and row < len(self.list.keys):
            key = self.list.keys[row]
            if self._state.case(key).state == "refused":
                self.review.reopen(key)
            self.review.choose(key)

    def _segment_chosen(self, index):
        session = self.host.session
        if session is not None and self.review is not None and self.review.open is not None:
            session.current_segment_id = chosen_in(self.ui.segmentSelector)
            self.host.wake()

    def _follow_segments(self):
        """List the segments of the open case; the chosen one gets the prompts."""
        session, selector = self.host.session, self.ui.segmentSelector
        opened = self.review.open
        self.ui.segmentsRow.setVisible(opened is not None)
        if opened is None or session is None or session.segmentation_node is not opened.segmentation_node:
            return
        names = [(segment_id, one[0]) for segment_id, one in opened.content.items()]
        if names != self._segments:
            self._segments = names
            fill_menu(selector, names, session.current_segment_id)
        elif chosen_in(selector) != session.current_segment_id:
            choose_in(selector, session.current_segment_id)

    def _way_chosen(self, index):
        way = chosen_in(self.ui.waySelector)
        write_setting("CohortWay", way)
        if self.review is not None:
            self.review.way = way

    def _environment(self):
        return self.served.environment(self.review.cohort.folder)

    @property
    def is_opening(self):
        """Whether a case is about to be shown, so that the panel need not choose another volume."""
        return self.review is not None and self.review.waits

    @property
    def _state(self):
        return self.review.cohort.state

    def _show(self, anew):
        """Show the cohort as it is now."""
        ui = self.ui
        ui.chooseFrame.setVisible(self.review is None)
        ui.cohortFrame.setVisible(self.review is not None)
        if self.review is None:
            return
        state = self.host.act(lambda: self._state)
        if state is None:
            return
        opened = self.review.open
        set_elided(ui.cohortLabel, _("{name}: {accepted} of {count} accepted").format(
            name=self.review.cohort.folder.name, accepted=len(state.accepted), count=len(state.cases)))
        key = opened.key if opened is not None else ""
        self.list.show(state, chosen_in(ui.filterSelector), key, self.review.word)
        self.curve.follow(state)
        self._show_case(state, opened)
        self._show_background(state)
        if anew:
            self.host.wake()

    def _show_case(self, state, opened):
        ui = self.ui
        if self.review.waits:
            text = _("Loading a case.")
        elif opened is not None:
            text = f"{state.case(opened.key).name}: {opened.reason}" if opened.reason else state.case(opened.key).name
        elif self.review.nothing_left:
            text = _("No case is left to review.")
        else:
            text = _("Press Next, or double-click a case.")
        set_elided(ui.reasonLabel, text, _REASON)
        there = opened is not None and not self.review.waits
        enable(
            (ui.acceptButton, there), (ui.skipButton, there), (ui.refuseButton, there),
            (ui.nextButton, not self.review.waits), (ui.doubtButton, there and opened.places),
        )  # fmt: skip

    def _show_some_pictures(self):
        from SAMFineTuneLib.service.cohort_work import picture_path

        for event in self._pictures.poll():
            self._picturing = self._picturing and event.get("event") not in ("done", "failed", "stopped")
        if self.widget.visible and not self._picturing and self.host.shown:
            folder = self.review.cohort.folder
            self.list.show_pictures(lambda key: picture_path(folder, key), self._ask_picture)

    def _ask_picture(self, key):
        self._picturing = True
        self._pictures.put("picture", case=key)
        self.host.act(self._pictures.start, sys.executable, self._environment())

    # ---- in the background

    def train(self):
        """Train from what is accepted, then propose with what came of it."""
        if self._is_here and (not torch_is_there() or packages.TRAINING.missing()):
            self.host.warn(_("Training needs PyTorch and PEFT; press Install under Train."), _TOPIC)
            return
        self._begin("train", preset="quick", device=read_setting("TrainDevice", "auto"),
                    then_propose=read_setting("Device", "auto"))

    def propose(self):
        """Propose the cases that are untouched, and those that an earlier adapter proposed."""
        self._begin("propose", again=True, device=read_setting("Device", "auto"))

    def _begin(self, what, **values):
        """Train or propose; or do what goes on beside that."""
        if self.review is None:
            return
        work = self._background if what in ("train", "propose") else self._beside
        if work.is_busy:
            self.host.warn(_("Something else is done in the background; wait for it, or press Stop."), _TOPIC)
            return
        self.host.act(lambda: work.begin(what, self._environment(), read_flag("TrainOutlives"), **values))
        self._show(False)

    @property
    def _is_here(self):
        """Whether this computer trains and proposes, rather than the cohort's server."""
        return not isinstance(self._background.queue, ServedBackground)

    @property
    def _shown(self):
        """The work in the background that is shown, and that Stop stops: what takes less long first."""
        return self._beside if self._beside.is_busy else self._background

    def stop(self):
        """Stop the work that is shown at its next step; a second press ends its process."""
        if self.review is not None:
            self._shown.stop()

    def _told(self, event):
        """What the process of the review says beside the cases it opens."""
        if event.get("event") == "server":
            self._background.queue.hear(event)
        elif event.get("event") == "failed":
            kept = _(" The labels are kept in {folder}.").format(folder=event["kept"]) if event.get("kept") else ""
            self.host.warn(event["text"] + kept, _TOPIC)
        elif event.get("event") == "done" and event.get("what") == "accept" and self.menu.automaticAction.isChecked():
            self.review.work.put("due")
        elif event.get("due") and not self._background.is_busy:
            self.train()

    def _show_background(self, state):
        from SAMFineTuneLib.cohort.running_work import running

        ui, busy, beside = self.ui, self._background.is_busy, self._beside.is_busy
        elsewhere = {} if busy or not self._is_here else running(self.review.cohort.folder)
        enable((ui.trainButton, state.accepted and "train" not in elsewhere),
               (ui.proposeButton, state.adapter and "propose" not in elsewhere))
        for widget in (ui.trainButton, ui.proposeButton):
            widget.setVisible(not busy)
        for widget in (ui.stopButton, ui.workBar):
            widget.setVisible(busy or beside)
        self.menu.show(beside, self.curve.drawable)
        if busy or beside:
            set_text(ui.stopButton, self._shown.stop_text)
            texts = [work.text for work in (self._beside, self._background) if work.is_busy]
            set_elided(ui.workLabel, " ".join(texts), _WORK)
            part = self._shown.part
            ui.workBar.setMaximum(0 if part is None else 1000)
            ui.workBar.value = int(1000 * (part or 0))
        else:
            problem = "" if self._is_here else self._background.queue.problem
            set_elided(ui.workLabel, problem or " · ".join(elsewhere.values()) or standing_of(state), _WORK)

    def _show_creating(self):
        ui, busy = self.ui, self._creating is not None
        ui.cancelButton.setVisible(busy)
        enable((ui.openButton, self._chosen and not busy), (ui.folderEdit, not busy), (ui.pacsButton, not busy))
        if busy:
            set_text(ui.whereLabel, _("Reading scan {done} of {total}.").format(
                done=self._created.get("done", 0) + 1, total=self._created.get("total") or "…"))

    def _show_curve(self, wanted):
        if wanted != self.curve.shown:
            self.host.act(self.curve.show if wanted else self.curve.hide)


# ---------------------------------------------------------------- what is said

def standing_of(state):
    """How far the adapters of a cohort are, as a sentence."""
    if not state.accepted:
        return _("Segment and accept a few cases first; then train.")
    if state.adapters:
        last = state.adapters[-1]
        known = {*last.learned, *last.held_out}
        new = sum(case.key not in known for case in state.accepted)
        return _("Training {number}: {reason} Newly accepted since: {new}.").format(
            number=last.number, reason=last.reason, new=new)
    return _("{count} accepted; no adapter yet.").format(count=len(state.accepted))


# ---------------------------------------------------------------- folders


def typed_folder(path):
    """The whole path of a folder that was typed, since processes work in folders of their own; "" for none."""
    return os.path.abspath(os.path.expanduser(path.strip())) if path.strip() else ""


def beside(path):
    """Where the cohort of a folder of scans is made."""
    return path + "-cohort"


def cohort_in(path):
    """The cohort that a folder is, that it holds, or that lies beside it; "" without one."""
    places = (path, os.path.join(path, "cohort"), beside(path))
    return next((place for place in places if os.path.isfile(os.path.join(place, "cohort.json"))), "")


def what_is_in(path):
    """ "cohort" where one can be opened, "images" for another folder, or "". """
    if not path or not os.path.isdir(path):
        return ""
    return "cohort" if cohort_in(path) else "images"
