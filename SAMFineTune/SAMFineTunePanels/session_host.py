"""Drives the session from a timer on Slicer's own thread.

There are no Python threads, because they starve while Slicer idles. Everything slow happens in the worker process, or
in steps (`run`). The timer is fast only while an answer is outstanding; a change in the scene triggers it at once.
"""

import logging
import time

import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import Connections
from .status_strip import Message

SOON = 1  # ms until the turn after something happened, or while the user waits: a turn then waits for the answer
WORKING = 15  # ms between two turns while a job runs
RESTING = 100  # ms while nothing is
AWAY = 400  # ms while nothing runs and the module is not shown
ANSWERED_WITHIN = 0.1  # s that an answer may take before the panel is brought up to date meanwhile
BUDGET = 0.02  # s that the session may work in a turn
END_WORKER_AFTER = 300.0  # s without work after the module was left; it starts again when needed


class Host:
    """Client, session and timer. The parts of the panel `listen` to events and `ask` the worker questions."""

    def __init__(self, parent, make_client, make_session):
        self._make_client = make_client
        self._make_session = make_session
        self._connections = Connections()
        self._listeners = []
        self._answers = {}
        self._every_turn = []
        self._left_at = None
        self._pumping = False
        self._unfinished = False
        self._waiting_since = None
        self.drawing = lambda: False  # whether the user draws with the mouse, so that nothing slow may begin
        self.remote = False  # whether models run on a server
        self.client = None
        self.session = None
        self.jobs = {}  # number (None: in the background) -> the last Busy of what runs
        self.task = None  # what the panel does in steps (`run`)
        self.training = None  # (what a training does, the fraction that is done or None) while one runs
        self.status = None
        self.timer = qt.QTimer(parent)
        self.timer.setInterval(RESTING)
        self.timer.connect("timeout()", self.turn)

    # ---- life

    def start(self):
        """The session, which is made when there is none. The worker starts when there is a volume to send."""
        if self.session is None:
            self.client = self._make_client()
            self.session = self._make_session(slicer.mrmlScene, self.client)
            self.session.on_change = self._scene_changed
            self.tell("SessionStarted", self.session)
        return self.session

    def stop(self):
        """End session and worker; the scene keeps what the session knows."""
        session, client = self.session, self.client
        self.session = self.client = None
        self.jobs.clear()
        self._answers.clear()
        self.status = None
        if session is not None:
            for ending in (session.close, client.close):  # the worker ends even if one fails
                self._guarded(ending)
            self.tell("SessionEnded", None)

    def enter(self):
        self._left_at = None
        self.wake()
        if not self.timer.active:
            self.timer.start()

    def leave(self):
        self._left_at = time.monotonic()

    def close(self):
        self.timer.stop()
        self.timer.disconnect("timeout()", self.turn)
        self.finish_reading()
        self.end_task()
        self.stop()
        self._listeners, self._every_turn = [], []
        self.timer.deleteLater()

    # ---- talking

    def connect(self, *connections):
        """Connect signals, (sender, signal, handler) each, until `disconnect`."""
        for connection in connections:
            self._connections.add(*connection)

    def disconnect(self):
        """Undo all of `connect`: the panel closes."""
        self._connections.close()

    def listen(self, kind, handler):
        """Have `handler(event)` called at every event of a class name; "Turn" is every turn of the timer."""
        if kind == "Turn":
            self._every_turn.append(handler)
        else:
            self._listeners.append((kind, handler))

    def tell(self, kind, event):
        for wanted, handler in list(self._listeners):
            if wanted == kind:
                self._guarded(handler, event)

    def ask(self, request, answered, failed=None):
        """Have `answered(value)` called when the answer to a request number comes. If the request fails,
        `failed(event)` is called; without it, the user sees why.
        """
        self._answers[request] = answered, failed
        self.wake()

    def wake(self):
        """Take the next turn soon, because something happened or was asked for."""
        if not self._pumping:
            self._set_interval(SOON)

    def _scene_changed(self):
        if self._left_at is None:  # while the module is not shown, the user does not wait for an answer
            self.wake()

    def go_on(self):
        """Take the next turn soon; called by work in steps that has not finished."""
        self._unfinished = True

    def act(self, action, *arguments, **options):
        """Call the session. If it refuses, the user gets a message, and None is returned."""
        self.wake()
        try:
            return action(*arguments, **options)
        except Exception as error:
            self.tell("Refused", self._reason(error, getattr(action, "__name__", action)))
        return None

    def run(self, task):
        """Take a step of a task at every turn: `step()` says whether there are more, `close()` ends the task, and it
        `needs_scene` until it has read its nodes."""
        self.end_task()
        self.task = task
        self.wake()

    def end_task(self):
        task, self.task = self.task, None
        if task is not None:
            task.close()

    def finish_reading(self):
        """Have the task read at once what it needs of the scene, whose nodes are about to be removed."""
        task = self.task
        while task is not None and task is self.task and task.needs_scene:
            self._guarded(self._step, task)

    def refused(self, error, what, topic=""):
        """Show what went wrong, and return it. What is not a UserError is logged, too."""
        reason = self._reason(error, what)
        self.warn(reason, topic)
        return reason

    @staticmethod
    def _reason(error, what):
        from SAMFineTuneLib.disk_errors import disk_error
        from SAMFineTuneLib.errors import UserError

        sentence = error if isinstance(error, UserError) else disk_error(error)
        if sentence is not None:
            return str(sentence)
        logging.error("SAMFineTune: %s failed", what, exc_info=error)
        why = str(error) or type(error).__name__
        return _("This failed ({why}); Slicer's log has the details.").format(why=why)

    def warn(self, text, topic=""):
        """Show a sentence that stays until a later one on the same topic replaces it."""
        self.tell("Warning", Message(text, True, topic))

    def say(self, text, topic="", folder=""):
        """Show a sentence that disappears by itself; with a link to a folder it stays."""
        self.tell("Say", Message(text, False, topic, folder))

    # ---- the timer

    @property
    def shown(self):
        """Whether the module is shown."""
        return self._left_at is None and self.timer.active

    @property
    def ready(self):
        """Whether the worker answers."""
        return self.worker_state == "ready"

    @property
    def worker_state(self):
        """See `events.Status`."""
        return "stopped" if self.status is None else self.status.state

    @property
    def has_volume(self):
        return self.session is not None and self.session.volume_node is not None

    def runs(self, what):
        """Whether such a job runs: "propagate", "everything", "embed" or "download"."""
        return any(busy.what == what for busy in self.jobs.values())

    @property
    def working(self):
        waiting = self.worker_state in ("starting", "connecting", "uploading")
        return bool(self.jobs) or bool(self._answers) or self.task is not None or waiting

    @property
    def waited(self):
        """Seconds that an answer to a prompt has been awaited; 0 while none is, or anything says how far it is."""
        return 0.0 if self.session is None or self._waiting_since is None else time.monotonic() - self._waiting_since

    def turn(self):
        if self._pumping:  # a handler has opened a dialog, which runs the timer
            return
        self._pumping = True
        try:
            self._turn()
        finally:
            self._pumping = False

    def _turn(self):
        self._unfinished = False
        if self.session is not None:
            for event in self._pumped():
                self._take(event)
            if self.session.views_first or self._answer_is_near():
                return self._set_interval(SOON)
            if not self.jobs and not self.drawing() and self.session.refresh_due:
                self._guarded(self.session.refresh_surface)
        if self.task is not None:
            self._guarded(self._step, self.task)
        for handler in list(self._every_turn):
            self._guarded(handler)
        if self._left_at is not None and not self.working and time.monotonic() - self._left_at > END_WORKER_AFTER:
            self.stop()
        if self._left_at is not None and self.session is None and not (self._unfinished or self.working):
            self.timer.stop()
        self._pace()

    def _answer_is_near(self):
        """Whether an answer may come within a moment; until then the panel is not updated."""
        now = time.monotonic()
        if self.working or not self.session.outstanding:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = now
        return self._waiting_since is not None and now - self._waiting_since < ANSWERED_WITHIN

    def _step(self, task):
        more = False
        try:
            more = task.step()
        finally:
            if not more and self.task is task:
                self.task = None

    def _pumped(self):
        try:
            return self.session.pump(BUDGET)
        except Exception:
            logging.exception("SAMFineTune: the session failed")
            self.warn(_("Something went wrong inside SAMFineTune; Slicer's log has the details."))
            return []

    def _pace(self):
        outstanding = self.session is not None and self.session.outstanding
        if self.working or self._unfinished or outstanding:
            self._set_interval(SOON if outstanding and not self.working else WORKING)
        else:
            self._set_interval(RESTING if self._left_at is None else AWAY)

    def _set_interval(self, interval):
        if self.timer.interval != interval:  # setting it restarts the timer
            self.timer.setInterval(interval)

    def _take(self, event):
        kind = type(event).__name__
        if kind == "Busy":
            self.jobs[event.job] = event
        elif kind == "Finished":
            self.jobs.pop(event.job, None)
        elif kind == "StatusChanged":
            self.status = event.status
            if event.status.state in ("stopped", "failed"):
                self.jobs.clear()
        elif kind == "Failed":
            if event.details:
                logging.error("SAMFineTune: %s\n%s", event.text, event.details)
            if event.job is not None:
                self.jobs.pop(event.job, None)
            _answered, failed = self._answers.pop(event.request, (None, None))
            if failed is not None:
                return self._guarded(failed, event)
        elif kind == "Answered":
            answered, _failed = self._answers.pop(event.request, (None, None))
            if answered is not None:
                self._guarded(answered, event.value)
        self.tell(kind, event)

    def _guarded(self, handler, *arguments):
        try:
            handler(*arguments)
        except Exception:
            logging.exception("SAMFineTune: %s failed", getattr(handler, "__name__", handler))
