"""The plan of a cohort's training: its number, its cases, and whether an unfinished one is still worth finishing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from SAMFineTuneLib import __version__
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState
from SAMFineTuneLib.cohort.judges import JUDGES, compared, divided
from SAMFineTuneLib.cohort.running_work import TRAINING
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of, write_text
from SAMFineTuneLib.process_lock import LOCK
from SAMFineTuneLib.typed_json import loaded

_FILE, LABELS = "plan.json", "labels"
"""In the working folder: the plan, and the label maps as they were accepted when the training began."""


@dataclass(frozen=True)
class RetrainingPlan:
    """The plan of one training; its file shows whether an unfinished one is still valid."""

    number: int
    version: str
    """Version of this library, because another one may train differently."""
    preset: str
    model: str
    weights: Mapping[str, str]
    """File → digest of the model's."""
    labels: Mapping[str, str]
    before: int | None
    """Number of the adapter in use."""
    learned: Mapping[str, str]
    """Key → digest of the accepted label map."""
    held_out: Mapping[str, str]
    compared: tuple[str, ...]
    """Keys of the held-out cases whose labels favour no adapter."""


def retraining_plan(cohort: Cohort, preset: str, resume: bool) -> RetrainingPlan:
    """The unfinished plan if it is still valid, else a new one; the unfinished training is then deleted."""
    from SAMFineTuneLib.models.store import Store

    work, state = cohort.folder / TRAINING, cohort.state
    teachers, judges = divided_cases(state)
    digests = {case.key: sha256_of(cohort.accepted_labels(case)) for case in state.accepted}
    numbers = [one.number for one in state.adapters]
    with suppress(FileNotFoundError):
        numbers += [int(path.name) for path in (cohort.folder / "adapters").iterdir() if path.name.isdigit()]
    plan = RetrainingPlan(
        max(numbers, default=0) + 1, __version__, preset, state.model, dict(Store().find(state.model).spec.sha256),
        {str(value): name for value, name in state.labels.items()},
        state.adapter.number if state.adapter else None,
        {case.key: digests[case.key] for case in teachers}, {case.key: digests[case.key] for case in judges},
        tuple(case.key for case in compared(state, judges)),
    )  # fmt: skip
    if resume and (old := _unfinished(work / _FILE)) and _goes_on(old, plan, digests, state):
        return old
    clear_work(work)
    (work / LABELS).mkdir()
    for case in state.accepted:
        shutil.copyfile(cohort.accepted(case.key), work / LABELS / f"{case.key}.nii.gz")
    write_text(work / _FILE, json.dumps(asdict(plan)))
    return plan


def divided_cases(state: CohortState) -> tuple[tuple[CohortCase, ...], tuple[CohortCase, ...]]:
    """The cases that teach and those that judge, as `divided`; UserError while there are too few patients."""
    teachers, judges = divided(state)
    if not teachers:
        raise UserError(
            f"Training needs accepted cases of {JUDGES + 1} patients or more, {JUDGES} to judge the result and the "
            f"others to learn from; {len({case.patient for case in state.accepted})} are accepted, so accept more."
        )
    return teachers, judges


def _unfinished(path: Path) -> RetrainingPlan | None:
    with suppress(OSError, ValueError, TypeError):  # missing, or written by another version: start again
        return RetrainingPlan(**loaded(path.read_text("utf-8")))
    return None


def _goes_on(old: RetrainingPlan, new: RetrainingPlan, digests: Mapping[str, str], state: CohortState) -> bool:
    """Whether an unfinished training is still worth finishing: cases may have been added, but none changed."""
    settled = ("version", "preset", "model", "weights", "labels", "before")
    same = all(getattr(old, name) == getattr(new, name) for name in settled)
    cases = {**old.learned, **old.held_out}
    unrecorded = all(one.number < old.number for one in state.adapters)
    return same and unrecorded and all(digests.get(key) == digest for key, digest in cases.items())


def clear_work(work: Path) -> None:
    """Delete everything in the working folder but its lock."""
    for path in work.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
