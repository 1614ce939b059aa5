"""Carries masks from slice to slice along with the picture: each slice is deformed until it resembles the next one.

The deformation is found with symmetric demons (Thirion 1998; Vercauteren et al. 2009) on a coarse and then on a fine
grid. ITK's demons carry masks equally well, but take twice as long for the small pictures here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache

import numpy as np

from SAMFineTuneLib.inference.block_path import SURROUNDINGS, path_through
from SAMFineTuneLib.models.volume_block import stretch

_STEPS = (20, 15)  # on the coarse and on the fine grid
_NOISE = 0.7  # cells: pictures are blurred by this much first
_STIFFNESS = 2.0  # cells: the deformation is smooth over this distance
_FARTHEST = 1.4  # of the longer side of a mask: how far it is carried
_REACH = 8.0  # slices over which the certainty of a carried mask falls to about a third
_LONGEST = 1.0  # cells: a step is at most this long


def carried_masks(
    shares: Mapping[int, np.ndarray],
    missing: Collection[int],
    picture: Callable[[int], np.ndarray],
    count: int,
    distance: float,
    farthest: float = _FARTHEST,
) -> Iterator[tuple[int, np.ndarray, int]]:
    """Carry masks to slices that have none, in both directions, until they vanish, meet a slice that has one, or are
    too far away.

    Args:
        shares: known masks or shares of the structure (H, W), 0 to 1, by slice; none of them empty.
        missing: the slices that they are carried to.
        picture: slice → grey values (H, W).
        count: slices of the stack.
        distance: from slice to slice, in pixels of a slice.
        farthest: how far a mask is carried, in units of its longer side.

    Yields:
        A slice, the structure's share there (H, W) and the number of slices that it was carried. A slice between two
        known ones comes twice.
    """
    for start, known in shares.items():
        slices = path_through({start: known > 0.5}, count).side / SURROUNDINGS * farthest / distance
        for step in (1, -1):
            share, index = known.astype(np.float32), start
            while index + step in missing and abs(index - start) < slices and (share > 0.5).any():
                share = carried_mask(share, index, index + step, picture, count)
                index += step
                yield index, share, abs(index - start)


def joined(carried: Iterable[tuple[int, np.ndarray, int]]) -> dict[int, np.ndarray]:
    """Join what `carried_masks` yields into one share for each slice, 0 to 1: the mean of both directions, weighted by
    nearness, and moved towards 0.5 with the distance that it was carried."""
    found: dict[int, list[tuple[np.ndarray, float]]] = {}
    for index, share, away in carried:
        found.setdefault(index, []).append((share, 1 / away))
    shares = {}
    for index, several in found.items():
        several, nearness = zip(*several, strict=True)
        sure = np.exp(-1 / max(nearness) / _REACH)
        shares[index] = (0.5 + sure * (np.average(several, axis=0, weights=nearness) - 0.5)).astype(np.float32)
    return shares


def carried_mask(
    share: np.ndarray, index: int, target: int, picture: Callable[[int], np.ndarray], count: int
) -> np.ndarray:
    """Carry a mask from one slice to another along with the picture.

    Args:
        share: a mask, not empty, or the structure's share of each pixel (H, W), 0 to 1.
        index, target: the slice that it belongs to, and the one that it is carried to.
        picture: slice → grey values (H, W).
        count: slices of the stack.

    Returns:
        The share of each pixel of the other slice (H, W); 0 beyond the surroundings of the structure.
    """
    path = path_through({index: share > 0.5}, count)
    moving, fixed = stretch(np.stack([path.cut(picture(each), each) for each in (index, target)]))
    return path.paste(deformed(path.cut(share, index), deformation(fixed, moving)), target, share.shape)


def deformation(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """Where each cell of a picture lies in another one.

    Args:
        fixed, moving: pictures (H, W) with grey values from -1 to 1; both sides even.

    Returns:
        Displacements (2, H, W) along rows and columns, in cells: `deformed(moving, …)` resembles `fixed`.
    """
    coarse = np.zeros((2, fixed.shape[0] // 2, fixed.shape[1] // 2), np.float32)
    coarse = _demons(_halved(fixed), _halved(moving), coarse, _STEPS[0])
    return _demons(fixed, moving, _blurred(2 * coarse.repeat(2, 1).repeat(2, 2), 1.0), _STEPS[1])


def deformed(pictures: np.ndarray, displacement: np.ndarray) -> np.ndarray:
    """Pictures (…, H, W) whose cells are read from displaced places, interpolated linearly."""
    height, width = pictures.shape[-2:]
    rows, columns = _grid(height, width)
    row = (rows + displacement[0]).clip(0, height - 1.001)
    column = (columns + displacement[1]).clip(0, width - 1.001)
    first_row, first_column = row.astype(np.intp), column.astype(np.intp)
    row, column = row - first_row, column - first_column
    cells, corner = pictures.reshape(*pictures.shape[:-2], -1), first_row * width + first_column
    first, right, below, diagonal = (cells.take(corner + step, axis=-1) for step in (0, 1, width, width + 1))
    upper = first * (1 - column) + right * column
    lower = below * (1 - column) + diagonal * column
    return (upper * (1 - row) + lower * row).astype(np.float32)


def _demons(fixed: np.ndarray, moving: np.ndarray, displacement: np.ndarray, steps: int) -> np.ndarray:
    fixed, moving = _blurred(fixed, _NOISE), _blurred(moving, _NOISE)
    slopes, moved_along = np.stack(np.gradient(fixed)), np.stack([moving, *np.gradient(moving)])
    for _ in range(steps):
        moved, *moved_slopes = deformed(moved_along, displacement)
        slope, difference = (slopes + moved_slopes) / 2, fixed - moved
        steepness = (slope**2).sum(0) + difference**2 / (2 * _LONGEST) ** 2
        displacement = _blurred(displacement + slope * (difference / np.maximum(steepness, 1e-6)), _STIFFNESS)
    return displacement


def _halved(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape
    return picture.reshape(height // 2, 2, width // 2, 2).mean((1, 3))


def _blurred(pictures: np.ndarray, width: float) -> np.ndarray:
    """Pictures (…, H, W) blurred with a Gaussian of a standard deviation in cells."""
    return _gaussian(pictures.shape[-2], width) @ pictures @ _gaussian(pictures.shape[-1], width).T


@lru_cache(16)
def _gaussian(size: int, width: float) -> np.ndarray:
    """Weights (size, size) of each cell for each blurred one."""
    away = np.arange(size)[:, None] - np.arange(size)
    weights = np.exp(-0.5 * (away / width) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


@lru_cache(4)
def _grid(height: int, width: int) -> np.ndarray:
    return np.mgrid[:height, :width].astype(np.float32)
