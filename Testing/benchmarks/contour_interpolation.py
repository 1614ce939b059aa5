"""Morphological contour interpolation: what Slicer's *Fill between slices* does with the contours of a few slices.

The method is that of Zukić et al. 2016 ("ND morphological contour interpolation", Insight Journal), which ITK offers as
a remote module. This is our own version of it, because the module brings 1.3 GB of ITK, and Python aborts at its end
after using it. Pieces of two slices that overlap belong together. Each pair is aligned by a translation,
and the shape halfway grows from what both share until it differs from both by as much; the halves in turn likewise. A
piece that has no counterpart shrinks to its centre halfway.

    python Testing/benchmarks/contour_interpolation.py    compares with ITK, where its module is installed
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

WHOLE = np.ones((3, 3), bool)
"""Pixels that touch by a corner are connected."""
SEARCH = 8
"""Translations are tried in finer and finer steps around the difference of the centres, from this many pixels."""


def fill_between(mask: np.ndarray) -> np.ndarray:
    """Fill the slices between those of a mask [slice, row, column] that are not empty."""
    whole = mask.copy()
    if not mask.any():
        return whole
    (around,) = ndimage.find_objects(mask.any(axis=0).astype(np.uint8))
    mask, filled = mask[(slice(None), *around)], whole[(slice(None), *around)]
    known = np.flatnonzero(mask.any(axis=(1, 2)))
    for low, high in zip(known, known[1:], strict=False):
        for first, second in corresponding(mask[low], mask[high]):
            fill_pair(filled, int(low), int(high), first, second)
    return whole


def corresponding(below: np.ndarray, above: np.ndarray) -> list[tuple[np.ndarray | None, np.ndarray | None]]:
    """Pieces of two masks that continue each other. A piece that continues as several is divided among them."""
    lower, upper = pieces(below), pieces(above)
    links = np.array([[(one & other).any() for other in upper] for one in lower])
    pairs = []
    for row, one in enumerate(lower):
        partners = np.flatnonzero(links[row])
        if not len(partners):
            pairs.append((one, None))
        for column in partners:
            one_part = nearest_part(one, [upper[n] for n in partners], int(np.searchsorted(partners, column)))
            rivals = np.flatnonzero(links[:, column])
            other_part = nearest_part(upper[column], [lower[n] for n in rivals], int(np.searchsorted(rivals, row)))
            pairs.append((one_part, other_part))
    return pairs + [(None, upper[column]) for column in np.flatnonzero(~links.any(axis=0))]


def pieces(mask: np.ndarray) -> list[np.ndarray]:
    labels, count = ndimage.label(mask, WHOLE)
    return [labels == number for number in range(1, count + 1)]


def nearest_part(mask: np.ndarray, partners: list[np.ndarray], number: int) -> np.ndarray:
    """The pixels of a mask that are nearer to one of its partners than to the others."""
    if len(partners) == 1:
        return mask
    distances = np.stack([ndimage.distance_transform_edt(~partner) for partner in partners])
    return mask & (np.argmin(distances, axis=0) == number)


def fill_pair(filled: np.ndarray, low: int, high: int, below: np.ndarray | None, above: np.ndarray | None) -> None:
    """Add the shapes between two masks, on slices `low` and `high`, to the slices between, by halves."""
    if high - low < 2:
        return
    middle = (low + high) // 2
    if below is None or above is None:
        shape = centre_of(above if below is None else below)
    else:
        shape = halfway(below, above, (middle - low) / (high - low))
    filled[middle] |= shape
    if below is not None:
        fill_pair(filled, low, middle, below, shape)
    if above is not None:
        fill_pair(filled, middle, high, shape, above)


def centre_of(mask: np.ndarray) -> np.ndarray:
    """The pixel of a mask that is nearest to its centre of mass."""
    places = np.argwhere(mask)
    point = np.zeros_like(mask)
    point[tuple(places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))])] = True
    return point


def halfway(first: np.ndarray, second: np.ndarray, position: float) -> np.ndarray:
    """The shape between two masks, moved by `position` (0 to 1) of the way from the first to the second."""
    move = alignment(first, second)
    here = np.rint(move * position).astype(int)
    near, far = moved(first, here), moved(second, here - move)
    shared = near & far
    if not shared.any():
        return near if position <= 0.5 else far
    away = ndimage.distance_transform_edt(~shared)
    reach = [away[mask].max() for mask in (near, far)]
    best, least = shared, None
    for part in np.linspace(0, 1, 33):
        shape = (near & (away <= (1 - part) * reach[0])) | (far & (away <= part * reach[1]))
        gap = abs((1 - position) * np.count_nonzero(shape ^ near) - position * np.count_nonzero(shape ^ far))
        if least is None or gap < least:
            best, least = shape, gap
    return best


def alignment(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The translation (rows, columns) that brings the first mask onto the second with the largest overlap."""
    best = np.rint(np.subtract(ndimage.center_of_mass(second), ndimage.center_of_mass(first))).astype(int)
    most = np.count_nonzero(moved(first, best) & second)
    step = SEARCH
    while step:
        tried = [best + step * np.array(way) for way in ((-1, 0), (1, 0), (0, -1), (0, 1))]
        overlaps = [np.count_nonzero(moved(first, move) & second) for move in tried]
        if max(overlaps) > most:
            best, most = tried[int(np.argmax(overlaps))], max(overlaps)
        else:
            step //= 2
    return best


def moved(mask: np.ndarray, move: np.ndarray) -> np.ndarray:
    """A mask translated by whole pixels; what leaves the slice is lost."""
    result = np.zeros_like(mask)
    places = np.argwhere(mask) + move
    inside = ((places >= 0) & (places < mask.shape)).all(axis=1)
    result[tuple(places[inside].T)] = True
    return result


def compare() -> None:
    """Print the Dice of the two versions between each other on random pairs of shapes."""
    import itk

    random = np.random.default_rng(0)
    for count in (1, 2):
        found = []
        for _ in range(20):
            mask = np.zeros((9, 96, 96), bool)
            rows, columns = np.indices((96, 96))
            for index in (0, 4, 8):
                for _ in range(count):
                    y, x, height, width = random.uniform((30, 30, 6, 6), (66, 66, 22, 22))
                    mask[index] |= ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 <= 1
            image = itk.image_from_array(mask.astype(np.uint8))
            theirs = itk.array_from_image(itk.morphological_contour_interpolator(image, axis=2)) > 0
            ours = fill_between(mask)
            found.append(2 * np.count_nonzero(ours & theirs) / (np.count_nonzero(ours) + np.count_nonzero(theirs)))
        print(f"{count} ellipses on each slice: Dice between the two {np.mean(found):.3f}, least {min(found):.3f}")


if __name__ == "__main__":
    compare()
