"""How well a cohort's confidence finds the slices that need work.

An adapter proposes labels for annotated cases that it did not learn from. Each (label, slice) that proposal or
reference has counts; it is bad when its Dice is below 0.8. Where nothing is expected counts as sure. Told are the area
under the ROC curve of finding the bad ones, with a bootstrap interval over cases, mean (bias) and root mean
square of the difference between expected and true Dice, which part of the bad ones is among as many least sure ones
(found), and how many slices of a case that neither has are called doubtful (alarms); with the map as it is shipped, and
calibrated on the first few cases, which then do not count.

    samfinetune train CASES -o ADAPTER --preset quick --folds 0 --no-add
    python Testing/benchmarks/cohort_confidence.py ADAPTER OTHER_CASES --count 30
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from SAMFineTuneLib.cases.cases import digest_of, find_cases
from SAMFineTuneLib.cases.label_files import read_labels
from SAMFineTuneLib.cohort.cohort_folder import Cohort
from SAMFineTuneLib.cohort.cohort_state import TrainedAdapter
from SAMFineTuneLib.cohort.confidence import DOUBTFUL, Calibration, Judged, calibrate, expected
from SAMFineTuneLib.cohort.create_cohort import create_cohort
from SAMFineTuneLib.cohort.find_images import FoundImage
from SAMFineTuneLib.cohort.proposal_files import read_signals
from SAMFineTuneLib.cohort.proposing import propose
from SAMFineTuneLib.cohort.review import PROPOSED_LABELS
from SAMFineTuneLib.models.adapters.adapter_folder import read_adapter_folder

_CALIBRATED_ON = (0, 2, 5, 10)
_RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class Slices:
    """Expected and true Dice (n,) of the slices of a case that count."""

    expected: np.ndarray
    true: np.ndarray
    alarms: int
    """Doubtful ones among those that neither proposal nor reference has."""


def area_under_curve(slices: list[Slices]) -> float:
    """Of finding slices below DOUBTFUL by a low expected Dice; ties count half."""
    value, true = (np.concatenate([getattr(one, name) for one in slices]) for name in ("expected", "true"))
    low, high = np.sort(value[true < DOUBTFUL]), value[true >= DOUBTFUL]
    if not len(low) or not len(high):
        return float("nan")
    below = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
    return float(below.mean() / len(low))


def judge(cohort: Cohort, references: dict[str, np.ndarray]) -> list[Judged]:
    """The proposals of a cohort beside the references, by key of the case."""
    found = []
    for key, right in references.items():
        signals, axis = read_signals(cohort.proposal(key))
        proposed = read_labels(cohort.proposal(key) / PROPOSED_LABELS).array
        found.append(Judged.of(signals, proposed, right, axis, cohort.state.labels))
    return found


def compare(case: Judged, calibration: Calibration) -> Slices:
    """What is expected of a case beside what is true."""
    confidence, _ = expected(case.signals, "", calibration)
    value, true, alarms = [], [], 0
    for label, own in confidence.slices.items():
        for one, dice, row in zip(own, case.dice[label], case.signals[label], strict=True):
            if row[0] or dice < 1:
                value.append(1.0 if one is None else one)
                true.append(dice)
            else:
                alarms += one is not None and one < DOUBTFUL
    return Slices(np.array(value), np.array(true), alarms)


def measure(slices: list[Slices], name: str) -> str:
    """A line of the table."""
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, len(slices), len(slices)) for _ in range(_RESAMPLES if len(slices) > 1 else 0)]
    again = [area_under_curve([slices[place] for place in places]) for places in drawn] or [float("nan")]
    low, high = np.nanpercentile(again, (2.5, 97.5)) if len(slices) > 1 else (float("nan"),) * 2
    value, true = (np.concatenate([getattr(one, kind) for one in slices]) for kind in ("expected", "true"))
    bad = int((true < DOUBTFUL).sum())
    worst = (true[np.argsort(value, kind="stable")[:bad]] < DOUBTFUL).mean() if bad else float("nan")
    alarms = np.mean([one.alarms for one in slices])
    about = f"{len(true)} slices, {bad} bad, {len(slices)} cases"
    error = f"{(value - true).mean():+.3f}  {np.sqrt(((value - true) ** 2).mean()):.3f}"
    area = f"{area_under_curve(slices):.3f} ({low:.3f} to {high:.3f})"
    return f"{name:13} {area}  {error}  {worst:.2f}   {alarms:4.1f}    {about}"


def main() -> int:
    """Measure one adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--count", type=int, default=30, help="cases, drawn at random (default 30)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    adapter = read_adapter_folder(args.adapter)
    cases = [*find_cases(args.cases)]
    random.Random(args.seed).shuffle(cases)
    with tempfile.TemporaryDirectory() as folder:
        taught, used = set(adapter.card.cases), []
        for case in cases:
            if len(used) < args.count and digest_of(*case.read()[:2]) not in taught:
                used.append(case)
        labels = adapter.card.method.classes[1:]
        cohort = create_cohort(Path(folder) / "cohort", [FoundImage(case.image) for case in used], labels).cohort
        shutil.copytree(args.adapter, cohort.adapter(1))
        trained = TrainedAdapter(1, (), (), "base", {}, {}, None, True, "", "")
        cohort.change(lambda state: replace(state, adapters=(trained,)))
        result = propose(cohort, device="cpu", progress=lambda *now: print(*now, file=sys.stderr))
        keys = {cohort.image(case).resolve(): case.key for case in cohort.state.cases}
        right = {keys[case.image.resolve()]: case.read().labels for case in used}
        judged = judge(cohort, {key: array for key, array in right.items() if key in result.done})
    print("calibrated on ROC area (95 % interval)  bias    RMS    found  alarms")
    for count in _CALIBRATED_ON:
        if count < len(judged):
            calibration = calibrate(judged[:count])
            print(measure([compare(one, calibration) for one in judged[count:]], f"{count} cases"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
