"""Tables about whole volumes: from a few prompts, by distance from the prompted slice, and without a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from SAMFineTuneLib.evaluation.result_rows import Results, Row, counts, mean
from SAMFineTuneLib.evaluation.result_table import MEANS, Table, naturally
from SAMFineTuneLib.evaluation.volume_protocol import BY_SLICE, STARTS
from SAMFineTuneLib.evaluation.volume_sessions import BOXES, CLICKED, CLICKS
from SAMFineTuneLib.wording import counted

BANDS = ((0, 5), (5, 10), (10, 20), (20, 40), (40, 80), (80, float("inf")))
"""Millimetres from the prompted slice."""
_COUNTED = "labels, cases, patients"


def by_distance(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows about slices: of the prompted one, and of those in each of the BANDS."""
    prompted = [row for row in rows if row.distance == 0]
    return [prompted, *([row for row in rows if row.distance and low <= abs(row.distance) < high]
                        for low, high in BANDS)]  # fmt: skip


def volume_box_table(results: Results) -> Table:
    """Whole volumes from boxes on one, three and five slices."""
    rows = [
        (name, variant, *(mean(found, column) for column in ("dice", "hd95", "nsd", "over", "short")), counts(found))
        for variant, name, found in results.each("3d", BOXES.values())
    ]
    return Table(
        "volume boxes", "Whole volumes from boxes on a few slices",
        "The middle slice, the outermost ones and the middle, or those and the quarters get tight boxes. One box is "
        "propagated in both directions, between several the slices are filled. “Too many” are slices beyond an end of "
        "the label that got a mask, “missed” slices of the label beyond the mask's end, means of both ends. HD95 in "
        "mm. " + MEANS,
        ("method", "slices with boxes", "Dice", "HD95", "NSD", "too many", "missed", _COUNTED), rows,
    )  # fmt: skip


def volume_click_table(results: Results) -> Table:
    """Whole volumes from a box and clicks at the largest error, with the area under the curve of the clicks."""
    rows = []
    for _, name, first in results.each("3d", [CLICKED]):
        course = results.course(name, "3d", CLICKED)
        for column, title in (("dice", "Dice"), ("nsd", "NSD")):
            values = np.array([[getattr(row, column) for row in own] for own in course])
            area = np.sum(values[1:-1] + values[2:], axis=0) / 2  # trapezoids between the clicks
            rows.append((name, title, *(mean(own, column).mean for own in course), mean(first, area.tolist()),
                         counts(first)))  # fmt: skip
    return Table(
        "volume clicks", "Whole volumes from a box and five clicks",
        "The protocol of the CVPR 2025 challenge of interactive 3-D segmentation: boxes on the middle slice, then five "
        "clicks, each in the middle of the largest error of the volume. The area under the curve is over the five "
        "answers to clicks, so 4 would be perfect. Means over patients.",
        ("method", "measure", "box", *(str(click) for click in range(1, CLICKS + 1)), "area under the curve",
         _COUNTED), rows,
    )  # fmt: skip


def volume_table(results: Results) -> Table:
    """Whole volumes, after the first prompt and after each round of correction."""
    rows = [
        (name, start, counted(step, "correction") if step else "first prompt",
         *(mean(found, column) for column in ("dice", "hd95", "nsd")), counts(found))
        for start, name, _ in results.each("3d", STARTS)
        for step, found in enumerate(results.course(name, "3d", start))
    ]  # fmt: skip
    return Table(
        "volumes", "Whole volumes from the middle slice",
        "The middle slice is prompted and its mask propagated through the volume; each correction is on the slice "
        "with the most wrong pixels. HD95 in mm. " + MEANS,
        ("method", "start", "after", "Dice", "HD95", "NSD", _COUNTED), rows,
    )  # fmt: skip


def distance_table(results: Results) -> Table:
    """Dice of slices by how far they are from the prompted one."""
    ends = [f"{low}–{high} mm" if np.isfinite(high) else f"{low} mm and more" for low, high in BANDS]
    return Table(
        "distance", "Dice by distance from the prompted slice",
        "Slices that show the label or got a mask, before any correction; a mask without the label has Dice 0, and so "
        "has a slice that was not reached. " + MEANS,
        ("method", "start", "prompted slice", *ends),
        [(name, start.removesuffix(BY_SLICE), *map(mean, by_distance(found)))
         for start, name, found in results.each("3d", [start + BY_SLICE for start in STARTS])],
    )  # fmt: skip


def automatic_table(results: Results) -> Table:
    rows = []
    for _, name, found in results.each("automatic"):
        for label in sorted({row.label for row in found}, key=naturally):
            own = [row for row in found if row.label == label]
            rows.append((name, label, *(mean(own, column) for column in ("dice", "hd95", "nsd", "false_ml")),
                         counts(own)))  # fmt: skip
    return Table(
        "automatic", "Without a prompt",
        "Whole volumes by the automatic head. Cases that lack a label do not count in its Dice; what was found there "
        "is given separately, in mL. " + MEANS,
        ("method", "label", "Dice", "HD95", "NSD", "found in cases without it, mL", _COUNTED), rows,
    )  # fmt: skip
