"""An export that goes on while Slicer is used: nodes are read in steps, and a thread writes the file."""

import logging
import threading
import time

from slicer.i18n import tr as _

AT_ONCE = 0.015  # s of a turn
MOST_WAITING = 60.0  # s that a file which is being written delays the end of the panel
YIELD = 0.008  # s of a turn in which the writing thread may run: threads starve while Slicer idles


class ExportTask:
    """A task for `Host.run`: reads nodes in steps on Slicer's own thread, and writes the file in a thread of its own.

    `done(result)` gets the node with its notes, or the result of the function that wrote the file; `failed(error)` gets
    what they raised.
    """

    def __init__(self, text, steps, done, failed):
        """Args: steps: yields its progress, and returns a node with its notes, or a function that writes the file."""
        self.text = text
        self.fraction = 0.0
        self._steps = steps
        self._done = done
        self._failed = failed
        self._thread = None  # that writes
        self._outcome = None  # of the thread: (result, None) or (None, error)

    @property
    def cancellable(self):
        return self._thread is None

    needs_scene = cancellable

    def step(self):
        """Go on for a moment; returns whether there is more to do."""
        if self._thread is not None:
            time.sleep(YIELD)
            return self._thread.is_alive() or self._end(*self._outcome)
        end = time.monotonic() + AT_ONCE
        try:
            while time.monotonic() < end:
                self.fraction = next(self._steps)
        except StopIteration as last:
            if not callable(last.value):
                return self._end(last.value, None)
            self.fraction = None
            self._thread = threading.Thread(target=self._write, args=(last.value,), daemon=True)
            self._thread.start()
        except Exception as error:
            return self._end(None, error)
        return True

    def close(self):
        """Finish the file that is being written, or log that this failed, and drop everything else."""
        self._steps.close()
        if self._thread is not None:
            self._thread.join(MOST_WAITING)
            error = self._outcome[1] if self._outcome else _("it took too long")
            if error is not None:
                logging.error("SAMFineTune: %s failed: %s", self.text, error)

    def _write(self, write):
        try:
            self._outcome = write(), None
        except Exception as error:
            self._outcome = None, error

    def _end(self, result, error):
        if error is None:
            self._done(result)
        else:
            self._failed(error)
        return False
