"""The process that works on a cohort for a panel: `python -m SAMFineTuneLib.service.cohort_process FOLDER`.

It does the pieces of a queue (see `cohort_work`) one after another, and writes events about them. When the window that
started it is gone, it does what keeps labels, and ends. The pieces of a cohort on a server are done there: this process
sends them, and what keeps labels stays in the queue until the server has it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.cohort.cohort_folder import LEASE_ON_SERVER, Cohort, CohortCase
from SAMFineTuneLib.disk_errors import explained
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import cohort_work as queue
from SAMFineTuneLib.service.child_process import when_parent_ends
from SAMFineTuneLib.service.cohort_client import ServedCohort, Unreached, place_of
from SAMFineTuneLib.service.folder_process import LOG, OUTLIVES, STOP, EventFile, run_in
from SAMFineTuneLib.service.protocol import CohortNews, CohortPiece
from SAMFineTuneLib.service.worker import TOKEN_VARIABLE
from SAMFineTuneLib.wording import some_names

PICTURE = 48
"""Pixels of the longer side of a picture in the list of cases."""
_LONG, _RESULTS = ("propose", "train"), ("export", "report")
_BESIDE = ("add", *_RESULTS)
_TRIES = 3  # times that a piece is begun before it is given up, because it ends the process
_LOOK_EVERY = 0.03  # s between two looks at an empty queue
_TELL_EVERY = 0.2  # s between two events of progress
_NICE = 5  # lower priority than Slicer and the worker that answers clicks
_FOLLOW_EVERY = 1.0  # s between two looks at a cohort on a server
_AGAIN_AFTER = 3.0  # s until a server that did not answer is asked again
_ALONE_FOR = 60.0  # s for which it is asked after the window has gone; a later window goes on


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
        self._server: ServedCohort | None = None
        self._follow_after: float | None = None  # None: no window wants to know how the server's cohort stands
        self._unreached = False
        self._alone_since: float | None = None
        self._given_back: dict[str, Any] | None = None  # the piece that gives back the cases of a window that is gone

    def work(self) -> int:
        self.tell("begin", pid=os.getpid())
        while not self._has_waited_enough():
            waiting = queue.pieces(self.folder)
            if not waiting:
                if self.alone.is_set() and self._given_back:
                    queue.write_piece(self.folder / f"{self.number + 1:06d}.json", self._given_back)
                    continue
                if self._ends or self.alone.is_set():
                    return 0
                self._follow()
                time.sleep(_LOOK_EVERY)
                continue
            self._take(waiting[0])
        return 0

    def tell(self, event: str, **values: Any) -> None:
        self._events(event, number=self.number, **values)

    def progress(self, done: int, total: int, text: str = "", **values: Any) -> None:
        """Report how far the piece is, at most as often as a window looks."""
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
            path.rename(path.with_suffix(queue.GIVEN_UP))  # with its labels
            self.tell("failed", what=what, case=values.get("case", ""), text=(
                "The work on the cohort ended three times at the same place; close other programs, and try again. "
                f"What was to be written is kept in “{self.folder}”."
            ))  # fmt: skip
            return
        queue.write_piece(path, {**values, "tries": tries + 1})
        if values.get("gives_back"):
            self._given_back = {"what": "release", "cohort": values["cohort"], "by": values["by"]}
        elif what == "release" and not values.get("case"):
            self._given_back = None
        served = place_of(values["cohort"]) is not None
        self._ends = self._ends or what in _BESIDE or (what in _LONG and not served)  # gives its memory back
        if what in (*_LONG, *_BESIDE, "picture") and hasattr(os, "nice") and not served:
            os.nice(max(0, _NICE - os.nice(0)))
        try:
            told = (self._sent(values) if served else DOES[what](self, values)) or {}
            self.tell("done", what=what, **{"case": values.get("case", ""), **told})
        except Unreached as error:
            queue.write_piece(path, values)  # it has not been tried
            if what not in queue.KEEPING:
                self._leave(path)
                self.tell("failed", what=what, case=values.get("case", ""), text=str(error))
                return
            return self._wait_for_server(error)
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
            brings_labels = what in ("keep", "accept")
            if brings_labels:
                path.rename(path.with_suffix(queue.GIVEN_UP))
            self.tell("failed", what=what, case=values.get("case", ""), text=sentence or failed,
                      kept=str(self.folder) if brings_labels else "")  # fmt: skip
            if brings_labels:
                return
        self._leave(path)

    def _leave(self, path: Path) -> None:
        for one in (path, path.with_suffix(".npy")):
            with suppress(OSError):
                one.unlink(missing_ok=True)

    def labels(self) -> np.ndarray:
        """The labels that came with the piece."""
        return np.load(self.folder / f"{self.number:06d}.npy", allow_pickle=False)

    @contextmanager
    def results(self, folder: str | None) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The folder that results go into, and what is told of it; without one they are packed for a client."""
        if folder:
            yield Path(folder), {"folder": folder}
            return
        packed = self.folder / f"{self.number:06d}-results"
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            yield Path(place) / "new", {"results": f"{packed}.zip"}
            shutil.make_archive(str(packed), "zip", Path(place) / "new")

    # ---- on a server

    def _sent(self, values: dict[str, Any]) -> dict[str, Any]:
        """Have a piece done by the server that has the cohort."""
        what, folder, window = values["what"], Path(values["cohort"]), self.folder.name
        if self._server is None or self._server.folder != folder:
            self._server = ServedCohort(folder, os.environ.get(TOKEN_VARIABLE, ""))
        server, told = self._server, {}
        if what == "list":
            return {"names": server.names()}
        if what == "add":
            told = self._sent_images(values["images"])
        elif what != "follow":
            labels = self.labels() if what in ("keep", "accept") else None
            known = {name for one in fields(CohortPiece) if (name := one.name) not in ("cohort", "window", "number")}
            asked = {name: value for name, value in values.items() if name in known - {"what"}}
            if what in ("open", "take"):
                asked["seconds"] = LEASE_ON_SERVER
            follow = lambda *_: self._follow()  # noqa: E731 - a case stays taken while it is read and fetched
            watch = self.all_or_nothing("Stopped; nothing was written.") if what in _RESULTS else follow
            told = dict(server.do(what, window, self.number, labels, watch, **asked))
        if what in _RESULTS:
            server.fetch_results(window, self.number, Path(values["folder"]))
            told["folder"] = values["folder"]
        if what == "open" and told["case"]:
            told |= server.fetch_case(told, window, self.number, self.folder, follow)
        if what in ("open", "picture") and told["case"]:
            server.fetch("picture", told["case"], queue.picture_path(folder, told["case"]))
        if what in ("open", "follow", "add"):  # what is shown next is drawn from the mirror
            self._tell_news(server.follow())
        self._unreached = False
        self._follow_after = 0.0 if what == "follow" or self._follow_after is not None else None
        return {name: value for name, value in told.items() if name not in ("event", "what", "number")}

    def _sent_images(self, source: str) -> dict[str, Any]:
        from SAMFineTuneLib.cohort.create_cohort import find_images
        from SAMFineTuneLib.service.send_images import send_images

        self._server.follow()
        tell = self.all_or_nothing("Stopped; the scans that had arrived by then were added.")
        progress = lambda done, total, name, part: tell(done, total, f"({part:.0%})")  # noqa: E731 - names stay here
        added, notes = send_images(self._server, find_images(source), progress)
        return {"added": len(added), "notes": _few(notes)}

    def _follow(self) -> None:
        """Look how the cohort stands on its server, where a window wants to know."""
        if self._follow_after is None or time.monotonic() < self._follow_after:
            return
        try:
            self._tell_news(self._server.follow((self._given_back or {}).get("by", "")))
            self._follow_after, self._unreached = time.monotonic() + _FOLLOW_EVERY, False
        except UserError as error:
            self._follow_after = time.monotonic() + _AGAIN_AFTER
            self._tell_unreached(error)

    def _tell_news(self, news: CohortNews) -> None:
        self.tell("server", busy=news.busy, events=list(news.events), problem="")

    def _tell_unreached(self, error: UserError) -> None:
        if not self._unreached:
            self._unreached = True
            self.tell("server", busy=False, events=[], problem=f"{error} What was corrected or accepted waits on this "
                      "computer, and is sent when the server answers.")  # fmt: skip

    def _wait_for_server(self, error: UserError) -> None:
        self._tell_unreached(error)
        until = time.monotonic() + _AGAIN_AFTER
        while time.monotonic() < until and not self._has_waited_enough():
            time.sleep(_LOOK_EVERY)

    def _has_waited_enough(self) -> bool:
        """Whether the window is gone, and the server has not answered for a while since."""
        if not (self.alone.is_set() and self._unreached):
            self._alone_since = None
        elif self._alone_since is None:
            self._alone_since = time.monotonic()
        return self._alone_since is not None and time.monotonic() - self._alone_since > _ALONE_FOR


