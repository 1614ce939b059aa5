"""Everything mode: segments all objects of a slice without prompts.

Each slice is prompted with a grid of single points (strategy S1 of the COSMOS study, arXiv 2304.14660). The masks are
filtered as in Segment Anything (Kirillov et al. 2023, appendix B): by predicted IoU, by stability (how little a mask
depends on the threshold), and by non-maximum suppression of their boxes. Models differ in the range of their scores
and the steepness of their logits, so both are compared with the model's own on that slice; stability is measured before
masks are enlarged. Finer layers repeat this on overlapping tiles: a mask cut by a tile's edge is dropped, and of two
equal masks that of the smaller tile stays. `object_linking` joins the masks through the slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, aligned_plane, picture
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_plane import slice_range
from SAMFineTuneLib.inference.input_crop import View, bounding_box
from SAMFineTuneLib.inference.mask_candidates import edges_that_cut
from SAMFineTuneLib.inference.mask_shapes import pieces, stability_score
from SAMFineTuneLib.inference.progress import Cancelled, Meter, Progress
from SAMFineTuneLib.inference.settings import EverythingSettings

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.prediction import Decoded
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.models.preprocess import InputGeometry

POINTS_PER_BATCH = 64
SAME_BOX = 0.9
"""Boxes in the model's small grid whose IoU is higher show the same object; only the best one is enlarged."""
MIN_SCORE = 0.5
"""Smallest predicted IoU, as a fraction of the best one in its layer of the slice."""
MIN_STABILITY = 0.8
"""Smallest IoU of the masks at the thresholds + and - STABILITY_OFFSET."""
STABILITY_OFFSET = 0.1
"""In units of the median absolute logit; for Segment Anything's own models this is about its 1.0."""
MAX_BOX_OVERLAP = 0.7
"""Of two masks whose boxes overlap more (IoU), the one with the lower score is dropped."""
MIN_AREA = 20
"""Smallest mask, and smallest connected piece of a mask, in pixels."""
MAX_AREA = 0.5
"""Largest mask as a fraction of the slice; what is larger is background."""
TILE_OVERLAP = 512 / 1500
"""How far neighbouring tiles overlap, as a fraction of the picture's shorter side over the tiles per side."""


@dataclass(frozen=True)
class AutomaticMask:
    """A mask found without a prompt."""

    mask: PackedMask
    score: float
    """Predicted IoU."""
    box: tuple[int, int, int, int]
    """First and last column and row: x0, y0, x1, y1."""


@dataclass(frozen=True, eq=False)
class SliceMasks:
    """All masks of one slice, best score first."""

    index: int
    plane: SlicePlane
    masks: tuple[AutomaticMask, ...]


def automatic_masks(
    predictor: Predictor, shown: np.ndarray, settings: EverythingSettings, cancelled: Cancelled = lambda: False
) -> list[AutomaticMask]:
    """Find all objects of a picture.

    Args:
        predictor: the open model.
        shown: the picture, uint8 (rows, columns).
        settings: number of points and of layers.
        cancelled: called before each batch of points; true ends the search.

    Returns:
        The masks, best score first; when cancelled, those found so far.
    """
    layers = settings.layers
    if layers is None:
        layers = 1 if predictor.engine.spec.zoom else 0
    found: list[AutomaticMask] = []
    sides: list[int] = []
    for layer in range(layers + 1):
        views = tiles(shown.shape, layer)
        per_side = max(1, settings.points_per_side >> layer)
        per_view = [_candidates_of_view(predictor, shown, view, per_side, cancelled) for view in views]
        enough = MIN_SCORE * max((one.score for candidates in per_view for one in candidates), default=0.0)
        for view, candidates in zip(views, per_view, strict=True):
            good = [one for one in candidates if one.score >= enough]
            masks = _enlarged(good, view, shown.shape)
            found += masks
            sides += [view.rows * view.columns] * len(masks)
    if layers:  # of one object seen in several tiles, the mask of the smallest tile counts
        found = [found[i] for i in box_nms(_edges(found), -np.array(sides, float), MAX_BOX_OVERLAP)]
    return sorted(found, key=lambda mask: -mask.score)


