"""Self-supervised pre-training of an image encoder on unlabelled volumes, by masked auto-encoding.

Blocks of a picture are blanked and the encoder learns to reconstruct them (He et al., 2022; blanked in the picture as
in SimMIM, Xie et al., 2022, so that it works for every encoder here). A second loss keeps the embedding of whole
pictures close to that of the encoder at the start. Prompt encoder and mask decoder do not learn and still understand
it, so the result is a model that answers prompts at once. Everything random in step n follows from (seed, n).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.cases.case_slices import evenly, slices_of
from SAMFineTuneLib.cases.cases import Case
from SAMFineTuneLib.cases.labelled_case import Labelled
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import sha256_of
from SAMFineTuneLib.images.images_below import images_below
from SAMFineTuneLib.images.read_image import read_volume
from SAMFineTuneLib.inference.input_crop import View, square_view
from SAMFineTuneLib.models.load_model import load_network
from SAMFineTuneLib.models.preprocess import prepare
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, read_model_folder, write_spec
from SAMFineTuneLib.training.augmentation import augment
from SAMFineTuneLib.training.device_memory import compute_blocks_twice, device_of, pictures_at_once
from SAMFineTuneLib.training.pretraining import (
    WEIGHTS,
    PretrainingProgress,
    owning_model,
    reporter,
    state_of,
    write_tensors,
)
from SAMFineTuneLib.training.stopping import interruptible, stopping
from SAMFineTuneLib.training.training_loop import Schedule, Training, train

CHECKPOINT_NAME = "masked-checkpoint.pt"
MASKED = 0.6
"""Part of the blocks that are blanked."""
RATE = 2e-4
_WEIGHT_DECAY = 0.05
_WARM_UP = 0.05
_SLICES = 64  # of each volume, evenly spread
_HOLD = 1.0  # weight of the loss that keeps the embedding of whole pictures
_LEAST_CONTRAST = 2.0  # grey levels of deviation; slices with less show nothing


def find_volumes(folder: str | Path, tell: Callable[[str], None] = lambda sentence: None) -> list[Path]:
    """Image files in a folder and below it, and DICOM series, see `images_below`; UserError without any.

    `tell` gets a sentence about what was left out.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"“{folder}” is not a folder; give one with volumes in it.")
    images = images_below(folder)
    for sentence in chain(*images.values()):
        tell(sentence)
    found = sorted(images)
    if not found:
        raise UserError(f"“{folder}” holds no volumes; give a folder of NIfTI, NRRD, MetaImage, PNG or DICOM files.")
    return found


def pictures_of(paths: list[Path]) -> list[np.ndarray]:
    """Evenly spread slices of the volumes, uint8 [rows, columns], in the windows that inference chooses."""
    found = []
    for path in paths:
        volume = read_volume(path)
        nothing = np.zeros(volume.shape, np.uint8)
        labelled = Labelled(Case(path.name, path, path), volume, nothing, (), "")
        shown = [one.picture for one in slices_of(labelled)]
        found += evenly([picture for picture in shown if picture.std() > _LEAST_CONTRAST], _SLICES)
    if not found:
        raise UserError("The volumes show nothing: each slice has a single grey value.")
    return found


