"""The cohorts of the server in use, if any: chosen and opened in a row of the Cohort tab."""

import sys

from slicer.i18n import tr as _

from . import packages
from .qt_helpers import chosen_in, enable, fill_menu, read_setting, write_setting

_TOPIC = "cohort"


class ServedCohorts:
    """Asks the server for its cohorts when the tab is shown; `opened(folder)` gets the mirror of a chosen one."""

    def __init__(self, host, ui, server, opened):
        self.host, self.ui, self.server = host, ui, server
        self._opened = opened
        self._asked = None  # the server that was asked since the tab was shown
        self._work = None  # (queue, number, what) while the server is asked
        self._show(())

    def close(self):
        if self._work is not None:
            self._work[0].close()
        self._work = None
        enable((self.ui.servedButton, True))

    def environment(self, folder):
        """The environment of a process that works on a cohort: with the token, where the server in use has it."""
        from SAMFineTuneLib.service.cohort_client import place_of
        from SAMFineTuneLib.service.worker import TOKEN_VARIABLE

        place, used = place_of(folder), self.server.used
        token = used[1] if place is not None and used is not None and used[0] == place.address else ""
        return {**packages.environment(), TOKEN_VARIABLE: token}

    def open(self):
        """Open the chosen cohort."""
        write_setting("CohortOnServer", chosen_in(self.ui.servedSelector))
        self.host.act(self._put, "follow", chosen_in(self.ui.servedSelector))

    def refresh(self, shown):
        """At every turn without an open cohort; `shown`: whether the tab is."""
        used = self.server.used if shown else None
        if used != self._asked:
            self._asked = used
            self._show(())
            self.close()
            if used is not None:
                self.host.act(self._put, "list", "")
        if self._work is None:
            return
        work, number, what = self._work
        for event in work.poll_piece(number):
            if event["event"] not in ("done", "failed", "ended"):
                continue
            self.close()
            if event["event"] == "ended":
                self.host.warn(_("The server could not be reached ({why}); try again.").format(**event), _TOPIC)
            elif event["event"] == "failed":
                self.host.warn(event["text"], _TOPIC)
            elif what == "list":
                self._show(event["names"])
            else:
                self._opened(str(work.cohort))
            return

    def _put(self, what, name):
        """Have a process ask the server."""
        from SAMFineTuneLib.service.cohort_client import CohortPlace, mirror
        from SAMFineTuneLib.service.cohort_work import CohortWork

        self.close()
        address, _token, certificate = self.server.used
        folder = mirror(CohortPlace(address, name, certificate))
        work = CohortWork(folder, what)
        number = work.put(what)
        work.start(sys.executable, self.environment(folder))
        self._work = work, number, what
        enable((self.ui.servedButton, False))

    def _show(self, names):
        self.ui.servedFrame.setVisible(bool(names))
        fill_menu(self.ui.servedSelector, [(name, name) for name in names], read_setting("CohortOnServer") or None)


class ServedBackground:
    """The server's background work for a cohort, in place of `CohortWork`; everyone who has the cohort open sees it."""

    def __init__(self, work):
        self._work = work  # the window's queue, through which the server is asked
        self._busy, self._events = False, []
        self.problem = ""  # why the server does not answer, as a sentence

    def hear(self, event):
        """Take what the window's process reports of the server."""
        self._busy, self.problem = event["busy"], event["problem"]
        self._events += event["events"]

    def poll(self):
        events, self._events = self._events, []
        return events

    @property
    def is_running(self):
        return self._busy

    @property
    def is_empty(self):
        return not self._busy

    def put(self, what, **values):
        self._work.put(what)

    def start(self, executable, environment, outlives=False):
        self._work.start(executable, environment)

    def stop(self):
        self._work.put("stop")

    kill = stop

    def drop(self):
        """Work that others have started stays."""
