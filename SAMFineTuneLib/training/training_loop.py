"""One training: from an attached network and its items to trained tensors, resumable to the bit.

Everything random in step n follows from (seed, part, n). A checkpoint holds what was trained, the optimiser and the
history, and appears whole or not at all, so a run that is killed anywhere and resumed ends as an uninterrupted one.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.models.adapters.tuning import trainable
from SAMFineTuneLib.models.formats.checkpoint import load_own_checkpoint
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.training.interactive_training import Objects, session_loss
from SAMFineTuneLib.training.losses import class_loss
from SAMFineTuneLib.training.memory import compute_blocks_twice, plan
from SAMFineTuneLib.training.process_group import Gang
from SAMFineTuneLib.training.rehearsal import Rehearsal
from SAMFineTuneLib.training.training_items import Item, Items
from SAMFineTuneLib.training.training_settings import Settings

CHECKPOINT_SECONDS = 30.0
GRADIENT_NORM = 1.0
_AUTOMATIC_WEIGHT = 1.0  # of the automatic head's loss beside the prompted one
_EPSILON = 1e-6  # of AdamW: a gradient that is rounding noise alone moves nothing
_CLASS_HEAD_RATE = 3.0  # in learning rates
_REHEARSED = 2  # one synthetic picture with so many of the cases
_EMBEDDINGS = 1 << 30  # bytes of embeddings that are kept when the encoder does not learn


class Stopped(Exception):
    """The training was cancelled; its checkpoint is written."""


def stopping(cancelled: Callable[[], bool]) -> Callable[[], None]:
    """A look that raises Stopped when it is cancelled."""

    def look() -> None:
        if cancelled():
            raise Stopped

    return look


def interruptible(network: nn.Module, look: Callable[[], None]) -> nn.Module:
    """Call `look` between any two modules of a network, forward and backward: what it raises ends the computation.

    A step of a large model takes half a minute on a processor, which is too long to wait for when someone stops it.
    """

    def after(module: nn.Module, inputs: object, output: object) -> None:
        look()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: look())

    for module in network.modules():
        module.register_forward_hook(after)
    return network


@dataclass
class History:
    """The course of a training. `dice` belongs to `validated`, the steps at which it was measured."""

    loss: list[float] = field(default_factory=list)
    iou: list[float] = field(default_factory=list)
    validated: list[int] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    best: int | None = None
    """The step whose weights were kept, where there was validation."""
    ended: str = ""
    """Why it ended before its last step."""
    seconds: float = 0.0


@dataclass
class Training:
    """What `train` works on. `validate` gives a Dice of the network as it is; None: no early stop.

    Stopped, from wherever it is raised in a step or a validation, ends the training as `cancelled` does.
    """

    network: nn.Module
    spec: ModelSpec
    settings: Settings
    items: Items
    device: torch.device
    gang: Gang = field(default_factory=Gang)
    rehearsal: Rehearsal | None = None
    """What the base must not forget; None: it may forget what it likes."""
    validate: Callable[[], float] | None = None
    report: Callable[[History], None] = lambda history: None
    cancelled: Callable[[], bool] = lambda: False


def train(training: Training, checkpoint: Path | None = None, part: int = 0) -> History:
    """Train until the last step, or until validation gains no more; the network then holds what was best.

    Goes on from `checkpoint` when that exists. Raises Stopped when cancelled.
    """
    settings, network = training.settings, training.network.to(training.device)
    own, gang = trainable(network), training.gang
    optimiser = make_optimiser(network, settings)
    history, best = History(), {}
    step = _restore(checkpoint, own, optimiser, history, best, training) if checkpoint else 0
    at_once, twice = plan(network, training.spec, settings, training.device)
    if twice:
        compute_blocks_twice(network)
    embeddings = Embeddings(training, at_once)
    due = _validation_steps(settings) if training.validate else ()
    saved = started = time.monotonic()
    begun, before = step, history.seconds

    def save() -> None:
        _save(checkpoint, own, optimiser, history, best, step, training)

    try:
        if step in due and step not in history.validated:  # it was stopped in this validation
            _validate(training, own, history, best, step)
        while step < settings.steps and not history.ended:
            if gang.from_first(training.cancelled()):
                raise Stopped
            _seed(settings.seed, part, step, gang.rank)
            _set_rate(optimiser, settings, step)
            loss, iou = _step(training, embeddings, optimiser, step)
            step += 1
            history.loss.append(gang.sum(loss))
            history.iou.append(gang.sum(iou))
            if step in due:
                _validate(training, own, history, best, step)
            history.seconds = before + time.monotonic() - started
            training.report(history)
            if checkpoint and time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
    except Stopped:  # nothing of a step is kept before all of it is
        save()
        raise
    if step > begun:
        save()  # what comes next may be stopped or killed as well
    if best:
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(best[name])
    return history


def make_optimiser(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; a class head, which begins anew, learns faster, and what the base knew already slower than what is added.

    Weight decay pulls what begins at nothing (LoRA, Adapters) back to it. Modules of the base that are trained whole
    have none: it would wear down what they know. Neither have biases, norms and tokens.
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


def rate_at(step: int, settings: Settings) -> float:
    """Linear warm-up over a part of the run's steps, then polynomial decay to zero, however many steps it has."""
    warm = max(1, round(settings.warm_up * settings.steps))
    if step < warm:
        return settings.rate * (step + 1) / warm
    left = 1 - (step - warm) / max(1, settings.steps - warm)
    return settings.rate * max(left, 0.0) ** settings.decay_power


