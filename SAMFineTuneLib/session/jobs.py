"""Long computations of a session, which `Session.work` does step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.inference.automatic_head import SliceClasses
from SAMFineTuneLib.inference.object_linking import Object3D
from SAMFineTuneLib.session.events import ObjectInfo, Objects

_MOST_FOUND = 2  # jobs whose objects are kept


@dataclass(eq=False)
class Job:
    """A computation under way."""

    what: ClassVar[str]
    number: int
    """Identifies it in its events."""
    steps: Iterator[Any] = field(default=iter(()), init=False)
    done: bool = field(default=False, init=False)
    """Whether it is finished."""
    cancelled: bool = field(default=False, init=False)
    keep_results: bool = field(default=True, init=False)
    overtaken: bool = field(default=False, init=False)
    """Whether prompts, window or model have changed since."""

    def cancel(self, keep_results: bool = True) -> None:
        """Stop before the next slice. With `keep_results`, the results so far stay and can be undone."""
        self.cancelled = True
        self.keep_results = self.keep_results and keep_results


@dataclass(eq=False)
class EverythingJob(Job):
    """Everything mode, or an automatic head's labels."""

    what = "everything"
    join: Callable[[list[Any]], list[Object3D]]
    """Makes objects from the masks of the slices."""
    slices: list[Any] = field(default_factory=list, init=False)
    objects: list[Object3D] = field(default_factory=list, init=False)
    """Set when the job is done."""


def joined_labels(slices: list[SliceClasses]) -> list[Object3D]:
    """An object for each label that an automatic head found; its value is the number of the class."""
    found: dict[int, dict[int, PackedMask]] = {}
    for item in slices:
        for value, mask in item.masks.items():
            found.setdefault(value, {})[item.index] = mask
    orientation = slices[0].plane.orientation if slices else "axial"
    return [
        Object3D(value, masks, 1.0, orientation, sum(int(mask.unpack().sum()) for mask in masks.values()))
        for value, masks in sorted(found.items())
    ]


class FoundObjects(dict[int, EverythingJob]):
    """The objects of the last jobs, which may become segments."""

    def keep(self, job: EverythingJob) -> Objects:
        """Join the masks that a job found into objects, and drop those of the oldest job. Returns the event to send."""
        job.objects, job.slices = job.join(job.slices), []
        self[job.number] = job
        for number in list(self)[:-_MOST_FOUND]:
            del self[number]
        return Objects(
            job.number,
            tuple(
                ObjectInfo(one.value, one.area, float(one.score), one.orientation, (min(one.masks), max(one.masks)))
                for one in job.objects
            ),
        )

    def of(self, job: int, objects: Iterable[int]) -> list[Object3D]:
        """Objects of a job by their numbers; UserError when one does not exist."""
        if job not in self:
            raise UserError("These objects no longer exist; find them again.")
        by_number = {item.value: item for item in self[job].objects}
        if not set(objects) <= set(by_number):
            raise UserError("One of these objects does not exist; find them again.")
        return [by_number[number] for number in objects]
