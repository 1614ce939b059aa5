"""What a reviewer does with a case: take it, keep corrections, accept, refuse, reopen.

A label map is first written under a hidden name, which takes a while. It gets its final name just before the new state
is written, under the cohort's lock: a process killed in between leaves a case that is not accepted yet, never one that
is accepted without its labels.
"""

from __future__ import annotations

import filecmp
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.cases import SHORT
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cases.label_grid import fit_labels
from SAMFineTuneLib.cases.label_map import Meaning
from SAMFineTuneLib.cohort.choosing import Choice, next_case
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_labels import renumbered
from SAMFineTuneLib.cohort.cohort_state import LEASE, CohortCase, CohortState, Lease, Review
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, beside, move_over
from SAMFineTuneLib.images import Volume, read_volume, write_labelmap
from SAMFineTuneLib.metrics.mask_metrics import dice
from SAMFineTuneLib.wording import within_sentence

PROPOSED_LABELS = "labels.nii.gz"
"""Label map in the folder of a proposal."""


def take(cohort: Cohort, name: str, by: str, seconds: float = LEASE, process: str = "") -> CohortCase:
    """Take a case, or keep it taken, so that others leave it alone.

    Args:
        cohort: the cohort.
        name: the case's key or name.
        by: a random word that identifies the reviewer; never a person's name.
        seconds: for how long; `LEASE` at most.
        process: the process whose end gives the case back, see `process_lock.this_process`; "" for none.

    Raises:
        UserError: while somebody else works on it.
    """

    def taken(state: CohortState) -> CohortState:
        case = _free(state, name, by)
        return state.with_case(case.key, lease=Lease(by, time.time() + min(seconds, LEASE), process))

    return cohort.change(taken).case(name)


def take_next(
    cohort: Cohort, way: str, by: str, without: Collection[str] = (), seconds: float = LEASE, process: str = ""
) -> Choice | None:
    """Choose the next case as `next_case` does, and `take` it before anybody else can.

    Args:
        cohort: whose case.
        way: how to choose, one of `WAYS`.
        by: who takes it.
        without: keys of cases that are not to be chosen.
        seconds: for how long it is taken, `LEASE` at most.
        process: of whom; see `Lease`.

    Returns:
        The choice, None when nothing is left.
    """
    found = []

    def taken(state: CohortState) -> CohortState:
        if (choice := next_case(cohort, way, by, without)) is None:
            return state
        found.append(choice)
        return state.with_case(choice.case.key, lease=Lease(by, time.time() + min(seconds, LEASE), process))

    cohort.change(taken)
    return found[0] if found else None


def stay_taken(cohort: Cohort, by: str, seconds: float) -> None:
    """Renew everything that `by` has taken for so many seconds, if at least half of them have passed. Cases that
    somebody else has taken meanwhile stay theirs.
    """
    half = time.time() + seconds / 2

    def renewed(state: CohortState) -> CohortState:
        for case in state.cases:
            if case.lease and case.lease.by == by and case.lease.until < half:
                state = state.with_case(case.key, lease=replace(case.lease, until=time.time() + seconds))
        return state

    if renewed(state := cohort.state) != state:
        cohort.change(renewed)


def release(cohort: Cohort, name: str, by: str) -> None:
    """Give cases back, except those that somebody else has taken meanwhile.

    Args:
        cohort: whose cases.
        name: of the case; "" means all that `by` has taken.
        by: who took it.
    """

    def released(state: CohortState) -> CohortState:
        for case in (state.case(name),) if name else state.cases:
            if case.lease and case.lease.by == by:
                state = state.with_case(case.key, lease=None)
        return state

    cohort.change(released)


def labels_of(cohort: Cohort, case: CohortCase) -> Path | None:
    """The label map to continue with: the newer of the accepted and the corrected one, even if the case was refused
    since, else the proposal; None for an untouched case.
    """
    accepted, corrected = cohort.accepted(case.key), cohort.corrected(case.key)
    if case.state in ("accepted", "refused") and accepted.exists() and not _is_newer(corrected, accepted):
        return accepted
    return next((path for path in (corrected, cohort.proposal(case.key) / PROPOSED_LABELS) if path.exists()), None)


