"""A set of prompts answered from start to end by a session: what `segment` and `demo` do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import IntensityWindow, SlicePlane, Volume, overlay_picture, picture
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.prompts import PromptSet, prompt_planes
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.doubts import doubts_about_placing, doubts_about_points, doubts_about_voxels
from SAMFineTuneLib.session.session import Session

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a set of prompts."""

    session: Session
    labelmap: np.ndarray
    """[k, j, i], the segments' values."""
    prompted: dict[int, list[SlicePlane]]
    """The planes on which each segment (by value) has prompts."""
    filled: dict[int, int]
    """On how many planes each segment has a mask."""
    scores: dict[int, float]
    """The lowest predicted IoU among each segment's prompted planes."""


def place(volume: Volume, window: IntensityWindow, prompts: PromptSet, propagate: str = "none") -> Session:
    """A session with all prompts placed and no model yet; UserError for a prompt that cannot be."""
    session = Session(volume, None, window, immediate=False)
    oblique = prompt_planes(volume, prompts)
    view = oblique[0] if oblique else prompts.orientation
    for segment in prompts.segments:
        session.add_segment(segment.name, segment.value, segment.color)
        for prompt in segment.prompts:
            session.add_prompt(segment.value, prompt, view)
    if propagate == "none":  # otherwise a mask may arrive there for negative points to correct
        _require_targets(session, {segment.value: segment.name for segment in prompts.segments})
    return session


def _require_targets(session: Session, names: dict[int, str]) -> None:
    """Refuse planes whose prompts only say what the structure is not."""
    for (value, _), task in session.state.tasks.items():
        if not any(given.says_where for given in task.prompts):
            raise UserError(
                f"Segment {names[value]} has only negative points on {task.plane}: add a positive point or a box there."
            )


def doubts(session: Session) -> list[str]:
    """Sentences about a volume and placed prompts that are valid, but may not be what was meant."""
    told = doubts_about_voxels(session.volume)
    told += [doubt for placed in session.prompts for doubt in doubts_about_placing(session.volume, placed)]
    return [*told, *doubts_about_points(session.volume, session.window, session.state)]


def answer(session: Session, predictor: Predictor, propagate: str = "none") -> Outcome:
    """Make the masks of all placed prompts, and carry each segment through the volume when asked to.

    `propagate` is "none" or one of the directions of PropagationSettings.
    """
    session.set_model(predictor)
    prompted = {info.value: session.planes(info.value) for info in session.segments}
    scores = _predict(session, prompted)
    for info in session.segments if propagate != "none" else ():
        if any(session.mask(info.value, plane).any() for plane in prompted[info.value]):
            with _showing(session, info.name):
                session.finish(session.propagate(info.value, PropagationSettings(direction=propagate)))
    filled = {
        value: sum(bool(session.mask(value, plane).any()) for plane in session.planes(value)) for value in prompted
    }
    return Outcome(session, session.labelmap(), prompted, filled, scores)


def _predict(session: Session, prompted: dict[int, list[SlicePlane]]) -> dict[int, float]:
    from tqdm import tqdm

    places = [(value, plane) for value, planes in prompted.items() for plane in planes]
    scores: dict[int, float] = {}
    for value, plane in tqdm(places, "prompts", unit="slice", disable=_quiet(len(places)), leave=False):
        scores[value] = min(scores.get(value, 1.0), session.score(value, plane))
    return scores


def _quiet(count: int) -> bool:
    """Whether a bar would only be in the way."""
    return count < 3 or not sys.stderr.isatty()


@contextmanager
def _showing(session: Session, name: str) -> Iterator[None]:
    """Show the progress and the sentences of a job on segment `name` on stderr; raise what failed in it."""
    from tqdm import tqdm

    bar: tqdm | None = None
    failures: list[str] = []

    def listen(event: events.Event) -> None:
        nonlocal bar
        if isinstance(event, events.Busy):
            if bar is None:
                bar = tqdm(desc=name, unit="slice", total=0, disable=_quiet(event.total), leave=False)
            bar.total = event.total
            bar.update(event.done - bar.n)
        elif isinstance(event, events.Finished) and bar is not None:
            bar.close()
            bar = None
        elif isinstance(event, events.Notice):
            tqdm.write(f"note: {name}: {event.text}", file=sys.stderr)
        elif isinstance(event, events.Failed):
            failures.append(event.text)

    stop = session.listen(listen)
    try:
        yield
    finally:
        stop()
        if bar is not None:
            bar.close()
    if failures:
        raise UserError(failures[0])


def draw(outcome: Outcome, path: str | Path, plane: SlicePlane) -> None:
    """Write a PNG of a plane: the picture the model saw, the label map on it, and the prompts that lie there."""
    labels = extract_labels(outcome.labelmap, outcome.session.volume, plane)
    points, boxes = [], []
    for (_, key), task in outcome.session.state.tasks.items():
        for given in task.prompts if key == plane.key else ():
            points += [(*point, bool(label)) for point, label in zip(given.points, given.labels, strict=True)]
            boxes += [] if given.box is None else [given.box]
    overlay_picture(
        path,
        picture(outcome.session.volume, plane, outcome.session.window),
        [(labels == info.value, info.color) for info in outcome.session.segments],
        points,
        boxes,
    )


def busiest_plane(outcome: Outcome) -> SlicePlane:
    """The plane on which the segments that are prompted there cover most."""
    planes = {plane.key: plane for planes in outcome.prompted.values() for plane in planes}
    covered = dict.fromkeys(planes, 0)
    for value, own in outcome.prompted.items():
        for plane in own:
            labels = extract_labels(outcome.labelmap, outcome.session.volume, plane)
            covered[plane.key] += np.count_nonzero(labels == value)
    return planes[max(covered, key=covered.__getitem__)]


def milliliters(outcome: Outcome, value: int) -> float:
    """A segment's volume."""
    voxel = abs(float(np.linalg.det(outcome.session.volume.affine[:3, :3])))
    return np.count_nonzero(outcome.labelmap == value) * voxel / 1000
