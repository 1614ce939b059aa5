"""How well a network answers on cases: Dice of one box, one point, and without a prompt, through the predictor.

What is measured is what a user gets: the predictor chooses the view, and of the candidates the one with the best
predicted IoU is taken. One prompt an object (a connected piece of 20 pixels or more); the answers for a structure are
united on each slice, and Dice is that of all measured slices of a case together, foreground only, in the slices' own
pixels. The automatic head is measured on every slice, also where nothing is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, objects_of
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.mask_shapes import interior_points
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.preprocess import prepare
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.prompts import PlanePrompts

WAYS = ("1 box", "1 point", "automatic")
_MEMORY = 64 << 20
_NO_POINTS = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)


class NetworkEngine:
    """An engine (see `inference.engine`) over a network in training; embeddings are those of its present weights."""

    def __init__(self, network: nn.Module, spec: ModelSpec, device: torch.device) -> None:
        self.spec, self.digest, self.device, self.notices = spec, "", str(device), []
        self._network, self._device = network, device

    def encode(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """See `inference.engine.Engine`."""
        with torch.inference_mode():
            embedding = self._network.encode(self._tensor(image))
            return {name: value.float().cpu().numpy() for name, value in embedding.items()}

    def decode(self, embedding: dict[str, np.ndarray], *prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `inference.engine.Engine`."""
        with torch.inference_mode():
            answer = self._network.decode(self._tensors(embedding), *(self._tensor(array) for array in prompts))
            return tuple(value.float().cpu().numpy() for value in answer)

    def decode_classes(self, embedding: dict[str, np.ndarray]) -> np.ndarray:
        """Class logits (1, C, L, L) of an automatic head."""
        with torch.inference_mode():
            return self._network.decode_classes(self._tensors(embedding)).float().cpu().numpy()

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(np.asarray(array, np.float32), device=self._device)

    def _tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {name: self._tensor(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class Overlap:
    """Voxels of a structure in the answer, in the reference, and in both, summed over slices."""

    answer: int = 0
    reference: int = 0
    both: int = 0

    def __add__(self, other: Overlap) -> Overlap:
        return Overlap(self.answer + other.answer, self.reference + other.reference, self.both + other.both)

    @property
    def dice(self) -> float | None:
        """None when neither holds anything."""
        total = self.answer + self.reference
        return 2 * self.both / total if total else None

    @classmethod
    def of(cls, answer: np.ndarray, reference: np.ndarray) -> Overlap:
        """Of two masks of one shape."""
        return cls(*(int(np.count_nonzero(mask)) for mask in (answer, reference, answer & reference)))


def measure_case(
    engine: NetworkEngine,
    slices: Sequence[LabelledSlice],
    classes: int,
    ways: Iterable[str],
    most: int = 1000,
) -> dict[str, tuple[float | None, ...]]:
    """Dice of a case for each way of prompting, one value a class (1 to `classes`), None where it has none.

    `slices` are all of the case; prompts go on up to `most` that show something.
    """
    labelled = [one for one in slices if objects_of(one)]
    found = {}
    for way in ways:
        sums = [Overlap()] * classes
        shown = slices if way == "automatic" else evenly(labelled, most)
        for one in shown:
            for label, pair in enumerate(zip(*answer_slice(engine, one, way, classes), strict=True)):
                sums[label] += Overlap.of(*pair)
        # A class that the reference lacks is no evidence for prompts, which are made from the reference.
        found[way] = tuple(one.dice if one.reference or way == "automatic" else None for one in sums)
    return found


def answer_slice(
    engine: NetworkEngine, one: LabelledSlice, way: str, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (classes, rows, columns) that a way of prompting gives on a slice, and those that it was asked for.

    A class that the slice does not show has an empty mask, unless the automatic head believes to see it. Pixels that
    count for nothing are in no mask.
    """
    numbers = range(1, classes + 1)
    if way == "automatic":
        found = automatic_classes(engine, one.picture)
        masks, reference = (np.stack(own) for own in ([found == n for n in numbers], [one.mask(n) for n in numbers]))
        return masks & ~one.ignored, reference
    predictor = Predictor(engine, EmbeddingCache(memory_bytes=_MEMORY))
    masks, reference = np.zeros((2, classes, *one.classes.shape), bool)
    for thing in objects_of(one):
        reference[thing.label - 1] |= thing.mask
        masks[thing.label - 1] |= predictor.predict(one.picture, _prompt(thing.mask, way)).mask
    return masks & ~one.ignored, reference


def automatic_classes(engine: NetworkEngine, picture: np.ndarray) -> np.ndarray:
    """Class of every pixel, uint8 [rows, columns], by the automatic head."""
    image, place = prepare(picture, engine.spec)
    logits = engine.decode_classes(engine.encode(image))[0]
    return place.logits_to_picture(logits).argmax(0).astype(np.uint8)


def mean_dice(values: Iterable[float | None]) -> float | None:
    """Mean of those that are there."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def interval(values: Sequence[float | None], seed: int = 0) -> tuple[float, float] | None:
    """95 % bootstrap interval of the mean over patients; None for fewer than two."""
    known = np.array([value for value in values if value is not None])
    if len(known) < 2:
        return None
    means = np.random.default_rng(seed).choice(known, (2000, len(known))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _prompt(mask: np.ndarray, way: str) -> PlanePrompts:
    if way == "1 box":
        return PlanePrompts(*_NO_POINTS, box=bounding_box(mask))
    return PlanePrompts(interior_points(mask), np.ones(1, np.int64))
