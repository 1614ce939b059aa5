"""The case of a cohort that is shown next: a process reads it, and its voxels are copied in pieces, in advance."""

import time
from pathlib import Path

from slicer.i18n import tr as _

_AT_ONCE = 0.012  # s of a turn in which voxels are copied
_TOPIC = "cohort"


class NextCase:
    """One case at a time is requested, loaded, and then ready to be taken.

    `put(what, **values)` puts a piece into the queue of the window and returns its number.
    """

    def __init__(self, host, put):
        self.host, self._put = host, put
        self._asked = None  # number of the piece that opens a case
        self._loading = None  # (what the process reported of the case, steps that load it)
        self._ready = None  # (what the process reported of it, its images)

    @property
    def key(self):
        """Key of the case that is ready, or None."""
        return self._ready[0]["case"] if self._ready is not None else None

    def ask(self, **values):
        """Have a case read, unless one is being read or is ready; the values say which."""
        if self._asked is None and self._loading is None and self._ready is None:
            self._asked = self._put("open", gives_back=True, **values)

    def awaits(self, event):
        """Whether an event about a case is the answer to the last request."""
        return event["number"] == self._asked

    def answered(self, event):
        """Take the answer to the request; if a case was read, begin to load it. Returns whether one was."""
        from SAMFineTuneLib.mrml.cohort_nodes import image_steps

        self._asked = None
        was_read = event["event"] == "done" and bool(event["case"])
        if was_read:
            self._loading = event, image_steps(event)
        return was_read

    def load_some(self):
        """Load for a moment. Returns whether the case has become ready."""
        if self._loading is None:
            return False
        self.host.go_on()
        told, steps = self._loading
        end = time.monotonic() + _AT_ONCE
        try:
            while time.monotonic() < end:
                next(steps)
        except StopIteration as last:
            self._loading, self._ready = None, (told, last.value)
            return True
        except OSError as error:
            self._loading = None
            self.host.refused(error, _("Loading a case"), _TOPIC)
        return False

    def take(self):
        """(what the process reported of the ready case, its images); another case can be requested from then on."""
        ready, self._ready = self._ready, None
        return ready

    def drop(self):
        """Forget the requested, loading or ready case. Returns the keys of the cases to give back."""
        dropped = [one[0]["case"] for one in (self._loading, self._ready) if one is not None]
        if self._loading is not None:
            self._loading[1].close()
        self._asked = self._loading = self._ready = None  # a case that is being read is given back later
        return dropped


def forget_files(event):
    """Delete the voxels of a case that was read but is no longer wanted."""
    for path in filter(None, (event["voxels"], event["labels"])):
        Path(path).unlink(missing_ok=True)
