"""Segments a whole volume without prompts: the automatic head's classes, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_extraction import picture, write
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane, slice_range
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.progress import Cancelled, Meter, Progress
from SAMFineTuneLib.prompts import SegmentPrompts


def segment_classes(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientation: str = "axial",
    report: Callable[[Progress], None] | None = None,
) -> np.ndarray:
    """Label map of a volume, uint8 [k, j, i]: 0 is background, then the model's classes in their order.

    Raises:
        UserError: for a model without an automatic head.
    """
    labels = np.zeros(volume.shape, np.uint8)
    for item in class_slices(predictor, volume, window, orientation, report=report):
        for value, mask in item.masks.items():
            write(mask.unpack(), item.plane, labels, volume, value, protect=False)
    return labels


@dataclass(frozen=True, eq=False)
class SliceClasses:
    """The classes of one slice: a mask for each class that occurs on it."""

    index: int
    plane: SlicePlane
    masks: Mapping[int, PackedMask]


def class_slices(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientation: str = "axial",
    first: int | None = None,
    last: int | None = None,
    report: Callable[[Progress], None] | None = None,
    cancelled: Cancelled = lambda: False,
) -> Iterator[SliceClasses]:
    """Yield the classes of each slice from `first` to `last`, by default all, until `cancelled` returns true."""
    for item in slice_logits(predictor, volume, window, orientation, first, last, report, cancelled):
        classes = item.classes
        found = np.unique(classes[classes > 0])
        yield SliceClasses(item.index, item.plane, {int(value): PackedMask.of(classes == value) for value in found})


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
    orientation: str = "axial",
    first: int | None = None,
    last: int | None = None,
    report: Callable[[Progress], None] | None = None,
    cancelled: Cancelled = lambda: False,
) -> Iterator[SliceLogits]:
    """Yield the model's answer on each slice; arguments as of `class_slices`."""
    indices = slice_range(volume, orientation, first, last)
    meter = Meter(len(indices), report)
    for index in indices:
        if cancelled():
            return
        plane = aligned_plane(volume, orientation, index)
        yield SliceLogits(index, plane, predictor.class_logits(picture(volume, plane, window)))
        meter.step()


def class_segments(predictor: Predictor) -> tuple[SegmentInfo, ...]:
    """Names and colours of the label map's values."""
    names = predictor.engine.spec.classes[1:]
    return tuple(SegmentInfo(name, value, SegmentPrompts(name, value).color) for value, name in enumerate(names, 1))
