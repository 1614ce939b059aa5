"""Self-supervised pre-training of an image encoder on unlabelled volumes, by masked auto-encoding.

Blocks of a picture are blanked and the encoder learns to say what was there (He et al., 2022; blanked in the picture
as in SimMIM, Xie et al., 2022, so that it works for every encoder here). A second loss holds the embedding of whole
pictures to that of the encoder at the start: so prompt encoder and mask decoder, which do not learn, still understand
it, and the result is a model that answers at once. Everything random in step n follows from (seed, n).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.cases.case_slices import evenly, slices_of
from SAMFineTuneLib.cases.cases import Case, Labelled
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, sha256_of
from SAMFineTuneLib.images.read_image import ENDINGS, read_volume
from SAMFineTuneLib.inference.input_crop import View, square_view
from SAMFineTuneLib.models.formats.checkpoint import load_own_checkpoint
from SAMFineTuneLib.models.load import load_network
from SAMFineTuneLib.models.preprocess import prepare
from SAMFineTuneLib.models.spec import ModelFolder, ModelSpec, read_model_folder, write_spec
from SAMFineTuneLib.training.augmentation import augment
from SAMFineTuneLib.training.new_model import owning_model, require_new_model
from SAMFineTuneLib.training.training_loop import Stopped, interruptible, stopping

CHECKPOINT_NAME = "masked-checkpoint.pt"
CHECKPOINT_SECONDS = 60.0
MASKED = 0.6
"""Part of the blocks that are blanked."""
RATE = 2e-4
_WEIGHT_DECAY = 0.05
_WARM_UP = 0.05
_SLICES = 64  # of each volume, evenly spread
_HOLD = 1.0  # weight of the loss that holds the embedding of whole pictures
_LEAST_CONTRAST = 2.0  # grey levels of deviation, below which a block says nothing


def find_volumes(folder: str | Path) -> list[Path]:
    """Image files in a folder and below it, and folders of other files (DICOM); UserError without any."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"“{folder}” is no folder; give one with volumes in it.")
    found = []
    for place in sorted([folder, *(path for path in folder.rglob("*") if path.is_dir())]):
        files = [path for path in sorted(place.iterdir()) if path.is_file() and not path.name.startswith(".")]
        images = [path for path in files if path.name.lower().endswith(ENDINGS)]
        found += images
        if files and not images and not any(path.suffix.lower() in (".csv", ".json", ".txt", ".md") for path in files):
            found.append(place)
    if not found:
        raise UserError(f"“{folder}” holds no volumes; give a folder of NIfTI, NRRD, MetaImage, PNG or DICOM files.")
    return found


def pictures_of(paths: list[Path]) -> list[np.ndarray]:
    """Pictures uint8 of the volumes, up to a number a volume, in the windows that inference chooses."""
    found = []
    for path in paths:
        volume = read_volume(path)
        nothing = np.zeros(volume.shape, np.uint8)
        labelled = Labelled(Case(path.name, path, path), volume, nothing, (), "")
        shown = [one.picture for one in slices_of(labelled)]
        found += evenly([picture for picture in shown if picture.std() > _LEAST_CONTRAST], _SLICES)
    if not found:
        raise UserError("The volumes show nothing: every slice has one grey value.")
    return found


@dataclass(frozen=True)
class Course:
    """How far a pre-training is."""

    step: int
    steps: int
    loss: float
    """Squared error of what was blanked, in standard deviations of its block."""
    held: float
    """How far embeddings have moved, relative to their spread."""
    seconds: float


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
    progress: Callable[[Course], None] | None = None,
    cancel: Callable[[], bool] = lambda: False,
) -> ModelFolder:
    """Train the base's image encoder on the volumes of a folder and write a complete model folder.

    When `cancel` says so, Stopped is raised, and `resume` goes on later. UserError while another process trains into
    the folder.
    """
    output = Path(output).expanduser()
    require_new_model(output, output / CHECKPOINT_NAME, resume)
    if steps < 1 or batch_size < 1:
        raise UserError("Pre-training needs one step and one picture a step, or more.")
    name = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu" if device == "auto" else device
    pictures = pictures_of(find_volumes(volumes))
    run = _Masked(base, torch.device(name), seed)
    checkpoint = output / CHECKPOINT_NAME
    with owning_model(output, checkpoint, resume):
        step = run.restore(checkpoint) if resume and checkpoint.exists() else 0
        look = stopping(cancel)
        interruptible(run.network.image_encoder, look)
        started = saved = time.monotonic()
        try:
            while step < steps:
                look()
                loss, held = run.step(pictures, step, steps, batch_size)
                step += 1
                if progress:
                    progress(Course(step, steps, loss, held, time.monotonic() - started))
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    run.save(checkpoint, step)
                    saved = time.monotonic()
        except Stopped:  # nothing of a step is kept before all of it is
            run.save(checkpoint, step)
            raise
        run.save(checkpoint, step)  # what comes next may fail on a full disk
        folder = _write_model(run.network, base, output, len(pictures), steps, batch_size)
        checkpoint.unlink(missing_ok=True)
        return folder


