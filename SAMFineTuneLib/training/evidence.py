"""What a fine-tuning gained: Dice of held-out cases before and after, and what those figures refer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from SAMFineTuneLib.cases.splits import Folds
from SAMFineTuneLib.models.adapters.adapter_card import Gain
from SAMFineTuneLib.training.held_out import interval, mean_dice

Measured = Mapping[str, Mapping[str, Sequence[float | None]]]
"""By the digest of a case and the way of prompting: Dice of every label."""


def evidence_of(folds: Folds) -> str:
    """What the figures of such a run refer to, as a sentence or two."""
    held = sum(len(part.test) for part in folds.parts)
    if folds.kind == "none":
        return "No case was held out, so what the adapter gained is not known."
    if folds.kind in ("shots", "given"):
        return f"This adapter answered {held} cases of patients that it did not learn from."
    way = "each patient once" if folds.kind == "leave-one-out" else f"{len(folds.parts)} groups of patients in turn"
    return (
        f"Cross-validation: {len(folds.parts)} adapters of this recipe were trained leaving out {way}, and answered "
        f"the {held} cases left out. This adapter itself learned from all {len(folds.final)} cases."
    )


def advice(gains: Sequence[Gain]) -> tuple[str, ...]:
    """What figures mean for the user, where they speak against the adapter; each label by itself is not looked at."""
    worse = []
    for gain in {gain.prompt: gain for gain in gains}.values():  # of each way its last: all labels together
        before, after = gain.means
        if before is not None and after is not None and after < before:
            worse.append(f"{gain.prompt} (Dice {before:.3f}, with the adapter {after:.3f})")
    if not worse:
        return ()
    return (f"The base answered the cases left out better with {' and '.join(worse)}; keep it for such prompts.",)


def gains(
    before: Measured, after: Measured, patients: Mapping[str, str], names: Sequence[str], ways: Sequence[str]
) -> tuple[Gain, ...]:
    """Dice before and after of every way of prompting and label, with intervals; `patients` by the cases' digests."""
    labels = [(name, [number]) for number, name in enumerate(names)]
    if len(names) > 1:
        labels.append(("all labels", list(range(len(names)))))
    found = []
    for way in ways if after else ():
        for label, numbers in labels:
            values = {
                stage: [_mean_of(case.get(way), numbers) for case in (measured.get(one, {}) for one in after)]
                for stage, measured in (("before", before), ("after", after))
            }
            spans = {stage: _patient_interval(list(after), values[stage], patients) for stage in values}
            found.append(Gain(way, tuple(after), tuple(values["before"]), tuple(values["after"]), label,
                              spans["before"], spans["after"]))  # fmt: skip
    return tuple(found)


def _mean_of(values: Sequence[float | None] | None, numbers: Sequence[int]) -> float | None:
    return mean_dice(values[number] for number in numbers) if values else None


def _patient_interval(
    digests: Sequence[str], values: Sequence[float | None], patients: Mapping[str, str]
) -> tuple[float, float] | None:
    """Bootstrap interval over patients; cases of one patient count as their mean."""
    by_patient: dict[str, list[float | None]] = {}
    for digest, value in zip(digests, values, strict=True):
        by_patient.setdefault(patients[digest], []).append(value)
    return interval([mean_dice(own) for own in by_patient.values()])
