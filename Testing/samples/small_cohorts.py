"""Small cohorts on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from case_files import AFFINE, blob, image_of, save

from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortCase, Proposal
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import find_images
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS


def small_cohort(folder: Path, count: int = 3, labelled: int = 0, affine: np.ndarray = AFFINE) -> Cohort:
    """A cohort of images a, b, c … with one structure, `blob`; the first `labelled` are accepted.

    Who is held out, which follows from the patients' digests, is the same in every run.
    """
    for number in range(count):
        name = chr(ord("a") + number)
        save(folder / "images" / f"{name}.nii.gz", image_of(truth(number), number), affine)
        if number < labelled:
            save(folder / "labels" / f"{name}.nii.gz", truth(number), affine)
    cohort = create_cohort(folder / "cohort", find_images(folder), ["blob"]).cohort
    own = tuple(replace(case, patient=f"patient {place}") for place, case in enumerate(cohort.state.cases))
    cohort.change(lambda state: replace(state, cases=own))
    return cohort


def truth(number: int) -> np.ndarray:
    """The labels of image number n (0 is a) [k, j, i]."""
    return blob(centre=(13.0 + number % 5, 17.0 - number % 3), radius=5.0 + number % 4)


def propose_labels(cohort: Cohort, name: str, labels: np.ndarray, adapter: int = 1) -> CohortCase:
    """Give a case a proposal, as an adapter would."""
    from SAMFineTuneLib.images import read_volume, write_labelmap

    case = cohort.state.case(name)
    write_labelmap(cohort.proposal(case.key) / PROPOSED_LABELS, labels, read_volume(cohort.image(case)))
    proposal = Proposal(adapter, dict.fromkeys(cohort.state.labels.values(), 0.7), 2)
    return cohort.change(lambda state: state.with_case(case.key, state="proposed", proposal=proposal)).case(case.key)
