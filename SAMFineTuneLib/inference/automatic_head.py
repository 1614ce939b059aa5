"""Segments a whole volume without prompts: the automatic head predicts the class of each pixel, slice by slice.

For an adapter that was trained on slices in several orientations, the predictions are averaged over these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_extraction import picture, voxels_of_pixels, write
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane, slice_range
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.progress import Cancelled, Meter, Progress
from SAMFineTuneLib.prompts import segment_color

_MOST_BYTES = 2 << 30  # limit for the probabilities of all classes in all voxels
_LEAST_PROBABILITY = 1e-6  # keeps the logarithm finite


def segment_classes(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientations: Sequence[str] = ("axial",),
    report: Callable[[Progress], None] | None = None,
) -> np.ndarray:
    """Label map of a volume, uint8 [k, j, i]: 0 is background, 1, 2, … are the model's classes in order.

    Args:
        predictor: the open model.
        volume: the volume.
        window: the grey-value window in which the model sees it.
        orientations: of the slices; the predictions in several orientations are averaged.
        report: called with the progress after each slice.

    Raises:
        UserError: for a model without an automatic head.
    """
    labels = np.zeros(volume.shape, np.uint8)
    for item in class_slices(predictor, volume, window, orientations, report=report):
        for value, mask in item.masks.items():
            write(mask.unpack(), item.plane, labels, volume, value, protect=False)
    return labels


@dataclass(frozen=True, eq=False)
class SliceLogits:
    """The prediction for one slice: logits (C, rows, columns) float32 of all classes, background first."""

    index: int
    plane: SlicePlane
    logits: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The class of every pixel, uint8 (rows, columns)."""
        return self.logits.argmax(axis=0).astype(np.uint8)

    @property
    def probabilities(self) -> np.ndarray:
        """Softmax of the logits over the classes, (C, rows, columns) float32."""
        exponentials = np.exp(self.logits - self.logits.max(axis=0))
        return exponentials / exponentials.sum(axis=0)


def slice_logits(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientations: Sequence[str] = ("axial",),
    first: int | None = None,
    last: int | None = None,
    report: Callable[[Progress], None] | None = None,
    cancelled: Cancelled = lambda: False,
) -> Iterator[SliceLogits]:
    """Yield the prediction for each slice of the first orientation.

    Args:
        predictor: with an automatic head.
        volume: the volume.
        window: the grey-value window in which the model sees it.
        orientations: of the slices; the predictions in further orientations are averaged with those in the first
            one, unless a range of slices is given or there is too little memory.
        first: index of the first slice, by default 0.
        last: index of the last slice, inclusive, by default the volume's last.
        report: called with the progress after each slice.
        cancelled: called before each slice; true ends the work.
    """
    main, *others = orientations
    if (first, last) != (None, None) or not _fits(predictor, volume):
        others = []
    indices = {name: slice_range(volume, name, first, last) for name in (main, *others)}
    meter = Meter(sum(map(len, indices.values())), report)

    def answers(orientation: str) -> Iterator[SliceLogits]:
        for index in indices[orientation]:
            if cancelled():
                return
            plane = aligned_plane(volume, orientation, index)
            logits = predictor.class_logits(picture(volume, plane, window))
            meter.step()
            yield SliceLogits(index, plane, logits)

    if not others:
        yield from answers(main)
        return
    sums = np.zeros((len(predictor.engine.spec.classes), *volume.shape), np.float16)  # probabilities of the others
    for one in (answer for name in others for answer in answers(name)):
        (k, j, i), within = voxels_of_pixels(volume, one.plane)
        sums[:, k[within], j[within], i[within]] += one.probabilities[:, within].astype(np.float16)
    for one in answers(main):
        (k, j, i), _ = voxels_of_pixels(volume, one.plane)
        mean = (one.probabilities + sums[:, k, j, i]) / len(indices)
        yield replace(one, logits=np.log(mean + _LEAST_PROBABILITY))


def _fits(predictor: Predictor, volume: Volume) -> bool:
    """Whether the probabilities of all classes in all voxels fit into the memory allowed."""
    return 2 * len(predictor.engine.spec.classes) * volume.array.size <= _MOST_BYTES


@dataclass(frozen=True, eq=False)
class SliceClasses:
    """The classes of one slice: a mask for each class that occurs on it."""

    index: int
    plane: SlicePlane
    masks: Mapping[int, PackedMask]


def class_slices(*inputs: Any, **options: Any) -> Iterator[SliceClasses]:
    """Yield the classes of each slice, which take less memory than the logits; arguments as for `slice_logits`."""
    for item in slice_logits(*inputs, **options):
        classes = item.classes
        found = np.unique(classes[classes > 0])
        yield SliceClasses(item.index, item.plane, {int(value): PackedMask.of(classes == value) for value in found})


def class_segments(classes: Sequence[str]) -> tuple[SegmentInfo, ...]:
    """Names and colours of the label map's values, from the names of a model's classes, background first."""
    return tuple(SegmentInfo(name, value, segment_color(value)) for value, name in enumerate(classes[1:], start=1))
