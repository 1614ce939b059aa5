"""The process that works on a cohort for a panel: `python -m SAMFineTuneLib.service.cohort_process FOLDER`.

It does the pieces of a queue (see `cohort_work`) one after another, and writes events about them. When the window that
started it is gone, it does what keeps labels, and ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.cohort.cohort_folder import Cohort, CohortCase
from SAMFineTuneLib.disk_errors import explained
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import cohort_work as queue
from SAMFineTuneLib.service.child_process import when_parent_ends
from SAMFineTuneLib.service.folder_process import LOG, OUTLIVES, STOP, EventFile, run_in

PICTURE = 48
"""Pixels of the longer side of a picture in the list of cases."""
_LONG = ("propose", "train", "add", "export", "report")
_TRIES = 3  # times that a piece is begun before it is given up, because it ends the process
_LOOK_EVERY = 0.03  # s between two looks at an empty queue
_TELL_EVERY = 0.2  # s between two events of progress
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
        self._told = 0.0
        self.number, self._what = 0, ""  # of the piece that is being done
        self._ends = bool(os.environ.get(OUTLIVES))  # when nothing is left to do
        if not self._ends:
            when_parent_ends(self.alone.set)

    def work(self) -> int:
        self.tell("begin", pid=os.getpid())
        while True:
            waiting = queue.pieces(self.folder)
            if not waiting:
                if self._ends or self.alone.is_set():
                    return 0
                time.sleep(_LOOK_EVERY)
                continue
            self._take(waiting[0])

    def tell(self, event: str, **values: Any) -> None:
        self._events(event, number=self.number, **values)

    def progress(self, done: int, total: int, text: str = "", **values: Any) -> None:
        """Tell how far the piece is, not more often than somebody looks."""
        if time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            self.tell("progress", what=self._what, done=done, total=total, text=text, **values)

    def all_or_nothing(self, stopped: str) -> Callable[..., None]:
        """As `progress`, but raises a UserError with that sentence when the piece shall stop."""

        def progress(done: int, total: int, name: str = "") -> None:
            self.progress(done, total, name)
            if self.cancelled():
                raise UserError(stopped)

        return progress

    def cancelled(self) -> bool:
        """Whether the piece shall stop."""
        return self.alone.is_set() or (self.folder / STOP).exists()

    def _take(self, path: Path) -> None:
        self.number = int(path.stem)
        values = json.loads(path.read_text(encoding="utf-8"))
        what, tries = values["what"], values.get("tries", 0)
        self._what = what
        if what not in queue.KEEPING and self.cancelled():
            self._leave(path)
            self.tell("stopped", what=what)
            return
        if tries >= _TRIES:
            path.rename(path.with_suffix(".given-up"))  # with its labels
            self.tell("failed", what=what, case=values.get("case", ""), text=(
                "The work on the cohort ended three times at the same place; close other programs, and try again. "
                f"What was to be written is kept in “{self.folder}”."
            ))  # fmt: skip
            return
        path.write_text(json.dumps({**values, "tries": tries + 1}), encoding="utf-8")
        self._ends = self._ends or what in _LONG  # gives its memory back
        if what in (*_LONG, "picture") and hasattr(os, "nice"):
            os.nice(max(0, _NICE - os.nice(0)))
        try:
            told = _DOES[what](self, values) or {}
            self.tell("done", what=what, **{"case": values.get("case", ""), **told})
        except Exception as error:
            if not isinstance(error, UserError):
                traceback.print_exc()
                sys.stdout.flush()
            sentence = explained(
                error,
                "The work on the cohort ran out of memory: close other programs and try again.",
                "The work on the cohort needs the package {}, which is not installed.",
            )
            failed = f"This did not work ({type(error).__name__}); more is in “{self.folder / LOG}”."
            self.tell("failed", what=what, case=values.get("case", ""), text=sentence or failed)
            if what in ("keep", "accept"):
                path.rename(path.with_suffix(".given-up"))
                return
        self._leave(path)

    def _leave(self, path: Path) -> None:
        for one in (path.with_suffix(".npy"), path):
            with suppress(OSError):
                one.unlink(missing_ok=True)

    def labels(self) -> np.ndarray:
        """The labels that came with the piece."""
        return np.load(self.folder / f"{self.number:06d}.npy")


# ---------------------------------------------------------------- the pieces


def _create(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.create_cohort import create_cohort, find_images

    progress = worker.all_or_nothing("The cohort was not created, because that was cancelled.")
    made = create_cohort(values["cohort"], find_images(values["images"]), values["labels"], progress=progress)
    return {"notes": list(made.notes)}


def _add(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cases.cases import some_names
    from SAMFineTuneLib.cohort.create_cohort import add_images, find_images

    cohort = Cohort(values["cohort"])
    before = len(cohort.state.cases)
    progress = worker.all_or_nothing("No scans were added, because that was cancelled.")
    notes = add_images(cohort, find_images(values["images"]), progress)
    return {"added": len(cohort.state.cases) - before, "notes": [some_names(notes, 2, " ")] if notes else []}


def _export(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cases.cases import some_names
    from SAMFineTuneLib.cohort.cohort_export import export

    cohort, left_out = Cohort(values["cohort"]), []
    progress = worker.all_or_nothing("Nothing was exported, because that was cancelled.")
    export(cohort, values["folder"], values["form"], progress, left_out.append)
    notes = [some_names(left_out, 2, " ")] if left_out else []
    return {"folder": values["folder"], "cases": len(cohort.state.accepted) - len(left_out), "notes": notes}


def _report(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.cohort_report import REPORT, write_report

    cohort = Cohort(values["cohort"])
    progress = worker.all_or_nothing("The report was not written, because that was cancelled.")
    page = write_report(cohort, cohort.folder / REPORT, progress)
    return {"folder": str(page.parent), "page": str(page)}


def _open(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    """Take a case, the given one or the next, and write its voxels and labels as they lie in memory."""
    from SAMFineTuneLib.cohort.review import take

    cohort, by = Cohort(values["cohort"]), values["by"]
    reason = ""
    if values.get("case"):
        case = cohort.state.case(values["case"])
    else:
        from SAMFineTuneLib.cohort.choosing import next_case

        choice = next_case(cohort, values["way"], by, without=values["without"])
        if choice is None:
            return {"case": "", "text": "No case is left to review."}
        case, reason = choice.case, choice.reason
    case = take(cohort, case.key, by)
    try:
        return {"case": case.key, "reason": reason, **_laid_out(worker, cohort, case)}
    except Exception:
        from SAMFineTuneLib.cohort.review import release

        release(cohort, case.key, by)
        raise


def _laid_out(worker: _Worker, cohort: Cohort, case: CohortCase) -> dict[str, Any]:
    from SAMFineTuneLib.cases.label_files import read_labels
    from SAMFineTuneLib.cases.label_grid import fit_labels
    from SAMFineTuneLib.cohort.review import labels_of
    from SAMFineTuneLib.images import read_volume
    from SAMFineTuneLib.images.intensity_window import choose_window, modality_of

    volume = read_volume(cohort.image(case))
    if not volume.digest.startswith(case.key):
        raise UserError(
            f"The image of case {case.name} is another one than when the cohort was made; put the old one back, or "
            "add the new one with “samfinetune cohort add”."
        )
    voxels = np.ascontiguousarray(volume.array)
    if voxels.dtype.kind == "b" or not voxels.dtype.isnative or voxels.dtype == np.float16:
        voxels = voxels.astype({"b": np.uint8, "f": np.float32}.get(voxels.dtype.kind, voxels.dtype.newbyteorder("=")))
    stem = f"{worker.folder / case.key}-{worker.number}"  # a case may be laid out anew before the last one is read
    np.save(f"{stem}-voxels.npy", voxels)
    told = {"voxels": f"{stem}-voxels.npy", "labels": "", "start": [0, 0, 0]}
    if (path := labels_of(cohort, case)) is not None:
        labels = fit_labels(read_labels(path), volume).array
        found = [np.flatnonzero(labels.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
        if found[0].size:
            part = labels[tuple(slice(one[0], one[-1] + 1) for one in found)]
            np.save(f"{stem}-labels.npy", part.astype(np.uint8 if part.max() < 256 else np.int16))
            told |= {"labels": f"{stem}-labels.npy", "start": [int(one[0]) for one in reversed(found)]}
    _write_picture(cohort, case, volume)
    window = choose_window(volume)
    return {**told, "affine": volume.affine.tolist(), "window": [window.low, window.high, window.name],
            "modality": modality_of(volume), "notes": list(volume.warnings)}  # fmt: skip


def _picture(worker: _Worker, values: dict[str, Any]) -> None:
    from SAMFineTuneLib.images import read_volume

    cohort = Cohort(values["cohort"])
    case = cohort.state.case(values["case"])
    _write_picture(cohort, case, read_volume(cohort.image(case)))


def _write_picture(cohort: Cohort, case: CohortCase, volume: Any) -> None:
    """Write the picture of a case for the list, unless there is one: its middle axial slice."""
    from PIL import Image

    from SAMFineTuneLib.images import aligned_plane, choose_window, number_of_slices, picture
    from SAMFineTuneLib.images.overlay import save_png

    target = queue.picture_path(cohort.folder, case.key)
    if target.exists():
        return
    plane = aligned_plane(volume, "axial", number_of_slices(volume, "axial") // 2)
    image = Image.fromarray(picture(volume, plane, choose_window(volume)))
    image.thumbnail((PICTURE, PICTURE))
    save_png(target, image)


def _take_again(worker: _Worker, values: dict[str, Any]) -> None:
    from SAMFineTuneLib.cohort.review import take

    for name in values["cases"]:
        take(Cohort(values["cohort"]), name, values["by"])


def _keep(worker: _Worker, values: dict[str, Any]) -> None:
    from SAMFineTuneLib.cohort.review import keep_correction, release

    cohort = Cohort(values["cohort"])
    keep_correction(cohort, values["case"], worker.labels(), values["by"])
    if values.get("leaves"):
        release(cohort, values["case"], values["by"])


def _accept(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.review import accept

    cohort = Cohort(values["cohort"])
    case = accept(cohort, values["case"], worker.labels(), values["seconds"], values["prompts"], values["by"])
    return {"dice": dict(case.review.dice)}


def _due(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.retraining import is_due

    return {"due": bool(is_due(Cohort(values["cohort"]).state))}


def _of_review(action: str) -> Callable[[_Worker, dict[str, Any]], None]:
    def do(worker: _Worker, values: dict[str, Any]) -> None:
        from SAMFineTuneLib.cohort import review

        getattr(review, action)(Cohort(values["cohort"]), values["case"], values["by"])

    return do


def _propose(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.proposing import propose

    done = propose(Cohort(values["cohort"]), again=values["again"], device=values["device"],
                   progress=worker.progress, cancelled=worker.cancelled)  # fmt: skip
    return {"proposed": len(done.done), "failed": len(done.failed), "cancelled": worker.cancelled()}


def _train(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.retraining import retrain
    from SAMFineTuneLib.training.stopping import Stopped

    def progress(one: Any) -> None:
        worker.progress(one.step, one.steps, one.sentence, seconds_left=one.seconds_left)

    try:
        trained = retrain(Cohort(values["cohort"]), values["preset"], values["device"], progress, worker.cancelled)
    except Stopped:
        return {"cancelled": True}
    return {"reason": trained.reason, "in_use": trained.in_use}


_DOES: dict[str, Callable[[_Worker, dict[str, Any]], dict[str, Any] | None]] = {
    "create": _create, "add": _add, "open": _open, "picture": _picture, "take": _take_again, "keep": _keep,
    "accept": _accept, "refuse": _of_review("refuse"), "reopen": _of_review("reopen"),
    "release": _of_review("release"), "due": _due, "propose": _propose, "train": _train, "export": _export,
    "report": _report,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
