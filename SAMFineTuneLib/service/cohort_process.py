"""The process that works on a cohort for a panel: `python -m SAMFineTuneLib.service.cohort_process FOLDER`.

It does the pieces of a queue (see `cohort_work`) one after another, and writes events about them. When the window that
started it is gone, it does the pieces that keep labels, and ends. The pieces of a cohort on a server are done there:
this process sends them. A piece that keeps labels stays in the queue until the server has it, or until the cohort's
drive is back and takes it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from SAMFineTuneLib.cohort.cohort_folder import STATE_FILE
from SAMFineTuneLib.disk_errors import DiskError, disk_error, explained
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import cohort_work as queue
from SAMFineTuneLib.service.child_process import when_parent_ends
from SAMFineTuneLib.service.cohort_client import Unreached, place_of
from SAMFineTuneLib.service.cohort_pieces import RESULTS, Piece, do_piece
from SAMFineTuneLib.service.cohort_relay import CohortRelay
from SAMFineTuneLib.service.dicomweb_pieces import DICOMWEB, do_dicomweb
from SAMFineTuneLib.service.folder_process import LOG, OUTLIVES, STOP, EventFile, run_in

_LONG, _BESIDE = ("propose", "train"), ("add", *RESULTS, *DICOMWEB)
_TRIES = 3  # times that a piece is tried before it is given up, because it ends the process
_LOOK_EVERY = 0.03  # s between two checks at an empty queue
_DISK_PATIENCE = 2.0  # s until a disk that has refused is tried again
_NICE = 5  # lower priority than Slicer and the worker that answers clicks


def main(arguments: list[str]) -> int:
    """Do the pieces of the queue that is the only argument; returns the exit code."""
    folder = Path(arguments[0])
    return run_in(folder, lambda: _Worker(folder).work())


class _Worker:
    """Does the pieces of one queue."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.alone = folder, threading.Event()
        self._events = EventFile(folder)
        self.number = 0  # of the piece that is being done
        self._ends = bool(os.environ.get(OUTLIVES))  # when nothing is left to do
        if not self._ends:
            when_parent_ends(self.alone.set)
        self._relay = CohortRelay(folder, self.tell, self.alone)
        self._refused: Path | None = None  # the piece that the cohort's disk did not take
        self._again_at = 0.0
        self._given_back: dict[str, Any] | None = None  # the piece that gives back the cases of a window that is gone

    def work(self) -> int:
        self.tell("begin", pid=os.getpid())
        while not self._relay.has_waited_enough():
            waiting = queue.pieces(self.folder)
            if not waiting:
                if self.alone.is_set() and self._given_back:
                    queue.write_piece(self.folder / f"{self.number + 1:06d}.json", self._given_back)
                    continue
                if self._ends or self.alone.is_set():
                    return 0
                self._relay.follow()
                time.sleep(_LOOK_EVERY)
                continue
            refused = waiting[0] == self._refused and time.monotonic() < self._again_at
            if refused or _is_away(waiting[0]):  # not given up, because a drive may come back
                if self.alone.is_set():
                    return 0
                time.sleep(_LOOK_EVERY)
                continue
            self._take(waiting[0])
        return 0

    def tell(self, event: str, **values: Any) -> None:
        self._events(event, number=self.number, **values)

    def cancelled(self) -> bool:
        """Whether the piece should stop."""
        return self.alone.is_set() or (self.folder / STOP).exists()

    def _take(self, path: Path) -> None:
        self.number = int(path.stem)
        values = json.loads(path.read_text(encoding="utf-8"))
        what, tries = values["what"], values.get("tries", 0)
        if what not in queue.KEEPING and self.cancelled():
            self._leave(path)
            self.tell("stopped", what=what)
            return
        if tries >= _TRIES:
            path.rename(path.with_suffix(queue.GIVEN_UP))  # with its labels
            self.tell("failed", what=what, case=values.get("case", ""), text=(
                "The work on the cohort ended three times at the same place; close other programs, and try again. "
                f"What was to be written is kept in “{self.folder}”."
            ))  # fmt: skip
            return
        with suppress(DiskError):  # counts from where this can be written again
            queue.write_piece(path, {**values, "tries": tries + 1})
        if values.get("gives_back"):
            self._given_back = {"what": "release", "cohort": values["cohort"], "by": values["by"]}
            self._relay.by = values["by"]
        elif what == "release" and not values.get("case"):
            self._given_back, self._relay.by = None, ""
        served = place_of(values["cohort"]) is not None
        self._ends = self._ends or what in _BESIDE or (what in _LONG and not served)  # gives its memory back
        if what in (*_LONG, *_BESIDE, "picture") and hasattr(os, "nice") and not served:
            os.nice(max(0, _NICE - os.nice(0)))
        try:
            piece = Piece(self.folder, self.number, values, self.tell, self.cancelled)
            do = self._relay.do if served else do_piece
            told = do_dicomweb(piece, do) if what in DICOMWEB else do(piece)
            waited = {"waited": True} if path == self._refused else {}
            self.tell("done", what=what, **{"case": values.get("case", ""), **told, **waited})
        except Unreached as error:
            queue.write_piece(path, values)  # it has not been tried
            if what not in queue.KEEPING:
                self._leave(path)
                self.tell("failed", what=what, case=values.get("case", ""), text=str(error))
                return
            return self._relay.wait(error)
        except Exception as error:
            if what in queue.KEEPING and not served and (reason := disk_error(error)) is not None:
                return self._wait_for_disk(path, values, reason)
            if not isinstance(error, UserError):
                traceback.print_exc()
                sys.stdout.flush()
            sentence = explained(
                error,
                "The work on the cohort ran out of memory: close other programs and try again.",
                "The work on the cohort needs the package {}, which is not installed.",
            )
            failed = f"This failed ({type(error).__name__}); “{self.folder / LOG}” has the details."
            brings_labels = what in ("keep", "accept")
            if brings_labels:
                path.rename(path.with_suffix(queue.GIVEN_UP))
            self.tell("failed", what=what, case=values.get("case", ""), text=sentence or failed,
                      kept=str(self.folder) if brings_labels else "")  # fmt: skip
            if brings_labels:
                return
        self._leave(path)

    def _wait_for_disk(self, path: Path, values: dict[str, Any], reason: DiskError) -> None:
        """Try a piece again later, since nothing else can be kept by then either."""
        with suppress(DiskError):
            queue.write_piece(path, values)
        if path != self._refused:
            self.tell("waits", what=values["what"], case=values.get("case", ""), text=(
                f"{reason} What you did is kept meanwhile, and written as soon as the disk takes it."
            ))  # fmt: skip
        self._refused, self._again_at = path, time.monotonic() + _DISK_PATIENCE

    def _leave(self, path: Path) -> None:
        for one in (path, path.with_suffix(".npy")):
            with suppress(OSError):
                one.unlink(missing_ok=True)


def _is_away(path: Path) -> bool:
    """Whether a piece keeps labels for a cohort whose folder is unavailable at present."""
    values = json.loads(path.read_text(encoding="utf-8"))
    cohort = Path(values["cohort"])
    return values["what"] in queue.KEEPING and not (cohort / STATE_FILE).exists() and place_of(cohort) is None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
