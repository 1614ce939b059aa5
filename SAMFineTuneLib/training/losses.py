"""Losses of fine-tuning: Dice and cross-entropy of objects and classes, and the squared error of predicted IoU.

Shapes: n objects, T mask candidates, C classes, L low-resolution side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# All candidates must learn a little if predicted IoU compares them, or if one point means one label.
_ALL_CANDIDATES = 0.3
_SINGLE_OF_AMBIGUOUS = 0.3
_BEST_OF_OTHERS = 0.2
_BALANCED = 0.1  # part of the cross-entropy that weighs all classes alike


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

    The `beyond` (n,) cells of the object outside the picture count in the IoU, so that it is lower for a view that cuts
    the object than for one that holds it. `counted` (n, L, L) is the part of each cell that counts; None: all of it.
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
    """Loss of one round of prompting.

    The candidates of an ambiguous prompt are 1 to T - 1, that of any other prompt is 0, and the best candidate learns.
    A model that `ranks_all` compares all candidates for any prompt.

    Args:
        logits: (n, T, L, L).
        predicted_iou: (n, T).
        target: (n, L, L), 0 to 1.
        ambiguous: (n,) bool, whether the prompt is a lone point.
        beyond: (n,), see `mask_losses`.
        ranks_all: Whether the model compares all candidates.
        counted: (n, L, L), see `mask_losses`.
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
    """Cross-entropy and mean Dice loss (B,) of the classes of whole slices.

    A part of the cross-entropy weighs all classes alike: structures fill few pixels of a whole slice, and a few steps
    would teach background alone. It is small, since it makes structures larger than they are. Background, and a class
    that is not there, have no Dice.

    Args:
        logits: (B, C, L, L), background first.
        shares: (B, C, L, L), the part of each cell that each class covers; cells count by the sum of their shares.
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
    return (1 - _BALANCED) * everywhere + _BALANCED * balanced + mean_dice