class _Masked:
    """Encoder, its state at the start, the map to pixels, and the optimiser."""

    def __init__(self, base: ModelFolder, device: torch.device, seed: int) -> None:
        self.spec, self.device, self.seed = base.spec, device, seed
        self.network = load_network(base.file("weights"))[1].to(device).requires_grad_(False)
        self.start = deepcopy(self.network.image_encoder)
        self.network.image_encoder.requires_grad_(True)
        with torch.no_grad():
            sample = torch.zeros(1, self.spec.channels, self.spec.input_size, self.spec.input_size, device=device)
            channels = self.network.encode(sample)["image_embeddings"].shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.pixels = Reconstruction(self.spec, channels).to(device)
        trained = [*self.network.image_encoder.parameters(), *self.pixels.parameters()]
        self.optimiser = torch.optim.AdamW(trained, lr=RATE, weight_decay=_WEIGHT_DECAY, betas=(0.9, 0.95))

    def step(self, pictures: list[np.ndarray], step: int, steps: int, batch: int) -> tuple[float, float]:
        """One optimiser step -> both losses."""
        rng = np.random.default_rng((self.seed, step))
        images = np.stack([_shown(rng, pictures, self.spec) for _ in range(batch)])
        whole = torch.from_numpy(images).to(self.device)
        grid = self.spec.embedding_size
        blank = torch.from_numpy(rng.random((batch, 1, grid, grid)) < MASKED).to(self.device)
        over = blank.repeat_interleave(self.pixels.block, 2).repeat_interleave(self.pixels.block, 3)
        for group in self.optimiser.param_groups:
            group["lr"] = RATE * _share(step, steps)
        guess = self.pixels(self.network.encode(whole.masked_fill(over, 0.0))["image_embeddings"])
        loss = _blank_error(guess, whole, blank, self.pixels.block)
        held = self._held(whole)
        self.optimiser.zero_grad(set_to_none=True)
        (loss + _HOLD * held).backward()
        torch.nn.utils.clip_grad_norm_(self.optimiser.param_groups[0]["params"], 1.0)
        self.optimiser.step()
        return float(loss.detach()), float(held.detach())

    def _held(self, whole: Tensor) -> Tensor:
        """Mean over all outputs of the encoder: squared distance to the start's, over the start's variance."""
        found = self.network.encode(whole)
        now = self.network.image_encoder
        with torch.no_grad():
            self.network.image_encoder = self.start
            wanted = self.network.encode(whole)
            self.network.image_encoder = now
        parts = [F.mse_loss(found[name], wanted[name]) / wanted[name].var().clamp(min=1e-6) for name in wanted]
        return torch.stack(parts).mean()

    def save(self, path: Path, step: int) -> None:
        """Write a checkpoint, whole or not at all."""
        state = {
            "step": step, "seed": self.seed, "encoder": self.network.image_encoder.state_dict(),
            "pixels": self.pixels.state_dict(), "optimiser": self.optimiser.state_dict(),
        }  # fmt: skip
        with atomic_write(path) as temporary:
            torch.save(state, temporary)

    def restore(self, path: Path) -> int:
        """Go on from a checkpoint -> its step."""
        try:
            state = load_own_checkpoint(path, self.device)
            if state["seed"] != self.seed:
                raise ValueError("another seed")
            self.network.image_encoder.load_state_dict(state["encoder"])
            self.pixels.load_state_dict(state["pixels"])
            self.optimiser.load_state_dict(state["optimiser"])
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{path} is not a usable checkpoint of this pre-training; delete it.") from error
        return state["step"]


def _shown(rng: np.random.Generator, pictures: list[np.ndarray], spec: ModelSpec) -> np.ndarray:
    """A model's input (C, S, S): a random picture, augmented; a random part of it for a model that zooms."""
    picture = pictures[rng.integers(len(pictures))]
    picture, _ = augment(rng, picture, np.zeros_like(picture), 0.5)
    view = View.whole(picture.shape)
    if spec.zoom:
        side = max(picture.shape) * 0.5 ** rng.uniform(0, 2)
        view = square_view(picture.shape, tuple(rng.random(2) * picture.shape[::-1]), side)
    return prepare(view.crop(picture), spec)[0][0]


def _blank_error(guess: Tensor, whole: Tensor, blank: Tensor, block: int) -> Tensor:
    """Mean squared error over the blanked blocks, each block's pixels normalised (He et al., 2022)."""
    patches = F.pixel_unshuffle(whole, block)
    mean, deviation = patches.mean(1, keepdim=True), patches.std(1, keepdim=True) + 0.1
    wanted = (patches - mean) / deviation
    error = ((F.pixel_unshuffle(guess, block) - wanted) ** 2).mean(1, keepdim=True)
    return (error * blank).sum() / blank.sum().clamp(min=1)


def _share(step: int, steps: int) -> float:
    """Warm-up and cosine, as parts of the run."""
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _write_model(
    network: nn.Module, base: ModelFolder, folder: Path, pictures: int, steps: int, batch: int
) -> ModelFolder:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "model.safetensors"
    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    with atomic_write(weights) as temporary:
        save_file(state, temporary)
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name).lstrip(".") or "pretrained"
    spec = replace(
        base.spec,
        id=name,
        name=f"{base.spec.name}, pre-trained further",
        source=f"{base.spec.id}, then masked auto-encoding of {pictures} unlabelled slices, {steps} steps of {batch}"
        + (f"; before: {base.spec.source}" if base.spec.source else ""),
        files={"weights": weights.name},
        sha256={weights.name: sha256_of(weights)},
    )
    write_spec(spec, folder)
    return read_model_folder(folder)
