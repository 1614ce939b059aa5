"""How long a training has worked, and how long it will still take, from its pace so far."""

from __future__ import annotations

import time


class Clock:
    """Estimates the time left from the pace of steps and of tests so far."""

    def __init__(self) -> None:
        self._begun = self._noted = time.monotonic()
        self._steps = self._tests = 0
        self._spent = {"step": [0, 0.0], "test": [0, 0.0]}
        self._last = time.monotonic()

    @property
    def worked(self) -> float:
        """Seconds since the beginning, and in earlier sessions of the run."""
        return time.monotonic() - self._begun

    @worked.setter
    def worked(self, before: float) -> None:
        self._begun = time.monotonic() - before

    def is_due(self, every: float) -> bool:
        """Whether so many seconds have passed since it last was."""
        if time.monotonic() - self._noted < every:
            return False
        self._noted = time.monotonic()
        return True

    def expect(self, steps: int, tests: int) -> None:
        """So many steps and tested cases (each before and after) are to come."""
        self._steps, self._tests, self._last = steps, 2 * tests, time.monotonic()

    def skip(self, steps: int, tests: int) -> None:
        """They need not be done."""
        self._steps -= steps
        self._tests -= 2 * tests
        self._last = time.monotonic()

    def stepped(self) -> None:
        """One optimiser step was worked."""
        now = time.monotonic()
        self._count("step", now - self._last)
        self._steps, self._last = self._steps - 1, now

    def test(self) -> Clock:
        """A context in which one case is tested."""
        return self

    def __enter__(self) -> None:
        self._last = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self._count("test", now - self._last)
        self._tests, self._last = self._tests - 1, now

    def _count(self, kind: str, seconds: float) -> None:
        self._spent[kind][0] += 1
        self._spent[kind][1] += seconds

    @property
    def left(self) -> float | None:
        """Seconds; None before the first step."""
        steps, seconds = self._spent["step"]
        if not steps:
            return None
        tests, spent = self._spent["test"]
        each = spent / tests if tests else 0.0
        return max(0, self._steps) * seconds / steps + max(0, self._tests) * each
