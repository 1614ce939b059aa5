"""Where a propagation starts, which slices it should reach, and what it yields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import SlicePlane, Volume
from SAMFineTuneLib.images.slice_plane import view_axes
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.inference.slice_stack import Stack, stack_through
from SAMFineTuneLib.inference.unchanged_structure import Appearance


@dataclass(frozen=True, eq=False)
class Seed:
    """A slice whose mask is known."""

    plane: SlicePlane
    mask: np.ndarray


@dataclass(frozen=True, eq=False)
class PropagatedSlice:
    """A slice to which the mask was propagated."""

    plane: SlicePlane
    mask: np.ndarray
    score: float
    """The lowest predicted IoU among the mask's pieces."""
    overlap: float
    """IoU with the mask it was derived from."""
    sources: tuple[str, ...]
    """Keys of the prompted planes from which it comes."""


@dataclass(frozen=True)
class PropagationEnd:
    """Why a direction ended before the end of the range."""

    reason: str
    """A sentence for the user."""


@dataclass(frozen=True, eq=False)
class Front:
    """The slice and mask that a propagation has reached in one direction."""

    index: int
    mask: np.ndarray
    sources: tuple[str, ...]
    prompted: Appearance | None = None
    """The structure's appearance on the slice where it started."""
    best: float = 0.0
    """The best predicted IoU so far."""

    def moved(self, index: int, result: PropagatedSlice) -> Front:
        """This front on the next slice."""
        return replace(self, index=index, mask=result.mask, best=max(self.best, result.score))


@dataclass(frozen=True, eq=False)
class PropagationPlan:
    """Where the masks start, and which slices they should reach."""

    stack: Stack
    starts: list[Front]
    """In the order of their slices."""
    steps: tuple[int, ...]
    """Directions beyond the outermost starts: 1 and -1."""
    first: int
    """Lowest slice that may be written."""
    last: int
    """Highest slice that may be written."""
    interpolated: frozenset[int]
    """Slices of the stack that were interpolated when the volume was read."""

    def where(self, index: int) -> str:
        """The name of a slice, for messages."""
        return str(self.stack.plane(index))

    def beyond(self, step: int) -> range:
        """Slices after the outermost start, nearest first."""
        if step > 0:
            return range(max(self.starts[-1].index + 1, self.first), self.last + 1)
        return range(min(self.starts[0].index - 1, self.last), self.first - 1, -1)

    def between(self, low: int, high: int) -> range:
        """Slices after `low` and before `high`."""
        return range(max(low + 1, self.first), min(high - 1, self.last) + 1)

    @property
    def indices(self) -> list[int]:
        """All slices that should be reached."""
        gaps = zip(self.starts, self.starts[1:], strict=False)
        found = [index for low, high in gaps for index in self.between(low.index, high.index)]
        return found + [index for step in self.steps for index in self.beyond(step)]


def make_plan(volume: Volume, seeds: Sequence[Seed], settings: PropagationSettings) -> PropagationPlan:
    """Place the seeds on a stack of slices and choose the slices to reach; raises UserError as `propagate` says."""
    if not seeds:
        raise UserError("There is no mask to propagate; prompt the segment on at least one slice first.")
    stack = stack_through(volume, seeds[0].plane)
    starts = {}
    for seed in seeds:
        if not seed.mask.any():
            raise UserError(f"The mask on {seed.plane} is empty; change its prompts before propagating.")
        index, mask = stack.place(seed.plane, seed.mask)
        starts[index] = Front(index, mask, (seed.plane.key,))
    if settings.direction == "fill" and len(starts) < 2:
        raise UserError("Filling needs the segment on two slices of the same orientation; prompt another slice.")
    up = 1 if stack.up_is_increasing else -1
    steps = {"both": (1, -1), "up": (up,), "down": (-up,), "fill": ()}[settings.direction]
    first = max(settings.first or 0, 0)
    last = stack.count - 1 if settings.last is None else min(settings.last, stack.count - 1)
    return PropagationPlan(
        stack, [starts[index] for index in sorted(starts)], steps, first, last, _interpolated(volume, seeds[0].plane)
    )


def _interpolated(volume: Volume, plane: SlicePlane) -> frozenset[int]:
    """Indices of the slices that were interpolated on reading, where the plane is one of the volume's own slices."""
    is_own = plane.index is not None and view_axes(volume, plane.orientation)[2] == 2
    return volume.interpolated if is_own else frozenset()
