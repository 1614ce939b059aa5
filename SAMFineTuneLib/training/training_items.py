"""One picture of a training step, as a pure function of (seed, part, number). No PyTorch here.

Training shows what inference shows: the same windows, the same preprocessing, and for a model that zooms the same views
around a prompt. Everything random about an item is drawn here, including the random numbers of later corrections, so
the result depends neither on the number of processes nor on whether the run was resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.cases.case_slices import LabelledSlice, Object, objects_of
from SAMFineTuneLib.cases.labelled_case import IGNORED
from SAMFineTuneLib.inference.input_crop import View, bounding_box, view_of_box, views_around, views_of_point
from SAMFineTuneLib.models.preprocess import MASK_LOGIT, InputGeometry, geometry, prepare
from SAMFineTuneLib.models.spec import ModelSpec
from SAMFineTuneLib.simulation.first_prompts import POINTS, First, first_prompt
from SAMFineTuneLib.training.augmentation import augment
from SAMFineTuneLib.training.training_settings import TrainingSettings

_EMPTY = 0.25  # part of the automatic head's pictures that show nothing labelled
_CUTTING = 0.1  # part of the points whose view may cut the object
_LEAST = 12  # pixels of an object after augmentation


@dataclass(frozen=True, eq=False)
class TrainingItem:
    """Up to two pictures of one slice with their prompts: M objects, S input side, L low-resolution side.

    `images` are prepared inputs (C, S, S); equal `keys` mean equal pictures, in whichever item. Objects are on the
    first picture; the automatic head sees the last one.
    """

    images: tuple[np.ndarray, ...]
    keys: tuple[tuple, ...]
    coords: np.ndarray
    """(M, N, 2) input pixels."""
    labels: np.ndarray
    """(M, N)."""
    ambiguous: np.ndarray
    """(M,) bool."""
    targets: np.ndarray
    """(M, L, L): the part of each cell that the object covers."""
    beyond: np.ndarray
    """(M,): cells of the object outside the picture, where the view cuts it."""
    chances: np.ndarray
    """(M, rounds, 7) uniform: which wrong pixels are clicked, where in them, and whether logits are fed back."""
    classes: np.ndarray | None
    """(classes, L, L): the part of each cell that each class covers, for the automatic head. Ignored pixels have no
    class."""
    ignored: np.ndarray | None = None
    """(L, L): the part of each cell of the objects' picture that is ignored; None where nothing is."""