class Reconstruction(nn.Module):
    """From the embedding to the pixels of each block: one linear map."""

    def __init__(self, spec: ModelSpec, channels: int) -> None:
        super().__init__()
        self.block = spec.input_size // spec.embedding_size
        self.linear = nn.Conv2d(channels, spec.channels * self.block**2, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """(B, C, G, G) -> (B, channels, S, S)."""
        return F.pixel_shuffle(self.linear(embedding), self.block)


def pretrain_masked(
    volumes: str | Path,
    output: str | Path,
    base: ModelFolder,
    *,
    steps: int = 1000,
    batch_size: int = 8,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    progress: Callable[[PretrainingProgress], None] | None = None,
    cancel: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> ModelFolder:
    """Train a model's image encoder on unlabelled volumes and write a complete model folder.

    Args:
        volumes: Folder of the volumes, see `find_volumes`.
        output: Folder of the new model.
        base: The model whose encoder is trained further.
        steps: Optimiser steps.
        batch_size: Pictures of a step.
        seed: Start of all random numbers.
        resume: Whether to continue from the folder's checkpoint.
        device: A PyTorch device, or "auto".
        progress: Called after every step; it measures `loss`, the squared error of the blanked blocks in standard
            deviations of each block, and `moved`, how far embeddings have moved relative to their spread.
        cancel: Called many times a second; True stops the training.
        tell: Called with a sentence about each image that was left out.

    Raises:
        Stopped: When `cancel` returns True; `resume` continues later.
        UserError: For a folder that cannot be used, and while another process trains into it.
    """
    if steps < 1 or batch_size < 1:
        raise UserError("Pre-training needs one step and one picture a step, or more.")
    output = Path(output).expanduser()
    checkpoint = output / CHECKPOINT_NAME
    with owning_model(checkpoint, resume):
        pictures = pictures_of(find_volumes(volumes, tell))
        shown = sha256(b"".join(sha256(picture.tobytes()).digest() for picture in pictures)).hexdigest()
        masked = _Masked(base, torch.device(device_of(device)), seed, pictures, batch_size)
        look, schedule = stopping(cancel), Schedule(RATE, _WARM_UP, steps)
        interruptible(masked.network.image_encoder, look)
        train(
            Training(
                state=masked.state, optimiser=masked.optimiser, gradients=masked.gradients, schedule=schedule,
                seed=(seed,), about={"seed": seed, "model": base.spec.id, "number of pictures a step": batch_size,
                                     "set of volumes": shown},
                report=reporter(progress, schedule, batch_size), look=look,
            ),
            checkpoint,
        )  # fmt: skip
        how = f"masked auto-encoding of {len(pictures)} unlabelled slices, {steps} steps of {batch_size}"
        folder = _write_model(masked.network, base, output, how)
        checkpoint.unlink(missing_ok=True)
        return folder


class _Masked:
    """Encoder, its weights at the start, and the map to pixels."""

    def __init__(
        self, base: ModelFolder, device: torch.device, seed: int, pictures: list[np.ndarray], batch: int
    ) -> None:
        self.spec, self.device, self.seed, self.pictures, self.batch = base.spec, device, seed, pictures, batch
        self.network = load_network(base.file("weights"))[1].to(device).requires_grad_(False)
        self.start = deepcopy(self.network)
        self.network.image_encoder.requires_grad_(True)
        with torch.no_grad():
            sample = torch.zeros(1, self.spec.channels, self.spec.input_size, self.spec.input_size, device=device)
            channels = self.network.encode(sample)["image_embeddings"].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pixels = Reconstruction(self.spec, channels).to(device)
        self.state = state_of(encoder=self.network.image_encoder, pixels=self.pixels)
        trained = [*self.network.image_encoder.parameters(), *self.pixels.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.95))
        # Every picture is encoded twice, blanked and whole.
        at_once, twice = pictures_at_once(self.network, self.spec, device, 2 * batch)
        self.at_once = max(1, at_once // 2)
        if twice:
            compute_blocks_twice(self.network)

    def gradients(self, step: int) -> dict[str, float]:
        """Gradients of both losses of a step, computed for as many pictures at once as fit into memory."""
        rng = np.random.default_rng((self.seed, step))
        images = np.stack([_shown(rng, self.pictures, self.spec) for _ in range(self.batch)])
        whole = torch.from_numpy(images).to(self.device)
        grid = self.spec.embedding_size
        blank = torch.from_numpy(rng.random((self.batch, 1, grid, grid)) < MASKED).to(self.device)
        blanked = int(blank.sum().clamp(min=1))
        loss, moved = 0.0, 0.0
        for part, gaps in zip(whole.split(self.at_once), blank.split(self.at_once), strict=True):
            over = gaps.repeat_interleave(self.pixels.block, 2).repeat_interleave(self.pixels.block, 3)
            guess = self.pixels(self.network.encode(part.masked_fill(over, 0.0))["image_embeddings"])
            error = _blank_error(guess, part, gaps, self.pixels.block) / blanked
            away = self._moved(part) / self.batch
            (error + _HOLD * away).backward()
            loss += float(error.detach())
            moved += float(away.detach())
        return {"loss": loss, "moved": moved}

    def _moved(self, whole: Tensor) -> Tensor:
        """Sum over pictures, mean over the encoder's outputs: squared distance to the start's over its variance."""
        with torch.no_grad():
            wanted = self.start.encode(whole)
        moved = [
            ((found - wanted[name]) ** 2).flatten(1).mean(1) / wanted[name].flatten(1).var(1).clamp(min=1e-6)
            for name, found in self.network.encode(whole).items()
        ]
        return torch.stack(moved).sum(1).mean()


def _shown(rng: np.random.Generator, pictures: list[np.ndarray], spec: ModelSpec) -> np.ndarray:
    """A model's input (C, S, S): a random picture, augmented; for a model that zooms, a random part of it."""
    picture = pictures[rng.integers(len(pictures))]
    picture, _ = augment(rng, picture, np.zeros_like(picture), 0.5)
    view = View.whole(picture.shape)
    if spec.zoom:
        side = max(picture.shape) * 0.5 ** rng.uniform(0, 2)
        view = square_view(picture.shape, tuple(rng.random(2) * picture.shape[::-1]), side)
    return prepare(view.crop(picture), spec)[0][0]


def _blank_error(guess: Tensor, whole: Tensor, blank: Tensor, block: int) -> Tensor:
    """Squared error summed over the blanked blocks, each block's pixels normalised (He et al., 2022)."""
    patches = F.pixel_unshuffle(whole, block)
    mean, deviation = patches.mean(1, keepdim=True), patches.std(1, keepdim=True) + 0.1
    wanted = (patches - mean) / deviation
    error = ((F.pixel_unshuffle(guess, block) - wanted) ** 2).mean(1, keepdim=True)
    return (error * blank).sum()


def _write_model(network: nn.Module, base: ModelFolder, folder: Path, how: str) -> ModelFolder:
    weights = write_tensors(folder / WEIGHTS, network.state_dict())
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name).lstrip(".") or "pretrained"
    before = f"; before: {base.spec.source}" if base.spec.source else ""
    spec = replace(
        base.spec, id=name, name=f"{base.spec.name}, pre-trained further",
        source=f"{base.spec.id}, then {how}{before}",
        files={"weights": weights.name}, sha256={weights.name: sha256_of(weights)},
    )  # fmt: skip
    write_spec(spec, folder)
    return read_model_folder(folder)
