"""The objects of an evaluation: connected pieces of labels on slices of a case (MedicoSAM)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from SAMFineTuneLib.cases.case_slices import LabelledSlice, evenly, objects_of, orientations, slices_of
from SAMFineTuneLib.cases.labelled_case import Labelled
from SAMFineTuneLib.images import IntensityWindow, SlicePlane, choose_window


@dataclass(frozen=True, eq=False)
class SliceObject:
    """One piece of a label on a slice: `picture` uint8, `mask` and `ignored` bool (rows, columns), pixels of `plane`.

    The annotator left `ignored` pixels undecided: neither answers nor prompts outside the object count there.
    """

    label: str
    number: int
    """Number of the label among the chosen ones, from 1."""
    piece: int
    picture: np.ndarray
    mask: np.ndarray
    plane: SlicePlane
    ignored: np.ndarray

    @property
    def name(self) -> str:
        """Name of the object within its case, the same whenever the case is read."""
        return f"{self.plane.key}/{self.number}/{self.piece}"

    def counted(self, answer: np.ndarray) -> np.ndarray:
        """The answer (…, rows, columns) without ignored pixels."""
        return answer & ~self.ignored

    @property
    def spacing(self) -> tuple[float, float]:
        """Millimetres between rows and between columns."""
        return self.plane.pixel_size, self.plane.pixel_size


@dataclass(frozen=True, eq=False)
class Subject:
    """A case for the protocols: its slices in one orientation and one window."""

    labelled: Labelled
    window: str | None = None
    """Grey-value window; None: as suits the modality."""
    orientation: str = "auto"

    @property
    def digest(self) -> str:
        """Digest of the case's image and labels."""
        return self.labelled.digest

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; label number 1 is the first."""
        return self.labelled.names

    @cached_property
    def grey(self) -> IntensityWindow:
        """The grey values that models see."""
        return choose_window(self.labelled.volume, self.window)

    @cached_property
    def slices(self) -> list[LabelledSlice]:
        """All slices."""
        return list(slices_of(self.labelled, self.window, self.seen_along))

    @property
    def seen_along(self) -> str:
        """Name of the orientation of the slices."""
        return orientations(self.labelled, self.orientation)[0]

    def random(self, seed: int, *purpose: str) -> np.random.Generator:
        """Random numbers for one purpose, such as an object and a protocol.

        They follow from seed, purpose and the digest of the case's voxels and labels alone: neither the order of the
        work, nor the number of processes, nor a file's name changes them.
        """
        text = "|".join((str(seed), self.digest, *purpose))
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))

    def objects(self, slices: int) -> list[SliceObject]:
        """The objects on up to `slices` slices of each label, evenly spread over those that show it."""
        found: dict[int, list[list[SliceObject]]] = {}
        for one in self.slices:
            for label, things in groupby(objects_of(one), key=lambda thing: thing.label):
                name = self.labels[label - 1]
                own = [SliceObject(name, label, number, one.picture, thing.mask, one.plane, one.ignored)
                       for number, thing in enumerate(things)]  # fmt: skip
                found.setdefault(label, []).append(own)
        return [thing for label in sorted(found) for own in evenly(found[label], slices) for thing in own]
