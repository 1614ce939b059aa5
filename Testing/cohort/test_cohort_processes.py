"""Real processes: several that change one cohort at the same moment, and one that is killed at every step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from case_files import image_of, save
from small_cohorts import small_cohort, truth

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.review import accept

_ACCEPTS = """
import sys
import numpy as np
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.review import accept, keep_correction, refuse, release, take
from SAMFineTuneLib.errors import UserError

folder, by, *names = sys.argv[1:]
cohort = Cohort(folder)
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    try:
        take(cohort, name, by)
    except UserError:
        print(f"taken {name}", flush=True)
        continue
    labels = np.zeros((6, 32, 32), np.uint8)
    labels[0, 0, : 1 + ord(by)] = 1
    keep_correction(cohort, name, labels, by)
    accept(cohort, name, labels, prompts=ord(by), by=by)
    print(f"accepted {name}", flush=True)
"""


def start(root: Path, code: str, *arguments: object) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *(["-c", code] if code else []), *map(str, arguments)], env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip


def test_processes_that_change_one_cohort_at_the_same_moment_lose_nothing(root, tmp_path):
    cohort = small_cohort(tmp_path, count=12)
    names = [case.name for case in cohort.state.cases]
    # Each accepts six cases of its own, while the other two work on others in the same file.
    workers = {by: start(root, _ACCEPTS, cohort.folder, by, *names[n::3]) for n, by in enumerate("\x01\x02\x03")}
    for worker in workers.values():
        assert worker.stdout.readline() == "ready\n"
    for worker in workers.values():
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for by, worker in workers.items():
        out, _ = worker.communicate(timeout=300)
        assert worker.returncode == 0 and out.count("accepted") == 4, (by, out)
    state = Cohort(cohort.folder).state
    assert len(state.accepted) == 12 and [case.review.order for case in state.accepted] == list(range(1, 13))
    for number, name in enumerate(names):
        case = state.case(name)
        assert case.review.prompts == 1 + number % 3 and case.lease is None
        assert (read_labels(cohort.accepted(case.key)).array > 0).sum() == 2 + number % 3


def test_one_case_is_never_accepted_by_two_at_once(root, tmp_path):
    cohort = small_cohort(tmp_path, count=3)
    workers = {by: start(root, _ACCEPTS, cohort.folder, by, "a", "b", "c") for by in "\x01\x02\x03"}
    for worker in workers.values():
        assert worker.stdout.readline() == "ready\n"
    for worker in workers.values():
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers.values():
        worker.communicate(timeout=300)
        assert worker.returncode == 0
    for case in Cohort(cohort.folder).state.cases:  # the labels are of the one whose review it is
        assert (read_labels(cohort.accepted(case.key)).array > 0).sum() == 1 + case.review.prompts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills children that it forks")
@pytest.mark.parametrize("act", ["accept", "again", "correct", "reopen", "refuse", "add"])
def test_a_kill_at_any_step_loses_nothing(root, tmp_path, act):
    cohort = small_cohort(tmp_path / "source", count=2)
    accept(cohort, "b", truth(1))
    new = np.zeros_like(truth(0))
    new[0, 0, :30] = 1
    np.save(tmp_path / "source" / "new.npy", new)
    save(tmp_path / "source" / "more" / "images" / "c.nii.gz", image_of(truth(2), 2))
    save(tmp_path / "source" / "more" / "labels" / "c.nii.gz", truth(2))
    old, added = int(truth(1).sum()), int(truth(2).sum())

    program = start(root, "", Path(__file__).with_name("cohort_crashes.py"), tmp_path / "source", act)
    out, _ = program.communicate(timeout=500)
    assert program.returncode == 0, out
    runs = [json.loads(line) for line in out.splitlines()]
    assert len(runs) > 5 and not runs[-1]["killed"] and runs[-1]["code"] == 0
    for number, run in enumerate(runs):
        done, a, b = number == len(runs) - 1, run["cases"]["a"], run["cases"]["b"]
        assert b["work"] in ((30, old) if act == "again" else (old,))  # what was accepted is there in any case
        assert a["state"] == ("untouched" if not done or act not in ("accept", "correct") else f"{act}ed") or (
            act in ("accept", "correct") and a["best"] == 30)  # fmt: skip
        assert b["state"] in {"reopen": ("accepted", "corrected"), "refuse": ("accepted", "refused")}.get(
            act, ("accepted",)
        )
        assert b["best"] in ((30, old) if act == "again" else (old,)) or b["state"] == "refused"
        if "c" in run["cases"]:
            assert run["cases"]["c"]["accepted"] == added
        if done:
            assert {"accept": a["accepted"] == 30, "again": b["accepted"] == 30, "correct": a["best"] == 30,
                    "reopen": b["state"] == "corrected", "refuse": b["state"] == "refused",
                    "add": "c" in run["cases"]}[act]  # fmt: skip
