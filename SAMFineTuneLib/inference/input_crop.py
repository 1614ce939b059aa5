"""Chooses the part of a picture that a model looks at: its view.

A model with a small input resolves few pixels of a small structure in a large slice, so models marked `zoom` look at a
square around the prompts. The squares have fixed sides, each larger by the same factor, and centres on a fixed grid, so
that prompts close to each other share one embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.prompts import PlanePrompts

SURROUNDINGS = 2.0
"""Smallest side of the square, in units of the object's longer side."""
WIDE_SURROUNDINGS = 4.0
"""The same for small objects, up to the model's own input size: a smaller square would not show more detail."""
SMALLEST_SIDE = 24
"""Pixels of the picture; a smaller square shows too little of the surroundings."""
_FURTHER_SCALES = (2**-0.5, 2**0.5)
"""Sides of the additional views for prompts that define the object's size, relative to the first view."""
_POINT_SCALES = (1.0, 0.5, 0.25, 0.125)
"""Sides of a lone point's views, relative to the picture's longer side."""
_SMALL_PICTURE = 2  # a picture is small when its longer side is less than this many times the model's input
_SMALL_PICTURE_SCALE, _SMALL_PICTURE_SIDE = 0.25, 28  # smallest view there: relative to the longer side, and in pixels
_NARROWER = 1.5  # ratio of a lone point's last two views, more than one step
_STEP = math.sqrt(2.0)  # ratio of one side to the next
_GRID = 8  # centres lie on multiples of side / 8
_WHOLE_FROM = 0.8  # a square of at least this fraction of the picture's longer side becomes the whole picture


@dataclass(frozen=True)
class View:
    """A rectangle of a picture in whole pixels: `rows` x `columns` from (`top`, `left`)."""

    top: int
    left: int
    rows: int
    columns: int

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> View:
        """The view that shows all of a picture of this shape."""
        return cls(0, 0, shape[0], shape[1])

    def crop(self, picture: np.ndarray) -> np.ndarray:
        """The part of a picture (rows, columns) that the view shows."""
        return picture[self.top : self.top + self.rows, self.left : self.left + self.columns]

    def to_view(self, points: np.ndarray) -> np.ndarray:
        """Pixels x, y (..., 2) of the picture → pixels of the view."""
        return np.asarray(points, np.float32) - np.float32([self.left, self.top])

    def paste(self, cropped: np.ndarray, shape: tuple[int, int], fill: float | bool) -> np.ndarray:
        """Place values (..., rows, columns) of this view in the whole picture (..., *shape), with `fill` elsewhere."""
        if cropped.shape[-2:] == shape:
            return cropped
        full = np.full((*cropped.shape[:-2], *shape), fill, cropped.dtype)
        full[..., self.top : self.top + self.rows, self.left : self.left + self.columns] = cropped
        return full

    def shown_in(self, other: View, pixels: np.ndarray, unseen: np.ndarray | float) -> np.ndarray:
        """The pixels of another view, taken from `pixels` (rows, columns) of this one, and `unseen` beyond it."""
        shown = np.full((other.rows, other.columns), unseen, pixels.dtype)
        top, left = max(self.top, other.top), max(self.left, other.left)
        bottom = min(self.top + self.rows, other.top + other.rows)
        right = min(self.left + self.columns, other.left + other.columns)
        if top < bottom and left < right:
            own = pixels[top - self.top : bottom - self.top, left - self.left : right - self.left]
            shown[top - other.top : bottom - other.top, left - other.left : right - other.left] = own
        return shown

    def shows(self, points: np.ndarray) -> np.ndarray:
        """Whether each of the points x, y (N, 2) lies in the view, bool (N,)."""
        x, y = np.asarray(points, float).reshape(-1, 2).T
        across = (x >= self.left - 0.5) & (x <= self.left + self.columns - 0.5)
        return across & (y >= self.top - 0.5) & (y <= self.top + self.rows - 0.5)

    def contains(self, points: np.ndarray) -> bool:
        """Whether all points x, y (N, 2) lie in the view."""
        return bool(self.shows(points).all())