# ---------------------------------------------------------------- one step


def _step(
    training: Training, embeddings: Embeddings, optimiser: torch.optim.Optimizer, step: int
) -> tuple[float, float]:
    """This process's share of one optimiser step -> its parts of the mean loss and of the first answers' mean IoU."""
    settings = training.settings
    numbers = [step * settings.batch + place for place in training.gang.part_of(settings.batch)]
    optimiser.zero_grad(set_to_none=True)
    loss, iou = 0.0, 0.0
    for begin in range(0, len(numbers), embeddings.at_once):
        shown = numbers[begin : begin + embeddings.at_once]
        batch = []
        for number in shown:
            _look(training)
            batch.append(training.items(number))
        for number in shown if training.rehearsal else ():
            if number % _REHEARSED == 0:
                _look(training)
                batch.append(training.rehearsal(number // _REHEARSED))
        part, first = batch_loss(training, embeddings, batch)
        (part.sum() / settings.batch).backward()
        loss += float(part.detach()[: len(shown)].sum()) / settings.batch
        iou += float(first[: len(shown)].sum()) / settings.batch
    own = list(trainable(training.network).values())
    training.gang.sum_gradients(own)
    torch.nn.utils.clip_grad_norm_(own, GRADIENT_NORM)
    optimiser.step()
    return loss, iou


def _look(training: Training) -> None:
    """Stopped in the midst of a step; not where other processes would wait for this one's part of it."""
    if training.gang.size == 1 and training.cancelled():
        raise Stopped


def batch_loss(training: Training, embeddings: Embeddings, batch: list[Item]) -> tuple[Tensor, Tensor]:
    """Losses (B,) of the items, each the mean over its objects plus that of the automatic head; IoU (B,)."""
    network, settings, device = training.network, training.settings, training.device
    embedding, places = embeddings(batch)
    losses = torch.zeros(len(batch), device=device)
    iou = torch.zeros(len(batch), device=device)
    objects, item_of = _objects(batch, places, device)
    if len(objects):
        each, first = session_loss(network, training.spec, embedding, objects, settings.feedback)
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


def _objects(batch: list[Item], places: list[list[int]], device: torch.device) -> tuple[Objects, Tensor]:
    """All objects of a batch, and the item (n,) that each is of."""
    item_of = np.repeat(np.arange(len(batch)), [len(item.labels) for item in batch])

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(item, name) for item in batch])).to(device)

    owner = torch.tensor([places[number][0] for number in item_of], dtype=torch.long, device=device)
    parts = [joined(name) for name in ("coords", "labels", "ambiguous", "targets", "beyond", "chances")]
    return Objects(owner, *parts, _counted(batch, item_of, device)), torch.from_numpy(item_of).to(device)


def _counted(batch: list[Item], item_of: np.ndarray, device: torch.device) -> Tensor | None:
    """(n, L, L): the part of each cell that counts for each object; None where everything does."""
    if all(item.ignored is None for item in batch):
        return None
    side = batch[0].targets.shape[-1]
    counted = [np.ones((side, side), np.float32) if one.ignored is None else 1 - one.ignored for one in batch]
    return torch.from_numpy(np.stack(counted)[item_of]).to(device)


