"""Batches of synthetic pictures with first prompts, for pre-training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from SAMFineTuneLib.models.architectures import compact
from SAMFineTuneLib.simulation.device_random import Random
from SAMFineTuneLib.simulation.simulated_annotator import loose_boxes
from SAMFineTuneLib.training.pretraining import drawn_ahead
from SAMFineTuneLib.training.synthetic_pictures import synthetic_pictures
from SAMFineTuneLib.training.synthetic_scanner import SIZE

OBJECTS = 4
DRAWN_PER_GIB = 128
"""Pictures that a graphics card draws in one go, for each GiB of its memory: about a sixth of it."""


def _stretched(image: Tensor, shape: Tensor) -> Tensor:
    """`preprocess.stretched` of each picture (n, 128, 128), without the padding beyond its `shape` (n, 2)."""
    # The padding is filled with the picture's own pixels, which hardly changes the percentiles.
    rows, columns = (torch.arange(SIZE, device=image.device) % shape[:, axis, None] for axis in (0, 1))
    filled = image.gather(1, rows[:, :, None].expand(-1, -1, SIZE)).gather(2, columns[:, None].expand(-1, SIZE, -1))
    order = filled.flatten(1).sort(dim=1).values
    low, high = (order[:, round(share * (order.shape[1] - 1)), None, None] for share in (0.005, 0.995))
    return ((image - low) * (255 / (high - low).clamp(min=1))).clamp(0, 255)


class SyntheticBatches(torch.utils.data.Dataset):
    """Batch `n` of a run: a pure function of (seed, n) on one kind of device.

    `together` batches are drawn at once: a graphics card needs thousands of pictures to be busy.
    """

    def __init__(self, seed: int, batch_size: int, device: torch.device | str = "cpu", together: int = 1) -> None:
        self.seed, self.batch_size, self.device, self.together = seed, batch_size, device, together
        self._block, self._drawn = -1, {}

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        """`image` (B, 1, 128, 128) normalised; of four objects each `target` (B, 4, 64, 64) 0..1, `box`, `point`, and
        `beyond` (B, 4), the cells of it that lie outside the picture."""
        block, number = divmod(step, self.together)
        if block != self._block:
            self._block, self._drawn = block, self._draw(block)
        own = slice(number * self.batch_size, (number + 1) * self.batch_size)
        return {name: value[own] for name, value in self._drawn.items()}

    def _draw(self, block: int) -> dict[str, Tensor]:
        pictures = synthetic_pictures((self.seed, block), self.together * self.batch_size, OBJECTS, self.device)
        rng = Random((self.seed, block, 1), self.device)
        line = torch.arange(SIZE, device=rng.device)
        inside = (line[:, None] < pictures.shape[:, 0, None, None]) & (line < pictures.shape[:, 1, None, None])
        image = (_stretched(pictures.image, pictures.shape) - compact.PIXEL_MEAN) / compact.PIXEL_STD
        boxes = loose_boxes(rng, pictures.masks.flatten(0, 1))
        return {
            "image": (image * inside)[:, None],  # padding is 0 after normalisation
            "target": F.avg_pool2d(pictures.masks.float(), 2),
            "box": boxes.reshape(-1, OBJECTS, 4),
            "point": pictures.points,
            "beyond": pictures.beyond / 4,
        }


def batches(
    seed: int, batch_size: int, device: torch.device, start: int, workers: int
) -> Iterator[dict[str, Tensor]]:
    """Batches without end.

    Args:
        seed: of the whole training.
        batch_size: pictures in a batch.
        device: a graphics card draws the pictures itself.
        start: the first step.
        workers: processes that render ahead for a processor.
    """
    if device.type == "cpu":
        dataset = SyntheticBatches(seed, batch_size)
    else:
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        dataset = SyntheticBatches(seed, batch_size, device, max(int(DRAWN_PER_GIB * memory) // batch_size, 1))
        workers = 0
    return drawn_ahead(dataset, start, workers)
