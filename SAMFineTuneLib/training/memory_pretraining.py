"""Pre-train the volume memory on synthetic volumes: resumable, bounded by minutes or by steps.

Each step draws a volume and a few structures in it, each with known slices of its own (`volume_items`), and often an
earlier answer: one drawn with the faults of an answer, or the network's own. Everything random in step n follows from
(seed, n) alone, so that a resumed run repeats the uninterrupted one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.models.architectures.volume_memory import VolumeMemoryNetwork
from SAMFineTuneLib.models.onnx_export import export_memory
from SAMFineTuneLib.models.spec import ModelFolder, write_spec
from SAMFineTuneLib.training.device_memory import device_of
from SAMFineTuneLib.training.pretraining import (
    AveragedTraining,
    PretrainingProgress,
    begun,
    drawn_ahead,
    owning_model,
    write_tensors,
)
from SAMFineTuneLib.training.synthetic_volumes import GENERATOR_VERSION, synthetic_volume
from SAMFineTuneLib.training.training_loop import Schedule
from SAMFineTuneLib.training.volume_items import draw_items

STRUCTURES = 4
"""Structures of a volume that a step shows at most."""
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.01
WARM_UP = 0.03
EMA_DECAY = 0.998
AGAIN = 0.2
"""Part of the steps in which the network sees its own answer."""
CHECKPOINT_NAME = "checkpoint.pt"
MEMORY_WEIGHTS = "memory.safetensors"
_KNOWN_SHARE = 0.2  # weight of the known slices in the loss
_MEMORY = "; volume memory: "  # between separates how a model and its memory were made, in the model's description


class MemoryBatches(torch.utils.data.Dataset):
    """Batch `n` of a run: a pure function of (seed, n)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """`block` (B, CHANNELS, D, 64, 64), `target` (B, D, 64, 64) shares, `present` and `known` (B, D) bool."""
        torch.set_num_threads(1)
        attempt, items = 0, []
        while len(items) < 2:  # a few volumes show no structure that could be segmented
            seed = (self.seed, step, attempt)
            items = draw_items(np.random.default_rng((*seed, 1)), synthetic_volume((*seed, 0)), STRUCTURES)
            attempt += 1
        return {
            name: torch.from_numpy(np.stack([getattr(item, name) for item in items]))
            for name in ("block", "target", "present", "known")
        }


