"""Which accepted cases teach a cohort's next adapter, which judge it, and when it is due.

A digest of the patient decides who is held out: a quarter of all patients always is. While these are fewer than a third
of the accepted patients (at least two, at most four), others judge for the time being, first those who judged before.
They may teach later; a patient who has taught never judges.

A case whose labels began as a proposal of the adapter in use is not compared while others of two patients are held out:
a reviewer who corrects a proposal leaves what is good enough, so its Dice is higher than with labels from scratch.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from SAMFineTuneLib.cohort.cohort_state import CohortCase, CohortState

FIRST = 5
"""Accepted cases at which the first training is due."""
JUDGES = 2
"""Minimum number of patients that judge."""
_ENOUGH = 4  # patients that judge at most, unless a quarter of all is more; a third of all within these bounds
_HELD_OUT = 0.25  # part of the patients that always judges
_GROWTH, _LEAST_NEW = 0.2, 3  # when the next training is due: after this growth since the last one, and this many cases


def is_due(state: CohortState) -> bool:
    """Whether enough was accepted since the last training.

    The first is due at five cases. More cases then bring less and less, roughly with their logarithm, so the next is
    due when their number has grown by a fifth, and by three, because fewer seldom change much.
    """
    if not divided(state)[0]:
        return False
    if not state.adapters:
        return len(state.accepted) >= FIRST
    known = {*state.adapters[-1].learned, *state.adapters[-1].held_out}
    new = sum(case.key not in known for case in state.accepted)
    return new >= max(_LEAST_NEW, _GROWTH * len(known))


def held_out(state: CohortState) -> tuple[CohortCase, ...]:
    """The accepted cases that judge: those of held-out patients."""
    accepted, learned = state.accepted, {key for one in state.adapters for key in one.learned}
    judged = {key for one in state.adapters for key in one.held_out}
    taught, earlier = ({case.patient for case in state.cases if case.key in keys} for keys in (learned, judged))
    there = {case.patient for case in accepted}
    always = {patient for patient in there - taught if _rank(patient) < _HELD_OUT}
    patients = sorted(there - taught, key=lambda one: (one not in always, one not in earlier, _rank(one)))
    count = max(len(always), JUDGES, min(_ENOUGH, len(there) // 3))
    fair = [one for one in patients if one in {case.patient for case in _fair(state, accepted)}]
    judges = {*patients[:count], *fair[:JUDGES]}
    return tuple(case for case in accepted if case.patient in judges)


def divided(state: CohortState) -> tuple[tuple[CohortCase, ...], tuple[CohortCase, ...]]:
    """The accepted cases that teach and those that judge; none teaches while patients that judge are too few."""
    judges = held_out(state)
    patients = {case.patient for case in judges}
    teachers = tuple(case for case in state.accepted if case.patient not in patients)
    return (teachers if len(patients) >= JUDGES else ()), judges


def compared(state: CohortState, judges: tuple[CohortCase, ...]) -> tuple[CohortCase, ...]:
    """The judges whose labels compare adapters: the fair ones, or all if these are too few."""
    fair = _fair(state, judges)
    return fair if len({case.patient for case in fair}) >= JUDGES else judges


def _fair(state: CohortState, cases: Iterable[CohortCase]) -> tuple[CohortCase, ...]:
    """The cases whose labels did not begin as a proposal of the adapter in use."""
    number = state.adapter.number if state.adapter else None
    return tuple(case for case in cases if case.proposal is None or case.proposal.adapter != number)


def _rank(patient: str) -> float:
    """A patient's place, 0 to 1, in an order that does not depend on the cohort."""
    return int(sha256(patient.encode()).hexdigest()[:12], 16) / 16**12
