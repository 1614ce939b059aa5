"""Resampling along one axis as a matrix: `matrix(m, n) @ values` turns n samples into m.

A resampling of both axes is `rows @ picture @ columns.T`. The matrices follow the libraries that the models' authors
used, named at each function. They are cached, because a session resamples the same few sizes over and over, and
read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, wraps

import numpy as np


def cached(function):
    """Cache a function of sizes, and make its result read-only."""

    @lru_cache(maxsize=64)
    @wraps(function)
    def build(*sizes) -> np.ndarray:
        result = function(*sizes)
        result.setflags(write=False)
        return result

    return build


@cached
def bilinear(target: int, source: int) -> np.ndarray:
    """PyTorch's `interpolate(mode="bilinear", align_corners=False)`, float64 (target, source).

    Positions are rounded to float32 as PyTorch's are.
    """
    scale = np.float32(source) / np.float32(target)
    position = np.maximum(scale * (np.arange(target, dtype=np.float32) + 0.5) - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), source - 1)
    fraction = position - low
    return _matrix(target, source, (low, 1 - fraction), (np.minimum(low + 1, source - 1), fraction))


@cached
def coverage(target: int, source: int, extent: float) -> np.ndarray:
    """Mean over the part of the source that each target cell covers, float64 (target, source).

    The source fills the first `extent` target cells; beyond it, values count as zero.
    """
    edges = np.arange(source + 1) * (extent / source)
    cell = np.arange(target)[:, None]
    overlap = np.minimum(edges[1:], cell + 1) - np.maximum(edges[:-1], cell)
    return np.maximum(overlap, 0.0)


@cached
def area(target: int, source: int) -> np.ndarray:
    """OpenCV's `INTER_AREA`, float64 (target, source): means over cells when it shrinks.

    When it enlarges, OpenCV interpolates linearly between cell edges: each source cell keeps its value up to the last
    target cell that begins in it.
    """
    if target <= source:
        return coverage(target, source, float(target)).copy()
    scale = source / target
    index = np.arange(target)
    low = np.minimum((index * scale).astype(np.int64), source - 1)
    fraction = (index + 1) - (low + 1) / scale
    fraction = np.where(fraction <= 0, 0.0, fraction - np.floor(fraction))
    return _matrix(target, source, (low, 1 - fraction), (np.minimum(low + 1, source - 1), fraction))


@cached
def cubic(target: int, source: int) -> np.ndarray:
    """scikit-image's `resize(order=3, anti_aliasing=True)`, float64 (target, source).

    An interpolating cubic B-spline with mirrored borders; when shrinking, after a Gaussian of sigma
    (factor - 1) / 2.
    """
    position = (np.arange(target) + 0.5) * (source / target) - 0.5
    base = np.floor(position).astype(np.int64)
    t = position - base
    weights = ((1 - t) ** 3, 4 - 6 * t**2 + 3 * t**3, 1 + 3 * t + 3 * t**2 - 3 * t**3, t**3)
    shares = [(_mirror(base + offset, source), weight / 6) for offset, weight in enumerate(weights, start=-1)]
    evaluate = _matrix(target, source, *shares)
    values = _convolution(source, (-1, 0, 1), (1 / 6, 4 / 6, 1 / 6))
    result = np.linalg.solve(values.T, evaluate.T).T
    return result @ _gaussian(source, (source / target - 1) / 2) if source > target else result


def _gaussian(size: int, sigma: float) -> np.ndarray:
    """Gaussian blur with mirrored borders, cut at four sigma, float64 (size, size)."""
    radius = int(4 * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    return _convolution(size, offsets, kernel / kernel.sum())


def _convolution(size: int, offsets: Sequence[int], kernel: Sequence[float]) -> np.ndarray:
    """Convolution with a kernel, with mirrored borders, float64 (size, size)."""
    indices = np.arange(size)
    return _matrix(size, size, *zip((_mirror(indices + offset, size) for offset in offsets), kernel, strict=True))


def _matrix(target: int, source: int, *shares: tuple[np.ndarray, np.ndarray | float]) -> np.ndarray:
    """The matrix (target, source) in which each row is the sum of shares: a source index and a weight a row."""
    result = np.zeros((target, source))
    for index, weight in shares:
        np.add.at(result, (np.arange(target), index), weight)
    return result


def _mirror(index: np.ndarray, size: int) -> np.ndarray:
    """Reflect indices beyond the border, which itself is not repeated."""
    if size == 1:
        return np.zeros_like(index)
    index = np.abs(index) % (2 * size - 2)
    return np.where(index >= size, 2 * size - 2 - index, index)
