"""Rehearsal: pictures that the base learned from, beside the few that teach it something new. No PyTorch here.

A network that learns new cases forgets what it knew (Robins, "Catastrophic forgetting, rehearsal and
pseudorehearsal", 1995): after 125 steps on five slices of CT organs it answered boxes on hippocampi with a Dice of 0.64
instead of 0.83. The bundled model learned from synthetic pictures without end, so that here they can be shown again,
with prompts as in fine-tuning; with them it was 0.80.
"""

from __future__ import annotations

import numpy as np

from SAMFineTuneLib.models.preprocess import prepare
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.training.items import Item
from SAMFineTuneLib.training.prompting import first_prompt
from SAMFineTuneLib.training.settings import Settings
from SAMFineTuneLib.training.synthetic import SIZE, synthetic_picture


def rehearsal_of(spec: ModelSpec, settings: Settings, part: int = 0) -> Rehearsal | None:
    """What a base of this kind rehearses; None where its pictures are not ours, or where it learns no prompts."""
    known = spec.architecture == "compact" and "promptable" in settings.method.heads
    return Rehearsal(spec, settings, part) if known else None


class Rehearsal:
    """Synthetic picture `number` of training part `part`, as an item without an automatic head's target."""

    def __init__(self, spec: ModelSpec, settings: Settings, part: int = 0) -> None:
        self._spec, self._settings, self._part = spec, settings, part

    def __call__(self, number: int) -> Item:
        """A pure function of (seed, part, number)."""
        settings, low = self._settings, self._spec.low_res_size
        seed = (settings.seed, self._part, 4, number)
        picture, rng = synthetic_picture(seed, settings.objects), np.random.default_rng((*seed, 1))
        firsts = [first_prompt(rng, mask) for mask in picture.masks]
        (rows, columns), cell = picture.shape, SIZE // low
        return Item(
            (prepare(picture.image[:rows, :columns], self._spec)[0][0],),
            (("synthetic", number),),
            np.stack([first.coords for first in firsts]),
            np.stack([first.labels for first in firsts]),
            np.array([first.ambiguous for first in firsts]),
            picture.masks.reshape(-1, low, cell, low, cell).mean((2, 4), dtype=np.float32),
            rng.random((len(firsts), settings.rounds, 7), np.float32),
            None,
        )
