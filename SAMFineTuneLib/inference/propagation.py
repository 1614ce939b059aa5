"""Propagates a segment through the volume from one or several slices that have a mask.

A model with a volume memory answers for blocks of slices (`block_propagation`), others go from slice to slice
(`stepwise_propagation`). Beyond the outermost prompted slices, `direction` decides how far.

Slices that were interpolated when the volume was read (`Volume.interpolated`) never end a direction: where the model
does not find the structure on them, they get the shape between the masks on either side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, picture
from SAMFineTuneLib.inference.block_propagation import BlockPropagation
from SAMFineTuneLib.inference.progress import Cancelled, Meter, Progress
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, PropagationEnd, Seed, make_plan
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.inference.stepwise_propagation import StepwisePropagation

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor


def propagate(
    predictor: Predictor,
    volume: Volume,
    window: IntensityWindow,
    seeds: Sequence[Seed],
    settings: PropagationSettings | None = None,
    progress: Callable[[Progress], None] | None = None,
    cancelled: Cancelled = lambda: False,
    kept: Mapping[int, np.ndarray | None] = MappingProxyType({}),
) -> Iterator[PropagatedSlice | PropagationEnd | None]:
    """Propagate masks through a volume, slice by slice.

    Args:
        predictor: the model that segments each slice.
        volume: the volume.
        window: how its grey values become pictures.
        seeds: slices with a known mask; they are parallel.
        settings: where to propagate, and when to stop.
        progress: called with the progress after each slice.
        cancelled: called before each slice; true ends the propagation.
        kept: masks by slice index that are known from before, between two seeds or beyond the outermost; None marks a
            slice without the structure, at which it ends. These slices are not yielded again.

    Yields:
        The masks, those nearest to a seed first, without the seeds' own; a `PropagationEnd` for each direction that
        ended early; and None after work that gave no mask yet, so that the caller can do something more urgent.

    Raises:
        UserError: when a seed's mask is empty, the seeds do not belong to one stack of slices, or `fill` has fewer
            than two.
    """
    settings = settings or PropagationSettings()
    plan = make_plan(volume, seeds, settings)
    meter = Meter(len(set(plan.indices) - kept.keys()), progress)

    def shown(index: int) -> np.ndarray:
        return picture(volume, plan.stack.plane(index), window)

    if getattr(predictor.engine, "memory", None) is not None:
        return BlockPropagation(predictor, shown, plan, cancelled, meter, kept).slices()
    return StepwisePropagation(predictor, shown, settings, plan, cancelled, meter).slices(kept)


def planned_planes(
    volume: Volume, seeds: Sequence[Seed], settings: PropagationSettings | None = None
) -> list[SlicePlane]:
    """The slices that `propagate` returns when no direction ends early; raises UserError as it does."""
    plan = make_plan(volume, seeds, settings or PropagationSettings())
    return [plan.stack.plane(index) for index in plan.indices]
