"""Where a structure is expected on each slice, and how its surroundings are cut out there.

A block of slices follows the structure, so that one that moves from slice to slice, as a rib does, stays in the
middle. Positions are (row, column) in pixels of the slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.models.volume_block import CELLS, sampling

SURROUNDINGS = 2.0
"""Side of the block, in units of the structure's longer side on a slice."""
SMALLEST_SIDE = 14.0
"""Pixels: a smaller block would show too little around the structure."""
_RECENT = 4  # slices at an end over which the structure's movement is measured
_FURTHER = 6  # slices beyond that end on which it is expected to continue


@dataclass(frozen=True, eq=False)
class BlockPath:
    """Squares of `side` pixels around `centers` (count, 2), one for each slice of the stack, shifted into the slice."""

    centers: np.ndarray
    side: float

    @property
    def cell(self) -> float:
        """Width of a cell in pixels."""
        return self.side / CELLS

    def cut(self, picture: np.ndarray, index: int) -> np.ndarray:
        """Average a slice (H, W) in the cells of the block, float32 (CELLS, CELLS)."""
        parts, weights = [], []
        for start, size in zip(self._starts(index, picture.shape), picture.shape, strict=True):
            first = int(np.clip(np.floor(start - 2 * self.cell - 2), 0, size - 1))
            last = int(np.clip(np.ceil(start + self.side + 2 * self.cell + 2), first + 1, size))
            parts.append(slice(first, last))
            weights.append(sampling(last - first, start - first, self.side))
        return weights[0] @ np.asarray(picture[tuple(parts)], np.float32) @ weights[1].T

    def paste(self, cells: np.ndarray, index: int, shape: tuple[int, int]) -> np.ndarray:
        """Put the network's answer for a slice of the block back where the slice was cut.

        Args:
            cells: (CELLS, CELLS).
            index: of the slice in the stack.
            shape: of the whole slice (H, W).

        Returns:
            float32 (H, W): the cells interpolated, and 0 beyond them.
        """
        full = np.zeros(shape, np.float32)
        parts, weights = [], []
        for start, size in zip(self._starts(index, shape), shape, strict=True):
            first, last = (int(np.clip(np.ceil(end - 0.5), 0, size)) for end in (start, start + self.side))
            at = np.clip((np.arange(first, last) + 0.5 - start) / self.cell - 0.5, 0, CELLS - 1)
            parts.append(slice(first, last))
            weights.append(np.maximum(0, 1 - np.abs(at[:, None] - np.arange(CELLS))).astype(np.float32))
        full[tuple(parts)] = weights[0] @ cells @ weights[1].T
        return full

    def _starts(self, index: int, shape: tuple[int, ...]) -> list[float]:
        """First row and column of a slice's square."""
        return [
            float(np.clip(center - self.side / 2, min(0.0, (size - self.side) / 2), max(size - self.side, 0.0)))
            if self.side < size
            else (size - self.side) / 2
            for center, size in zip(self.centers[index], shape, strict=True)
        ]


def path_through(masks: Mapping[int, np.ndarray], count: int) -> BlockPath:
    """The path through the boxes of masks (H, W) on some of `count` slices.

    It is straight between them. Beyond them it continues the movement over the last few slices, for some slices.
    """
    order = np.array(sorted(masks))
    centers, sides = (np.array(values) for values in zip(*(_extent(masks[index]) for index in order), strict=True))
    at = np.arange(count)
    path = np.stack([np.interp(at, order, centers[:, axis]) for axis in (0, 1)], axis=1)
    for end, beyond in ((0, at[at < order[0]]), (-1, at[at > order[-1]])):
        recent = np.flatnonzero(np.abs(order - order[end]) <= _RECENT)
        if len(recent) > 1:
            first, last = recent[0], recent[-1]
            slope = (centers[last] - centers[first]) / (order[last] - order[first])
            path[beyond] += slope * np.clip(beyond - order[end], -_FURTHER, _FURTHER)[:, None]
    return BlockPath(path, max(SURROUNDINGS * float(np.quantile(sides, 0.9)), SMALLEST_SIDE))


def _extent(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre (row, column) of a mask's box, and its longer side."""
    lines = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    center = np.array([(line[0] + line[-1] + 1) / 2 for line in lines])
    return center, float(max(line[-1] - line[0] + 1 for line in lines))
