"""Rehearsal: pictures that the base learned from, shown beside the few that teach something new.

A network that learns new cases forgets what it knew (Robins, "Catastrophic forgetting, rehearsal and
pseudorehearsal", 1995): after 125 steps on five slices of CT organs it answered boxes on hippocampi with a Dice of 0.64
instead of 0.83; with rehearsal it was 0.80. The bundled model learned from synthetic pictures, of which any number can
be drawn again.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.models.preprocess import prepare
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.simulation.first_prompts import first_prompt
from SAMFineTuneLib.training.synthetic_pictures import Pictures, synthetic_pictures
from SAMFineTuneLib.training.synthetic_scanner import SIZE
from SAMFineTuneLib.training.training_items import TrainingItem
from SAMFineTuneLib.training.training_settings import TrainingSettings

_TOGETHER = 16  # pictures that are drawn at once, which takes a third of the time


def rehearsal_of(spec: ModelSpec, settings: TrainingSettings, part: int = 0) -> Rehearsal | None:
    """The rehearsal for a base.

    Args:
        spec: the base's.
        settings: of the training.
        part: distinguishes trainings of one seed.

    Returns:
        None if the base's training pictures cannot be drawn again, or no prompts are learned.
    """
    known = spec.architecture == "compact" and "promptable" in settings.method.heads
    return Rehearsal(spec, settings, part) if known else None


class Rehearsal:
    """Synthetic picture `number` of training part `part`, as an item without an automatic head's target."""

    def __init__(self, spec: ModelSpec, settings: TrainingSettings, part: int = 0) -> None:
        self._spec, self._settings, self._part = spec, settings, part
        self._block, self._drawn = -1, None

    def __call__(self, number: int) -> TrainingItem:
        """A pure function of (seed, part, number)."""
        settings, low = self._settings, self._spec.low_res_size
        block, place = divmod(number, _TOGETHER)
        pictures = self._pictures(block)
        rng = np.random.default_rng((settings.seed, self._part, 4, number, 1))
        masks, cell = pictures.masks[place].numpy(), SIZE // low
        firsts = [first_prompt(rng, mask) for mask in masks]
        rows, columns = pictures.shape[place].tolist()
        image = pictures.image[place].numpy().astype(np.uint8)[:rows, :columns]
        by_box = np.array([first.box is not None for first in firsts])
        return TrainingItem(
            (prepare(image, self._spec)[0][0],),
            (("synthetic", number),),
            np.stack([first.coords for first in firsts]),
            np.stack([first.labels for first in firsts]),
            np.array([first.ambiguous for first in firsts]),
            masks.reshape(-1, low, cell, low, cell).mean((2, 4), dtype=np.float32),
            # A box is drawn in the view and asks for what is visible.
            np.where(by_box, 0, pictures.beyond[place].numpy() / cell**2).astype(np.float32),
            rng.random((len(firsts), settings.rounds, 7), np.float32),
            None,
        )

    def _pictures(self, block: int) -> Pictures:
        if block != self._block:
            seed = (self._settings.seed, self._part, 4, block)
            self._block, self._drawn = block, synthetic_pictures(seed, _TOGETHER, self._settings.objects)
        return self._drawn
