"""The Cohort tab: many scans, with labels proposed by a model that learns from the accepted ones."""

import sys
import time

import qt
from slicer.i18n import tr as _

from .background_controls import BackgroundControls
from .cohort_chooser import CohortChooser
from .cohort_curve import LearningCurve
from .cohort_list import FILTERS, CohortList
from .cohort_menu import CohortMenu
from .cohort_review import CohortReview
from .dicomweb_dialog import DicomwebDialog
from .qt_helpers import (
    choose_in,
    chosen_in,
    enable,
    fill_menu,
    keep_lines,
    load_ui,
    read_setting,
    set_elided,
    write_setting,
)
from .served_cohorts import ServedCohorts
from .shortcuts import KeyShortcuts

WAYS = (
    ("random", _("Next: at random")),
    ("teaching", _("Next: what teaches most")),
    ("easiest", _("Next: nearest to done")),
    ("order", _("Next: in order")),
)
KEYS = (("Return", "accept"), ("Enter", "accept"), ("Tab", "next_doubtful"))
LOOK_EVERY = 1.0  # s between two checks at the cohort's file
_REASON = 2  # lines of the text about a case
_TOPIC = "cohort"
_TYPING = ("QLineEdit", "QTextEdit", "QPlainTextEdit", "QAbstractSpinBox")


