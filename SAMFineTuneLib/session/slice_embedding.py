"""Embeds the slices around the one that the user looks at, in the background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from SAMFineTuneLib.disk_errors import disk_error
from SAMFineTuneLib.errors import UserError, model_error
from SAMFineTuneLib.images import IntensityWindow, Volume
from SAMFineTuneLib.images.slice_extraction import picture
from SAMFineTuneLib.images.slice_plane import aligned_plane, number_of_slices
from SAMFineTuneLib.inference.progress import Meter, Progress

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor


class SliceEmbedding:
    """Embeds all slices of an orientation, one a step.

    Args:
        report: called with the progress after each slice.
    """

    def __init__(self, report: Callable[[Progress], None]) -> None:
        self.focus: tuple[str, int] | None = None
        """Orientation and index of the slice to begin with; None when embedding was not requested."""
        self._report = report
        self._steps: Iterator[None] | None = None

    @property
    def active(self) -> bool:
        """Whether slices are left to do."""
        return self._steps is not None

    def begin(self, predictor: Predictor, volume: Volume, window: IntensityWindow, focus: tuple[str, int]) -> None:
        """Embed the slice at an orientation and index, then its neighbours outwards. UserError when there is none."""
        aligned_plane(volume, *focus)
        self.focus = focus
        predictor.cache.failure = None  # the disk may have room by now
        self._steps = self._embed(predictor, volume, window, *focus)

    def stop(self) -> None:
        """Stop embedding."""
        self.focus = self._steps = None

    def step(self) -> bool:
        """Embed the next slice; returns whether there was one. UserError when that fails, which also stops embedding.
        """
        if next(self._steps, self) is self:
            self._steps = None
        return self.active

    def _embed(
        self, predictor: Predictor, volume: Volume, window: IntensityWindow, orientation: str, focus: int
    ) -> Iterator[None]:
        count = number_of_slices(volume, orientation)
        meter = Meter(count, self._report)
        for index in sorted(range(count), key=lambda index: (abs(index - focus), index)):
            plane = aligned_plane(volume, orientation, index)
            try:
                predictor.embed(picture(volume, plane, window))
            except Exception as error:
                self.stop()
                raise model_error(error, f"embed {plane}") from error
            if (failure := predictor.cache.failure) is not None:
                self.stop()
                raise UserError(f"The prepared slices cannot be kept. {disk_error(failure) or failure}") from failure
            meter.step()
            yield
