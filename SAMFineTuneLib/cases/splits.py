"""Splits of cases for training, validation and testing: by patient, never by slice. No PyTorch here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.errors import UserError

_MANY_PATIENTS = 10  # with so many patients, a tenth is set aside for validation


@dataclass(frozen=True)
class Fold:
    """Cases to train on, and cases of other patients to test on."""

    train: tuple[Case, ...]
    test: tuple[Case, ...]

    @classmethod
    def holding_out(cls, cases: Sequence[Case], patients: Collection[str]) -> Fold:
        """Test on the cases of some patients, and train on those of all others."""
        test = tuple(case for case in cases if case.patient in patients)
        return cls(tuple(case for case in cases if case.patient not in patients), test)


@dataclass(frozen=True)
class Folds:
    """`parts` give the evidence; `final` are the cases that the delivered adapter learns from.

    `kind` is "leave-one-out" or "k-fold" (the adapter learns from all cases; the evidence comes from adapters of the
    same recipe that did not see the tested case), "shots" or "given" (the adapter itself is tested), or "none".
    """

    kind: str
    parts: tuple[Fold, ...]
    final: tuple[Case, ...]


def split(
    cases: Sequence[Case],
    shots: int | None = None,
    folds: int | None = None,
    seed: int = 0,
    test: Sequence[Case] = (),
    fold_limit: int = 5,
) -> Folds:
    """Divide cases by patient.

    Args:
        cases: Cases to learn from, and to test on unless `test` is given.
        shots: Number of cases, of as many patients, that teach; the cases of all other patients test.
        folds: Parts of a cross-validation, 0 for none; default: every patient is held out once, or a group of them
            where there are more than `fold_limit` patients.
        seed: Of all random choices.
        test: Cases that test; all others teach.
        fold_limit: Most folds by default.

    Raises:
        UserError: For impossible numbers, and when a patient is among both the training and the test cases.
    """
    cases = tuple(cases)
    if shots is not None and folds:
        raise UserError("Shots and folds exclude each other: with shots, all other cases are the test; leave one out.")
    taught = cases if shots is None else _some_patients(cases, shots, seed)
    if test:
        require_separate(taught, test)
        return Folds("given", (Fold(taught, tuple(test)),), taught)
    if shots is not None:
        rest = Fold.holding_out(cases, {case.patient for case in taught}).train
        return Folds("shots", (Fold(taught, rest),), taught) if rest else Folds("none", (), taught)
    patients = _shuffled(cases, seed)
    if folds == 0 or len(patients) < 2:
        return Folds("none", (), cases)
    if folds is None:
        folds = min(len(patients), max(2, fold_limit))
    if not 2 <= folds <= len(patients):
        raise UserError(f"{folds} folds cannot be made of {len(patients)} patients; choose 2 to {len(patients)}, or 0.")
    parts = tuple(Fold.holding_out(cases, set(patients[number::folds])) for number in range(folds))
    return Folds("leave-one-out" if folds == len(patients) else "k-fold", parts, cases)


def require_separate(train: Sequence[Case], test: Sequence[Case]) -> None:
    """Raise UserError when a patient, or an image, is on both sides."""
    both = sorted({case.id for case in test if case.patient in {other.patient for other in train}})
    same = sorted({case.id for case in test if case.image.resolve() in {other.image.resolve() for other in train}})
    if both or same:
        names = ", ".join((both or same)[:4])
        raise UserError(
            f"A patient is among both the training and the test cases ({names}), which makes the test worthless; "
            "drop those cases from one side."
        )


def set_aside(cases: Sequence[Case], count: int | None, seed: int) -> Fold:
    """Hold out the cases of some patients, chosen at random, for validation.

    Args:
        cases: all of them; a patient's cases stay together.
        count: how many patients; None is a tenth of ten patients or more, and none of fewer.
        seed: the same seed chooses the same patients.

    Raises:
        UserError: when no patient would be left to learn from.
    """
    patients = _shuffled(cases, seed)
    if count is None:
        count = len(patients) // 10 if len(patients) >= _MANY_PATIENTS else 0
    if count and count >= len(patients):
        raise UserError(f"{count} patients cannot be set aside for validation from {len(patients)}; choose fewer.")
    return Fold.holding_out(cases, set(patients[:count]))


def _shuffled(cases: Sequence[Case], seed: int) -> list[str]:
    patients = sorted({case.patient for case in cases})
    return [patients[i] for i in np.random.default_rng((seed, 1)).permutation(len(patients))]


def _some_patients(cases: tuple[Case, ...], shots: int, seed: int) -> tuple[Case, ...]:
    """One case of each of `shots` patients, drawn by the seed."""
    patients = _shuffled(cases, seed)
    if not 1 <= shots <= len(patients):
        raise UserError(f"{shots} shots cannot be drawn from {len(patients)} patients; choose 1 to {len(patients)}.")
    rng = np.random.default_rng((seed, 2))
    chosen = []
    for patient in patients[:shots]:
        own = [case for case in cases if case.patient == patient]
        chosen.append(own[rng.integers(len(own))])
    return tuple(sorted(chosen, key=lambda case: case.id))