class CohortTab:
    """The tab's parts, the list of cases, and the buttons that decide about the open case."""

    def __init__(self, host, volumes, resource_path, ask_to_install, server):
        self.host, self.volumes = host, volumes
        self.widget, self.ui = load_ui(resource_path, "CohortTab")
        self.review = None  # while a cohort is open
        self._closing = []  # reviews that are still writing the labels of their last case
        self._pictures = None  # a queue
        self._picturing = False
        self._look_after = 0.0
        self._waits = ""  # why labels cannot be written at present
        self._unread = ""  # why the cohort's state cannot be read at present
        self._segments = []  # (ID, name) in the menu
        self.list = CohortList(self.ui.casesTable)
        self.curve = LearningCurve()
        self._keys = KeyShortcuts(KEYS, self._key)
        ui = self.ui
        self.served = ServedCohorts(host, ui, server, self._open)
        self.chooser = CohortChooser(host, ui, self.served.environment, self._open)
        self.background = BackgroundControls(host, ui, self.served.environment, lambda: self._show(False))
        fill_menu(ui.filterSelector, FILTERS)
        fill_menu(ui.waySelector, WAYS, read_setting("CohortWay"))
        self.dicomweb = DicomwebDialog(host, resource_path, ask_to_install, self.served.environment)
        self.menu = CohortMenu(
            ui.moreButton, resource_path, ask_to_install, self.background.begin, self._show_curve, self.dicomweb
        )
        keep_lines(ui.reasonLabel, _REASON)
        host.connect(
            (ui.servedButton, "clicked()", self.served.open),
            (ui.pacsButton, "clicked()", lambda: self.dicomweb.fetch(self.chooser.choose)),
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
        )
        host.listen("Turn", self.refresh)
        self._show(False)

    def close(self):
        self.curve.close()
        self._end_cohort()
        self.menu.close()
        self.dicomweb.close()
        for review in self._closing:
            review.close()
        self.served.close()
        self.chooser.close()

    # ---- opening

    def _open(self, folder):
        from SAMFineTuneLib.cohort.cohort_folder import Cohort

        cohort = self.host.act(Cohort, folder)
        if cohort is not None:
            self.show_cohort(cohort)

    def show_cohort(self, cohort):
        """Work on a cohort."""
        from SAMFineTuneLib.service.cohort_client import place_of
        from SAMFineTuneLib.service.cohort_work import CohortWork, take_up

        self._end_cohort()
        self.menu.folder = str(cohort.folder)
        take_up(cohort.folder, sys.executable, self.served.environment(cohort.folder))
        self.review = CohortReview(self.host, self.volumes, cohort, self._told, self.served.environment)
        self.review.way = chosen_in(self.ui.waySelector)
        self._waits = ""
        if place_of(cohort.folder) is None:
            write_setting("CohortFolder", str(cohort.folder))
        else:
            self.review.follow()
        self.background.open(self.review)
        self._pictures = CohortWork(cohort.folder, self.review.word + "-pictures")
        self._pictures.put("check")
        self.host.act(self._pictures.start, sys.executable, self._environment())
        self._show(True)

    def close_cohort(self):
        """Keep the correction of the open case, and give it back; work in the background goes on."""
        self._end_cohort()
        self.chooser.look()
        self._show(False)

    def _end_cohort(self):
        review, self.review = self.review, None
        self._keys.remove()
        if review is not None:
            review.leave()
            self._closing.append(review)
            self._pictures.close()
        self.background.close()
        self._pictures = None
        self._picturing = False
        self.menu.curveAction.setChecked(False)
        self.list.clear()

    def scene_closes(self):
        """Keep the correction of the open case before its nodes go."""
        self.menu.curveAction.setChecked(False)
        if self.review is not None:
            self.review.leave()
            if not self.host.timer.active:  # the module has not been shown for a while
                self.host.timer.start()

    # ---- every turn

    def refresh(self):
        self.chooser.follow_creation()
        self.dicomweb.refresh()
        self._closing = [review for review in self._closing if not review.close_some()]
        self._keys.set_active(self._keys_work())
        if self.review is None:
            self.chooser.show()
            self.served.refresh(self.host.shown and self.widget.visible)
            return
        before = self.review.open, self.review.waits
        self.review.turn(self.host.shown)
        if (self.review.open, self.review.waits) != before:
            self._look_after = 0.0
        self.background.refresh()
        if self.list.go_on():
            self.host.go_on()
        self._follow_segments()
        if time.monotonic() > self._look_after and not self.host.drawing():
            self._look_after = time.monotonic() + LOOK_EVERY
            self.host.act(self._keep_running)
            self._show(False)
            self._show_some_pictures()

    def _keep_running(self):
        """Restart processes that ended with work left."""
        work = self.review.work
        if not work.is_empty and not work.is_running:
            work.start(sys.executable, self._environment())
        self.background.keep_running()
        if not self.background.is_here and not work.is_running:
            self.review.follow()

    def _keys_work(self):
        """Whether Enter and Tab belong to this tab: it is shown, and no text is being typed."""
        if self.review is None or not self.host.shown or not self.widget.visible:
            return False
        focused = qt.QApplication.focusWidget()
        if focused is None:
            return True
        if focused.inherits("QComboBox"):  # it has the focus while text is typed into its line
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
        state = self._read_state() if self.review is not None and row < len(self.list.keys) else None
        if state is not None:
            key = self.list.keys[row]
            if state.case(key).state == "refused":
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

    def _read_state(self):
        """The state; None, and a message once, while it cannot be read, for example without its drive."""
        from SAMFineTuneLib.errors import UserError

        try:
            state, self._unread = self.review.cohort.state, ""
            return state
        except UserError as error:
            if str(error) != self._unread:
                self._unread = str(error)
                self.host.warn(self._unread, _TOPIC)
        return None

    def _show(self, anew):
        """Show the cohort's present state."""
        ui = self.ui
        ui.chooseFrame.setVisible(self.review is None)
        ui.cohortFrame.setVisible(self.review is not None)
        if self.review is None:
            return
        state = self._read_state()
        if state is None:
            return
        opened = self.review.open
        set_elided(ui.cohortLabel, _("{name}: {accepted} of {count} accepted").format(
            name=self.review.cohort.folder.name, accepted=len(state.accepted), count=len(state.cases)))
        key = opened.key if opened is not None else ""
        self.list.show(state, chosen_in(ui.filterSelector), key, self.review.word)
        self.curve.follow(state)
        self._show_case(state, opened)
        self.menu.show(self.background.show(state, self._waits), self.curve.drawable)
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

    def _told(self, event):
        """Handle what the review's process reports apart from the cases it opens."""
        if event.get("event") == "server":
            self.background.hear(event)
        elif event.get("event") == "waits":
            self._waits = event["text"]
            self.host.warn(self._waits, _TOPIC)
        elif event.get("waited"):
            self._waits = ""
            self.host.say(_("The disk takes it again; what you did is written."), _TOPIC)
        elif event.get("event") == "failed":
            kept = _(" The labels are kept in {folder}.").format(folder=event["kept"]) if event.get("kept") else ""
            self.host.warn(event["text"] + kept, _TOPIC)
        elif event.get("event") == "done" and event.get("what") == "accept" and self.menu.automaticAction.isChecked():
            self.review.work.put("due")
        elif event.get("due") and not self.background.is_busy:
            self.background.train()

    def _show_curve(self, wanted):
        if wanted != self.curve.shown:
            self.host.act(self.curve.show if wanted else self.curve.hide)
