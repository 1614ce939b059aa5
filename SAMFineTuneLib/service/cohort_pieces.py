"""The pieces of work on a cohort: what each reads and writes, and what it reports when done.

`cohort_process` does them one after another; a server does those that read and write `cohort.json` alone at once.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import LEASE, CohortCase
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.service import cohort_work as queue
from SAMFineTuneLib.wording import some_sentences

RESULTS = ("export", "report")
"""Pieces that make files for the user."""
_TELL_EVERY = 0.2  # s between two events of progress
_PICTURE = 48  # pixels of the longer side of a picture in the list of cases


@dataclass
class Piece:
    """A piece of a queue while it is being done."""

    folder: Path
    """Of the queue."""
    number: int
    asked: dict[str, Any]
    """The values that came with it."""
    tell: Callable[..., None]
    """Writes an event, of a name and values."""
    cancelled: Callable[[], bool]
    """Whether it should stop."""
    _told: float = field(default=0.0, init=False)

    @cached_property
    def cohort(self) -> Cohort:
        """The cohort that it is about; UserError where there is none."""
        return Cohort(self.asked["cohort"])

    def progress(self, done: int, total: int, text: str = "", **values: Any) -> None:
        """Report the progress of the piece, at most as often as a window reads it."""
        if time.monotonic() - self._told > _TELL_EVERY:
            self._told = time.monotonic()
            self.tell("progress", what=self.asked["what"], done=done, total=total, text=text, **values)

    def all_or_nothing(self, stopped: str) -> Callable[..., None]:
        """As `progress`, but raises a UserError with that sentence when the piece should stop."""

        def progress(done: int, total: int, name: str = "") -> None:
            self.progress(done, total, name)
            if self.cancelled():
                raise UserError(stopped)

        return progress

    def labels(self) -> np.ndarray:
        """The labels that came with the piece."""
        return np.load(self.folder / f"{self.number:06d}.npy", allow_pickle=False)

    @contextmanager
    def results(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The folder for results, and what is reported of it; without one they are packed for a client."""
        folder = self.asked.get("folder")
        if folder:
            yield Path(folder), {"folder": folder}
            return
        packed = self.folder / f"{self.number:06d}-results"
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            yield Path(place) / "new", {"results": f"{packed}.zip"}
            shutil.make_archive(str(packed), "zip", Path(place) / "new")


