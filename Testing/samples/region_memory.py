"""Deterministic volume memories without weights: what is of the known structure's grey and connected with it, or an
answer that tapers."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


class RegionMemory:
    """Grows the known masks, and the earlier answer, through a block as far as the grey value is theirs."""

    digest = "region memory"

    def __init__(self, tolerance: float = 0.2) -> None:
        self.tolerance = tolerance
        self.blocks: list[np.ndarray] = []

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.blocks.append(block)
        image, _, masks, known, earlier, _ = block
        start = np.where(known > 0, masks, earlier) > 0
        grey = np.median(image[start]) if start.any() else np.inf
        pieces, _ = ndimage.label(np.abs(image - grey) < self.tolerance)
        region = np.isin(pieces, np.unique(pieces[start & (pieces > 0)])) & (pieces > 0)
        region = np.where(known > 0, masks > 0, region)
        return np.where(region, 6.0, -6.0).astype(np.float32), np.where(region.any((1, 2)), 6.0, -6.0)


class TaperingMemory:
    """Repeats what the slice before, on the way from the nearest known one, had at first, but smaller by a tenth of
    its radius; or the earlier answer on a slice where that is more."""

    digest = "tapering memory"

    def __call__(self, block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _, _, masks, known, earlier, _ = block
        is_known = known.any((1, 2)) if known.any() else (earlier > 0.5).any((1, 2))
        places = np.flatnonzero(is_known)
        found = np.where(known > 0, masks > 0, earlier > 0.5)
        for index in sorted(np.flatnonzero(~is_known), key=lambda one: np.abs(places - one).min()):
            before = index + (1 if places[np.argmin(np.abs(places - index))] > index else -1)
            depth = ndimage.distance_transform_edt(found[before])
            tapered = depth > 0.1 * depth.max()
            if np.count_nonzero(tapered) > np.count_nonzero(found[index]):
                found[index] = tapered
        return np.where(found, 6.0, -6.0).astype(np.float32), np.where(found.any((1, 2)), 6.0, -6.0)