def image_of(cohort: Cohort, case: CohortCase) -> Volume:
    """The image of a case; UserError if it is gone, or has changed since it was added."""
    volume = read_volume(cohort.image(case))
    if volume.digest[:SHORT] != case.key:
        raise UserError(
            f"The image of case {case.name} has changed since it was added to the cohort; put the old one back, or add "
            "this one as a case of its own with “samfinetune cohort add”."
        )
    return volume


def keep_correction(cohort: Cohort, name: str, labels: str | Path | np.ndarray, by: str = "") -> CohortCase:
    """Keep unfinished work on a case. An accepted case keeps its accepted labels.

    Args:
        cohort: the cohort.
        name: the case's key or name.
        labels: a file, or an array [k, j, i] in the image's grid.
        by: who has taken it, see `take`.

    Raises:
        UserError: for labels that do not belong to the image, and while somebody else works on it.
    """
    case = _free(cohort.state, name, by)
    with _written(cohort, case, cohort.corrected(case.key), labels) as (written, _):

        def kept(state: CohortState) -> CohortState:
            now = _free(state, case.key, by)
            move_over(written, cohort.corrected(case.key))
            return state.with_case(case.key, state="accepted" if now.state == "accepted" else "corrected")

        return cohort.change(kept).case(case.key)


def _same_labels(cohort: Cohort, case: CohortCase, written: Path) -> CohortCase | None:
    """Another accepted case with the same label map on the same grid, as when its file was given by mistake."""
    others = ((other, cohort.accepted(other.key)) for other in cohort.state.accepted if other.key != case.key)
    same = (other for other, path in others if path.exists() and filecmp.cmp(path, written, shallow=False))
    return next(same, None)


def accept(
    cohort: Cohort,
    name: str,
    labels: str | Path | np.ndarray | None = None,
    seconds: float | None = None,
    prompts: int | None = None,
    by: str = "",
    match: str = "",
    tell: Callable[[str], None] = lambda note: None,
) -> CohortCase:
    """Accept a case.

    Args:
        cohort: the cohort.
        name: the case's key or name.
        labels: its label map, as a file or an array [k, j, i] in the image's grid; None for the kept correction, or
            else the proposal.
        seconds: working time; added to the earlier one of a case that was reopened.
        prompts: number of prompts placed; added likewise.
        by: who has taken it, see `take`.
        match: how the labels of a file find their voxels, see `label_grid.MATCHES`.
        tell: called with sentences about anything unusual, such as resampled or missing labels.

    Raises:
        UserError: without labels, for labels that do not belong to the image, and while somebody else works on it.
    """
    case = _free(cohort.state, name, by)
    if labels is None and (labels := labels_of(cohort, case)) is None:
        raise UserError(f"Case {case.name} has no labels yet; give them with --labels, or segment it first.")
    with _written(cohort, case, cohort.accepted(case.key), labels, match, tell) as (written, array):
        if not array.any():
            tell("Nothing is labelled in it.")
        elif same := _same_labels(cohort, case, written):
            tell(f"It equals the accepted label map of {same.name}; check that it belongs to this image.")
        found = _agreement(cohort, case, array)

        def accepted(state: CohortState) -> CohortState:
            now = _free(state, case.key, by)
            before = now.review or Review(state.next_order)
            earlier = (None, None) if now.state == "accepted" else (before.seconds, before.prompts)
            took = (_sum(old, new) for old, new in zip(earlier, (seconds, prompts), strict=True))
            move_over(written, cohort.accepted(case.key))
            review = Review(before.order, *took, found)
            return state.with_case(case.key, state="accepted", review=review, lease=None)

        done = lambda: cohort.corrected(case.key).unlink(missing_ok=True)  # noqa: E731
        return cohort.change(accepted, done).case(case.key)


def refuse(cohort: Cohort, name: str, by: str = "") -> CohortCase:
    """Leave a case out: it is neither proposed nor learned from. What was corrected or accepted stays on disk.

    UserError when somebody else than `by` has taken it.
    """
    key = _free(cohort.state, name, by).key
    change = lambda state: state.with_case(_free(state, key, by).key, state="refused", lease=None)  # noqa: E731
    return cohort.change(change).case(key)


