"""Losses of fine-tuning: Dice with cross-entropy, of objects and of classes, and the squared error of predicted IoU.

Shapes: n objects, T mask candidates, C classes, L low-resolution side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Where all candidates are compared by predicted IoU, or one point means one label, the others must learn a little too.
_ALL_CANDIDATES = 0.3
_SINGLE_OF_AMBIGUOUS = 0.3
_BEST_OF_OTHERS = 0.2


@dataclass(frozen=True)
class Round:
    """Loss (n,) of one answer to n objects, and the real IoU (n, T) of its candidates."""

    loss: Tensor
    iou: Tensor


def dice_loss(probability: Tensor, target: Tensor) -> Tensor:
    """Dice loss with squared denominator (Milletari 2016) over the last two dimensions."""
    overlap = (probability * target).sum((-2, -1))
    return 1 - (2 * overlap + 1) / ((probability**2).sum((-2, -1)) + (target**2).sum((-2, -1)) + 1)


def mask_losses(
    logits: Tensor, target: Tensor, beyond: Tensor, counted: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Logits (n, T, L, L), target (n, L, L) in 0..1 -> Dice + cross-entropy (n, T), real IoU (n, T).

    The `beyond` (n,) cells of the object that lie outside the picture count in the IoU, so that it is lower for a view
    that cuts the object than for one that holds it. `counted` (n, L, L) is the part of each cell that counts; None:
    everything does.
    """
    target = target[:, None]
    entropy = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    answer, probability = logits.detach() > 0, logits.sigmoid()
    if counted is None:
        entropy = entropy.mean((2, 3))
    else:
        counted = counted[:, None]
        entropy = (entropy * counted).sum((2, 3)) / counted.sum((2, 3)).clamp(min=1)
        answer, probability = answer & (counted > 0.5), probability * counted
    return dice_loss(probability, target) + entropy, real_iou(answer, target, beyond)


@torch.no_grad()
def real_iou(answer: Tensor, target: Tensor, beyond: Tensor) -> Tensor:
    """IoU (n, T) of answers (n, T, L, L), bool, with the target (n, 1, L, L) and its `beyond` (n,) cells outside."""
    truth = target > 0.5
    union = (answer | truth).sum((2, 3)) + beyond[:, None]
    return (answer & truth).sum((2, 3)) / union.clamp(min=1)


def round_loss(
    logits: Tensor, predicted_iou: Tensor, target: Tensor, ambiguous: Tensor, beyond: Tensor, ranks_all: bool,
    counted: Tensor | None = None,
) -> Round:
    """Logits (n, T, L, L), predicted IoU (n, T), target (n, L, L), `ambiguous` (n,) bool: a lone point; `beyond` (n,)
    and `counted` (n, L, L): see `mask_losses`.

    The candidates of an ambiguous prompt are 1..T-1, of any other candidate 0, and the best candidate learns; a model
    that `ranks_all` compares all of them for any prompt.
    """
    losses, iou = mask_losses(logits, target, beyond, counted)
    single, others = losses[:, 0], losses[:, 1:]
    error = (predicted_iou - iou) ** 2
    several = others.amin(1) + _ALL_CANDIDATES * others.mean(1)
    if ranks_all:
        several = several + _SINGLE_OF_AMBIGUOUS * single
        lone = single + _BEST_OF_OTHERS * others.mean(1)
        judged = error.mean(1)
    else:
        lone = single
        judged = torch.where(ambiguous, error[:, 1:].mean(1), error[:, 0])
    return Round(torch.where(ambiguous, several, lone) + judged, iou)


def class_loss(logits: Tensor, shares: Tensor) -> Tensor:
    """Logits and target shares (B, C, L, L), background first -> cross-entropy + mean Dice loss of the classes that
    are not background and are there (B,). Cells count by the sum of their shares.

    Half of the cross-entropy counts every pixel alike, half every class: structures fill few pixels of a whole slice,
    and a few steps would teach background alone. A class that is not there has no Dice.
    """
    entropy = -(shares * logits.log_softmax(1))
    sizes = shares.sum((2, 3))
    there = (sizes >= 1).to(logits.dtype)
    by_class = entropy.sum((2, 3)) / sizes.clamp(min=1)
    balanced = (by_class * there).sum(1) / there.sum(1).clamp(min=1)
    counted = shares.sum(1, keepdim=True)
    dice = dice_loss(logits.softmax(1) * counted, shares)[:, 1:] * there[:, 1:]
    mean_dice = dice.sum(1) / there[:, 1:].sum(1).clamp(min=1)
    everywhere = entropy.sum((1, 2, 3)) / counted.sum((1, 2, 3)).clamp(min=1)
    return 0.5 * everywhere + 0.5 * balanced + mean_dice
