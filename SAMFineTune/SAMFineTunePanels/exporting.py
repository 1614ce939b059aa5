"""One export under way, on Slicer's own thread where nodes are read, beside it where the file is written."""

import threading
import time

AT_ONCE = 0.015  # s of a turn
YIELD = 0.008  # s of a turn in which the writing thread may run: threads starve while Slicer idles


class Exporting:
    """A task for `Host.run`: `steps` yield how far they are and return a node, or a function that writes the file.

    `done(result)` gets the node, or what the function returned; `failed(error)` what either raised.
    """

    def __init__(self, text, steps, done, failed):
        self.text = text
        self.fraction = 0.0
        self._steps = steps
        self._done = done
        self._failed = failed
        self._writing = None
        self._outcome = None  # of the thread: (result, None) or (None, error)

    @property
    def cancellable(self):
        return self._writing is None

    def step(self):
        """Go on for a moment; returns whether there is more to do."""
        if self._writing is not None:
            time.sleep(YIELD)
            return self._writing.is_alive() or self._end(*self._outcome)
        end = time.monotonic() + AT_ONCE
        try:
            while time.monotonic() < end:
                self.fraction = next(self._steps)
        except StopIteration as last:
            if not callable(last.value):
                return self._end(last.value, None)
            self.fraction = None
            self._writing = threading.Thread(target=self._write, args=(last.value,), daemon=True)
            self._writing.start()
        except Exception as error:
            return self._end(None, error)
        return True

    def close(self):
        """What is being written is finished, the rest is dropped; tells nobody."""
        self._steps.close()
        if self._writing is not None:
            self._writing.join(10.0)

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
