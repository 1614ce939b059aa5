"""Corrections: the clicks of a simulated user where an answer is wrong. NumPy for one answer, PyTorch for batches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.inference.mask_shapes import interior_points, pieces
from SAMFineTuneLib.prompts import PlanePrompts

if TYPE_CHECKING:
    from torch import Tensor


def correction(
    answer: np.ndarray, reference: np.ndarray, how: str, rng: np.random.Generator
) -> tuple[np.ndarray, bool] | None:
    """The next click of a simulated user.

    Args:
        answer: bool (rows, columns).
        reference: bool (rows, columns).
        how: "centre", in the middle of the largest wrong piece, or "random", anywhere in the error.
        rng: Draws random clicks.

    Returns:
        x, y and whether that place is inside; None if answer and reference agree.
    """
    wrong = answer ^ reference
    if not wrong.any():
        return None
    if how == "random":
        rows, columns = np.nonzero(wrong)
        chosen = int(rng.integers(len(rows)))
        point = np.float32([columns[chosen], rows[chosen]])
    else:  # missing and surplus pixels are separate pieces, even if they touch
        largest = max(
            (piece for part in (reference & ~answer, answer & ~reference) for piece in pieces(part)[:1]),
            key=np.count_nonzero,
        )
        point = interior_points(largest)[0]
    return point, bool(reference[int(point[1]), int(point[0])])


def with_click(prompts: PlanePrompts, point: np.ndarray, inside: bool) -> PlanePrompts:
    """The prompts and one more point."""
    return replace(
        prompts,
        points=np.concatenate([prompts.points, point[None]]),
        labels=np.append(prompts.labels, int(inside)),
    )


def batch_corrections(
    logits: Tensor, target: Tensor, chances: Tensor, input_size: int, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One click where each answer misses its target, and one where it spills over (MedicoSAM).

    Args:
        logits: Answers (n, L, L).
        target: (n, L, L), 0 to 1.
        chances: (n, 7), uniform random numbers.
        input_size: Side of the model's input.
        counted: (n, L, L), the part of each cell that counts; None: all of it.

    Returns:
        Input pixels (n, 2, 2), x and y, and labels (n, 2): 1 and 0, or -1 without an error of that kind.
    """
    import torch

    truth, answer = target > 0.5, logits > 0
    if counted is not None:
        answer = answer & (counted > 0.5)
    side = target.shape[-1]
    coords, labels = [], []
    for kind, wrong, at in ((1.0, truth & ~answer, 0), (0.0, answer & ~truth, 3)):
        flat = wrong.flatten(1)
        count = flat.sum(1)
        # The pixel of that rank among the wrong ones; without any, the first pixel, which then counts for nothing.
        rank = (chances[:, at] * count).long().clamp(max=(side * side) - 1) + 1
        index = (flat.cumsum(1) == rank[:, None]).to(torch.uint8).argmax(1)
        cell = torch.stack([index % side, index // side], 1)
        # Anywhere in the cell, in input pixels, whose centres are whole numbers.
        coords.append((cell + chances[:, at + 1 : at + 3]) * (input_size / side) - 0.5)
        labels.append(torch.where(count > 0, kind, -1.0))
    return torch.stack(coords, 1), torch.stack(labels, 1).to(coords[0].dtype)
