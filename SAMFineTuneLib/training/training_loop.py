"""The training loop under fine-tuning and both pre-trainings: rates, steps, validation, checkpoints.

Everything random in step n must follow from the seed and n alone. A checkpoint holds every tensor that the training
changes, the optimiser and the history, and is written whole or not at all. So a run that was killed at any moment and
resumed ends with the same weights as an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.models.formats.checkpoint import load_own_checkpoint
from SAMFineTuneLib.training.process_group import ProcessGroup
from SAMFineTuneLib.training.stopping import Stopped

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_SHARE = 0.05
"""Largest part of the time that goes into writing checkpoints."""
GRADIENT_NORM = 1.0
_MOST_LOST = 20  # steps in a row without a loss that is a number
_FORMAT = 3


def cosine(left: float) -> float:
    """Cosine decay: the share of the highest rate when `left` (1 to 0) of the decay remains."""
    return 0.5 * (1 - math.cos(math.pi * left))


@dataclass(frozen=True)
class Schedule:
    """Length of a training and course of its learning rate: linear warm-up, then decay to zero.

    Warm-up and decay are parts of the run, however many steps it has. A training that is bounded by `minutes` is not
    repeatable to the bit, since its rate follows the clock.
    """

    rate: float
    """The highest learning rate."""
    warm_up: float
    """Part of the training in which the rate rises."""
    steps: int | None = None
    minutes: float | None = None
    decay: Callable[[float], float] = cosine

    def used(self, step: int, seconds: float = 0.0) -> float:
        """Part of the training that is done, 0 to 1: by steps or by time, whichever ends first."""
        done, total = self._measure(step, seconds)
        return done / total

    def rate_at(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate of the step that follows `step` steps in `seconds`."""
        done, total = self._measure(step, seconds)
        warm = max(1, round(self.warm_up * total))
        if done < warm:
            return self.rate * min(1.0, (done + 1) / warm)
        return self.rate * self.decay(max(0.0, 1 - (done - warm) / max(1, total - warm)))

    def _measure(self, step: int, seconds: float) -> tuple[float, float]:
        """The fraction done, in steps or in seconds."""
        measures = [(done, total) for done, total in ((step, self.steps), (seconds, 60 * (self.minutes or 0))) if total]
        return max(measures, key=lambda one: one[0] / one[1])


@dataclass
class TrainingHistory:
    """The course of a training."""

    measured: dict[str, list[float]] = field(default_factory=dict)
    """Measurements of each step, such as `loss`, by name."""
    validated: list[int] = field(default_factory=list)
    """Steps after which there was a validation; `dice` holds the results."""
    dice: list[float] = field(default_factory=list)
    best: int | None = None
    """The step whose weights were kept, with validation."""
    ended: str = ""
    """Why the training ended before its last step."""
    seconds: float = 0.0
    lost: int = 0
    """The last steps in a row whose loss was not a number; they changed nothing."""

    @property
    def loss(self) -> list[float]:
        """The loss of each step that was measured."""
        return self.measured.get("loss", [])

    @property
    def step(self) -> int:
        """The number of steps done."""
        return len(self.loss)


