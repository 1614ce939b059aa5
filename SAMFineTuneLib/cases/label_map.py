"""What a label map holds: numbers in voxels, and what they mean. A voxel may belong to several labels, or count for
nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

Labels = tuple[int, ...]


@dataclass(frozen=True)
class Meaning:
    """`names` of labels by their numbers, as far as known. A voxel of value v belongs to label v, unless `members`
    says to which labels it belongs; the values in `ignored` were left undecided by whoever drew the labels."""

    names: Mapping[int, str] = field(default_factory=dict)
    members: Mapping[int, Labels] = field(default_factory=dict)
    ignored: Labels = ()

    def labels_of(self, value: int) -> Labels:
        """The labels that a voxel of a value belongs to; none for the background and for what is ignored."""
        if value == 0 or value in self.ignored:
            return ()
        return self.members.get(value, (value,))

    def labels_in(self, values: Iterable[int]) -> list[int]:
        """The labels that voxels of these values belong to, in order."""
        return sorted({label for value in values for label in self.labels_of(int(value))})

    def over(self, other: Meaning) -> Meaning:
        """This meaning, and what it leaves open from another one."""
        return Meaning({**other.names, **self.names}, self.members or other.members, self.ignored or other.ignored)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """`array` [k, j, i] uint16, 0 background, its RAS `affine`, what its values mean, and sentences about what was
    mended in reading it.

    `placed` is false for pictures, which say nothing about where they lie.
    """

    array: np.ndarray
    affine: np.ndarray
    meaning: Meaning = field(default_factory=Meaning)
    placed: bool = True
    notes: tuple[str, ...] = ()


def count_values(array: np.ndarray) -> dict[int, int]:
    """How often each value of an array of whole numbers from 0 on occurs; slice by slice, to save memory."""
    totals = np.zeros(int(array.max()) + 1, np.int64)
    for one in array:
        totals += np.bincount(one.ravel(), minlength=len(totals))
    return {value: int(totals[value]) for value in np.flatnonzero(totals).tolist()}


def voxels(count: int) -> str:
    """Such as `1 voxel`, for sentences."""
    return f"{count} voxel{'s' * (count != 1)}"


def overlaid(
    masks: Iterable[tuple[int, np.ndarray]], shape: tuple[int, ...], free: int
) -> tuple[np.ndarray, dict[int, Labels]]:
    """Masks [k, j, i] of labels that may overlap as one array uint16, and the `members` of its values.

    Where labels overlap, a voxel has a value of its own, from `free` on, which no label has as its number.
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