class Embeddings:
    """Embeds the pictures of a batch: with gradients when the encoder learns, else once for all."""

    def __init__(self, training: Training, at_once: int) -> None:
        self.at_once = at_once
        self._training = training
        self._kept: OrderedDict[tuple, dict[str, Tensor]] | None = (
            None if training.settings.method.trains_encoder else OrderedDict()
        )
        self._bytes = 0

    def __call__(self, batch: list[Item]) -> tuple[dict[str, Tensor], list[list[int]]]:
        """The embedding of all different pictures, and each item's places in it."""
        pictures: dict[tuple, np.ndarray] = {}
        for item in batch:
            pictures.update(zip(item.keys, item.images, strict=True))
        places = {key: number for number, key in enumerate(pictures)}
        if self._kept is None:
            embedding = self._encode(np.stack(list(pictures.values())))
        else:
            parts = [self._once(key, picture) for key, picture in pictures.items()]
            embedding = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return embedding, [[places[key] for key in item.keys] for item in batch]

    def _encode(self, pictures: np.ndarray) -> dict[str, Tensor]:
        training = self._training
        with _precision(training):
            found = training.network.encode(torch.from_numpy(pictures).to(training.device))
        return {name: value.float() for name, value in found.items()}

    def _once(self, key: tuple, picture: np.ndarray) -> dict[str, Tensor]:
        """The embedding of one picture, kept on the CPU until there are too many."""
        device = self._training.device
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            with torch.no_grad():
                found = {name: value.cpu() for name, value in self._encode(picture[None]).items()}
            self._kept[key] = found
            self._bytes += _size(found)
            while self._bytes > _EMBEDDINGS and len(self._kept) > 1:
                self._bytes -= _size(self._kept.popitem(last=False)[1])
        return {name: value.to(device) for name, value in self._kept[key].items()}


def _size(tensors: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in tensors.values())


def _precision(training: Training):
    """bfloat16 in the image encoder on a GPU that has it."""
    wanted = training.settings.precision
    able = training.device.type == "cuda" and torch.cuda.is_bf16_supported()
    if wanted == "bf16" or (wanted == "auto" and able):
        return torch.autocast(training.device.type, torch.bfloat16)
    return nullcontext()


def _seed(seed: int, part: int, step: int, rank: int) -> None:
    """What is random inside the network (dropout) follows from the step."""
    state = np.random.SeedSequence((seed, part, step, rank, 3)).generate_state(1)[0]
    torch.manual_seed(int(state))


def _set_rate(optimiser: torch.optim.Optimizer, settings: Settings, step: int) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate_at(step, settings) * group["share"]


# ---------------------------------------------------------------- validation


def _validation_steps(settings: Settings) -> frozenset[int]:
    count = min(settings.validations, settings.steps)
    return frozenset(round(settings.steps * (number + 1) / count) for number in range(count))


def _validate(
    training: Training, own: Mapping[str, Tensor], history: History, best: dict[str, Tensor], step: int
) -> None:
    """Measure Dice, keep the best weights, and end when it was long ago that they were found."""
    score = training.gang.from_first(training.validate() if training.gang.first else None)
    history.validated.append(step)
    history.dice.append(score)
    if history.best is None or score > history.dice[history.validated.index(history.best)]:
        history.best = step
        best.update({name: tensor.detach().clone() for name, tensor in own.items()})
        return
    waited = len(history.validated) - 1 - history.validated.index(history.best)
    if waited >= training.settings.patience and step < training.settings.steps:
        history.ended = f"no gain in validation since step {history.best}"


# ---------------------------------------------------------------- checkpoints


def _save(
    path: Path | None,
    own: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    history: History,
    best: Mapping[str, Tensor],
    step: int,
    training: Training,
) -> None:
    if path is None or not training.gang.first:
        return
    state = {
        "step": step,
        "trained": {name: tensor.detach().cpu() for name, tensor in own.items()},
        "best": {name: tensor.cpu() for name, tensor in best.items()},
        "optimiser": optimiser.state_dict(),
        "history": {**vars(history)},
    }
    with atomic_write(path) as temporary:
        torch.save(state, temporary)


def _restore(
    path: Path,
    own: Mapping[str, Tensor],
    optimiser: torch.optim.Optimizer,
    history: History,
    best: dict[str, Tensor],
    training: Training,
) -> int:
    """Put back what a checkpoint holds -> its step; 0 where there is none."""
    state = None
    if training.gang.first and path.exists():
        try:
            state = load_own_checkpoint(path)
            if state["trained"].keys() != own.keys():
                raise ValueError("other tensors")
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path} is not a usable checkpoint of this training; delete it to start anew.") from error
    state = training.gang.from_first(state)
    if state is None:
        return 0
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state["trained"][name])
    best.update({name: tensor.to(training.device) for name, tensor in state["best"].items()})
    optimiser.load_state_dict(state["optimiser"])
    vars(history).update(state["history"])
    return state["step"]
