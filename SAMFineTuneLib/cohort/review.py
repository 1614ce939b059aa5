"""What a reviewer does with a case: take it, keep corrections, accept, refuse, reopen.

The label map is written before the state changes, so that whatever is killed in between leaves a case that is not
accepted yet, and never one that is accepted without its labels.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cases.label_grid import fit_labels
from SAMFineTuneLib.cohort.cohort_folder import LEASE, Cohort, CohortCase, CohortState, Lease, Review
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import read_volume, write_labelmap
from SAMFineTuneLib.metrics.mask_metrics import dice

PROPOSED_LABELS = "labels.nii.gz"
"""Label map in the folder of a proposal."""


def take(cohort: Cohort, name: str, by: str) -> CohortCase:
    """Take a case, or keep it taken for another `LEASE` seconds, so that others leave it alone.

    Args:
        cohort: the cohort.
        name: the case's key or name.
        by: a random word of the one who works on it; never a person's name.

    Raises:
        UserError: while somebody else works on it.
    """

    def taken(state: CohortState) -> CohortState:
        case = _free(state, name, by)
        return state.with_case(case.key, lease=Lease(by, time.time() + LEASE))

    return cohort.change(taken).case(name)


def release(cohort: Cohort, name: str, by: str) -> None:
    """Give a case back; nothing happens where somebody else has taken it meanwhile."""

    def released(state: CohortState) -> CohortState:
        case = state.case(name)
        return state.with_case(case.key, lease=None) if case.lease and case.lease.by == by else state

    cohort.change(released)


def labels_of(cohort: Cohort, case: CohortCase) -> Path | None:
    """The best label map that there is: accepted, corrected, or proposed; None for an untouched case."""
    places = (
        cohort.accepted(case.key) if case.state == "accepted" else None,
        cohort.corrected(case.key),
        cohort.proposal(case.key) / PROPOSED_LABELS,
    )
    return next((path for path in places if path is not None and path.exists()), None)


def keep_correction(cohort: Cohort, name: str, labels: str | Path | np.ndarray, by: str = "") -> CohortCase:
    """Keep work on a case that is not done. An accepted case stays accepted with what was accepted.

    Args:
        cohort: the cohort.
        name: the case's key or name.
        labels: a file, or an array [k, j, i] in the image's grid.
        by: who has taken it, see `take`.

    Raises:
        UserError: for labels that do not belong to the image, and while somebody else works on it.
    """
    case = _free(cohort.state, name, by)
    _write(cohort, case, cohort.corrected(case.key), labels)
    return cohort.change(
        lambda state: state.with_case(
            case.key, state="accepted" if _free(state, name, by).state == "accepted" else "corrected"
        )
    ).case(case.key)


def accept(
    cohort: Cohort,
    name: str,
    labels: str | Path | np.ndarray | None = None,
    seconds: float | None = None,
    prompts: int | None = None,
    by: str = "",
) -> CohortCase:
    """Accept a case.

    Args:
        cohort: the cohort.
        name: the case's key or name.
        labels: its label map, as a file or an array [k, j, i] in the image's grid; None for the correction that is
            kept, or else the proposal.
        seconds: working time.
        prompts: prompts that were placed.
        by: who has taken it, see `take`.

    Raises:
        UserError: without labels, for labels that do not belong to the image, and while somebody else works on it.
    """
    case = _free(cohort.state, name, by)
    if labels is None and (labels := labels_of(cohort, case)) is None:
        raise UserError(f"Case {case.name} has no labels yet; give them with --labels, or segment it first.")
    target = cohort.accepted(case.key)
    array = _write(cohort, case, target, labels)
    proposed = cohort.proposal(case.key) / PROPOSED_LABELS
    found = {}
    if case.proposal is not None and proposed.exists():
        found = _agreement(read_labels(proposed).array, array, cohort.state.labels)

    def accepted(state: CohortState) -> CohortState:
        now = _free(state, case.key, by)
        order = now.review.order if now.state == "accepted" and now.review else len(state.accepted) + 1
        review = Review(order, seconds, prompts, found)
        return state.with_case(case.key, state="accepted", review=review, lease=None)

    new = cohort.change(accepted).case(case.key)
    cohort.corrected(case.key).unlink(missing_ok=True)
    return new


def refuse(cohort: Cohort, name: str, by: str = "") -> CohortCase:
    """Leave a case out: it is neither proposed nor learned from. What was corrected or accepted stays on disk."""
    key = _free(cohort.state, name, by).key
    change = lambda state: state.with_case(_free(state, key, by).key, state="refused", lease=None)  # noqa: E731
    return cohort.change(change).case(key)


def reopen(cohort: Cohort, name: str, by: str = "") -> CohortCase:
    """Take back that a case was accepted or refused; an accepted label map becomes a correction."""
    case = _free(cohort.state, name, by)
    if case.state not in ("accepted", "refused"):
        raise UserError(f"Case {case.name} is {case.state}; only accepted and refused cases can be reopened.")
    accepted = cohort.accepted(case.key)
    if case.state == "accepted" and accepted.exists():
        _write(cohort, case, cohort.corrected(case.key), accepted)

    def reopened(state: CohortState) -> CohortState:
        there = cohort.corrected(case.key).exists()
        now = "corrected" if there else "proposed" if case.proposal else "untouched"
        return state.with_case(_free(state, case.key, by).key, state=now, review=None)

    new = cohort.change(reopened).case(case.key)
    accepted.unlink(missing_ok=True)
    return new


def _free(state: CohortState, name: str, by: str) -> CohortCase:
    """A case that nobody else works on."""
    case = state.case(name)
    if case.taken(by):
        raise UserError(f"Somebody else works on case {case.name}; take another one, or wait until it is given back.")
    return case


def _write(cohort: Cohort, case: CohortCase, target: Path, labels: str | Path | np.ndarray) -> np.ndarray:
    """Write labels in the image's grid as the cohort numbers them. -> the label map [k, j, i]"""
    volume = read_volume(cohort.image(case))
    if isinstance(labels, np.ndarray):
        array, names = labels, {}
        if array.shape != volume.shape:
            raise UserError(f"The labels of case {case.name} are {array.shape}, its image is {volume.shape}.")
    else:
        read = read_labels(Path(labels).expanduser())
        array, names = fit_labels(read, volume).array, read.meaning.names
    array = _renumbered(array, names, cohort.state.labels, case)
    write_labelmap(target, array, volume)
    return array


def _renumbered(array: np.ndarray, names, known, case: CohortCase) -> np.ndarray:
    """The label map with the cohort's values, matched by name where the file names its values."""
    values = {name.casefold(): value for value, name in known.items()}
    table = np.arange(int(array.max()) + 1, dtype=np.uint16)
    for value in map(int, np.unique(array)):
        if not value:
            continue
        named = values.get(str(names.get(value, "")).casefold())
        if named is None and (value not in known or names.get(value)):
            what = names.get(value) or f"value {value}"
            raise UserError(
                f"The labels of case {case.name} contain “{what}”, which is not a structure of the cohort: "
                f"{', '.join(known.values())}."
            )
        table[value] = named or value
    return table[array.astype(np.intp)]


def _agreement(proposed: np.ndarray, accepted: np.ndarray, labels) -> dict[str, float]:
    """Dice of each structure that is in either label map."""
    found = {name: dice(proposed == value, accepted == value) for value, name in labels.items()}
    return {name: value for name, value in found.items() if value is not None}
