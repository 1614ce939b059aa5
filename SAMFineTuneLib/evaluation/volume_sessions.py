"""Whole volumes in a session, as a user works: boxes on one, three and five slices; a box and five clicks.

A label gets tight boxes on the middle one of the slices that show enough of it; on the outermost ones and the middle;
on those and the quarters. From one slice the mask is propagated both ways, and between several the slices are filled.

In the protocol of the challenge "Foundation Models for Interactive 3D Biomedical Image Segmentation" (CVPR 2025) boxes
on the middle slice are followed by five clicks, each at the centre of the largest connected piece of what is wrong in
the volume. The challenge also gives the slices on which the structure begins and ends; this protocol does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from SAMFineTuneLib.cases.case_slices import large_pieces
from SAMFineTuneLib.evaluation.evaluation_settings import EvaluationSettings
from SAMFineTuneLib.evaluation.methods import OpenMethod
from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.evaluation.result_rows import Row
from SAMFineTuneLib.images.slice_plane import view_axes
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.metrics.mask_metrics import agreement
from SAMFineTuneLib.prompts import PointPrompt
from SAMFineTuneLib.prompts.box_prompts import box_on_slice
from SAMFineTuneLib.session.session import Session

BOXES = {1: "1 box", 3: "3 boxes", 5: "5 boxes"}
"""Numbers of slices with boxes, and the variants of their rows."""
CLICKED = "box and clicks"
"""The variant of rows of the challenge's protocol; their steps are the box and the clicks."""
CLICKS = 5


def volume_sessions(method: OpenMethod, subject: Subject, settings: EvaluationSettings) -> Iterator[Row]:
    """Segment every label of a case in each of these ways.

    Args:
        method: the open method.
        subject: the case.
        settings: of the evaluation.
    """
    for number, label in enumerate(subject.labels, start=1):
        own = [place for place, one in enumerate(subject.slices) if large_pieces(one.mask(number))]
        if not own:
            continue
        blank = Row(method.name, "", subject.digest, label, "3d", "")
        for count, variant in BOXES.items():
            trial = _Trial(method, subject, number, settings)
            trial.draw_boxes(spread(own, count))
            row = trial.measured(replace(blank, variant=variant))
            yield row
            if count == 1:
                yield replace(row, variant=CLICKED)
                for step in range(2, CLICKS + 2):
                    trial.click()
                    yield trial.measured(replace(row, variant=CLICKED, step=step))


def spread(own: Sequence[int], count: int) -> list[int]:
    """The slices that get a box: the middle one; or the outermost ones and others evenly between."""
    if count == 1:
        return [own[len(own) // 2]]
    return sorted({own[round(place)] for place in np.linspace(0, len(own) - 1, count)})


class _Trial:
    """A label of a case in a session of its own."""

    def __init__(self, method: OpenMethod, subject: Subject, number: int, settings: EvaluationSettings) -> None:
        volume = subject.labelled.volume
        self._subject, self._number = subject, number
        self._session = Session(volume, method.predictor, subject.grey)
        self._segment = self._session.add_segment(subject.labels[number - 1]).value
        self._truth = subject.labelled.mask(number)
        self._axis = 2 - view_axes(volume, subject.seen_along)[2]
        self._spacing = volume.spacing[::-1]
        self._tolerance = settings.tolerance or float(max(self._spacing))

    def draw_boxes(self, places: Sequence[int]) -> None:
        """Draw a tight box round each piece of the label on these slices, and propagate."""
        for place in places:
            one = self._subject.slices[place]
            for piece in large_pieces(one.mask(self._number)):
                corners = bounding_box(piece).reshape(2, 2)
                corners[1] += 0.5 * (corners[0] == corners[1])  # a box as thin as a pixel would have no area
                box = box_on_slice(one.plane, one.plane.pixel_to_ras(corners))
                self._session.add_prompt(self._segment, box, one.plane)
        self._propagate("both" if len(places) == 1 else "fill")

    def click(self) -> None:
        """Click on the largest error, and propagate again; without an error, change nothing."""
        voxel = centre_of_largest((self._mask() ^ self._truth) & ~self._subject.labelled.ignored)
        if voxel is None:
            return
        position = self._subject.labelled.volume.ijk_to_ras(voxel[::-1])
        click = PointPrompt(tuple(position), bool(self._truth[voxel]))
        self._session.add_prompt(self._segment, click, self._subject.seen_along)
        self._propagate("both")

    def measured(self, row: Row) -> Row:
        """The row with the measurements of the present mask."""
        mask = self._mask()
        over, short = ends(mask, self._truth, self._axis)
        found = agreement(mask, self._truth, self._spacing, self._tolerance)
        return replace(row, over=sum(over) / 2, short=sum(short) / 2, **vars(found))

    def _mask(self) -> np.ndarray:
        """Bool [k, j, i], without voxels that the annotator left undecided."""
        return (self._session.labelmap() == self._segment) & ~self._subject.labelled.ignored

    def _propagate(self, direction: str) -> None:
        """Propagate, unless the model found too little to start from."""
        session, segment = self._session, self._segment
        prompted = [place[1] for place, task in session.state.tasks.items() if task.prompts]
        starts = [plane for plane in prompted if session.mask(segment, plane).any()]
        if len(starts) >= (2 if direction == "fill" else 1):
            session.finish(session.propagate(segment, PropagationSettings(direction=direction)))


def ends(mask: np.ndarray, truth: np.ndarray, axis: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Number of slices along `axis` by which the mask exceeds the truth at the lower and the upper end, and by which it
    falls short there. An empty mask falls short by half of the slices at each end.
    """
    got, true = (np.flatnonzero(np.moveaxis(one, axis, 0).any(axis=(1, 2))) for one in (mask, truth))
    if not len(got):
        return (0, 0), (len(true) // 2, len(true) - len(true) // 2)
    gaps = int(true[0] - got[0]), int(got[-1] - true[-1])
    return (max(gaps[0], 0), max(gaps[1], 0)), (max(-gaps[0], 0), max(-gaps[1], 0))


def centre_of_largest(wrong: np.ndarray) -> tuple[int, int, int] | None:
    """The voxel (k, j, i) that lies deepest in the largest piece, connected by corners too; None where all is False."""
    from scipy import ndimage

    labels, count = ndimage.label(wrong, np.ones((3, 3, 3)))
    if not count:
        return None
    largest = int(np.argmax(np.bincount(labels.ravel())[1:])) + 1
    around = ndimage.find_objects(labels)[largest - 1]
    depth = ndimage.distance_transform_edt(np.pad(labels[around] == largest, 1))[1:-1, 1:-1, 1:-1]
    inside = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return tuple(int(place + part.start) for place, part in zip(inside, around, strict=True))
