"""What the pre-trainings share: the folder that receives the model, progress, moving averages, batches that are drawn
ahead, and writing the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.process_lock import owning
from SAMFineTuneLib.training.training_loop import Schedule, TrainingHistory

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class PretrainingProgress:
    """How far a pre-training is."""

    step: int
    used: float
    """Part of the training that is done, 0 to 1."""
    pictures: int
    """How many pictures were shown."""
    seconds: float
    measured: Mapping[str, float]
    """What was measured in the last step, by name; `loss` among it."""


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


def following(average: nn.Module, network: nn.Module, decay: float) -> Callable[[int], None]:
    """A function that moves an average towards a network after a step, faster than `decay` in the first steps."""

    def follow(steps: int) -> None:
        share = 1 - min(decay, steps / (steps + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), share)

    return follow


def drawn_ahead(dataset: torch.utils.data.Dataset, start: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Batches from step `start` on, drawn ahead in `workers` processes where there are any."""
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
        UserError: While another process trains into it, and where it holds a model, or the checkpoint of a run that
            `resume` does not ask to go on with.
        DiskError: Where nothing can be written.
    """
    folder = checkpoint.parent
    with owning(folder, f"A pre-training in {folder}"):
        if (folder / "model.json").exists() and not (resume and checkpoint.exists()):
            raise UserError(f"{folder} holds a model already; choose another folder.")
        if not resume and checkpoint.exists():
            raise UserError(
                f"An unfinished pre-training lies in {folder}; go on with --resume, or choose another folder."
            )
        yield


def write_weights(folder: Path, state: Mapping[str, Tensor]) -> Path:
    """Write the tensors of a model into a folder and return the file."""
    return write_tensors(folder / WEIGHTS, state)


def write_tensors(file: Path, state: Mapping[str, Tensor]) -> Path:
    """Write tensors as safetensors and return the file."""
    from safetensors.torch import save_file

    with atomic_write(file) as temporary:
        save_file({name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
    return file