# ---------------------------------------------------------------- the pieces


def _create(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.create_cohort import create_cohort, find_images

    progress = worker.all_or_nothing("The cohort was not created, because that was cancelled.")
    made = create_cohort(values["cohort"], find_images(values["images"]), values["labels"], progress=progress)
    return {"notes": list(made.notes)}


def _add(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.create_cohort import add_images, find_images

    cohort = Cohort(values["cohort"])
    before = len(cohort.state.cases)
    progress = worker.all_or_nothing("No scans were added, because that was cancelled.")
    notes = add_images(cohort, find_images(values["images"]), progress)
    return {"added": len(cohort.state.cases) - before, "notes": _few(notes)}


def _receive(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    """Add an image that a client has uploaded."""
    from SAMFineTuneLib.cohort.packed_images import add_packed

    cohort, packed = Cohort(values["cohort"]), Path(values["packed"])
    labels = None if values["as_kept"] else worker.labels()
    try:
        notes = add_packed(cohort, packed, values["case"], values["largest"], values["patient"], labels)
    finally:
        packed.unlink(missing_ok=True)
    return {"notes": list(notes)}


def _export(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.cohort_export import export

    cohort, left_out = Cohort(values["cohort"]), []
    progress = worker.all_or_nothing("Nothing was exported, because that was cancelled.")
    with worker.results(values.get("folder")) as (folder, told):
        export(cohort, folder, values["form"], progress, left_out.append)
    return {**told, "cases": len(cohort.state.accepted) - len(left_out), "notes": _few(left_out)}


def _few(notes: Sequence[str]) -> list[str]:
    """The first notes as one, since a panel shows each in a line of its own."""
    return [some_names(notes, 2, " ")] if notes else []


def _report(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.cohort_report import write_report

    cohort = Cohort(values["cohort"])
    progress = worker.all_or_nothing("The report was not written, because that was cancelled.")
    with worker.results(values.get("folder")) as (folder, told):
        page = write_report(cohort, folder, progress)
    return {**told, "page": page.name}


def _open(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    """Take a case, the given one or the next, and write its voxels and labels as they lie in memory."""
    from SAMFineTuneLib.cohort.review import take, take_next

    cohort, by = Cohort(values["cohort"]), values["by"]
    reason = ""
    if values.get("case"):
        case = take(cohort, values["case"], by, *_lease(values))
    else:
        choice = take_next(cohort, values["way"], by, values["without"], *_lease(values))
        if choice is None:
            return {"case": "", "text": "No case is left to review."}
        case, reason = choice.case, choice.reason
    try:
        return {"case": case.key, "reason": reason, **_laid_out(worker, cohort, case)}
    except Exception:
        from SAMFineTuneLib.cohort.review import release

        release(cohort, case.key, by)
        raise


def _lease(values: dict[str, Any]) -> tuple[float, str]:
    """For how long a case is taken, and with which process that ends."""
    from SAMFineTuneLib.cohort.cohort_folder import LEASE

    return LEASE if values.get("seconds") is None else values["seconds"], values.get("process", "")


def _laid_out(worker: _Worker, cohort: Cohort, case: CohortCase) -> dict[str, Any]:
    from SAMFineTuneLib.cases.label_files import read_labels
    from SAMFineTuneLib.cases.label_grid import fit_labels
    from SAMFineTuneLib.cohort.review import image_of, labels_of
    from SAMFineTuneLib.images.intensity_window import choose_window, modality_of

    volume = image_of(cohort, case)
    voxels = np.ascontiguousarray(volume.array)
    if voxels.dtype.kind == "b" or not voxels.dtype.isnative or voxels.dtype == np.float16:
        voxels = voxels.astype({"b": np.uint8, "f": np.float32}.get(voxels.dtype.kind, voxels.dtype.newbyteorder("=")))
    stem = f"{worker.folder / case.key}-{worker.number}"  # a case may be laid out anew before the last one is read
    np.save(f"{stem}-voxels.npy", voxels)
    told = {"voxels": f"{stem}-voxels.npy", "labels": "", "start": [0, 0, 0], "shape": list(volume.shape)}
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


def _grid(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    """The grid of a case's image, to which labels are brought before they are sent; nobody takes the case by that."""
    from SAMFineTuneLib.cohort.review import image_of

    cohort = Cohort(values["cohort"])
    volume = image_of(cohort, cohort.state.case(values["case"]))
    return {"shape": list(volume.shape), "affine": volume.affine.tolist()}


def _check(worker: _Worker, values: dict[str, Any]) -> None:
    from SAMFineTuneLib.cohort.image_check import check_images

    check_images(Cohort(values["cohort"]), lambda done, total, name: worker.progress(done, total))


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


def _next(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    """Choose the next case, and take it where that is asked for."""
    from SAMFineTuneLib.cohort.choosing import next_case
    from SAMFineTuneLib.cohort.review import take_next

    asked = Cohort(values["cohort"]), values["way"], values["by"], values["without"]
    choice = take_next(*asked, *_lease(values)) if values["take"] else next_case(*asked)
    return {"case": choice.case.key if choice else "", "reason": choice.reason if choice else ""}


def _take_again(worker: _Worker, values: dict[str, Any]) -> None:
    from SAMFineTuneLib.cohort.review import take

    for name in values["cases"]:
        take(Cohort(values["cohort"]), name, values["by"], *_lease(values))


def _keep(worker: _Worker, values: dict[str, Any]) -> None:
    from SAMFineTuneLib.cohort.review import keep_correction, release

    cohort = Cohort(values["cohort"])
    try:
        keep_correction(cohort, values["case"], worker.labels(), values["by"])
    finally:  # whoever leaves a case does not come back to it because its labels were refused
        if values.get("leaves"):
            release(cohort, values["case"], values["by"])


def _accept(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.review import accept

    cohort, notes = Cohort(values["cohort"]), []
    labels = None if values.get("as_kept") else worker.labels()
    asked = values["case"], labels, values["seconds"], values["prompts"], values["by"]
    case = accept(cohort, *asked, tell=notes.append)
    return {"dice": dict(case.review.dice), "notes": notes}


def _due(worker: _Worker, values: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.judges import is_due

    return {"due": bool(is_due(Cohort(values["cohort"]).state))}


def _of_review(action: str) -> Callable[[_Worker, dict[str, Any]], None]:
    def do(worker: _Worker, values: dict[str, Any]) -> None:
        from SAMFineTuneLib.cohort import review

        getattr(review, action)(Cohort(values["cohort"]), values.get("case", ""), values["by"])

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
    if trained.in_use and values.get("then_propose"):
        queue.CohortWork(values["cohort"]).put("propose", again=True, device=values["then_propose"])
    return {"reason": trained.reason, "in_use": trained.in_use}


DOES: dict[str, Callable[[_Worker, dict[str, Any]], dict[str, Any] | None]] = {
    "create": _create, "add": _add, "receive": _receive, "open": _open, "grid": _grid, "picture": _picture,
    "check": _check, "next": _next, "take": _take_again, "release": _of_review("release"), "keep": _keep,
    "accept": _accept, "refuse": _of_review("refuse"), "reopen": _of_review("reopen"), "due": _due, "propose": _propose,
    "train": _train, "export": _export, "report": _report,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
