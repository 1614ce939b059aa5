"""The input of the volume memory: a block of slices around a structure, resampled to a grid of fixed width.

A block has `CELLS` x `CELLS` cells of the slices' surroundings of the structure, and the slices as they are, or
averaged where they are much closer than a cell is wide. It is `(D, CELLS, CELLS)`; the known masks lie on some of its
slices.
"""

from __future__ import annotations

import numpy as np

CELLS = 64
CHANNELS = 6
_BINS = 32
_CLOSEST = 0.4  # smallest distance of slices, in cells, that the network has learned
_MOST = 4.0  # log-likelihood ratio that counts as certain


def sampling(size: int, start: float, side: float, cells: int = CELLS) -> np.ndarray:
    """Weights (cells, size) that average `size` pixels in `cells` equal parts of [start, start + side), or interpolate
    where parts are smaller than pixels. Beyond the pixels all weights are 0."""
    step = side / cells
    center = start + (np.arange(cells) + 0.5) * step - 0.5
    reach = max(step, 1.0)
    weight = np.maximum(0, 1 - np.abs(center[:, None] - np.arange(size)) / reach)
    inside = (center > -0.5 - reach / 2) & (center < size - 0.5 + reach / 2)
    total = weight.sum(1, keepdims=True)
    return np.where(inside[:, None], weight / np.maximum(total, 1e-6), 0).astype(np.float32)


def stretch(image: np.ndarray) -> np.ndarray:
    """Grey values of a block with 0.5 % clipped at either end, -1 to 1, float32."""
    low, high = np.quantile(image[:, ::2, ::2], (0.005, 0.995))
    return (np.clip((image - low) / max(high - low, 1.0), 0, 1) * 2 - 1).astype(np.float32)


def grey_evidence(image: np.ndarray, slices: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """How much more often each grey value of a block occurs in the structure than around it on the known slices:
    log-likelihood ratio (D, H, W), -1 to 1.

    Args:
        image: the block, -1 to 1 (D, H, W).
        slices: the pictures (N, H, W) that have a known mask; they need not be of this block.
        masks: shares of the structure (N, H, W), 0 to 1.
    """

    def places(values: np.ndarray) -> np.ndarray:
        return np.clip(((values + 1) * (_BINS / 2)).astype(int), 0, _BINS - 1)

    number = places(slices).ravel()
    inside = np.bincount(number, masks.ravel(), _BINS)
    outside = np.bincount(number, 1 - masks.ravel(), _BINS)
    kernel = np.exp(-0.5 * (np.arange(-3, 4) / 1.2) ** 2)
    inside, outside = (
        np.convolve(np.pad(counts / counts.sum().clip(1), 3, "edge"), kernel / kernel.sum(), "valid") + 1e-3
        for counts in (inside, outside)
    )
    ratio = np.log(inside / outside)
    return (np.clip(ratio, -_MOST, _MOST) / _MOST).astype(np.float32)[places(image)]


def channels(
    image: np.ndarray, evidence: np.ndarray, known: np.ndarray, masks: np.ndarray, earlier: np.ndarray, ratio: float
) -> np.ndarray:
    """The network's input (CHANNELS, D, H, W).

    Args:
        image: stretched (D, H, W).
        evidence: of `grey_evidence` (D, H, W).
        known: which slices have a known mask, bool (D,).
        masks: their shares of the structure, 0 to 1 (D, H, W); ignored elsewhere.
        earlier: an earlier answer, 0 to 1 (D, H, W), 0.5 where there is none.
        ratio: distance of the slices in cells.
    """
    there = np.broadcast_to(known[:, None, None], image.shape).astype(np.float32)
    spacing = np.full(image.shape, np.log2(max(ratio, _CLOSEST)) / 3, np.float32)
    return np.stack([image, evidence, there * (2 * masks - 1), there, 2 * earlier - 1, spacing]).astype(np.float32)
