"""Work for a cohort in the background, and its progress. All windows that have the cohort open see the same."""

import os
import sys

import qt
from slicer.i18n import tr as _

from .status_strip import time_left

_SAID = {
    "train": "{reason}",
    "add": _("Added: {added} scans."),
    "export": _("Exported: {cases} cases into {folder}."),
    "report": _("The report is in {folder}."),
}
_DOES = {
    "propose": _("Proposing case {done} of {total}: {name}"),
    "add": _("Adding scan {done} of {total} {name}"),
    "export": _("Exporting case {done} of {total}: {name}"),
    "report": _("Comparing case {done} of {total}: {name}"),
}
_AGAIN = _("The work in the background had ended, perhaps because memory ran out, and is started again.")
_STOPPED = _("Stopped; the work done so far is kept.")
_STOP = {"add": _("Stop adding"), "export": _("Stop export"), "report": _("Stop report")}


class BackgroundWork:
    """A queue whose pieces are done one after another: `CohortWork`, or its counterpart for a server."""

    def __init__(self, queue):
        self.queue = queue
        self._now = {}  # the last event of progress
        self._own = None  # the number of the piece that this window queued last
        while queue.poll():
            pass  # what was reported before this window opened

    @property
    def is_busy(self):
        return self.queue.is_running and not self.queue.is_empty

    def begin(self, what, environment, outlives, **values):
        self._now = {"what": what}
        self._own = self.queue.put(what, **values)
        self.queue.start(sys.executable, environment, outlives)

    def keep_running(self, host, topic, environment, outlives):
        """Start the process again if it ended with work left, unless the user has stopped it."""
        if self.queue.is_empty or self.queue.is_running:
            return
        if self._now.get("stopping"):
            self.queue.drop()
            self._now = {}
            host.say(_STOPPED, topic)
            return
        self._expect_another(host, topic)
        self.queue.start(sys.executable, environment, outlives)

    def stop(self):
        """Stop at the next step; a second time, end the process."""
        if self._now.get("stopping"):
            self.queue.drop()
            self.queue.kill()
            self._now = {}
        else:
            self.queue.stop()
            self._now["stopping"] = True

    def look(self, host, topic):
        """Show the events since the last call."""
        for event in self.queue.poll():
            kind = event.get("event")
            if kind == "begin":
                self._expect_another(host, topic)
                self._now["begun"] = True
            elif kind == "progress":
                self._now = {**self._now, **event, "begun": True, "again": False}
            elif kind == "stopped":
                self._now = {}
            elif kind == "failed":
                self._now = {}
                host.warn(event["text"], topic)
            elif kind == "done":
                goes_on = event.get("what") == "train" and event.get("in_use")
                self._now = {"what": "propose", "begun": True} if goes_on else {}
                host.say(said_of(event), topic, event.get("folder", ""))
                for note in event.get("notes", []):
                    host.warn(note)
                if event.get("page") and event.get("number") == self._own:
                    page = os.path.join(event["folder"], event["page"])
                    qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(page))

    def _expect_another(self, host, topic):
        """Say so when a process began with the work and has not finished it."""
        if self._now.get("begun"):
            self._now = {"what": self._now.get("what"), "again": True}
            host.warn(_("{again} What was done is kept.").format(again=_AGAIN), topic)

    @property
    def part(self):
        """The fraction done, from 0 to 1; None where that is not known."""
        return self._now.get("done", 0) / self._now["total"] if self._now.get("total") else None

    @property
    def text(self):
        """One line about it."""
        now = self._now
        if now.get("stopping"):
            return _("Stopping.")
        if now.get("again"):
            return _AGAIN
        if now.get("what") == "train":
            return now.get("text", _("Training.")) + time_left(now.get("seconds_left"))
        if now.get("total") and now.get("what") in _DOES:
            return _DOES[now["what"]].format(
                done=min(now["done"] + 1, now["total"]), total=now["total"], name=now.get("text", "")).strip()
        return _("Working in the background.")

    @property
    def stop_text(self):
        """The text of the button that stops it."""
        return _("Stop at once") if self._now.get("stopping") else _STOP.get(self._now.get("what"), _("Stop"))


def said_of(event):
    """A sentence about finished background work."""
    if event.get("cancelled"):
        return _STOPPED
    if event["what"] in _SAID:
        return _SAID[event["what"]].format(**event)
    text = _("Proposed: {count} cases.").format(count=event["proposed"])
    return text + (_(" Failed: {count}; the list says why.").format(count=event["failed"]) if event["failed"] else "")