def square_view(shape: tuple[int, ...], center: tuple[float, float], side: float) -> View:
    """The square whose side is nearest to `side` pixels, around `center` (x, y), shifted into the picture."""
    rows, columns = shape[:2]
    step = round(math.log(max(side, SMALLEST_SIDE) / SMALLEST_SIDE, _STEP))
    length = round(SMALLEST_SIDE * _STEP**step)
    if length >= _WHOLE_FROM * max(rows, columns):
        return View.whole(shape)
    grid = max(length / _GRID, 1.0)
    height, width = min(length, rows), min(length, columns)
    left = round(round(center[0] / grid) * grid - length / 2)
    top = round(round(center[1] / grid) * grid - length / 2)
    return View(min(max(top, 0), rows - height), min(max(left, 0), columns - width), height, width)


def view_of_box(shape: tuple[int, ...], box: np.ndarray, pixels: int) -> View:
    """The surroundings of a box x0, y0, x1, y1, for a model with an input of `pixels` a side."""
    x0, y0, x1, y1 = (float(value) for value in box)
    longer = max(x1 - x0, y1 - y0) + 1.0
    side = max(SURROUNDINGS * longer, min(WIDE_SURROUNDINGS * longer, pixels))
    return square_view(shape, ((x0 + x1) / 2, (y0 + y1) / 2), side)


def views_around(shape: tuple[int, ...], view: View, points: np.ndarray) -> list[View]:
    """A view, and those narrower and wider ones with the same centre that contain all points x, y (N, 2)."""
    middle = view.left + view.columns / 2, view.top + view.rows / 2
    around = [square_view(shape, middle, max(view.rows, view.columns) * scale) for scale in _FURTHER_SCALES]
    return list(dict.fromkeys([view, *(one for one in around if one.contains(points))]))


def views_of_point(shape: tuple[int, ...], point: np.ndarray, pixels: int) -> list[View]:
    """Views for one point x, y, whose object may have any size, widest first.

    A view with fewer pixels than the model's input (`pixels` a side) does not show more detail, only less of the
    surroundings. One such view is included, because small objects would otherwise get too few votes. Small pictures
    show as much of the patient in fewer pixels, so there the narrowest view is a fraction of the picture.
    """
    longer = max(shape[:2])
    least = min(longer, pixels)
    if longer < _SMALL_PICTURE * pixels:
        least = max(_SMALL_PICTURE_SCALE * longer, min(longer, _SMALL_PICTURE_SIDE))
    sides = [longer * scale for scale in _POINT_SCALES if longer * scale >= least]
    center = (float(point[0]), float(point[1]))
    return list(dict.fromkeys(square_view(shape, center, side) for side in (*sides, sides[-1] / _NARROWER)))


def bounding_box(mask: np.ndarray) -> np.ndarray | None:
    """x0, y0, x1, y1 (float32, pixel centres) of a 2-D mask; None when it is empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.float32([columns[0], rows[0], columns[-1], rows[-1]])


def box_around_prompts(prompts: PlanePrompts) -> np.ndarray | None:
    """The rectangle x0, y0, x1, y1 around box, mask and positive points; None when there are none."""
    corners = [prompts.points[prompts.labels == 1].reshape(-1, 2)]
    if prompts.box is not None:
        corners.append(np.asarray(prompts.box, np.float32).reshape(2, 2))
    if prompts.mask is not None and (around := bounding_box(prompts.mask)) is not None:
        corners.append(around.reshape(2, 2))
    points = np.concatenate(corners)
    if not len(points):
        return None
    return np.concatenate([points.min(axis=0), points.max(axis=0)]).astype(np.float32)


def extent_of_points(points: np.ndarray, pixels: int) -> np.ndarray:
    """Estimate the extent x0, y0, x1, y1 of the object in which n > 1 points x, y (n, 2) lie.

    n random points in an interval span (n - 1) / (n + 1) of it on average. The span is enlarged by the square root of
    the inverse only: users also click at an object's ends, and a view has room around it. The extent is never so small
    that its view would have fewer than `pixels` a side, because points may lie close together by chance.
    """
    low, high, count = points.min(axis=0), points.max(axis=0), len(points)
    half = np.maximum((high - low) / 2 * np.sqrt((count + 1) / (count - 1)), pixels / WIDE_SURROUNDINGS / 2)
    return np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half]).astype(np.float32)
