"""Shared by commands that work for hours: a line of progress, and stopping by Ctrl-C."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.wording import duration

if TYPE_CHECKING:
    from SAMFineTuneLib.training.stopping import StopSigns

_IN_PLACE = 0.5  # s between updates on a terminal
_LINES = 10.0  # s between lines of progress without a terminal


class ProgressLine:
    """Progress on stderr: one line that is rewritten in place on a terminal, a new line now and then elsewhere."""

    def __init__(self) -> None:
        self._silent, self._terminal = console.is_quiet(), sys.stderr.isatty()
        self._printed = float("-inf")
        self._last = ""

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *_: object) -> None:
        """Print the last progress if it was withheld, and end the line."""
        if self._last:
            self._print(self._last, "")
        if self._terminal and self._printed > 0:
            print(file=sys.stderr)

    def __call__(self, text: str, due: bool = False) -> None:
        """Show progress; withheld when the last was shown a moment ago, unless it is `due`."""
        self._last = text
        if due or time.monotonic() - self._printed > (_IN_PLACE if self._terminal else _LINES):
            self._print(text, "")

    def note(self, text: str) -> None:
        """Print a line that stays."""
        self._print(text, "\n")

    def _print(self, text: str, end: str) -> None:
        self._last = ""
        if self._silent:
            return
        self._printed = time.monotonic()
        start, close = ("\r", "\x1b[K" + end) if self._terminal else ("", "\n")
        print(f"{start}{text}{close}", end="", file=sys.stderr, flush=True)


@contextmanager
def stoppable(sentence: Callable[[], str]) -> Iterator[StopSigns]:
    """Let Ctrl-C and SIGTERM stop the training inside; a second Ctrl-C ends it at once.

    Args:
        sentence: says how to continue later.

    Raises:
        KeyboardInterrupt: with that sentence, when the training has stopped.
    """
    from SAMFineTuneLib.training.stopping import Stopped, StopSigns

    def leave() -> None:
        """End the process before anything was learned."""
        print(f"\nsamfinetune: {sentence()}", file=sys.stderr, flush=True)
        os._exit(130)

    with StopSigns([signal.SIGINT, signal.SIGTERM], leave) as stop:
        try:
            yield stop
        except Stopped:
            raise KeyboardInterrupt(sentence()) from None


@contextmanager
def on_interrupt(sentence: str) -> Iterator[None]:
    """Have Ctrl-C in the block end the command with a sentence: how to continue, or what goes on without it."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(sentence) from None


@contextmanager
def counting(what: str) -> Iterator[Callable[..., None]]:
    """A line of progress with the time that is left.

    Args:
        what: what is done to each thing, such as "reading image".

    Yields:
        The function to call with the number of things done, their total, and the name of the next one.
    """
    begun = time.monotonic()
    with ProgressLine() as line:

        def show(done: int, total: int, name: str = "") -> None:
            left = (time.monotonic() - begun) / done * (total - done) if 0 < done < total else None
            line(f"{what} {min(done + 1, total)} of {total}{name and f', {name}'}{time_left(left)}")

        yield show


def time_left(seconds: float | None) -> str:
    """The end of a line of progress: “, 5 min left”; nothing while unknown, and at the end."""
    return f", {duration(seconds)} left" if seconds is not None and seconds >= 0.5 else ""
