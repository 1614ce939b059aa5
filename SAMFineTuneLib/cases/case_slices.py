"""The slices of a case as pictures with classes, for training and testing. No PyTorch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from SAMFineTuneLib.cases.label_map import Labels
from SAMFineTuneLib.cases.labelled_case import Classified, Labelled, slice_axis
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SlicePlane, Volume, aligned_plane, choose_window, number_of_slices, picture
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, view_axes

LEAST_PIXELS = 20
"""Smaller pieces of a structure on a slice are not objects (MedicoSAM's rule)."""
_ISOTROPIC = 1.5  # thickness of voxels in widths


@dataclass(frozen=True, eq=False)
class LabelledSlice(Classified):
    """`picture` uint8 [rows, columns] as users of the model see it, and its classes [rows, columns]."""

    picture: np.ndarray
    classes: np.ndarray
    plane: SlicePlane
    overlaps: Mapping[int, Labels] = field(default_factory=dict)

    @property
    def labelled(self) -> bool:
        """Whether the slice shows any label."""
        return bool(self.numbers)


@dataclass(frozen=True, eq=False)
class Object:
    """One connected piece of class `label` on a slice."""

    label: int
    mask: np.ndarray


def slices_of(labelled: Labelled, window: str | None = None, orientation: str = "auto") -> Iterator[LabelledSlice]:
    """All slices of a case in one orientation, or in all three ("all"), in the window that inference would choose."""
    grey = choose_window(labelled.volume, window)
    for name in orientations(labelled, orientation):
        for index in range(number_of_slices(labelled.volume, name)):
            plane = aligned_plane(labelled.volume, name, index)
            classes = extract_labels(labelled.classes, labelled.volume, plane)
            yield LabelledSlice(picture(labelled.volume, plane, grey), classes, plane, labelled.overlaps)


def orientations(labelled: Labelled, orientation: str) -> tuple[str, ...]:
    """The orientations that a setting means; "auto" is the one in which the slices were acquired."""
    volume = labelled.volume
    if orientation == "all":
        return _not_flat(volume) or ("axial",)
    return _acquired(volume) if orientation == "auto" else (orientation,)


def learned_orientations(volume: Volume, recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """The orientations of the slices that an adapter learned from, by its card's recipe.

    First comes that in which the volume was acquired; it is the only one for an adapter that learned from slices as
    they were acquired, and where the volume does not show the others as finely.
    """
    wanted = recipe.get("orientation")
    if wanted in ORIENTATIONS:
        return (wanted,)
    acquired = _acquired(volume)[0]
    if wanted != "all" or not is_isotropic(volume.spacing):
        return (acquired,)
    return (acquired, *(name for name in _not_flat(volume) if name != acquired))


def is_isotropic(spacing: Sequence[float]) -> bool:
    """Whether voxels are about as thick as wide, so that slices in all orientations show a structure alike."""
    return max(spacing) <= _ISOTROPIC * min(spacing)


def _not_flat(volume: Volume) -> tuple[str, ...]:
    """The orientations whose slices are more than a line wide."""
    sides = {name: [volume.shape[2 - axis] for axis in view_axes(volume, name)[:2]] for name in ORIENTATIONS}
    return tuple(name for name, (across, down) in sides.items() if min(across, down) > 1)


def _acquired(volume: Volume) -> tuple[str, ...]:
    axis = slice_axis(volume)
    return tuple(name for name in ORIENTATIONS if 2 - view_axes(volume, name)[2] == axis)


def objects_of(one: LabelledSlice, least: int = LEAST_PIXELS) -> list[Object]:
    """The connected pieces of every class, of `least` pixels or more, largest first within a class."""
    return [Object(n, piece) for n in one.numbers for piece in large_pieces(one.mask(n), least)]


def large_pieces(mask: np.ndarray, least: int = LEAST_PIXELS) -> list[np.ndarray]:
    """The connected pieces of a mask that have `least` pixels or more, largest first."""
    from SAMFineTuneLib.inference.mask_shapes import pieces  # with SciPy, whose import would block Slicer's window

    return [piece for piece in pieces(mask) if np.count_nonzero(piece) >= least]


def with_objects(slices: list[LabelledSlice], name: str) -> list[LabelledSlice]:
    """The slices that show an object; UserError, naming the case, when none does."""
    kept = [one for one in slices if objects_of(one)]
    require_objects(len(kept), name)
    return kept


def require_objects(count: int, name: str) -> None:
    """UserError, naming the case, when none of its slices shows an object."""
    if not count:
        raise UserError(
            f"Case {name} shows no piece of its labels of {LEAST_PIXELS} pixels or more on any slice; leave it out or "
            "choose another label."
        )


def evenly(items: list, count: int) -> list:
    """Up to `count` items, evenly spread and never the outermost unless all are taken."""
    if len(items) <= count:
        return items
    places = np.floor((np.arange(count) + 0.5) * len(items) / count).astype(int)
    return [items[place] for place in places]
