"""Labelled synthetic pictures that resemble medical slices, drawn on the processor or the graphics card.

In the spirit of SynthSeg and SynthMorph (Billot 2023, Hoffmann 2022): random shapes (`synthetic_shapes`), random scenes
and contrasts (`synthetic_scenes`), random views and scanners (`synthetic_scanner`). Everything follows from one seed.
A batch is drawn at once: tensors are (n, ...), arrays [row, column].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.simulation.device_random import Random
from SAMFineTuneLib.simulation.simulated_annotator import boxes_of
from SAMFineTuneLib.training.synthetic_scanner import SIZE, display, look, scan
from SAMFineTuneLib.training.synthetic_scenes import MOST_TISSUES, SCENE_ODDS, SCENES, Canvas
from SAMFineTuneLib.training.synthetic_shapes import CANVAS, wide

GENERATOR_VERSION = 4
MIN_AREA = 24
CELLS = SIZE // 2
"""Side of the grid of targets."""
_LARGEST = 0.7  # of the view's area: what fills more is background
_SMALLEST_VIEW = 72.0  # canvas pixels


@dataclass(frozen=True)
class Pictures:
    """n pictures and m objects of each.

    `image` (n, 128, 128) float32 whole numbers 0 to 255, of which the top left `shape` (n, 2) as rows, columns hold
    picture and the rest is padding. `masks` (n, m, 128, 128) boolean, each in one piece as far as cells of two pixels
    tell; `points` (n, m, 2) an x, y inside of each, often deep. `beyond` (n, m): pixels of the object outside the view.
    """

    image: Tensor
    shape: Tensor
    masks: Tensor
    points: Tensor
    beyond: Tensor


def synthetic_pictures(
    seed: Sequence[int], count: int, objects: int, device: torch.device | str = "cpu"
) -> Pictures:
    """Draw pictures with objects.

    Args:
        seed: Everything follows from it.
        count: Number of pictures.
        objects: Objects on each picture; where a picture has fewer, some occur twice.
        device: Where the pictures are drawn.
    """
    rng = Random(seed, device)
    tissue, made_of, registered, image = _scenes(rng, count)
    start, side = _views(rng, tissue, made_of, registered)
    picture = look(rng, image, start, side)
    closeness = ((CANVAS - side) / (CANVAS - _SMALLEST_VIEW)).clamp(0, 1)
    picture = display(rng, scan(rng, picture, closeness))
    shape = _oblong(rng, count)
    line = torch.arange(SIZE, device=rng.device)
    inside = (line[None, :, None] < wide(shape[:, 0])) & (line[None, None, :] < wide(shape[:, 1]))
    seen = _seen_tissue(tissue, start, side)
    whole = 4 * _areas(tissue[:, ::2, ::2], made_of) * ((SIZE / side) ** 2)[:, None]
    chosen, beyond = _choose(rng, _areas(seen, made_of, inside), whole, made_of, registered, objects)
    masks = chosen.gather(2, seen.flatten(1).long()[:, None].expand(-1, objects, -1))
    masks = masks.reshape(count, objects, SIZE, SIZE) & inside[:, None]
    points, pieces = _pointed_at(rng, masks.flatten(0, 1))
    cut = pieces[:, 0].any(1) | pieces[:, -1].any(1) | pieces[:, :, 0].any(1) | pieces[:, :, -1].any(1)
    masks = pieces.reshape(count, objects, SIZE, SIZE)
    return Pictures(
        picture * inside, shape, masks, points.reshape(count, objects, 2), beyond * cut.reshape(count, objects)
    )


def _scenes(rng: Random, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tissues (n, S, S), the objects' tissues (n, k, k), which of these can be prompted (n, k), intensities (n, S, S).
    """
    share = torch.bincount(torch.from_numpy(rng.shared.choice(len(SCENES), count, p=SCENE_ODDS)), minlength=len(SCENES))
    parts = []
    for scene, number in zip(SCENES, share.tolist(), strict=True):
        if number:
            canvas = Canvas(rng, number)
            scene(canvas)
            parts.append((canvas.tissue, canvas.made_of, canvas.registered, canvas.render()))
    order = torch.from_numpy(rng.shared.permutation(count)).to(rng.device)
    return tuple(torch.cat(part)[order] for part in zip(*parts, strict=True))


def _areas(tissue: Tensor, made_of: Tensor, where: Tensor | None = None) -> Tensor:
    """Pixels (n, k) of every object on pictures of tissues (n, H, W), `where` (n, H, W) is true."""
    count = len(tissue)
    number = tissue.flatten(1).long() + MOST_TISSUES * torch.arange(count, device=tissue.device)[:, None]
    weights = None if where is None else where.flatten().float()
    pixels = torch.bincount(number.flatten(), weights, count * MOST_TISSUES).reshape(count, MOST_TISSUES, 1)
    return (made_of.float() @ pixels.float())[..., 0]


def _draw(rng: Random, areas: Tensor, allowed: Tensor, number: int) -> Tensor:
    """Draw `number` of the `allowed` objects (n, k) of each picture, rather large ones; some twice if there are few."""
    rank = torch.where(allowed, 0.5 * (areas + 1).log() + rng.gumbel(*areas.shape), float("-inf"))
    order = rank.topk(number, dim=1).indices
    there = allowed.sum(1, keepdim=True).clamp(min=1)
    return order.gather(1, torch.arange(number, device=areas.device) % there)


