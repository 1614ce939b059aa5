"""Decides which of a training's candidates is kept, and whether it replaces a cohort's adapter in use.

The candidates' proposals for the held-out cases, as whole volumes, are compared with the accepted labels, and the
better candidate is kept. It replaces the adapter in use when its mean Dice over the patients compared is higher. This
is not proof: both of two patients gain by chance one time in four, so that their interval says little, and waiting for
six who all gain would mean learning nothing from the first twenty cases. Replacing an adapter by an equally good one
costs little, and no training puts one in use that is worse for the held-out patients. The sentence gives the interval,
and says whether chance may explain the gain. As the same patients choose the better of two candidates, its figure is a
little too high. The first adapter is used when it finds at least one structure with a mean Dice above one half: from
there on, correcting a proposal is less work than drawing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.cohort.cohort_state import TrainedAdapter
from SAMFineTuneLib.wording import counted

if TYPE_CHECKING:
    from SAMFineTuneLib.metrics.patient_statistics import Difference

BASE = "base"
_USEFUL = 0.5  # mean Dice from which on correcting a proposal is less work than drawing
_SURE = 6  # patients who all gain, or all lose, by chance one time in thirty-two

Dice = Mapping[str, Mapping[str, float | None]]
"""By case and label: Dice of the whole volume, None where neither proposal nor reference holds anything."""


def decide(
    candidates: Mapping[str, Dice], before: Dice | None, patients: Mapping[str, str], learned: tuple[str, ...],
    number: int,
) -> TrainedAdapter:  # fmt: skip
    """Choose the better candidate, and decide whether it replaces the adapter in use (see the module).

    Args:
        candidates: Dice of each candidate's proposals for the cases compared, by what it started from.
        before: the same of the adapter in use; None when there is none.
        patients: the patient of each case.
        learned: keys of the cases that taught.
        number: of the training.
    """
    from SAMFineTuneLib.metrics.patient_statistics import difference, patient_means

    def by_patient(found: Dice) -> dict[str, float]:
        return patient_means(
            ((patients[case], case, label), value) for case, own in found.items() for label, value in own.items()
        )

    means = {start: by_patient(found) for start, found in candidates.items()}
    start = max(means, key=lambda one: np.mean(list(means[one].values()) or [0.0]))
    dice, dice_before, own = _by_label(candidates[start]), _by_label(before or {}), means[start]
    gain = mean_before = None
    if before is None:
        in_use = max(dice.values(), default=0.0) > _USEFUL
        reason = _about_first(dice, len(own), in_use)
    else:
        earlier = by_patient(before)
        if gain := difference(earlier, own):
            own = {patient: own[patient] for patient in own.keys() & earlier.keys()}
            mean_before = float(np.mean([earlier[patient] for patient in own]))
        in_use = gain is not None and gain.mean > 0
        reason = _about_gain(gain, in_use)
    if len(candidates) > 1:
        other = next(one for one in candidates if one != start)
        equal = np.isclose(*(np.mean(list(means[one].values()) or [0.0]) for one in (start, other)))
        compared = "as good as" if equal else "better than"
        reason += f" It started from {called(start)}, which was {compared} starting from {called(other)}."
    today = datetime.now(timezone.utc).date().isoformat()
    return TrainedAdapter(
        number, learned, tuple(candidates[start]), start, dice, dice_before, gain and gain.interval, in_use, reason,
        today, float(np.mean(list(own.values()))) if own else None, mean_before,
    )  # fmt: skip


def called(start: str) -> str:
    """What a candidate started from, in a sentence."""
    return "the base" if start == BASE else start


def _by_label(found: Dice) -> dict[str, float]:
    """Mean Dice of each label over the cases that have it."""
    from SAMFineTuneLib.metrics.mask_metrics import mean_dice

    labels = dict.fromkeys(label for own in found.values() for label in own)
    means = {label: mean_dice(own[label] for own in found.values()) for label in labels}
    return {label: value for label, value in means.items() if value is not None}


def _about_first(dice: Mapping[str, float], patients: int, in_use: bool) -> str:
    told = ", ".join(f"{label} {value:.3f}" for label, value in dice.items()) or "nothing"
    result = "it is used from now on" if in_use else f"no structure is above {_USEFUL:g}, so it is not used yet"
    return f"The first adapter reaches a Dice of {told} for {_held(patients)}; {result}."


def _about_gain(gain: Difference | None, in_use: bool) -> str:
    if gain is None:
        return "Nothing could be compared, so the previous adapter stays in use."
    change = f"gained {gain.mean:.3f} Dice over" if gain.mean > 0 else f"lost {-gain.mean:.3f} Dice against"
    change = change if gain.mean else "have the same Dice as"
    span = ""
    if gain.low is not None:
        by_chance = gain.low <= 0 <= gain.high or gain.patients < _SURE
        chance = f"; with {gain.patients} patients it may be chance" if by_chance else ""
        span = f" (95 % interval {gain.low:+.3f} to {gain.high:+.3f}{chance})"
    result = "so it replaces the previous adapter" if in_use else "so the previous adapter stays in use"
    return f"Its proposals for {_held(gain.patients)} {change} those of the previous adapter{span}, {result}."


def about_left_out(left_out: int) -> str:
    """A sentence about held-out cases that were not compared."""
    those = "case is" if left_out == 1 else "cases are"
    return f"{left_out} further {those} held out but not compared, as the labels began as the adapter's own proposals."


def _held(patients: int) -> str:
    return f"{counted(patients, 'patient')} held out"