def _loss(logits: Tensor, presence: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Dice + cross-entropy of the structure + cross-entropy of its presence; and the soft Dice."""
    target = batch["target"]
    weight = (1 - (1 - _KNOWN_SHARE) * batch["known"].float())[:, :, None, None]
    share = logits.sigmoid()
    overlap, sizes = ((weight * part).sum((1, 2, 3)) for part in (share * target, share + target))
    dice = (2 * overlap + 8) / (sizes + 8)
    wrong = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    # Divided by the structure's size and not the block's, or small structures would not count.
    cross_entropy = wrong.sum((1, 2, 3)) / (2 * target.sum((1, 2, 3))).clamp(min=400)
    there = F.binary_cross_entropy_with_logits(presence, batch["present"].float())
    return (1 - dice + 0.5 * cross_entropy).mean() + 0.2 * there, dice.mean()


def _whole(block: Tensor) -> Tensor:
    """Pad blocks to a multiple of 4 slices by repeating the last slice, about which nothing is known."""
    count = block.shape[2]
    if not -count % 4:
        return block
    block = torch.cat([block, block[:, :, -1:].expand(-1, -1, -count % 4, -1, -1)], 2)
    block[:, 2:5, count:] = 0
    return block


def _answer(network: VolumeMemoryNetwork, batch: dict[str, Tensor], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """The network's answer, often to blocks with its own earlier one, on all slices or on some, as propagation asks."""
    count = batch["block"].shape[2]
    block = _whole(batch["block"]).contiguous(memory_format=torch.channels_last_3d)
    if rng.random() < AGAIN:
        with torch.no_grad():
            earlier = 2 * network(block)[0].sigmoid() - 1
        if rng.random() < 0.25:
            some = torch.from_numpy(rng.random(earlier.shape[:2]) < 0.6).to(earlier.device)
            earlier = earlier * some[:, :, None, None]
        block = block.clone()
        block[:, 4] = earlier
    return tuple(part[:, :count] for part in network(block))


def pretrain_memory(
    output_folder: Path,
    base: ModelFolder,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    resume: bool = False,
    start: ModelFolder | None = None,
    progress: Callable[[PretrainingProgress], None] | None = None,
    device: str = "auto",
    workers: int = 1,
    cancel: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a volume memory and write a copy of a model with it.

    Args:
        output_folder: Folder of the new model.
        base: The model that gets the memory. Its other files stay as they are.
        minutes: Wall-clock time after which the training ends; such a run is not repeatable to the bit.
        steps: Steps after which it ends; with `minutes`, whichever comes first.
        seed: Start of all random numbers.
        resume: Whether to continue from the folder's checkpoint, if there is one.
        start: A model whose memory the training begins with; random weights without.
        progress: Called after every step; it measures `loss` and `dice`.
        device: A PyTorch device, or "auto".
        workers: Processes that draw volumes ahead. With any, the caller's script needs the usual
            `if __name__ == "__main__"` guard.
        cancel: Called many times a second; True stops the training.

    Returns:
        The folder.

    Raises:
        Stopped: When `cancel` returns True; `resume` continues later.
        UserError: For a folder or a base that cannot be used, and while another process trains into the folder.
    """
    if not minutes and not steps:
        raise UserError("Pre-training needs a number of minutes or of steps.")
    place = torch.device(device_of(device))
    output_folder = Path(output_folder).expanduser()
    checkpoint = output_folder / CHECKPOINT_NAME
    with owning_model(checkpoint, resume):
        about = begun(checkpoint, resume)
        network, origin = _new_memory(seed, None if about else start)
        origin = about.get("origin", origin)
        network = network.to(place).to(memory_format=torch.channels_last_3d).train()

        def measure(batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
            batch = {name: value.to(place) for name, value in batch.items()}
            loss, dice = _loss(*_answer(network, batch, np.random.default_rng((seed, step, 2))), batch)
            return {"loss": loss, "dice": dice}

        optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        draw = partial(drawn_ahead, MemoryBatches(seed), workers=workers)
        training = AveragedTraining(network, optimiser, draw, measure, EMA_DECAY, pictures=1)
        schedule = Schedule(LEARNING_RATE, WARM_UP, steps, minutes)
        average, history = training.run(checkpoint, schedule, {"seed": seed, "origin": origin}, progress, cancel)
        source = (
            f"samfinetune pretrain --memory: generator {GENERATOR_VERSION}, seed {seed}, {history.step} volumes, "
            f"{history.seconds / 60:.0f} minutes"
        )
        return add_memory(average, source + (f", after: {origin}" if origin else ""), base, output_folder)


def _new_memory(seed: int, start: ModelFolder | None) -> tuple[VolumeMemoryNetwork, str]:
    """A memory with random weights, or that of the model `start` and how it was made."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VolumeMemoryNetwork()
    if start is None:
        return network, ""
    from safetensors.torch import load_file

    try:
        network.load_state_dict(load_file(start.file("memory_weights")))
    except RuntimeError as error:
        raise UserError(f"The memory of {start.spec.id} is of another kind; start without it.") from error
    return network, start.spec.source.partition(_MEMORY)[2]


def add_memory(network: VolumeMemoryNetwork, source: str, base: ModelFolder, folder: Path) -> Path:
    """Write a copy of a model into a folder, with `memory.safetensors` (half precision) and the graph over it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in base.spec.sha256:
        if not name.startswith("memory.") and folder.resolve() != base.path.resolve():
            shutil.copyfile(base.path / name, folder / name)
    half = {name: value.detach().cpu().half() for name, value in network.state_dict().items()}
    weights = write_tensors(folder / MEMORY_WEIGHTS, half)
    # The graph is exported from the rounded weights, which it refers to.
    rounded = VolumeMemoryNetwork().eval()
    rounded.load_state_dict(half)
    graph = export_memory(rounded, folder, weights)
    files = {**base.spec.files, "memory_weights": weights.name, "memory": graph.name}
    digests = {**base.spec.sha256, **{path.name: sha256_of(path) for path in (weights, graph)}}
    about = base.spec.source.partition(_MEMORY)[0] + _MEMORY + source
    write_spec(replace(base.spec, files=files, sha256=digests, source=about), folder)
    return folder