def _views(rng: Random, tissue: Tensor, made_of: Tensor, registered: Tensor) -> tuple[Tensor, Tensor]:
    """Choose views: often of two to four times an object's box, as the predictor does around a prompt, else from
    anywhere near it, or anywhere. Returns left and top (n, 2) and side (n,) in canvas pixels.
    """
    count = len(tissue)
    coarse = tissue[:, ::2, ::2]
    areas = 4 * _areas(coarse, made_of)
    allowed = registered & (areas > 60) & (areas < _LARGEST * CANVAS**2)
    object_tissues = made_of.gather(1, _draw(rng, areas, allowed, 1)[:, :, None].expand(-1, 1, MOST_TISSUES))[:, 0]
    mask = object_tissues.gather(1, coarse.flatten(1).long()).reshape(coarse.shape)
    boxes = 2 * boxes_of(mask)
    low, high = boxes[:, :2].float(), boxes[:, 2:].float() + 2
    longer = (high - low).amax(1)
    kind = rng.uniform(0, 1, count)
    close, near = longer * rng.log_uniform(1.3, 4.5, count), rng.log_uniform(_SMALLEST_VIEW, CANVAS, count)
    side = torch.where(kind < 0.55, close, torch.where(kind < 0.85, near, CANVAS)).clamp(_SMALLEST_VIEW, CANVAS)
    centre = (low + high) / 2 + 0.15 * side[:, None] * rng.uniform(-1, 1, count, 2)
    start = torch.minimum((centre - side[:, None] / 2).clamp(min=0), (CANVAS - side)[:, None])
    return start, side


def _seen_tissue(tissue: Tensor, start: Tensor, side: Tensor) -> Tensor:
    """Tissues (n, 128, 128) in the views."""
    line = torch.arange(SIZE, device=side.device) + 0.5
    columns, rows = (
        (start[:, axis, None] + line * (side / SIZE)[:, None]).long().clamp(0, CANVAS - 1) for axis in (0, 1)
    )
    rows = tissue.gather(1, rows[:, :, None].expand(-1, -1, CANVAS))
    return rows.gather(2, columns[:, None, :].expand(-1, SIZE, -1))


def _oblong(rng: Random, count: int) -> Tensor:
    """Rows and columns (n, 2) that hold picture: some pictures are oblong, and the model's input is padded."""
    short = rng.integers(SIZE // 2, SIZE, count)
    cut = rng.chance(0.2, count)
    upright = rng.chance(0.5, count)
    return torch.stack([torch.where(cut & (upright == flag), short, SIZE) for flag in (True, False)], 1)


def _choose(
    rng: Random, visible: Tensor, whole: Tensor, made_of: Tensor, registered: Tensor, objects: int
) -> tuple[Tensor, Tensor]:
    """The tissues (n, m, k) of m objects that are not tiny, and how much of each lies outside (n, m), from what is
    `visible` (n, k) of all objects and how large they are as a `whole` (n, k), in pixels of the view."""
    # An object that continues outside may fill the view: a point in the middle of a liver, seen from too near.
    allowed = registered & (visible >= MIN_AREA) & ((visible < _LARGEST * SIZE**2) | (whole > 1.3 * visible))
    # A picture without any such object shows the largest that there is, at the worst its background.
    shown = torch.where((registered & (visible > 0)).any(1, keepdim=True), torch.where(registered, visible, 0), visible)
    allowed |= ~allowed.any(1, keepdim=True) & (shown == shown.amax(1, keepdim=True))
    number = _draw(rng, visible, allowed, objects)
    chosen = made_of.gather(1, number[:, :, None].expand(-1, -1, MOST_TISSUES))
    return chosen, (whole - visible).clamp(min=0).gather(1, number)


def _pointed_at(rng: Random, masks: Tensor) -> tuple[Tensor, Tensor]:
    """A point (n, 2) as x, y in each of the masks (n, 128, 128), and the piece of the mask that it lies in."""
    count = len(masks)
    share = F.avg_pool2d(masks.float(), 2)
    most = share >= torch.minimum(share.flatten(1).amax(1), torch.tensor(0.75, device=rng.device))[:, None, None]
    # How deep a cell lies: how often the mask can be eroded before it is gone. Nothing lies beyond the picture.
    outside, depth = F.pad(~most, (1, 1, 1, 1), value=True), most.float()
    for _ in range(12):
        outside = _dilated(outside)
        depth += ~outside[:, 1:-1, 1:-1]
    wish = rng.integers(0, 4, count)[:, None]  # 0: anywhere in it; 3: nearly always in the middle
    lot = (wish * depth.flatten(1).clamp(min=1).log() + rng.gumbel(count, CELLS**2)).masked_fill(~most.flatten(1), -1e9)
    cell = lot.argmax(1)
    there = share > 0.2
    piece = torch.zeros_like(there).flatten(1).scatter_(1, cell[:, None], True).reshape(there.shape)
    for step in range(2 * CELLS):
        grown = _dilated(piece) & there
        if step % 8 == 7 and torch.equal(grown, piece):
            break
        piece = grown
    piece = _dilated(piece).repeat_interleave(2, 1).repeat_interleave(2, 2)
    return 2 * torch.stack([cell % CELLS, cell // CELLS], 1) + rng.uniform(0, 1, count, 2), masks & piece


def _dilated(masks: Tensor) -> Tensor:
    """Masks (n, H, W) grown by one pixel to all eight sides."""
    tall = masks.clone()
    tall[:, 1:] |= masks[:, :-1]
    tall[:, :-1] |= masks[:, 1:]
    grown = tall.clone()
    grown[:, :, 1:] |= tall[:, :, :-1]
    grown[:, :, :-1] |= tall[:, :, 1:]
    return grown
