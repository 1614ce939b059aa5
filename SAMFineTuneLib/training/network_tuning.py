"""Fine-tuning one network on items: the loss of a batch, embeddings that are kept, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.models.adapters.tuning import trainable
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.training.device_memory import compute_blocks_twice, mixed_precision, pictures_at_once
from SAMFineTuneLib.training.interactive_training import TrainingObjects, session_loss
from SAMFineTuneLib.training.losses import class_loss
from SAMFineTuneLib.training.process_group import ProcessGroup
from SAMFineTuneLib.training.rehearsal import Rehearsal
from SAMFineTuneLib.training.training_items import Items, TrainingItem
from SAMFineTuneLib.training.training_loop import Schedule, Training, TrainingHistory, train
from SAMFineTuneLib.training.training_settings import TrainingSettings

_AUTOMATIC_WEIGHT = 1.0  # of the automatic head's loss beside the prompted one
_EPSILON = 1e-6  # of AdamW: gradients of mere rounding noise change nothing
_CLASS_HEAD_RATE = 3.0  # in learning rates
_REHEARSED = 2  # one synthetic picture with so many of the cases
_EMBEDDINGS = 1 << 30  # bytes of embeddings that are kept when the encoder does not learn


@dataclass
class NetworkTuning:
    """A network with a method attached, and everything that its training needs."""

    network: nn.Module
    spec: ModelSpec
    settings: TrainingSettings
    items: Items
    device: torch.device
    group: ProcessGroup = field(default_factory=ProcessGroup)
    rehearsal: Rehearsal | None = None
    """Synthetic pictures that are trained on as well, so that the network does not forget them; None without these."""
    validate: Callable[[], float] | None = None
    """Dice of the present network; None: no early stop."""
    report: Callable[[TrainingHistory], None] = lambda history: None
    look: Callable[[], None] = lambda: None
    """Raises Stopped when the training should stop."""


def tune(tuning: NetworkTuning, checkpoint: Path | None = None, part: int = 0) -> TrainingHistory:
    """Train a network; it then holds the best weights.

    Args:
        tuning: network, data and settings.
        checkpoint: where to continue, see `train`.
        part: distinguishes trainings of one seed.
    """
    settings, network = tuning.settings, tuning.network.to(tuning.device)
    at_once, twice = pictures_at_once(
        network, tuning.spec, tuning.device, settings.batch, settings.micro_batch, settings.checkpointing,
        learns=settings.method.trains_encoder,
    )  # fmt: skip
    if twice:
        compute_blocks_twice(network)
    embeddings = Embeddings(tuning, at_once)
    return train(
        Training(
            state=trainable(network), optimiser=make_optimiser(network, settings),
            gradients=lambda step: _gradients(tuning, embeddings, step),
            schedule=Schedule(settings.rate, settings.warm_up, settings.steps,
                              decay=lambda left: left**settings.decay_power),
            seed=(settings.seed, part), group=tuning.group, validate=tuning.validate,
            validations=settings.validations, patience=settings.patience, report=tuning.report, look=tuning.look,
        ),
        checkpoint,
    )  # fmt: skip


def make_optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW. A new class head learns faster, and modules of the base learn slower than added ones. Weight decay pulls
    LoRA and Adapters back to zero, where they begin. Modules of the base that are trained whole have none, because it
    would wear down what they know; neither have biases, norms and tokens.
    """
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, parameter in trainable(network).items():
        added = ".lora_" in name or "adapter" in name or settings.method.method == "vanilla"
        plain = not added or parameter.ndim < 2 or "token" in name or "norm" in name or "embed" in name
        share = _CLASS_HEAD_RATE if ".class_head." in name else 1.0 if added else settings.whole_share
        groups.setdefault((plain, share), []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": tensors, "weight_decay": 0.0 if plain else settings.weight_decay, "share": share}
            for (plain, share), tensors in groups.items()
        ],
        lr=settings.rate,
        eps=_EPSILON,
    )


