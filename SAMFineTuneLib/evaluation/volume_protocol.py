"""A volume from one prompted slice (MedicoSAM, arXiv 2501.11734): prompted in the middle, propagated, corrected.

The middle one of the slices that show a label is prompted, piece by piece, with a box, or with a point inside and one
outside. The mask is propagated through the volume as for users (`inference.propagation`). Rounds of correction follow,
each on the slice with the most wrong pixels: where the reference shows the label, its box is drawn there and the masks
are propagated again; where it shows nothing, propagation ends before that slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from SAMFineTuneLib.cases.case_slices import large_pieces
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.evaluation.volume_sessions import volume_sessions
from SAMFineTuneLib.images import write
from SAMFineTuneLib.inference.propagation import propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, Seed
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.metrics.mask_metrics import agreement, dice
from SAMFineTuneLib.simulation.cosmos_prompts import exact_prompts

STARTS = {"box": (0, 0, True), "points": (1, 1, False)}
"""Points inside, points outside, and whether there is a box, on the slice that is prompted first."""
BY_SLICE = " by slice"
"""Ends the variant of rows about single slices after the first round."""


@dataclass
class _Try:
    """A label of a case while it is being segmented; slices by their place in the stack."""

    method: OpenMethod
    subject: Subject
    reference: list[np.ndarray]
    """The label on each slice; ignored pixels belong neither to it nor to any mask."""
    seeds: dict[int, np.ndarray] = field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    emptied: set[int] = field(default_factory=set)

    @property
    def extent(self) -> tuple[int, int]:
        """The outermost slices that show the label."""
        shown = [place for place, mask in enumerate(self.reference) if mask.any()]
        return shown[0], shown[-1]

    def prompt(self, place: int, start: str) -> None:
        """Prompt one slice; an empty answer is not propagated."""
        picture = self.subject.slices[place].picture
        found = np.zeros(picture.shape, bool)
        ignored = self.subject.slices[place].ignored
        for piece in large_pieces(self.reference[place]):
            prompts = exact_prompts(piece, *STARTS[start], ignored)
            found |= self.method.answer(picture, prompts).mask
        if found.any():
            self.seeds[place] = found

    def stop_before(self, place: int) -> None:
        """End propagation before a slice without the label, which also empties the slices beyond it."""
        low, high = self.extent
        if place > high:
            self.last = place - 1
        elif place < low:
            self.first = place + 1
        self.emptied.add(place)

    def carried(self) -> list[np.ndarray]:
        """Masks of all slices after propagation."""
        masks = [np.zeros(mask.shape, bool) for mask in self.reference]
        for place, mask in self.seeds.items():
            masks[place] = mask
        if self.seeds:
            places = {one.plane.key: place for place, one in enumerate(self.subject.slices)}
            seeds = [Seed(self.subject.slices[place].plane, mask) for place, mask in sorted(self.seeds.items())]
            settings = PropagationSettings(first=self.first, last=self.last)
            for item in propagate(
                self.method.predictor, self.subject.labelled.volume, self.subject.grey, seeds, settings
            ):
                if isinstance(item, PropagatedSlice):
                    masks[places[item.plane.key]] = item.mask
        for place in self.emptied:
            masks[place] = np.zeros(masks[place].shape, bool)
        return [mask & ~one.ignored for mask, one in zip(masks, self.subject.slices, strict=True)]


def volumes(method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """Segment every label of a case in all ways; baselines cannot propagate and yield nothing.

    Args:
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    if method.predictor is None or len(subject.slices) < 2:
        return
    yield from volume_sessions(method, subject, settings)
    for number, label in enumerate(subject.labels, start=1):
        reference = [one.mask(number) for one in subject.slices]
        shown = [place for place, mask in enumerate(reference) if large_pieces(mask)]
        if shown:
            for start in STARTS:
                trial = _Try(method, subject, reference)
                yield from _rounds(trial, label, number, start, shown[len(shown) // 2], settings)


def _rounds(
    trial: _Try, label: str, number: int, start: str, middle: int, settings: EvaluationSettings
) -> Iterator[Row]:
    subject, case = trial.subject, trial.subject.digest
    truth = subject.labelled.mask(number)
    spacing = subject.labelled.volume.spacing[::-1]
    tolerance = settings.tolerance or float(spacing.max())
    trial.prompt(middle, start)
    asked = {middle}
    for step in range(1, settings.rounds + 2):
        masks = trial.carried()
        found = agreement(in_volume(masks, subject) & ~subject.labelled.ignored, truth, spacing, tolerance)
        yield Row(trial.method.name, "", case, label, "3d", start, "", step, **vars(found))
        if step == 1:
            yield from _by_slice(trial, masks, label, start, middle)
        wrong = [np.count_nonzero(mask ^ right) for mask, right in zip(masks, trial.reference, strict=True)]
        for place in asked | trial.emptied:
            wrong[place] = 0
        worst = int(np.argmax(wrong))
        if not wrong[worst]:
            continue  # the remaining rounds change nothing
        if large_pieces(trial.reference[worst]):
            asked.add(worst)
            trial.prompt(worst, "box")
        elif trial.reference[worst].any():
            asked.add(worst)  # too few pixels for a prompt, but propagation need not end there
        else:
            trial.stop_before(worst)


def _by_slice(
    trial: _Try, masks: list[np.ndarray], label: str, start: str, middle: int
) -> Iterator[Row]:
    """Dice of single slices by their distance from the prompted one."""
    slices = trial.subject.slices
    origin, normal = slices[middle].plane.origin, slices[middle].plane.normal
    for place, one in enumerate(slices):
        found = dice(masks[place], trial.reference[place])
        if found is not None:
            away = float((one.plane.origin - origin) @ normal)
            yield Row(trial.method.name, "", trial.subject.digest, label, "3d", start + BY_SLICE,
                      one.plane.key, 1, distance=away, dice=found,
                      area=float(np.count_nonzero(trial.reference[place]) * one.plane.pixel_size**2))  # fmt: skip


def in_volume(masks: list[np.ndarray], subject: Subject) -> np.ndarray:
    """Masks of all slices as one bool array [k, j, i] in the volume's own grid."""
    volume = subject.labelled.volume
    voxels = np.zeros(volume.shape, np.uint8)
    for mask, one in zip(masks, subject.slices, strict=True):
        if mask.any():
            write(mask, one.plane, voxels, volume, 1, protect=False)
    return voxels > 0
