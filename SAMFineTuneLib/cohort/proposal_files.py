"""The files of a proposal, and those that calibrate confidence: proposals for accepted cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cohort.case_segmentation import SegmentedCase
from SAMFineTuneLib.cohort.choosing import features_file
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import CohortState
from SAMFineTuneLib.cohort.confidence import CONFIDENCE, Calibration, Judged, Signals, calibrate
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, staged_folder

_SAMPLES = 12  # accepted cases that calibrate
_SIGNALS = "signals.npz"


def write_proposal(folder: Path, result: SegmentedCase, confidence: str = "") -> None:
    """Write the files of a proposal."""
    with staged_folder(folder) as building:
        (building / PROPOSED_LABELS).write_bytes(result.labels)
        names, rows = [*result.signals], [*result.signals.values()]
        np.savez(building / _SIGNALS, names=names, rows=np.array(rows, np.float32), axis=result.axis)
        if confidence:
            (building / CONFIDENCE).write_text(confidence, "utf-8")


def write_features(cohort: Cohort, key: str, result: SegmentedCase) -> None:
    if result.features is not None:
        with atomic_write(features_file(cohort, key)) as path:
            np.save(path, result.features)


def judged_folder(cohort: Cohort, adapter: int, key: str) -> Path:
    """Folder of an adapter's proposal for an accepted case that it did not learn from."""
    return cohort.folder / "judged" / str(adapter) / key  # not with the adapter, which may be passed on to others


def calibration_of(state: CohortState, cohort: Cohort) -> Calibration:
    """Fit to the accepted cases: to the proposals of the adapter in use for those held out, and to proposals for others
    from before they were learned from.
    """
    found = []
    for case in reversed(state.accepted):
        judged = judged_folder(cohort, state.adapter.number, case.key)
        for folder in (judged, *(() if state.taught(case) else (cohort.proposal(case.key),))):
            if (one := _sample(folder, cohort.accepted(case.key), state.labels)) is not None:
                found.append(one)
                break
        if len(found) == _SAMPLES:
            break
    return calibrate(found)


def _sample(folder: Path, accepted: Path, labels: Mapping[int, str]) -> Judged | None:
    """A proposal and what was accepted; None where there are none."""
    from SAMFineTuneLib.cases.label_files import read_labels

    try:
        signals, axis = read_signals(folder)
        proposed, right = read_labels(folder / PROPOSED_LABELS).array, read_labels(accepted).array
        return Judged.of(signals, proposed, right, axis, labels)
    except (OSError, ValueError, KeyError, UserError):
        return None


def read_signals(folder: Path) -> tuple[Signals, int]:
    """The signals in the folder of a proposal, and the axis of its label map [k, j, i] across their slices."""
    with np.load(folder / _SIGNALS, allow_pickle=False) as kept:
        return dict(zip(map(str, kept["names"]), kept["rows"], strict=True)), int(kept["axis"])
