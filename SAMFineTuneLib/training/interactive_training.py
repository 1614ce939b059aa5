"""Interactive training (MedicoSAM, Archit et al., 2025): each object is prompted, then its answer is corrected.

Each later round takes the candidate with the best predicted IoU, adds a positive click where it misses the object and a
negative one where it spills over, and feeds its logits back half of the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.simulation.corrections import batch_corrections
from SAMFineTuneLib.training.losses import round_loss


@dataclass(frozen=True)
class TrainingObjects:
    """n objects of a batch, see `training_items.Item`. `owner` (n,) is the picture of each object, `counted` (n, L, L)
    the part of each cell that counts; None: all of it."""

    owner: Tensor
    coords: Tensor
    labels: Tensor
    ambiguous: Tensor
    targets: Tensor
    beyond: Tensor
    chances: Tensor
    counted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.owner)


def session_loss(
    network: nn.Module, spec: ModelSpec, embedding: Mapping[str, Tensor], objects: TrainingObjects, feedback: float
) -> tuple[Tensor, Tensor]:
    """Prompt and correct n objects.

    Args:
        network: The network that learns.
        spec: Its model.
        embedding: That of all pictures of the batch.
        objects: The objects to segment.
        feedback: Probability that a correction comes with the previous logits as mask prompt.

    Returns:
        Mean loss (n,) over the rounds, and the real IoU (n,) of the first answers.
    """
    own = {name: value[objects.owner] for name, value in embedding.items()}
    coords, labels, ambiguous = objects.coords, objects.labels, objects.ambiguous
    side = spec.low_res_size
    logits = coords.new_zeros(len(objects), 1, side, side)
    given = coords.new_zeros(len(objects))
    losses, first = [], None
    rounds = objects.chances.shape[1]
    for number in range(rounds):
        masks, predicted = decode_as_asked(network, own, coords, labels, logits, given)
        answer = round_loss(
            masks, predicted, objects.targets, ambiguous, objects.beyond, spec.ranks_all, objects.counted
        )
        losses.append(answer.loss)
        chosen = best_candidate(predicted, ambiguous, spec.ranks_all)
        if first is None:
            first = answer.iou.gather(1, chosen[:, None])[:, 0]
        if number == rounds - 1:
            break
        before = masks.detach()[torch.arange(len(masks)), chosen]
        chances = objects.chances[:, number]
        clicks, kinds = batch_corrections(before, objects.targets, chances, spec.input_size, objects.counted)
        coords, labels = torch.cat([coords, clicks], 1), torch.cat([labels, kinds], 1)
        given = (chances[:, 6] < feedback).to(coords.dtype)
        logits = before[:, None] * given[:, None, None, None]
        ambiguous = torch.zeros_like(ambiguous)
    return torch.stack(losses).mean(0), first


def decode_as_asked(
    network: nn.Module, embedding: Mapping[str, Tensor], coords: Tensor, labels: Tensor, logits: Tensor, given: Tensor
) -> tuple[Tensor, Tensor]:
    """Decode prompts of the same length as the predictor's: objects with equally many points are decoded together, and
    only the one token that goes with points alone is padding. A network that learns with more padding also needs it
    when predicting.

    `coords` (n, N, 2), `labels` (n, N) with -1 where there is no prompt, of which an object without a box has one or
    more; -> masks (n, T, L, L), predicted IoU (n, T).
    """
    there = labels >= 0
    length = there.sum(1) + ~(labels == 2).any(1)
    order = (~there).to(torch.uint8).argsort(dim=1, stable=True)  # existing prompts come first
    coords, labels = coords.gather(1, order[..., None].expand_as(coords)), labels.gather(1, order)
    rows, answers = [], []
    for count in length.unique().tolist():
        own = (length == count).nonzero()[:, 0]
        asked = {name: value[own] for name, value in embedding.items()}
        rows.append(own)
        answers.append(network.decode(asked, coords[own, :count], labels[own, :count], logits[own], given[own]))
    back = torch.cat(rows).argsort()
    return tuple(torch.cat(part)[back] for part in zip(*answers, strict=True))


def best_candidate(predicted: Tensor, ambiguous: Tensor, ranks_all: bool) -> Tensor:
    """Index (n,) of the candidate that a user would see, from predicted IoU (n, T)."""
    if ranks_all:
        return predicted.argmax(1)
    return torch.where(ambiguous, predicted[:, 1:].argmax(1) + 1, 0)