def _gradients(tuning: NetworkTuning, embeddings: Embeddings, step: int) -> dict[str, float]:
    """Gradients of this process's pictures; its parts of the mean loss and of the first answers' mean IoU."""
    batch_size, look = tuning.settings.batch, tuning.group.alone(tuning.look)
    numbers = [step * batch_size + place for place in tuning.group.part_of(batch_size)]
    loss, iou = 0.0, 0.0
    for begin in range(0, len(numbers), embeddings.at_once):
        shown = numbers[begin : begin + embeddings.at_once]
        drawn = [(tuning.items, number) for number in shown]
        if tuning.rehearsal:
            drawn += [(tuning.rehearsal, number // _REHEARSED) for number in shown if number % _REHEARSED == 0]
        batch = []
        for draw, number in drawn:
            look()
            batch.append(draw(number))
        part, first = batch_loss(tuning, embeddings, batch)
        (part.sum() / batch_size).backward()
        loss += float(part.detach()[: len(shown)].sum()) / batch_size
        iou += float(first[: len(shown)].sum()) / batch_size
    return {"loss": loss, "iou": iou}


def batch_loss(tuning: NetworkTuning, embeddings: Embeddings, batch: list[TrainingItem]) -> tuple[Tensor, Tensor]:
    """Losses (B,) of the items, each the mean over its objects plus that of the automatic head; IoU (B,)."""
    network, settings, device = tuning.network, tuning.settings, tuning.device
    embedding, places = embeddings(batch)
    losses = torch.zeros(len(batch), device=device)
    iou = torch.zeros(len(batch), device=device)
    objects, item_of = _objects(batch, places, device)
    if len(objects):
        each, first = session_loss(network, tuning.spec, embedding, objects, settings.feedback)
        count = torch.bincount(item_of, minlength=len(batch)).clamp(min=1)
        losses = losses.index_add(0, item_of, each / count[item_of])
        iou = iou.index_add(0, item_of, first / count[item_of])
    looking = [number for number, item in enumerate(batch) if item.classes is not None]
    if looking:
        last = torch.tensor([places[number][-1] for number in looking], device=device)
        logits = network.decode_classes({name: value[last] for name, value in embedding.items()})
        shares = torch.from_numpy(np.stack([batch[number].classes for number in looking])).to(device)
        looked = torch.tensor(looking, device=device)
        losses = losses.index_add(0, looked, _AUTOMATIC_WEIGHT * class_loss(logits, shares))
    return losses, iou.detach()


def _objects(
    batch: list[TrainingItem], places: list[list[int]], device: torch.device
) -> tuple[TrainingObjects, Tensor]:
    """All objects of a batch, and the item (n,) that each is of."""
    item_of = np.repeat(np.arange(len(batch)), [len(item.labels) for item in batch])

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(item, name) for item in batch])).to(device)

    owner = torch.tensor([places[number][0] for number in item_of], dtype=torch.long, device=device)
    parts = [joined(name) for name in ("coords", "labels", "ambiguous", "targets", "beyond", "chances")]
    return TrainingObjects(owner, *parts, _counted(batch, item_of, device)), torch.from_numpy(item_of).to(device)


def _counted(batch: list[TrainingItem], item_of: np.ndarray, device: torch.device) -> Tensor | None:
    """(n, L, L): the part of each cell that counts for each object; None where everything does."""
    if all(item.ignored is None for item in batch):
        return None
    side = batch[0].targets.shape[-1]
    counted = [np.ones((side, side), np.float32) if one.ignored is None else 1 - one.ignored for one in batch]
    return torch.from_numpy(np.stack(counted)[item_of]).to(device)


class Embeddings:
    """Embeds the pictures of a batch: with gradients when the encoder learns, else once for all."""

    def __init__(self, tuning: NetworkTuning, at_once: int) -> None:
        self.at_once = at_once
        self._tuning = tuning
        self._kept = None if tuning.settings.method.trains_encoder else EmbeddingCache(memory_bytes=_EMBEDDINGS)

    def __call__(self, batch: list[TrainingItem]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """The embedding of all different pictures, and each item's places in it."""
        pictures: dict[tuple, np.ndarray] = {}
        for item in batch:
            pictures.update(zip(item.keys, item.images, strict=True))
        places = {key: number for number, key in enumerate(pictures)}
        if self._kept is None:
            embedding = self._encode(np.stack(list(pictures.values())))
        else:
            parts = [self._kept.get_or_compute(str(key), partial(self._without_gradients, picture))
                     for key, picture in pictures.items()]  # fmt: skip
            joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            embedding = {name: torch.from_numpy(value).to(self._tuning.device) for name, value in joined.items()}
        return embedding, [[places[key] for key in item.keys] for item in batch]

    def _encode(self, pictures: np.ndarray) -> dict[str, Tensor]:
        tuning = self._tuning
        with mixed_precision(tuning.device, tuning.settings.precision):
            found = tuning.network.encode(torch.from_numpy(pictures).to(tuning.device))
        return {name: value.float() for name, value in found.items()}

    def _without_gradients(self, picture: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {name: value.cpu().numpy() for name, value in self._encode(picture[None]).items()}