def tiles(shape: tuple[int, ...], layer: int) -> list[View]:
    """The overlapping tiles of a layer; layer 0 is the whole picture."""
    per_side = 2**layer
    if layer == 0:
        return [View.whole(shape)]
    shared = int(TILE_OVERLAP * min(shape[:2]) * 2 / per_side)
    rows, columns = (-(-(length + shared * (per_side - 1)) // per_side) for length in shape[:2])
    corners = [(rows - shared) * n for n in range(per_side)], [(columns - shared) * n for n in range(per_side)]
    return [
        View(top, left, min(rows, shape[0] - top), min(columns, shape[1] - left))
        for top in corners[0]
        for left in corners[1]
    ]


def grid_points(view: View, per_side: int) -> np.ndarray:
    """Centres of per_side by per_side equal cells of a view, (n, 2) as x, y in pixels of the picture."""
    xs = view.left + (np.arange(per_side) + 0.5) * view.columns / per_side - 0.5
    ys = view.top + (np.arange(per_side) + 0.5) * view.rows / per_side - 0.5
    return np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.float32)


def box_nms(boxes: np.ndarray, scores: np.ndarray, max_overlap: float) -> list[int]:
    """Non-maximum suppression: each box, best first, removes worse boxes that overlap it.

    Args:
        boxes: edges (n, 4) x0, y0, x1, y1; a box of one pixel is 1 wide.
        scores: (n,); equal scores keep their order.
        max_overlap: boxes with a higher IoU are removed.

    Returns:
        Indices of the boxes that stay, best first.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = np.argsort(-scores, kind="stable")
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        order = rest[shared <= max_overlap * (areas[best] + areas[rest] - shared)]
    return kept


def everything(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    orientation: str = "axial",
    settings: EverythingSettings | None = None,
    first: int | None = None,
    last: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Cancelled = lambda: False,
) -> Iterator[SliceMasks]:
    """Find the masks of slices; `object_linking.link` joins them to 3-D objects.

    Args:
        predictor: the open model.
        volume: the volume.
        window: the grey-value window in which the model sees it.
        orientation: of the slices.
        settings: by default `EverythingSettings()`.
        first: index of the first slice, by default 0.
        last: index of the last slice, inclusive, by default the volume's last.
        progress: called with the progress after each slice.
        cancelled: called before each batch of points; true ends the search.

    Yields:
        Each slice with its masks, until cancelled.

    Raises:
        UserError: when the volume has no such slices; raised by the call itself, not by the first `next`.
    """
    settings = settings or EverythingSettings()
    indices = slice_range(volume, orientation, first, last)
    meter = Meter(len(indices), progress)

    def found() -> Iterator[SliceMasks]:
        for index in indices:
            plane = aligned_plane(volume, orientation, index)
            masks = automatic_masks(predictor, picture(volume, plane, window), settings, cancelled)
            if cancelled():
                return
            meter.step()
            yield SliceMasks(index, plane, tuple(masks))

    return found()


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A mask in the model's own small grid: logits (h, w), box edges (4,) in its cells."""

    logits: np.ndarray
    geometry: InputGeometry
    box: np.ndarray
    score: float


def _candidates_of_view(
    predictor: Predictor, shown: np.ndarray, view: View, per_side: int, cancelled: Cancelled
) -> list[_Candidate]:
    candidates: list[_Candidate] = []
    points = grid_points(view, per_side)
    for start in range(0, len(points), POINTS_PER_BATCH):
        if cancelled():
            break
        batch = points[start : start + POINTS_PER_BATCH]
        coords = np.stack([batch, np.zeros_like(batch)], axis=1)
        labels = np.tile(np.float32([1, -1]), (len(batch), 1))
        decoded = predictor.decode(shown, coords, labels, view=view)
        candidates += _candidates(decoded)
        boxes = np.array([one.box for one in candidates]).reshape(-1, 4)
        kept = box_nms(boxes, np.array([one.score for one in candidates]), SAME_BOX)
        candidates = [candidates[index] for index in kept]
    return candidates


def _enlarged(candidates: list[_Candidate], view: View, shape: tuple[int, ...]) -> list[AutomaticMask]:
    """Enlarge the candidates' masks to the whole picture; filter them by size and overlap."""
    found = []
    for one in candidates:
        mask = _usable(one.geometry.logits_to_picture(one.logits) > 0, view, shape)
        if mask is not None:
            x0, y0, x1, y1 = (int(edge) for edge in bounding_box(mask))
            found.append(AutomaticMask(PackedMask.of(mask), one.score, (x0, y0, x1, y1)))
    kept = box_nms(_edges(found), np.array([mask.score for mask in found]), MAX_BOX_OVERLAP)
    return [found[index] for index in kept]


def _candidates(decoded: Decoded) -> list[_Candidate]:
    """The masks that are stable on the model's small grid, before they are enlarged."""
    place = decoded.geometry
    rows, columns = (-(-side * place.low_res_size // place.input_size) for side in place.content)
    low_res, scores = decoded.low_res[:, 1:4], decoded.scores[:, 1:4]
    within = low_res[..., :rows, :columns]  # the rest of the grid is padding
    stability = stability_score(within, STABILITY_OFFSET * float(np.median(np.abs(within))))
    found = []
    for prompt, token in np.argwhere(stability >= MIN_STABILITY):
        box = bounding_box(within[prompt, token] > 0)
        if box is not None:
            edges = box + np.float32([0, 0, 1, 1])
            found.append(_Candidate(low_res[prompt, token].copy(), place, edges, float(scores[prompt, token])))
    return found


def _usable(mask: np.ndarray, view: View, shape: tuple[int, ...]) -> np.ndarray | None:
    """The view's mask in the whole picture, without small pieces; None when it is too small, too large or cut off."""
    cut = any(edge.any() for edge in edges_that_cut(mask, view, shape))
    area = np.count_nonzero(mask)
    if cut or area < MIN_AREA or area > MAX_AREA * shape[0] * shape[1]:
        return None
    large = [piece for piece in pieces(mask) if np.count_nonzero(piece) >= MIN_AREA]
    if not large:
        return None
    return view.paste(np.any(large, axis=0), (shape[0], shape[1]), False)


def _edges(masks: Sequence[AutomaticMask]) -> np.ndarray:
    """Box edges (n, 4): one more than the last column and row."""
    return np.array([mask.box for mask in masks], dtype=float).reshape(-1, 4) + (0, 0, 1, 1)