@dataclass
class Training:
    """Everything that `train` needs: tensors, optimiser, gradients, schedule and callbacks."""

    state: Mapping[str, Tensor]
    """Every tensor that the training changes, by name."""
    optimiser: torch.optim.Optimizer
    """A parameter group may have a `share` of the learning rate (default 1)."""
    gradients: Callable[[int], Mapping[str, float]]
    """Leaves the gradients of step n in the optimiser's parameters and returns what it measured, `loss` among it: this
    process's part of both."""
    schedule: Schedule
    seed: tuple[int, ...] = (0,)
    about: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that must be equal where a training is resumed."""
    group: ProcessGroup = field(default_factory=ProcessGroup)
    validate: Callable[[], float] | None = None
    """Dice of the present weights; None: the training goes on to its last step."""
    validations: int = 8
    """Number of validations of a training."""
    patience: int = 3
    """Validations without gain after which a training ends."""
    after_step: Callable[[int], None] = lambda steps: None
    report: Callable[[TrainingHistory], None] = lambda history: None
    look: Callable[[], None] = lambda: None
    """Raises Stopped when the training should stop; called before every step."""


def train(training: Training, checkpoint: Path | None = None) -> TrainingHistory:
    """Train until the last step, or until validation gains no more; `state` then holds the best weights.

    Args:
        training: What is trained, and how.
        checkpoint: File from which a stopped training continues; written every half minute and at the end.

    Raises:
        Stopped: When `look` or anything within a step raises it; the checkpoint is then written.
        UserError: When the checkpoint is damaged, or is of another training or another version.
    """
    history, best, schedule, group = TrainingHistory(), {}, training.schedule, training.group
    if checkpoint:
        _resume(checkpoint, training, history, best)
    due = _validation_steps(training)
    begun, before = history.step, history.seconds
    started = saved = time.monotonic()
    spent = 0.0  # on writing the last checkpoint

    def save() -> None:
        nonlocal saved, spent
        if checkpoint and group.first:
            start = time.monotonic()
            _write(checkpoint, training, history, best)
            saved = time.monotonic()
            spent = saved - start

    try:
        if history.step in due and history.step not in history.validated:  # the run was stopped in this validation
            _validate(training, history, best)
        while not history.ended and schedule.used(history.step, history.seconds) < 1:
            if group.from_first(_shall_stop(training)):
                raise Stopped
            _step(training, history)
            if history.step in due:
                _validate(training, history, best)
            history.seconds = before + time.monotonic() - started
            training.report(history)
            if time.monotonic() - saved > max(CHECKPOINT_SECONDS, spent / CHECKPOINT_SHARE):
                save()
    except Stopped:  # a step changes nothing before all of it is computed
        save()
        raise
    if history.step > begun:
        save()  # the next step may be stopped or killed as well
    if best:
        _copy(best, training.state)
    return history


def _shall_stop(training: Training) -> bool:
    try:
        training.look()
    except Stopped:
        return True
    return False


def _step(training: Training, history: TrainingHistory) -> None:
    """One optimiser step. Gradients that are not finite, as when a picture overflows bfloat16, change nothing."""
    step, group, optimiser = history.step, training.group, training.optimiser
    # Dropout inside the network follows from the step, too.
    torch.manual_seed(int(np.random.SeedSequence((*training.seed, step, group.rank, 3)).generate_state(1)[0]))
    rate = training.schedule.rate_at(step, history.seconds)
    for part in optimiser.param_groups:
        part["lr"] = rate * part.get("share", 1.0)
    optimiser.zero_grad(set_to_none=True)
    measured = training.gradients(step)
    parameters = [tensor for part in optimiser.param_groups for tensor in part["params"]]
    group.sum_gradients(parameters)
    if torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)):
        optimiser.step()
    training.after_step(step + 1)
    found = {name: group.sum(value) for name, value in measured.items()}
    history.lost = 0 if math.isfinite(found["loss"]) else history.lost + 1
    if history.lost > (_MOST_LOST if step else 0):
        raise UserError(
            f"The training diverged: its loss is not a number in step {step + 1}; choose a smaller learning rate, "
            "fp32 as precision, or another model to start from."
        )
    for name, value in found.items():
        values = history.measured.setdefault(name, [])
        values.append(values[-1] if history.lost else value)


# ---------------------------------------------------------------- validation


def _validation_steps(training: Training) -> frozenset[int]:
    steps = training.schedule.steps
    if training.validate is None or not steps:
        return frozenset()
    count = min(training.validations, steps)
    return frozenset(round(steps * (number + 1) / count) for number in range(count))


def _validate(training: Training, history: TrainingHistory, best: dict[str, Tensor]) -> None:
    """Measure Dice, keep the best weights, and end the training when they have not improved for long."""
    group, step = training.group, history.step
    score = group.from_first(training.validate() if group.first else None)
    better = score > max(history.dice, default=-math.inf)
    history.validated.append(step)
    history.dice.append(score)
    if better:
        history.best = step
        best.update({name: tensor.detach().clone() for name, tensor in training.state.items()})
    waited = len(history.validated) - 1 - history.validated.index(history.best)
    if waited >= training.patience and step < training.schedule.steps:
        history.ended = f"no gain in validation since step {history.best}"


# ---------------------------------------------------------------- checkpoints


def load_training(path: Path) -> dict[str, Any]:
    """Read a checkpoint of `train`: `about`, `state`, `best`, `optimiser`, `history`.

    Raises:
        UserError: When the file is damaged, or was written by another version.
    """
    with _usable(path):
        found = load_own_checkpoint(path)
        version = found.get("format")
    if version != _FORMAT:
        raise UserError(
            f"The unfinished training in {path} was started by another version of SAMFineTune, and this one cannot "
            "continue it; delete the file to start again."
        )
    return found


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn errors of PyTorch about a checkpoint into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is not a usable checkpoint of this training; delete it to start again.") from error


def _write(path: Path, training: Training, history: TrainingHistory, best: Mapping[str, Tensor]) -> None:
    content = {
        "format": _FORMAT,
        "about": dict(training.about),
        "state": {name: tensor.detach().cpu() for name, tensor in training.state.items()},
        "best": {name: tensor.cpu() for name, tensor in best.items()},
        "optimiser": training.optimiser.state_dict(),
        "history": {**vars(history)},
    }
    with atomic_write(path) as temporary:
        torch.save(content, temporary)


def _resume(path: Path, training: Training, history: TrainingHistory, best: dict[str, Tensor]) -> None:
    """Restore the state of a checkpoint, if there is one."""
    found = load_training(path) if training.group.first and path.exists() else None
    found = training.group.from_first(found)
    if found is None:
        return
    if found["about"].keys() != training.about.keys():
        raise UserError(
            f"The unfinished training in {path} is of another kind, or was started by another version of SAMFineTune; "
            "continue it as it was begun, or choose another folder."
        )
    if other := [name for name, value in training.about.items() if found["about"].get(name) != value]:
        raise UserError(
            f"The unfinished training in {path} has another {' and another '.join(other)}; give the same again, or "
            "delete the file to start again."
        )
    with _usable(path):
        if found["state"].keys() != training.state.keys():
            raise ValueError("other tensors")
        _copy(found["state"], training.state)
        best.update({name: tensor.to(training.state[name].device) for name, tensor in found["best"].items()})
        training.optimiser.load_state_dict(found["optimiser"])
        vars(history).update(found["history"])


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in target.items():
            tensor.copy_(source[name])
