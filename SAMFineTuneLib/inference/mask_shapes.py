"""Measures of 2-D masks: overlap, stability, connected pieces, interpolation, the most interior points.

Masks are bool (rows, columns); points and boxes are (x, y) = (column, row) with pixel centres at integers.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.inference.input_crop import bounding_box


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks; 0 when both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected pieces of a mask, largest first, each a mask of the full size."""
    labels, inside = _labelled(mask)
    sizes = np.bincount(labels.ravel())[1:]
    found = []
    for label in np.argsort(-sizes, kind="stable") + 1:
        piece = np.zeros(mask.shape, dtype=bool)
        piece[inside] = labels == label
        found.append(piece)
    return found


def pieces_with(mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """The 8-connected pieces of a mask that contain any of the given `pixels`, bool (rows, columns), as one mask."""
    labels, inside = _labelled(mask)
    kept = np.zeros(mask.shape, dtype=bool)
    kept[inside] = np.isin(labels, np.setdiff1d(labels[pixels[inside]], [0]))
    return kept


def pieces_asked_for(
    mask: np.ndarray, marked: np.ndarray, largest: bool, before: np.ndarray | None = None
) -> np.ndarray:
    """Keep the 8-connected pieces of a mask that `marked` (rows, columns) touches, and those that lie mostly in an
    earlier mask `before`; with `largest`, or when `marked` touches none, also the largest piece."""
    labels, inside = _labelled(mask)
    sizes = np.bincount(labels.ravel())
    if len(sizes) <= 2:
        return mask
    sizes[0] = 0
    asked = np.zeros(len(sizes), dtype=bool)
    asked[np.unique(labels[marked[inside]])] = True
    asked[0] = False
    if largest or not asked.any():
        asked[np.argmax(sizes)] = True
    if before is not None:
        asked |= np.bincount(labels.ravel(), before[inside].ravel(), len(sizes)) > sizes / 2
        asked[0] = False
    kept = np.zeros(mask.shape, dtype=bool)
    kept[inside] = asked[labels]
    return kept


def _labelled(mask: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Numbers of the 8-connected pieces from 1, 0 elsewhere, within the mask's bounding box; and that box."""
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, 0), np.int64), (slice(0, 0), slice(0, 0))
    x0, y0, x1, y1 = box.astype(int)
    inside = slice(y0, y1 + 1), slice(x0, x1 + 1)
    # Many times as fast on a slice as ITK's filter, whose set-up takes longer than its work.
    return ndimage.label(mask[inside], np.ones((3, 3)))[0], inside


def stability_score(logits: np.ndarray, offset: float) -> np.ndarray:
    """IoU (...) of the masks of logits (..., rows, columns) at the thresholds +offset and -offset."""
    narrow = np.count_nonzero(logits > offset, axis=(-2, -1))
    wide = np.count_nonzero(logits > -offset, axis=(-2, -1))
    return narrow / np.maximum(wide, 1)


def interpolate(first: np.ndarray, second: np.ndarray, position: float) -> np.ndarray:
    """The shape between two masks of one object (Raya and Udupa 1990).

    Signed distances to the two outlines are blended; the new outline is where the blend is 0.

    Args:
        first: the mask at position 0, not empty.
        second: the mask at position 1, not empty.
        position: of the shape between them, 0 to 1.
    """
    return (1 - position) * _signed_distance(first) + position * _signed_distance(second) > 0


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance (rows, columns) to the outline in pixels, positive inside; the outline runs between pixels."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(mask, dtype=np.uint8))
    to_edge_pixels = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, True, False, False))
    # Maurer's map is 0 on the mask's own outermost pixels: half a pixel more puts 0 on the outline.
    return np.where(mask, np.maximum(to_edge_pixels, 0) + 0.5, to_edge_pixels + 0.5)


def rim(mask: np.ndarray, nearest: float, furthest: float) -> np.ndarray:
    """A ring around a mask, bool (rows, columns).

    Args:
        mask: bool (rows, columns), not empty.
        nearest: inner radius of the ring, in pixels from the outline.
        furthest: outer radius, likewise.
    """
    x0, y0, x1, y1 = bounding_box(mask).astype(int)
    reach = int(np.ceil(furthest)) + 1
    near = slice(max(y0 - reach, 0), y1 + reach + 1), slice(max(x0 - reach, 0), x1 + reach + 1)
    away = -_signed_distance(mask[near])
    found = np.zeros_like(mask)
    found[near] = (away > nearest) & (away <= furthest)
    return found


def moved_to(mask: np.ndarray, point: np.ndarray) -> np.ndarray:
    """A mask that covers a point: itself, or shifted so that its most interior pixel lies there.

    Args:
        mask: bool (rows, columns), not empty.
        point: x and y in its pixels.

    Returns:
        Bool (rows, columns), cropped to the mask's array.
    """
    x, y = np.rint(point).astype(int)
    rows, columns = mask.shape
    if 0 <= x < columns and 0 <= y < rows and mask[y, x]:
        return mask
    deepest = np.rint(interior_points(mask)[0]).astype(int)
    places = np.argwhere(mask) + ([y, x] - deepest[::-1])
    places = places[((places >= 0) & (places < mask.shape)).all(axis=1)]
    found = np.zeros_like(mask)
    found[tuple(places.T)] = True
    return found


def interior_points(mask: np.ndarray, count: int = 1) -> np.ndarray:
    """Up to `count` well separated points (n, 2), x and y, that lie deepest in a mask.

    The first is the centre of the largest inscribed disc. Each further one is the deepest point that is at least two
    radii away from the points so far, as long as its own disc is at least half as wide as the first.
    """
    box = bounding_box(mask)
    if box is None:
        return np.zeros((0, 2), dtype=np.float32)
    x0, y0, x1, y1 = box.astype(int)
    inside = np.pad(mask[y0 : y1 + 1, x0 : x1 + 1], 1)
    depth = np.where(inside, _signed_distance(inside) + 0.5, 0.0)  # radius of the disc of pixels that fits
    rows, columns = np.indices(depth.shape)
    enough = depth.max() / 2
    points: list[tuple[float, float]] = []
    while len(points) < count:
        row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
        radius = float(depth[row, column])
        if radius < enough:
            break
        points.append((x0 + column - 1, y0 + row - 1))
        depth[(rows - row) ** 2 + (columns - column) ** 2 <= (2 * radius) ** 2] = 0.0
    return np.array(points, dtype=np.float32)