def _create(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.create_cohort import create_cohort
    from SAMFineTuneLib.cohort.find_images import find_images

    progress = piece.all_or_nothing("Creating the cohort was cancelled.")
    images, labels = find_images(piece.asked["images"]), piece.asked["labels"]
    made = create_cohort(piece.asked["cohort"], images, labels, progress=progress)
    return {"notes": list(made.notes)}


def _add(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.create_cohort import add_images
    from SAMFineTuneLib.cohort.find_images import find_images

    cohort = piece.cohort
    before = len(cohort.state.cases)
    progress = piece.all_or_nothing("Adding scans was cancelled; none were added.")
    notes = add_images(cohort, find_images(piece.asked["images"]), progress)
    return {"added": len(cohort.state.cases) - before, "notes": few(notes)}


def _receive(piece: Piece) -> dict[str, Any]:
    """Add an image that a client has uploaded."""
    from SAMFineTuneLib.cohort.packed_images import add_packed

    cohort, packed = piece.cohort, Path(piece.asked["packed"])
    labels = None if piece.asked["as_kept"] else piece.labels()
    try:
        notes = add_packed(cohort, packed, piece.asked["case"], piece.asked["largest"], piece.asked["patient"], labels)
    finally:
        packed.unlink(missing_ok=True)
    return {"notes": list(notes)}


def _export(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.cohort_export import PROVENANCE, export

    cohort, notes = piece.cohort, []
    progress = piece.all_or_nothing("The export was cancelled; nothing was written.")
    with piece.results() as (folder, told):
        export(cohort, folder, piece.asked["form"], progress, notes.append)
        count = len(json.loads((folder / PROVENANCE).read_text("utf-8"))["cases"])
    return {**told, "cases": count, "notes": few(notes)}


def few(notes: Sequence[str]) -> list[str]:
    """The first notes as one, since a panel shows each in a line of its own."""
    return [some_sentences(notes)] if notes else []


def _report(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.cohort_report import write_report

    cohort = piece.cohort
    progress = piece.all_or_nothing("The report was cancelled; nothing was written.")
    with piece.results() as (folder, told):
        page = write_report(cohort, folder, progress)
    return {**told, "page": page.name}


def _open(piece: Piece) -> dict[str, Any]:
    """Take a case, the given one or the next, and write its voxels and labels as they lie in memory."""
    from SAMFineTuneLib.cohort.review import take, take_next

    cohort, by = piece.cohort, piece.asked["by"]
    reason = ""
    if piece.asked.get("case"):
        case = take(cohort, piece.asked["case"], by, *_lease(piece.asked))
    else:
        choice = take_next(cohort, piece.asked["way"], by, piece.asked["without"], *_lease(piece.asked))
        if choice is None:
            return {"case": "", "text": "No case is left to review."}
        case, reason = choice.case, choice.reason
    try:
        return {"case": case.key, "reason": reason, **_laid_out(piece, cohort, case)}
    except Exception:
        from SAMFineTuneLib.cohort.review import release

        release(cohort, case.key, by)
        raise


def _laid_out(piece: Piece, cohort: Cohort, case: CohortCase) -> dict[str, Any]:
    from SAMFineTuneLib.cases.label_files import read_labels
    from SAMFineTuneLib.cases.label_grid import fit_labels
    from SAMFineTuneLib.cohort.review import image_of, labels_of
    from SAMFineTuneLib.images.intensity_window import choose_window, modality_of

    volume = image_of(cohort, case)
    voxels = np.ascontiguousarray(volume.array)
    if voxels.dtype.kind == "b" or not voxels.dtype.isnative or voxels.dtype == np.float16:
        voxels = voxels.astype({"b": np.uint8, "f": np.float32}.get(voxels.dtype.kind, voxels.dtype.newbyteorder("=")))
    stem = f"{piece.folder / case.key}-{piece.number}"  # a case may be laid out again before the last copy is read
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


def _grid(piece: Piece) -> dict[str, Any]:
    """The grid of a case's image, to which labels are resampled before they are sent; this does not take the case."""
    from SAMFineTuneLib.cohort.review import image_of

    cohort = piece.cohort
    volume = image_of(cohort, cohort.state.case(piece.asked["case"]))
    return {"shape": list(volume.shape), "affine": volume.affine.tolist()}


def _check(piece: Piece) -> None:
    from SAMFineTuneLib.cohort.image_check import check_images

    check_images(piece.cohort, lambda done, total, name: piece.progress(done, total))


def _picture(piece: Piece) -> None:
    from SAMFineTuneLib.images import read_volume

    cohort = piece.cohort
    case = cohort.state.case(piece.asked["case"])
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
    image.thumbnail((_PICTURE, _PICTURE))
    save_png(target, image)


def _keep(piece: Piece) -> None:
    from SAMFineTuneLib.cohort.review import keep_correction, release

    cohort = piece.cohort
    try:
        keep_correction(cohort, piece.asked["case"], piece.labels(), piece.asked["by"])
    finally:  # a reviewer who has left a case does not return because its labels were refused
        if piece.asked.get("leaves"):
            release(cohort, piece.asked["case"], piece.asked["by"])


def _accept(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.review import accept

    cohort, notes = piece.cohort, []
    labels = None if piece.asked.get("as_kept") else piece.labels()
    asked = piece.asked["case"], labels, piece.asked["seconds"], piece.asked["prompts"], piece.asked["by"]
    case = accept(cohort, *asked, tell=notes.append)
    return {"dice": dict(case.review.dice), "notes": notes}


def _propose(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.proposing import propose

    done = propose(piece.cohort, again=piece.asked["again"], device=piece.asked["device"],
                   progress=piece.progress, cancelled=piece.cancelled)  # fmt: skip
    return {"proposed": len(done.done), "failed": len(done.failed), "cancelled": piece.cancelled()}


def _train(piece: Piece) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.retraining import retrain
    from SAMFineTuneLib.training.stopping import Stopped

    def progress(one: Any) -> None:
        piece.progress(one.step, one.steps, one.sentence, seconds_left=one.seconds_left)

    try:
        trained = retrain(piece.cohort, piece.asked["preset"], piece.asked["device"], progress, piece.cancelled)
    except Stopped:
        return {"cancelled": True}
    if trained.in_use and piece.asked.get("then_propose"):
        queue.CohortWork(piece.asked["cohort"]).put("propose", again=True, device=piece.asked["then_propose"])
    return {"reason": trained.reason, "in_use": trained.in_use}


def _lease(asked: dict[str, Any]) -> tuple[float, str]:
    """For how long a case is taken, and the process whose end also ends that."""
    return LEASE if asked.get("seconds") is None else asked["seconds"], asked.get("process", "")


def _next(cohort: Cohort, asked: dict[str, Any]) -> dict[str, Any]:
    """Choose the next case, and take it if requested."""
    from SAMFineTuneLib.cohort.choosing import next_case
    from SAMFineTuneLib.cohort.review import take_next

    which = cohort, asked["way"], asked["by"], asked["without"]
    choice = take_next(*which, *_lease(asked)) if asked["take"] else next_case(*which)
    return {"case": choice.case.key if choice else "", "reason": choice.reason if choice else ""}


def _take_again(cohort: Cohort, asked: dict[str, Any]) -> None:
    from SAMFineTuneLib.cohort.review import take

    for name in asked["cases"]:
        take(cohort, name, asked["by"], *_lease(asked))


def _due(cohort: Cohort, asked: dict[str, Any]) -> dict[str, Any]:
    from SAMFineTuneLib.cohort.judges import is_due

    return {"due": bool(is_due(cohort.state))}


def _of_review(action: str) -> Callable[[Cohort, dict[str, Any]], None]:
    def do(cohort: Cohort, asked: dict[str, Any]) -> None:
        from SAMFineTuneLib.cohort import review

        getattr(review, action)(cohort, asked.get("case", ""), asked["by"])

    return do


AT_ONCE: dict[str, Callable[[Cohort, dict[str, Any]], dict[str, Any] | None]] = {
    "next": _next, "take": _take_again, "release": _of_review("release"), "refuse": _of_review("refuse"),
    "reopen": _of_review("reopen"), "due": _due,
}  # fmt: skip
"""Pieces that read and write `cohort.json` alone: functions of the cohort and the values asked."""

_WITH_FILES: dict[str, Callable[[Piece], dict[str, Any] | None]] = {
    "create": _create, "add": _add, "receive": _receive, "open": _open, "grid": _grid, "picture": _picture,
    "check": _check, "keep": _keep, "accept": _accept, "propose": _propose, "train": _train, "export": _export,
    "report": _report,
}  # fmt: skip


def do_piece(piece: Piece) -> dict[str, Any]:
    """Do a piece of any kind. Returns what its event reports."""
    what = piece.asked["what"]
    told = AT_ONCE[what](piece.cohort, piece.asked) if what in AT_ONCE else _WITH_FILES[what](piece)
    return told or {}