def reopen(cohort: Cohort, name: str, by: str = "") -> CohortCase:
    """Undo the acceptance or refusal of a case; an accepted label map becomes a correction.

    UserError when somebody else than `by` has taken it, or it is neither accepted nor refused.
    """
    key = cohort.state.case(name).key
    accepted, corrected = cohort.accepted(key), cohort.corrected(key)

    def reopened(state: CohortState) -> CohortState:
        case = _free(state, key, by)
        if case.state not in ("accepted", "refused"):
            raise UserError(f"Case {case.name} is {case.state}; only accepted and refused cases can be reopened.")
        if accepted.exists() and not _is_newer(corrected, accepted):
            with atomic_write(corrected) as copy:
                copy.write_bytes(accepted.read_bytes())
        now = "corrected" if corrected.exists() else "proposed" if case.proposal else "untouched"
        return state.with_case(key, state=now)

    return cohort.change(reopened, lambda: accepted.unlink(missing_ok=True)).case(key)


def _free(state: CohortState, name: str, by: str) -> CohortCase:
    """The case, unless somebody else works on it."""
    case = state.case(name)
    if case.taken(by):
        raise UserError(f"Somebody else works on case {case.name}; take another one, or wait until it is given back.")
    return case


def _sum(first: float | None, second: float | None) -> float | None:
    """The sum of what was measured; None where nothing was."""
    measured = [one for one in (first, second) if one is not None]
    return sum(measured) if measured else None


def _is_newer(path: Path, other: Path) -> bool:
    """Whether a file exists and is newer than another one, if that exists."""
    return path.exists() and not (other.exists() and other.stat().st_mtime_ns >= path.stat().st_mtime_ns)


@contextmanager
def _written(
    cohort: Cohort,
    case: CohortCase,
    target: Path,
    labels: str | Path | np.ndarray,
    match: str = "",
    tell: Callable[[str], None] = lambda note: None,
) -> Iterator[tuple[Path, np.ndarray]]:
    """Labels in the image's grid as the cohort numbers them, in a hidden file beside `target`, and as an array."""
    volume = image_of(cohort, case)
    array = in_grid(labels, volume, cohort.state.labels, case.name, match, tell)
    hidden = beside(target)
    try:
        write_labelmap(hidden, array, volume)
        yield hidden, array
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)


def in_grid(
    labels: str | Path | np.ndarray,
    volume: Volume,
    known: Mapping[int, str],
    name: str,
    match: str = "",
    tell: Callable[[str], None] = lambda note: None,
) -> np.ndarray:
    """Labels of a case in its image's grid, as the cohort numbers them: uint16 [k, j, i].

    Args:
        labels: a file, or an array in that grid.
        volume: the image.
        known: label value → name of the cohort.
        name: of the case.
        match: how the labels of a file find their voxels, see `label_grid.MATCHES`.
        tell: called with how the labels were converted, if that is unusual.

    Raises:
        UserError: for labels that do not belong to the image, and structures that the cohort does not have.
    """
    if isinstance(labels, np.ndarray):
        array, meaning = labels, Meaning()
        if array.shape != volume.shape:
            raise UserError(f"The labels of case {name} are {array.shape}, its image is {volume.shape}.")
    try:
        if not isinstance(labels, np.ndarray):
            read = read_labels(Path(labels).expanduser())
            (array, notes), meaning = fit_labels(read, volume, match), read.meaning
            for note in (*read.notes, *notes):
                tell(note)
        return renumbered(array, meaning, known)[0]
    except UserError as error:
        raise UserError(f"The labels of case {name} cannot be used: {within_sentence(str(error))}") from error


def fair_proposal(cohort: Cohort, case: CohortCase, shape: tuple[int, ...]) -> np.ndarray | None:
    """The proposal for a case, for comparison with the accepted labels.

    Args:
        cohort: the cohort.
        case: one of its cases.
        shape: of the accepted label map.

    Returns:
        Its label map [k, j, i]; None without one, for a damaged one or one of another shape, and for one by an adapter
        that had learned from the case.
    """
    path = cohort.proposal(case.key) / PROPOSED_LABELS
    if case.proposal is None or not path.exists() or cohort.state.taught(case):
        return None
    try:
        array = read_labels(path).array
    except UserError:
        return None
    return array if array.shape == shape else None


def _agreement(cohort: Cohort, case: CohortCase, accepted: np.ndarray) -> Mapping[str, float]:
    """Dice of a fair proposal with the accepted labels, for each structure in either."""
    proposed = fair_proposal(cohort, case, accepted.shape)
    if proposed is None:
        return {}
    found = {name: dice(proposed == value, accepted == value) for value, name in cohort.state.labels.items()}
    return {name: value for name, value in found.items() if value is not None}
