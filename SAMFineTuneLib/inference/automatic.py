"""A whole volume without a prompt: the automatic head's classes, slice by slice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SegmentInfo, Volume
from SAMFineTuneLib.images.plane import aligned_plane, number_of_slices
from SAMFineTuneLib.images.resample import picture, write
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.progress import Meter, Progress
from SAMFineTuneLib.prompts import SegmentPrompts


def segment_classes(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientation: str = "axial",
    report: Callable[[Progress], None] | None = None,
) -> np.ndarray:
    """Label map [k, j, i] uint8 of a volume: 0 background, then the classes of the model in their order.

    Raises UserError for a model without an automatic head.
    """
    labels = np.zeros(volume.shape, np.uint8)
    count = number_of_slices(volume, orientation)
    meter = Meter(count, report)
    for index in range(count):
        plane = aligned_plane(volume, orientation, index)
        classes = predictor.predict_classes(picture(volume, plane, window))
        for value in np.unique(classes[classes > 0]):
            write(classes == value, plane, labels, volume, int(value), protect=False)
        meter.step()
    return labels


def class_segments(predictor: Predictor) -> tuple[SegmentInfo, ...]:
    """What the values of the label map mean."""
    names = predictor.engine.spec.classes[1:]
    return tuple(SegmentInfo(name, value, SegmentPrompts(name, value).color) for value, name in enumerate(names, 1))
