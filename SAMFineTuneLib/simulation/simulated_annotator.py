"""A simulated annotator of synthetic pictures: first prompts, masks as propagation offers them, and corrections.

n objects at a time on the mask decoder's 64 x 64 grid; coordinates are pixel positions of the 128 x 128 input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.models.architectures import compact
from SAMFineTuneLib.simulation.device_random import Random


@dataclass
class Prompts:
    """Prompts of n objects: `coords` (n, N, 2), `labels` (n, N), `logits` (n, 1, 64, 64), `has_logits` (n,)."""

    coords: Tensor
    labels: Tensor
    logits: Tensor
    has_logits: Tensor

    def subset(self, index: Tensor) -> Prompts:
        """The prompts of some of the objects."""
        return Prompts(self.coords[index], self.labels[index], self.logits[index], self.has_logits[index])


def boxes_of(masks: Tensor) -> Tensor:
    """(n, 4) x0, y0, x1, y1: the outermost pixels of masks (n, S, S)."""
    side = masks.shape[-1]
    line = torch.arange(side, device=masks.device)
    ends = [(torch.where(there, line, side - 1).amin(1), torch.where(there, line, 0).amax(1))
            for there in (masks.any(1), masks.any(2))]  # fmt: skip
    return torch.stack([end[number] for number in (0, 1) for end in ends], 1)


def loose_boxes(rng: Random, masks: Tensor) -> Tensor:
    """(n, 4) x0, y0, x1, y1 of masks (n, S, S), tight or each side moved by up to a tenth of the box."""
    count, box = len(masks), boxes_of(masks).float()
    sides = (box[:, 2:] - box[:, :2] + 1).repeat(1, 2)
    moved = rng.uniform(-0.1, 0.1, count, 4) * sides
    slack = torch.where(rng.chance(0.6, count, 1), moved, rng.uniform(-0.5, 0.5, count, 4))
    return (box + slack).clamp(0, masks.shape[-1] - 1)


def first_prompts(box: Tensor, point: Tensor, by_box: Tensor) -> Prompts:
    """Boxes (n, 4) where `by_box` (n,) says so, else points (n, 2) with one padding point."""
    corners = box.reshape(-1, 2, 2)
    single = torch.stack([point, torch.zeros_like(point)], dim=1)
    chosen = by_box[:, None]
    coords = torch.where(chosen[..., None], corners, single)
    labels = torch.where(
        chosen, torch.tensor([2.0, 3.0], device=box.device), torch.tensor([1.0, -1.0], device=box.device)
    )
    count, side = len(box), compact.LOW_RES_SIZE
    return Prompts(coords, labels, box.new_zeros(count, 1, side, side), box.new_zeros(count))


def shift_masks(masks: Tensor, offset: Tensor) -> Tensor:
    """Move each mask of (n, 64, 64) by whole low-resolution pixels (n, 2), x and y; empty pixels come in."""
    side = masks.shape[-1]
    axis = torch.arange(side, device=masks.device)
    columns, rows = (axis - offset[:, i : i + 1] for i in (0, 1))
    inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
    number = torch.arange(len(masks), device=masks.device)[:, None, None]
    return masks[number, rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None, :]] * inside


def offer_neighbour_masks(prompts: Prompts, target: Tensor, by_box: Tensor, rng: Random) -> Prompts:
    """Give some objects a mask prompt as propagation does, with the object as a neighbouring slice might show it.

    A quarter of the boxes get one beside the box; a twentieth of the objects get a mask and no other prompt.
    """
    count = len(target)
    chance, level, offset = (rng.uniform(0, 1, count, *shape) for shape in ((), (), (2,)))
    alone = chance > 0.95
    offered = alone | (by_box & (chance < 0.25))
    reach = 0.12 * target.sum((1, 2)).sqrt()
    moved = shift_masks(target, ((2 * offset - 1) * reach[:, None]).round().long())
    # Averaging and a random threshold grow or shrink the mask.
    smooth = F.avg_pool2d(moved[:, None], 5, 1, 2)
    mask = torch.where(smooth > 0.2 + 0.6 * level[:, None, None, None], 10.0, -10.0)
    given = offered.float()
    labels = torch.where(alone[:, None], torch.full_like(prompts.labels, -1), prompts.labels)
    return Prompts(prompts.coords, labels, mask * given[:, None, None, None], given)


def more_points(prompts: Prompts, target: Tensor, count: int, rng: Random) -> Prompts:
    """Add `count` points to each object: two thirds anywhere in it, the others outside, half of them close to it and
    half anywhere in its doubled box, since a point outside does not mean that the object ends there."""
    truth = target > 0.5
    close = (F.max_pool2d(truth.float()[:, None], 9, 1, 4)[:, 0] > 0) & ~truth
    around = (_doubled_box(truth) & ~truth) | close
    coords, labels = prompts.coords, prompts.labels
    for _ in range(count):
        inside = rng.chance(2 / 3, len(target)) | ~close.flatten(1).any(1)
        outside = torch.where(rng.chance(0.5, len(target), 1, 1), close, around)
        click, _ = _click(torch.where(inside[:, None, None], truth, outside), rng)
        coords = torch.cat([coords, click[:, None]], dim=1)
        labels = torch.cat([labels, inside[:, None].float()], dim=1)
    return Prompts(coords, labels, prompts.logits, prompts.has_logits)


def _doubled_box(truth: Tensor) -> Tensor:
    """The tight boxes of masks (n, h, w), longer by half their sides at either end, as masks."""
    line = torch.arange(truth.shape[-1], device=truth.device)
    x0, y0, x1, y1 = boxes_of(truth).split(1, dim=1)
    rows, columns = ((line - (low + high) / 2).abs() <= high - low + 0.5 for low, high in ((y0, y1), (x0, x1)))
    return rows[:, :, None] & columns[:, None, :]


def correct(prompts: Prompts, logits: Tensor, target: Tensor, rng: Random) -> Prompts:
    """Add one click where `logits` (n, 64, 64) are wrong, half of the time in the middle of a large error, else
    anywhere in one, and offer the logits as mask prompt to some of the objects."""
    truth, answer = target > 0.5, logits > 0
    wrong = truth != answer
    # Where nothing is wrong, a click inside the object, as from a user who confirms it.
    candidates = torch.where(wrong.flatten(1).any(1)[:, None, None], wrong, truth)
    anywhere, middle = _click(candidates, rng), _click(candidates, rng, _interior(candidates))
    in_middle = rng.chance(0.5, len(target))
    click = torch.where(in_middle[:, None], middle[0], anywhere[0])
    index = torch.where(in_middle, middle[1], anywhere[1])
    label = truth.flatten(1).gather(1, index[:, None]).float()
    feed = rng.chance(0.6, len(target)).float()
    return Prompts(
        torch.cat([prompts.coords, click[:, None]], dim=1),
        torch.cat([prompts.labels, label], dim=1),
        logits.detach()[:, None] * feed[:, None, None, None],
        feed,
    )


def _interior(masks: Tensor) -> Tensor:
    """How deep each pixel lies in large pieces of masks (n, 64, 64); 0 outside."""
    mass = masks.float()[:, None]
    return sum(F.avg_pool2d(mass, size, 1, size // 2)[:, 0] for size in (3, 7, 15, 31)) * masks


def _click(candidates: Tensor, rng: Random, preferred: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Draw one true pixel of each mask (n, 64, 64), by `preferred` (n, 64, 64) where that is given: its place (n, 2) in
    the input, and its index (n,)."""
    count, side = len(candidates), compact.LOW_RES_SIZE
    drawn = rng.uniform(0.01, 0.02, *candidates.shape) + preferred
    index = (drawn * candidates).flatten(1).argmax(1)
    # One low-res pixel covers two input pixels, whose common centre is at 2 c + 0.5.
    return 2 * torch.stack([index % side, index // side], dim=1) + rng.uniform(0, 1, count, 2), index
