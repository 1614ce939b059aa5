"""Joins the masks that everything mode finds on neighbouring slices into 3-D objects, where they overlap enough."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.everything_mode import AutomaticMask, SliceMasks
from SAMFineTuneLib.inference.mask_shapes import interpolate, overlap
from SAMFineTuneLib.inference.settings import EverythingSettings

MIN_LINK = 0.5
"""Smallest IoU of two masks of one object in neighbouring slices."""
MAX_GAP = 1
"""Up to this many slices without the object are interpolated between two that show it."""


@dataclass(frozen=True, eq=False)
class Object3D:
    """An object through neighbouring slices."""

    value: int
    masks: dict[int, PackedMask]
    """By slice index."""
    score: float
    """Mean predicted IoU of its masks."""
    orientation: str
    area: int
    """Pixels over all slices."""


def link(slices: Iterable[SliceMasks], settings: EverythingSettings | None = None) -> list[Object3D]:
    """Join masks of neighbouring slices into objects, largest first, with label values 1, 2, …

    On each slice, objects and masks are matched in pairs, those with the largest overlap first, each of them once.
    """
    settings = settings or EverythingSettings()
    tracks: list[_Track] = []
    orientation = "axial"
    for item in sorted(slices, key=lambda item: item.index):
        orientation = item.plane.orientation
        masks = [found.mask.unpack() for found in item.masks]
        open_tracks = [track for track in tracks if 0 < item.index - track.last_index <= MAX_GAP + 1]
        pairs = [
            (overlap(track.last_mask, masks[m]), t, m)
            for t, track in enumerate(open_tracks)
            for m, found in enumerate(item.masks)
            if _boxes_meet(track.last_box, found.box)
        ]
        followed: dict[int, _Track] = {}
        for shared, t, m in sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2])):
            if shared >= MIN_LINK and m not in followed and open_tracks[t] not in followed.values():
                followed[m] = open_tracks[t]
        for m, found in enumerate(item.masks):
            if m not in followed:
                tracks.append(_Track())
            followed.get(m, tracks[-1]).extend(item.index, masks[m], found)
    long = [track for track in tracks if len(track.scores) >= settings.min_slices]
    long.sort(key=lambda track: -track.area)
    return [
        Object3D(value, track.masks, float(np.mean(track.scores)), orientation, track.area)
        for value, track in enumerate(long, start=1)
    ]


class _Track:
    """An object while it is being followed."""

    def __init__(self) -> None:
        self.masks: dict[int, PackedMask] = {}
        self.scores: list[float] = []
        self.area = 0

    def extend(self, index: int, mask: np.ndarray, found: AutomaticMask) -> None:
        """Add the mask that was found on a slice, and interpolated ones on the slices between it and the last one."""
        if self.masks:
            gap = index - self.last_index
            for step in range(1, gap):
                self._add(self.last_index + step, interpolate(self.last_mask, mask, step / gap))
        self._add(index, mask)
        self.scores.append(found.score)
        self.last_index, self.last_mask, self.last_box = index, mask, found.box

    def _add(self, index: int, mask: np.ndarray) -> None:
        self.masks[index] = PackedMask.of(mask)
        self.area += int(np.count_nonzero(mask))


def _boxes_meet(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
