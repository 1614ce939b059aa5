"""Shared by the pre-trainings: the folder that receives the model, progress, training on drawn batches with a moving
average of the weights, and writing the weights.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.training.stopping import interruptible, stopping
from SAMFineTuneLib.training.training_loop import Schedule, Training, TrainingHistory, load_training, train
from SAMFineTuneLib.wording import some_names

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PretrainingProgress:
    """The progress of a pre-training."""

    step: int
    used: float
    """Part of the training that is done, 0 to 1."""
    pictures: int
    """Number of pictures shown."""
    seconds: float
    measured: Mapping[str, float]
    """Measurements of the last step by name, including `loss`."""


def reporter(
    tell: Callable[[PretrainingProgress], None] | None, schedule: Schedule, batch: int
) -> Callable[[TrainingHistory], None]:
    """Turn the history of a training with `batch` pictures a step into progress for `tell`."""

    def report(history: TrainingHistory) -> None:
        if tell:
            measured = {name: values[-1] for name, values in history.measured.items()}
            used = schedule.used(history.step, history.seconds)
            tell(PretrainingProgress(history.step, used, history.step * batch, history.seconds, measured))

    return report


@dataclass
class AveragedTraining:
    """A network that learns from drawn batches; the result is a moving average of its weights."""

    network: nn.Module
    optimiser: torch.optim.Optimizer
    draw: Callable[[int], Iterator[dict[str, Tensor]]]
    """Returns the batches from a step on."""
    measure: Callable[[dict[str, Tensor], int], Mapping[str, Tensor]]
    """Returns the measurements on the batch of a step, by name; the network learns from `loss`."""
    decay: float
    """Of the average; it follows faster in the first steps."""
    pictures: int
    """Pictures of a step."""

    def run(
        self, checkpoint: Path, schedule: Schedule, about: Mapping[str, Any],
        progress: Callable[[PretrainingProgress], None] | None, cancel: Callable[[], bool],
    ) -> tuple[nn.Module, TrainingHistory]:  # fmt: skip
        """Train, or continue from a checkpoint.

        Args:
            checkpoint: file from which a stopped training continues.
            schedule: length and learning rate.
            about: plain values that must be equal when the training is resumed, including `seed`.
            progress: called after every step.
            cancel: called many times a second; True stops the training.

        Returns:
            The averaged network, and the course of the training.

        Raises:
            Stopped: when `cancel` returns True.
            UserError: when the checkpoint is of another training.
        """
        average, look, batches = deepcopy(self.network).eval().requires_grad_(False), stopping(cancel), None
        interruptible(self.network, look)

        def gradients(step: int) -> dict[str, float]:
            nonlocal batches
            batches = batches or self.draw(step)
            measured = self.measure(next(batches), step)
            measured["loss"].backward()
            return {name: float(value.detach()) for name, value in measured.items()}

        def follow(steps: int) -> None:
            share = 1 - min(self.decay, steps / (steps + 10))
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(self.network.parameters()), share)

        training = Training(
            state=state_of(model=self.network, average=average), optimiser=self.optimiser, gradients=gradients,
            schedule=schedule, seed=(about["seed"],), about=about, after_step=follow,
            report=reporter(progress, schedule, self.pictures), look=look,
        )  # fmt: skip
        return average, train(training, checkpoint)


def drawn_ahead(dataset: torch.utils.data.Dataset, start: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Batches from step `start` on, drawn ahead in `workers` processes if there are any."""
    extra = {"multiprocessing_context": "spawn", "prefetch_factor": 6} if workers else {}
    order = range(start, len(dataset))
    return iter(torch.utils.data.DataLoader(dataset, None, sampler=order, num_workers=workers, **extra))


def state_of(**modules: nn.Module) -> dict[str, Tensor]:
    """All tensors of some modules, by the modules' names and their own."""
    return {f"{name}.{key}": value for name, one in modules.items() for key, value in one.state_dict().items()}


@contextmanager
def owning_model(checkpoint: Path, resume: bool) -> Iterator[None]:
    """Own the folder of `checkpoint`, into which a pre-training writes its model.

    Raises:
        UserError: While another process trains into it, and if it holds anything but a checkpoint to `resume`.
        DiskError: When nothing can be written.
    """
    folder = checkpoint.parent
    with owning(folder, f"A pre-training in {folder}"):
        if (folder / "model.json").exists() and not (resume and checkpoint.exists()):
            raise UserError(f"{folder} holds a model already; choose another folder.")
        if not resume and checkpoint.exists():
            raise UserError(
                f"An unfinished pre-training lies in {folder}; continue it with --resume, or choose another folder."
            )
        others = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if others and not checkpoint.exists():
            raise UserError(f"{folder} holds other files ({some_names(others)}); choose a new or an empty folder.")
        yield


def begun(checkpoint: Path, resume: bool) -> Mapping[str, Any]:
    """The values `about` of a resumed run, from its checkpoint; empty for a new run. UserError for a damaged
    checkpoint.
    """
    return load_training(checkpoint)["about"] if resume and checkpoint.exists() else {}


def write_tensors(file: Path, state: Mapping[str, Tensor]) -> Path:
    """Write tensors as safetensors and return the file."""
    from safetensors.torch import save_file

    with atomic_write(file) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
    return file
