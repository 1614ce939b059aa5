"""Linear interpolation of a volume on an oblique plane, at SimpleITK's speed and without a copy of the volume.

Positions are fixed-point numbers, with which NumPy is quicker than with floating point ones: the high bits are the
index of a voxel, the low bits the share of the next one.
"""

from __future__ import annotations

import numpy as np

_TIE = 1e-6  # voxels: so that floating point noise does not decide whether a pixel lies in the volume
_BLOCK = 1 << 14  # pixels that are interpolated at a time, so that they stay in the processor's cache


def fill_plane(values: np.ndarray, array: np.ndarray, starts: np.ndarray, column: np.ndarray) -> None:
    """Interpolate the pixels that lie in a volume; the outer half of a border voxel has that voxel's value.

    Args:
        values: float32 [rows, columns], changed in place; pixels outside the volume keep their value.
        array: the volume's voxels [k, j, i].
        starts: voxel coordinates (rows, 3) of each row's first pixel, as i, j, k.
        column: step (3,) to the next column.
    """
    first, stop = _columns_inside(starts, column, values.shape[1], np.array(array.shape[::-1]))
    filled = np.flatnonzero(first < stop)
    if not filled.size:
        return
    left, right, rows = int(first[filled].min()), int(stop[filled].max()), slice(filled[0], filled[-1] + 1)
    blocks = _Blocks(array, starts[rows] + left * column, column, right - left)
    values, first, stop = values[rows, left:right], (first[rows] - left).tolist(), (stop[rows] - left).tolist()
    for n in range(0, len(values), blocks.height):
        own = slice(n, n + blocks.height)
        begin, end = min(first[own]), max(stop[own])
        block = blocks.interpolate(own, slice(begin, end))
        for line, found, a, b in zip(values[own], block, first[own], stop[own], strict=True):
            line[a:b] = found[a - begin : b - begin]


def _columns_inside(
    starts: np.ndarray, column: np.ndarray, count: int, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each row, the first of `count` columns in the volume and the first one behind it; a row that misses the
    volume has none between them."""
    with np.errstate(divide="ignore", invalid="ignore"):  # the row may not move along an axis
        crossed = np.sort([(-0.5 - _TIE - starts) / column, (lengths - 0.5 + _TIE - starts) / column], axis=0)
    first, last = np.ceil(crossed[0].max(axis=1)), np.floor(crossed[1].min(axis=1))
    return np.clip(first, 0, count).astype(int), np.clip(last + 1, 0, count).astype(int)


class _Blocks:
    """A part of a plane, interpolated in blocks of `height` rows.

    The blocks share their memory: to get new memory for each would take a third of the time.
    """

    def __init__(self, array: np.ndarray, starts: np.ndarray, column: np.ndarray, width: int) -> None:
        ends = np.stack([starts[0], starts[-1], starts[0] + width * column, starts[-1] + width * column])
        reach = int(np.abs(ends).max()).bit_length()
        whole, bits = (np.int32, 29) if reach <= 13 and array.size < 2**31 else (np.int64, 61)
        self.point = bits - reach  # position of the fixed point
        self.down = np.rint(starts.T * 2**self.point).astype(whole)
        self.along = np.rint(column[:, None] * np.arange(width) * 2**self.point).astype(whole)
        self.lengths, self.voxels = array.shape[::-1], array.reshape(-1)
        self.around = [0]  # from the lowest of eight neighbouring voxels to each of them
        self.limits = []  # axes along which pixels may lie outside the outermost voxel centres, with the last position
        stride = 1
        for axis, length in enumerate(self.lengths):
            self.around += [offset + (stride if length > 1 else 0) for offset in self.around]
            stride *= length
            if ends[:, axis].min() < 0 or ends[:, axis].max() >= length - 1:
                self.limits.append((axis, max((length - 1 << self.point) - 1, 0)))
        self.height = max(1, _BLOCK // width)
        kinds = ((3, whole), (3, whole), (3, np.float32), (1, np.intp), (1, array.dtype), (8, np.float32))
        self.memory = [np.empty((n, self.height * width), kind) for n, kind in kinds]

    def interpolate(self, rows: slice, columns: slice) -> np.ndarray:
        """Values float32 [row, column], valid until the next call; those outside the volume are meaningless."""
        down, along = self.down[:, rows, None], self.along[:, None, columns]
        shape = (3, down.shape[1], along.shape[2])
        count = shape[1] * shape[2]
        position, low, share, (index,), (taken,), found = (memory[:, :count] for memory in self.memory)
        np.add(down, along, out=position.reshape(shape))
        for axis, last in self.limits:
            np.clip(position[axis], 0, last, out=position[axis])
        np.right_shift(position, self.point, out=low)
        position &= 2**self.point - 1
        np.multiply(position, 0.5**self.point, out=share, dtype=np.float32, casting="unsafe")
        low[2] *= self.lengths[1]
        low[2] += low[1]
        low[2] *= self.lengths[0]
        np.add(low[2], low[0], out=index)
        for values, offset in zip(found, self.around, strict=True):
            self.voxels[offset:].take(index, mode="clip", out=taken)
            values[:] = taken
        for axis, half in ((2, 4), (1, 2), (0, 1)):
            lower, found = found[:half], found[half : 2 * half]
            found -= lower
            found *= share[axis]
            found += lower
        return found.reshape(shape[1:])
