"""Label maps: the values of voxels and what they mean. A voxel may belong to several labels, or be ignored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

Labels = tuple[int, ...]


@dataclass(frozen=True)
class Meaning:
    """`names` of labels by their numbers, as far as known. A voxel of value v belongs to label v, unless `members` maps
    v to other labels; the annotator left voxels with the values in `ignored` undecided."""

    names: Mapping[int, str] = field(default_factory=dict)
    members: Mapping[int, Labels] = field(default_factory=dict)
    ignored: Labels = ()

    def labels_of(self, value: int) -> Labels:
        """The labels of a voxel with a value; none for the background and ignored values."""
        if value == 0 or value in self.ignored:
            return ()
        return self.members.get(value, (value,))

    def labels_in(self, values: Iterable[int]) -> list[int]:
        """The labels that voxels of these values belong to, in order."""
        return sorted({label for value in values for label in self.labels_of(int(value))})

    def over(self, other: Meaning) -> Meaning:
        """This meaning, completed by another one."""
        return Meaning({**other.names, **self.names}, self.members or other.members, self.ignored or other.ignored)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """`array` [k, j, i] uint16 with 0 for background, its RAS `affine`, what its values mean, and notes on what was
    corrected while reading.

    `placed` is false for pictures, which hold no position.
    """

    array: np.ndarray
    affine: np.ndarray
    meaning: Meaning = field(default_factory=Meaning)
    placed: bool = True
    notes: tuple[str, ...] = ()


def count_values(array: np.ndarray) -> dict[int, int]:
    """Count each value of an array of non-negative integers; slice by slice, to save memory."""
    totals = np.zeros(int(array.max()) + 1, np.int64)
    for one in array:
        totals += np.bincount(one.ravel(), minlength=len(totals))
    return {value: int(totals[value]) for value in np.flatnonzero(totals).tolist()}


def overlaid(
    masks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...], free: int
) -> tuple[np.ndarray, dict[int, Labels]]:
    """Combine masks [k, j, i] of labels that may overlap in one array uint16.

    Args:
        masks: Pairs of a label's number and its mask.
        shape: Of the array.
        free: Where labels overlap, voxels get values from here on, which no label has as its number.

    Returns:
        The array, and the `members` of its values (see `Meaning`).
    """
    array, values = np.zeros(shape, np.uint16), {}
    members: dict[int, Labels] = {}
    for label, mask in masks:
        held = array[mask]
        new = np.full(held.shape, label, np.uint16)
        for before in np.unique(held[held > 0]).tolist():
            together = tuple(sorted({*members.get(before, (before,)), label}))
            value = label if together == (label,) else values.setdefault(together, free + len(values))
            if value != label:
                members[value] = together
            new[held == before] = value
        array[mask] = new
    present = set(np.unique(array).tolist())
    return array, {value: labels for value, labels in members.items() if value in present}
