"""Does something to a cohort again and again, and kills itself at each step on disk: a program for a test.

    python cohort_crashes.py FOLDER ACT

FOLDER holds `cohort` and its images. Each time a child works on a fresh copy and gets SIGKILL before its n-th call that
opens, renames, or removes a file below that copy. One line of JSON tells what can be read afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.create_cohort import add_images
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import accept, keep_correction, labels_of, refuse, reopen

_EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate")


def main() -> None:
    source, act = Path(sys.argv[1]), sys.argv[2]
    new = np.load(source / "new.npy")
    acts = {
        "accept": lambda cohort: accept(cohort, "a", new),
        "again": lambda cohort: accept(cohort, "b", new),
        "correct": lambda cohort: keep_correction(cohort, "a", new),
        "reopen": lambda cohort: reopen(cohort, "b"),
        "refuse": lambda cohort: refuse(cohort, "b"),
        "add": lambda cohort: add_images(cohort, find_images(source / "more")),
    }
    for step in range(1, 500):
        work = source.parent / "work"
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(source, work)
        child = os.fork()
        if not child:
            _die_at(step, str(work))
            try:
                acts[act](Cohort(work / "cohort"))
                os._exit(0)
            except BaseException as error:
                print("error", error, flush=True)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": killed, "code": status, "cases": _found(Cohort(work / "cohort"))}), flush=True)
        if not killed:
            break


def _found(cohort: Cohort) -> dict:
    """What another program reads of each case."""
    found = {}
    for case in cohort.state.cases:
        best = labels_of(cohort, case)
        found[case.name] = {
            "state": case.state,
            "accepted": _size(cohort.accepted(case.key)) if case.state == "accepted" else None,
            "best": None if best is None else _size(best),
            "work": max((_size(path) for path in (cohort.accepted(case.key), cohort.corrected(case.key))
                         if path.exists()), default=0),
        }  # fmt: skip
    return found


def _size(path: Path) -> int:
    """Voxels that are labelled; raises where the file is not whole."""
    return int((read_labels(path).array > 0).sum())


def _die_at(step: int, folder: str) -> None:
    count = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count
        if event in _EVENTS and any(str(one).startswith(folder) for one in arguments[:2]):
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
