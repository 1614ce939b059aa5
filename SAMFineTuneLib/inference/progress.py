"""Progress of a long computation, and how to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

Cancelled = Callable[[], bool]
"""Called before every slice; true ends the computation. `threading.Event().is_set` is one."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` steps; the time left in seconds, None before the first step is done."""

    done: int
    total: int
    seconds_left: float | None


class Meter:
    """Counts steps and reports a Progress after each, with the time left at the mean speed so far."""

    def __init__(self, total: int, report: Callable[[Progress], None] | None) -> None:
        self.total = total
        self.done = 0
        self._worked = 0
        self._report = report
        self._start = time.monotonic()

    def step(self) -> None:
        """Count one step that was computed."""
        self._worked += 1
        self.skip(1)

    def skip(self, count: int) -> None:
        """Count steps that were not needed, without regard to the speed."""
        self.done = min(self.done + max(count, 0), self.total)
        if self._report is None or count <= 0:
            return
        left = None
        if self._worked:
            left = (time.monotonic() - self._start) / self._worked * (self.total - self.done)
        self._report(Progress(self.done, self.total, left))
