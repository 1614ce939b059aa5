"""The patients of a cohort's cases, whose numbers and names are not kept."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from SAMFineTuneLib.cases.cases import SHORT, patients_by_name
from SAMFineTuneLib.cohort.cohort_state import CohortState


@lru_cache
def patient_digest(patient: str, salt: str) -> str:
    """A digest of a patient: salted, so that two cohorts cannot be compared, and slow, so that guessing numbers takes
    long. Cohorts from before salts keep the plain one.
    """
    if not salt:
        return hashlib.sha256(patient.encode()).hexdigest()[:SHORT]
    return hashlib.scrypt(patient.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1).hex()[:SHORT]


def named_patients(state: CohortState) -> CohortState:
    """A state whose cases without a known patient have the one that their names tell, as in a cohort made today."""
    unknown = {one.key: Path(one.image) for one in state.cases if one.patient == patient_digest(one.key, "")}
    for key, patient in patients_by_name(unknown).items():
        state = state.with_case(key, patient=patient_digest(patient, state.salt))
    return state
