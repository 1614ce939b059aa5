"""A plain U-Net trained from scratch: what a few cases give without anything learned before.

Ronneberger et al., 2015, in 2-D with group norm, four levels, 16 to 128 channels, 0.5 million parameters; slices scaled
to 128 pixels, augmented like ours; AdamW 1e-3 with our schedule; Dice and cross-entropy over the classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from SAMFineTuneLib.cases.case_slices import LabelledSlice
from SAMFineTuneLib.training.augmentation import augment
from SAMFineTuneLib.training.losses import class_loss
from SAMFineTuneLib.training.training_loop import Schedule

SIDE = 128
_WIDTHS = (16, 32, 64, 128)
_EMPTY = 0.25  # part of the pictures that show nothing labelled, as for our automatic head


class UNet(nn.Module):
    """Pictures (B, 1, 128, 128) in 0..1 to class logits (B, classes, 128, 128)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_stage(a, b) for a, b in zip((1, *_WIDTHS), _WIDTHS, strict=False))
        pairs = list(zip(_WIDTHS[1:], _WIDTHS, strict=False))[::-1]
        self.widen = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, 2) for a, b in pairs)
        self.up = nn.ModuleList(_stage(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(_WIDTHS[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for number, stage in enumerate(self.down):
            x = stage(F.max_pool2d(x, 2) if number else x)
            kept.append(x)
        kept.pop()
        for widen, stage in zip(self.widen, self.up, strict=True):
            x = stage(torch.cat([widen(x), kept.pop()], 1))
        return self.head(x)


def _stage(inputs: int, outputs: int) -> nn.Sequential:
    layers = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def train_unet(
    shown: Sequence[LabelledSlice],
    empty: Sequence[LabelledSlice],
    classes: int,
    steps: int,
    batch: int,
    seed: int,
    progress: Callable[[int], None] = lambda step: None,
) -> UNet:
    """A U-Net that learned from slices that show something and slices that do not; `classes` counts background."""
    torch.manual_seed(seed)
    rng = np.random.default_rng((seed, 5))
    network = UNet(classes).train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = Schedule(1e-3, 0.05, steps, decay=lambda left: left**0.9)
    for step in range(steps):
        parts = [_sample(rng, empty if empty and rng.random() < _EMPTY else shown) for _ in range(batch)]
        pictures, labels = (torch.from_numpy(np.stack(part)) for part in zip(*parts, strict=True))
        shares = F.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate_at(step)
        optimiser.zero_grad()
        class_loss(network(pictures[:, None]), shares).mean().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        progress(step + 1)
    return network.eval()


def predict_classes(network: UNet, picture: np.ndarray) -> np.ndarray:
    """Class of every pixel of a picture (uint8 [rows, columns])."""
    longer = max(picture.shape)
    grey = F.pad(torch.from_numpy(picture / np.float32(255))[None, None],
                 (0, longer - picture.shape[1], 0, longer - picture.shape[0]))  # fmt: skip
    with torch.inference_mode():
        logits = network(F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True))
        logits = F.interpolate(logits, (longer, longer), mode="bilinear")[0]
    return logits.argmax(0).numpy()[: picture.shape[0], : picture.shape[1]].astype(np.uint8)


def _sample(rng: np.random.Generator, slices: Sequence[LabelledSlice]) -> tuple[np.ndarray, np.ndarray]:
    """An augmented slice: picture (128, 128) float32 in 0..1, classes (128, 128)."""
    one = slices[rng.integers(len(slices))]
    picture, classes = augment(rng, one.picture, one.classes)
    longer = max(picture.shape)
    padding = [(0, longer - size) for size in picture.shape]
    grey = torch.from_numpy(np.pad(picture, padding) / np.float32(255))[None, None]
    labels = torch.from_numpy(np.pad(classes, padding).astype(np.float32))[None, None]
    return (
        F.interpolate(grey, (SIDE, SIDE), mode="bilinear", antialias=True)[0, 0].numpy(),
        F.interpolate(labels, (SIDE, SIDE), mode="nearest")[0, 0].numpy().astype(np.uint8),
    )
