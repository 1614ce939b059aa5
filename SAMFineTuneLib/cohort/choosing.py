"""Which case comes next, and why.

| way | the case |
|---|---|
| `random` | any |
| `teaching` | doubtful, and unlike those that are accepted or being worked on |
| `easiest` | whose proposal is nearest to done |
| `order` | the first one |

`random` is the default because no other way was shown to teach more. All but `order` offer a case first that work has
begun on.

`teaching` multiplies doubt with the distance to the nearest such case (core-set selection: Sener and Savarese 2018), in
the space of pooled embeddings (`FEATURES`), each number of which is divided by its standard deviation over the cohort.
NumPy alone: nothing here needs a model.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import counted

WAYS = ("random", "teaching", "easiest", "order")
_OPEN = ("untouched", "proposed", "corrected")


@dataclass(frozen=True)
class Choice:
    """The case to look at next, and a sentence that says why this one."""

    case: CohortCase
    reason: str


def features_file(cohort: Cohort, key: str) -> Path:
    """The pooled embedding of a case: float32 (n,), by the cohort's model, so that all cases can be compared."""
    return cohort.folder / "features" / f"{key}.npy"


def next_case(
    cohort: Cohort, way: str = "random", by: str = "", without: Collection[str] = ()
) -> Choice | None:
    """Choose the next case among those that are neither accepted, refused nor taken by somebody else. Cases whose image
    has a problem come last.

    Args:
        cohort: the cohort.
        way: one of WAYS.
        by: the random word of the reviewer who asks, see `review.take`.
        without: keys of further cases to leave out, such as those that were skipped, or the present one.

    Returns:
        The case and why; None when nothing is left.

    Raises:
        UserError: for another way.
    """
    if way not in WAYS:
        raise UserError(f"There is no way “{way}” to choose the next case; choose one of {', '.join(WAYS)}.")
    state = cohort.state
    left = [case for case in state.those(*_OPEN) if not case.taken(by) and case.key not in without]
    left = [case for case in left if not case.trouble] or left
    if not left:
        return None
    if len(left) == 1:
        return Choice(left[0], "It is the only case left.")
    if way == "order":
        return Choice(left[0], f"It is the first of the {counted(len(left), 'case')} left.")
    begun = next((case for case in left if case.state == "corrected"), None)
    if begun is not None:
        return Choice(begun, "Work on it has begun.")
    if way == "random":
        return Choice(random.choice(left), f"It was chosen at random among the {counted(len(left), 'case')} left.")
    proposed = [case for case in left if case.proposal is not None]
    if not proposed:
        return Choice(left[0], "It is the first one left; without proposals there is nothing to choose by.")
    if way == "easiest":
        case = max(proposed, key=lambda one: one.proposal.lowest)
        return Choice(case, f"Its proposal is nearest to done: {_expected(case)}.")
    known = [case for case in state.cases if case.state == "accepted" or (case.taken() and case not in left)]
    return _most_teaching(cohort, proposed, known)


def _most_teaching(cohort: Cohort, cases: Sequence[CohortCase], known: Sequence[CohortCase]) -> Choice:
    """The case with the largest product of doubt and distance to the known ones."""
    doubt = np.array([1 - np.mean([*case.proposal.confidence.values()] or [0.0]) for case in cases])
    distance = _distances(cohort, cases, known)
    if distance is None:
        case = cases[int(doubt.argmax())]
        return Choice(case, f"Its proposal is the most doubtful: {_expected(case)}.")
    best = int((doubt * distance).argmax())
    case = cases[best]
    place, far = int((doubt > doubt[best]).sum()), int((distance > distance[best]).sum())
    return Choice(
        case,
        f"It should teach most: of {counted(len(cases), 'case')} proposed it is {_rank(place)} most doubtful "
        f"({_expected(case)}), and {_rank(far)} most unlike the {counted(len(known), 'case')} accepted or being "
        "reviewed.",
    )


def _distances(cohort: Cohort, cases: Sequence[CohortCase], known: Sequence[CohortCase]) -> np.ndarray | None:
    """Distance of each case to the nearest known one, the median for a case without an embedding. None where no
    distance is known.
    """
    found = {case.key: own for case in (*cases, *known) if (own := _features(cohort, case.key)) is not None}
    sizes = {own.shape for own in found.values()}
    near = [found[case.key] for case in known if case.key in found]
    if len(sizes) != 1 or not near:
        return None
    scale = np.std([*found.values()], axis=0) + 1e-6
    near = np.stack(near)
    distance = np.full(len(cases), np.nan)
    for place, case in enumerate(cases):
        if case.key in found:
            distance[place] = np.linalg.norm((found[case.key] - near) / scale, axis=1).min()
    if np.isnan(distance).all():
        return None
    return np.where(np.isnan(distance), np.nanmedian(distance), distance)


def _features(cohort: Cohort, key: str) -> np.ndarray | None:
    try:
        own = np.load(features_file(cohort, key), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return own if own.ndim == 1 and np.isfinite(own).all() else None


def _expected(case: CohortCase) -> str:
    label, value = min(case.proposal.confidence.items(), key=lambda one: one[1], default=("", 0.0))
    return f"a Dice of {value:.2f} is expected of {label}" if label else "nothing was found"


def _rank(before: int) -> str:
    number = before + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in (11, 12, 13) else 0, "th")
    return "the" if number == 1 else f"the {number}{ending}"