class Items:
    """The training slices of some cases, and item `number` of training part `part`."""

    def __init__(
        self,
        slices: Sequence[LabelledSlice],
        empty: Sequence[LabelledSlice],
        spec: ModelSpec,
        settings: TrainingSettings,
        part: int = 0,
    ) -> None:
        """`slices` show objects, `empty` show none."""
        self.slices, self.empty = list(slices), list(empty)
        self._spec, self._settings, self._part = spec, settings, part
        self._fixed = not settings.method.trains_encoder
        self._strength = settings.strength(len(self.slices))

    def __call__(self, number: int) -> TrainingItem:
        """Item `number`; slices come in a new order whenever all have been shown."""
        seed = (self._settings.seed, self._part)
        epoch, place = divmod(number, len(self.slices))
        index = int(np.random.default_rng((*seed, 0, epoch)).permutation(len(self.slices))[place])
        rng = np.random.default_rng((*seed, 1, number))
        heads = self._settings.method.heads
        promptable, automatic = (head in heads for head in ("promptable", "automatic"))
        # An encoder that does not learn sees a few versions of every slice repeatedly, so their embeddings can be kept.
        version = int(rng.integers(self._settings.variants)) if self._fixed else number
        shown = self._augmented(index, version)
        found = objects_of(shown, _LEAST)
        if not found:
            shown, version = self.slices[index], -1
            found = objects_of(shown)
        images, keys, ignored, shape = [], [], None, shown.picture.shape
        view, chosen, firsts = self._session(rng, shape, found) if promptable else (View.whole(shape), [], [])
        asked = self._asked(rng, view, chosen, firsts)
        if promptable:
            images.append(prepare(view.crop(shown.picture), self._spec)[0][0])
            keys.append((index, version, view))
            if shown.ignored.any():
                ignored = _shares(view.crop(shown.ignored), geometry((view.rows, view.columns), self._spec))
        classes = None
        if automatic:
            if self.empty and rng.random() < _EMPTY:
                index = -1 - int(rng.integers(len(self.empty)))
                shown = self._augmented(index, version)
            whole = View.whole(shown.picture.shape)
            if (index, version, whole) not in keys:
                images.append(prepare(shown.picture, self._spec)[0][0])
                keys.append((index, version, whole))
            classes = class_shares(shown.classes, len(self._settings.method.classes), self._spec)
        return TrainingItem(tuple(images), tuple(keys), *asked, classes, ignored)

    def _augmented(self, index: int, version: int) -> LabelledSlice:
        """An augmented version of a slice; negative numbers count the empty slices."""
        one = self.slices[index] if index >= 0 else self.empty[-1 - index]
        seed = (self._settings.seed, self._part, 2, version + 1, index % (1 << 31))
        picture, classes = augment(np.random.default_rng(seed), one.picture, one.classes, self._strength)
        return LabelledSlice(picture, classes, one.plane, one.overlaps)

    def _session(
        self, rng: np.random.Generator, shape: tuple[int, int], found: list[Object]
    ) -> tuple[View, list[Object], list[First]]:
        """Objects of one view with their first prompts; inference would choose that view for the first object."""
        kind = self._settings.prompts
        order = rng.permutation(len(found))[: max(self._settings.objects, 1) if not self._spec.zoom else None]
        if not self._spec.zoom:
            chosen = [found[i] for i in order]
            return View.whole(shape), chosen, [first_prompt(rng, one.mask, kind) for one in chosen]
        anchor, others = found[order[0]], [found[i] for i in order[1:]]
        first = first_prompt(rng, anchor.mask, kind)
        view = self._view(rng, shape, anchor.mask, first)
        seen = [one for one in others if view.contains(bounding_box(one.mask).reshape(2, 2))]
        seen = seen[: self._settings.objects - 1]
        return view, [anchor, *seen], [first, *(first_prompt(rng, one.mask, kind) for one in seen)]

    def _view(self, rng: np.random.Generator, shape: tuple[int, int], mask: np.ndarray, first: First) -> View:
        """The view of a zooming predictor: for a box one of its views around it, for points one of the squares that it
        tries.
        """
        if first.box is not None:
            view = view_of_box(shape, first.box, self._spec.input_size)
            views = views_around(shape, view, first.box.reshape(2, 2))
            return views[rng.integers(len(views))]
        tight, views = bounding_box(mask), views_of_point(shape, first.coords[0], self._spec.input_size)
        # Mostly one that holds the object; the predictor also tries views that cut it, which it must not trust.
        cutting = rng.random() < _CUTTING
        holding = [view for view in views if cutting or view.contains(tight.reshape(2, 2))]
        return holding[rng.integers(len(holding))] if holding else View.whole(shape)

    def _asked(
        self, rng: np.random.Generator, view: View, chosen: list[Object], firsts: list[First]
    ) -> tuple[np.ndarray, ...]:
        """`coords`, `labels`, `ambiguous`, `targets`, `beyond`, `chances` of an item."""
        place = geometry((view.rows, view.columns), self._spec)
        low, count = place.low_res_size, len(chosen)
        coords = [place.prompts_to_input(view.to_view(first.coords), first.labels) for first in firsts]
        targets = np.array([_shares(view.crop(one.mask), place) for one in chosen], np.float32).reshape(-1, low, low)
        cells = np.prod(place.scale) * (low / place.input_size) ** 2  # of one of the slice's pixels
        outside = np.array([cells * one.mask.sum() for one in chosen]) - targets.sum((1, 2))
        return (
            np.array(coords, np.float32).reshape(count, POINTS + 1, 2),
            np.array([first.labels for first in firsts], np.float32).reshape(count, POINTS + 1),
            np.array([first.ambiguous for first in firsts], bool),
            targets,
            outside.clip(0).astype(np.float32),
            rng.random((count, self._settings.rounds, 7), dtype=np.float32),
        )


def class_shares(classes: np.ndarray, count: int, spec: ModelSpec) -> np.ndarray:
    """(count, L, L): the part of each low-resolution cell of the whole picture that each class covers; padding is
    background. Ignored pixels have no class, so the parts of their cells add up to less than one."""
    place = geometry(classes.shape, spec)
    shares = np.stack([_shares(classes == value, place) for value in range(1, count)])
    ignored = classes == IGNORED
    counted = 1 - _shares(ignored, place) if ignored.any() else 1
    background = counted - shares.sum(axis=0, keepdims=True)
    return np.concatenate([background, shares]).clip(0, 1).astype(np.float32)


def _shares(mask: np.ndarray, place: InputGeometry) -> np.ndarray:
    """(L, L): the part of each low-resolution cell that a mask covers."""
    return (place.mask_to_low_res(mask)[0] / (2 * MASK_LOGIT) + 0.5).astype(np.float32)
