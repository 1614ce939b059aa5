"""Segments a whole volume without prompts: the automatic head's classes, slice by slice.

Where an adapter learned from slices in several orientations, their answers are averaged.
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

_MOST_BYTES = 2 << 30  # of the shares of classes in voxels
_LEAST_SHARE = 1e-6  # so that the logarithm is finite


def segment_classes(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientations: Sequence[str] = ("axial",),
    report: Callable[[Progress], None] | None = None,
) -> np.ndarray:
    """Label map of a volume, uint8 [k, j, i]: 0 is background, then the model's classes in their order.

    Args:
        predictor: the open model.
        volume: what is segmented.
        window: the grey values that the model sees.
        orientations: one, or several whose answers are averaged.
        report: told after each slice; what it raises ends the work.

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
    """The model's answer on one slice: logits (C, rows, columns) float32 of all classes, background first."""

    index: int
    plane: SlicePlane
    logits: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """The class of every pixel, uint8 (rows, columns)."""
        return self.logits.argmax(axis=0).astype(np.uint8)

    @property
    def shares(self) -> np.ndarray:
        """How sure the model is of each class: like the logits, from 0 to 1, of sum 1 in every pixel."""
        shares = np.exp(self.logits - self.logits.max(axis=0))
        return shares / shares.sum(axis=0)


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
    """Yield the model's answer on each slice of the first orientation.

    Args:
        predictor: with an automatic head.
        volume: the volume.
        window: the grey-value window in which the model sees it.
        orientations: of the slices; the answers on those of further orientations are averaged with the first one's
            where the whole volume is asked for and memory suffices.
        first: index of the first slice; None: that of the volume.
        last: index of the last slice; None: that of the volume.
        report: told the progress after each slice.
        cancelled: asked before each slice whether to stop.
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
    shares = np.zeros((len(predictor.engine.spec.classes), *volume.shape), np.float16)  # sums of the others'
    for one in (answer for name in others for answer in answers(name)):
        (k, j, i), within = voxels_of_pixels(volume, one.plane)
        shares[:, k[within], j[within], i[within]] += one.shares[:, within].astype(np.float16)
    for one in answers(main):
        (k, j, i), _ = voxels_of_pixels(volume, one.plane)
        mean = (one.shares + shares[:, k, j, i]) / len(indices)
        yield replace(one, logits=np.log(mean + _LEAST_SHARE))


def _fits(predictor: Predictor, volume: Volume) -> bool:
    """Whether the shares of all classes in all voxels may be kept in memory."""
    return 2 * len(predictor.engine.spec.classes) * volume.array.size <= _MOST_BYTES


@dataclass(frozen=True, eq=False)
class SliceClasses:
    """The classes of one slice: a mask for each class that occurs on it."""

    index: int
    plane: SlicePlane
    masks: Mapping[int, PackedMask]


def class_slices(*inputs: Any, **options: Any) -> Iterator[SliceClasses]:
    """Yield the classes of each slice, which take less memory than the logits; arguments as of `slice_logits`."""
    for item in slice_logits(*inputs, **options):
        classes = item.classes
        found = np.unique(classes[classes > 0])
        yield SliceClasses(item.index, item.plane, {int(value): PackedMask.of(classes == value) for value in found})


def class_segments(classes: Sequence[str]) -> tuple[SegmentInfo, ...]:
    """Names and colours of the label map's values, by the names of a model's classes, background first."""
    return tuple(SegmentInfo(name, value, segment_color(value)) for value, name in enumerate(classes[1:], start=1))
