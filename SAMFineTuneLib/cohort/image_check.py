"""Finds the images of a cohort that were moved, are gone or have changed, without reading the voxels of the others.

Each case keeps a stamp of its image's files: sizes and times. Only an image whose stamp differs is read, and if its
voxels are the same it gets the new stamp. Patients are read from names anew, for cohorts from before names told them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from SAMFineTuneLib.cases.cases import SHORT
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState
from SAMFineTuneLib.cohort.patients import named_patients
from SAMFineTuneLib.disk_errors import DiskError
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume
from SAMFineTuneLib.images.read_image import split_choice

TROUBLES = {
    "moved": "its image was moved, to another place in the folder of images",
    "gone": "its image is gone",
    "changed": "its image has changed since it was added to the cohort",
    "unreadable": "its image can no longer be read, or you lack permission",
}
"""Problems of the image of a case → the same in words."""


def stamp_of(image: Path) -> str:
    """Sizes and times of an image's files; "" where it is not there."""
    path = split_choice(image)[0]
    try:
        if not path.is_dir():
            return _stamp(path.stat())
        digest = hashlib.sha256()
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                digest.update(f"{file.relative_to(path)} {_stamp(file.stat())}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()[:16]
    except OSError:
        return ""


def _stamp(found: os.stat_result) -> str:
    return f"{found.st_size} {found.st_mtime_ns}"


def check_images(cohort: Cohort, progress: Callable[[int, int, str], None] = lambda done, total, name: None) -> None:
    """Check all images, and record problems as the `trouble` of their cases, if that can be written.

    Args:
        cohort: the cohort.
        progress: called with the number checked, of all, and the name of one that is being read.
    """
    state, checked = cohort.state, {}
    for done, case in enumerate(state.cases):
        stamp = stamp_of(cohort.path(case))
        if not stamp:
            checked[case.key] = case.stamp, "gone" if _is_missing(cohort.path(case)) else "unreadable"
        elif stamp != case.stamp or case.trouble in ("moved", "gone", "unreadable"):
            progress(done, len(state.cases), case.name)
            checked[case.key] = stamp, _trouble(cohort, case)
    gone = {case.key: case.stamp for case in state.cases if checked.get(case.key, ("", ""))[1] == "gone" and case.stamp}
    if gone:
        there = _stamps_below(cohort.images, set(gone.values()))
        checked |= {key: (stamp, "moved") for key, stamp in gone.items() if stamp in there}

    def noted(now: CohortState) -> CohortState:
        changes = {key: dict(zip(("stamp", "trouble"), found, strict=True)) for key, found in checked.items()}
        cases = tuple(replace(case, **changes.get(case.key, {})) for case in now.cases)
        return named_patients(replace(now, cases=cases))

    if noted(state) != state:
        with suppress(DiskError):
            cohort.change(noted)


def _is_missing(image: Path) -> bool:
    """Whether an image is gone, rather than out of reach."""
    try:
        split_choice(image)[0].stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        pass
    return False


def _trouble(cohort: Cohort, case: CohortCase) -> str:
    try:
        same = read_volume(cohort.path(case)).digest[:SHORT] == case.key
    except UserError:
        return "unreadable"
    return "" if same else "changed"


def _stamps_below(folder: Path, wanted: set[str]) -> set[str]:
    """The files and folders below a folder that have one of these stamps."""
    found = set()
    for place, _, names in os.walk(folder):
        found |= {stamp_of(Path(place, name)) for name in names} & wanted
        if any(" " not in stamp for stamp in wanted):  # of a folder
            found |= {stamp_of(Path(place))} & wanted
    return found
