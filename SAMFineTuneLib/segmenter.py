"""Segmenting a volume from Python: prompts in, masks out, on the session that the panel and the command line use."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import only_new, require_apart
from SAMFineTuneLib.images import (
    IntensityWindow,
    SegmentInfo,
    SlicePlane,
    Volume,
    aligned_plane,
    as_volume,
    check_output_path,
    choose_window,
    number_of_slices,
    write_labelmap,
)
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.settings import PropagationSettings
from SAMFineTuneLib.metrics.segment_statistics import SegmentStatistics, segment_statistics
from SAMFineTuneLib.prompts import (
    BoxPrompt,
    ObliqueView,
    PointPrompt,
    Prompt,
    PromptSet,
    SegmentPrompts,
    prompt_planes,
    read_prompts,
    segment_color,
    write_markups,
    write_prompts,
)
from SAMFineTuneLib.prompts.checked_json import Coordinates, numbers
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.doubts import (
    doubts_about_adapter,
    doubts_about_masks,
    doubts_about_overlaps,
    doubts_about_placing,
    doubts_about_points,
    doubts_about_voxels,
)
from SAMFineTuneLib.session.session import Session
from SAMFineTuneLib.session.slice_drawing import draw_slice

if TYPE_CHECKING:
    from SAMFineTuneLib.inference.predictor import Predictor
    from SAMFineTuneLib.session.state import State

Position = Sequence[float]


def _one_at_a_time(method: Callable) -> Callable:
    """Let threads wait for each other that use one segmenter: steps that mix would lose prompts and segments."""

    @wraps(method)
    def alone(self: Segmenter, *args: Any, **named: Any) -> Any:
        with self._alone:
            return method(self, *args, **named)

    return alone


class Segmenter:
    """A volume, its segments and their prompts.

    Prompts are placed at once. The first result that is requested opens the model and makes the masks.

    Args:
        image: a path (DICOM folder or file, NIfTI, NRRD, MetaImage, PNG, JPEG), a SimpleITK or nibabel image, or a
            NumPy array [k, j, i] (slice, row, column) with its `affine`.
        affine: 4 × 4, voxel (i, j, k) to RAS in mm; for an array only.
        series: which DICOM series of a folder, by UID or number.
        window: grey values that become black and white: "auto", "ct-abdomen", "percentiles:1,99", …, or (low, high).
        model: id or folder of a model; default: the adapter's base, else the bundled model.
        adapter: name or folder of an adapter.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", …
        predictor: an open model, instead of `model` and `device`.
        session: a session of `service.server_session`, whose masks a server makes with a model of its own.
        tell: called with each sentence that the user should read; default: Python's warnings.

    Raises:
        UserError: for an image, window, model or adapter that cannot be used.
    """

    def __init__(
        self,
        image: Any,
        *,
        affine: np.ndarray | None = None,
        series: str | None = None,
        window: str | Sequence[float] | IntensityWindow | None = None,
        model: str | Path | None = None,
        adapter: str | Path | None = None,
        device: str = "auto",
        predictor: Predictor | None = None,
        session: Session | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._alone = RLock()
        self.volume: Volume = as_volume(image, affine, series)
        if window is None or isinstance(window, str):
            window = choose_window(self.volume, window)
        elif not isinstance(window, IntensityWindow):
            window = IntensityWindow(*numbers(np.asarray(window).tolist(), "window", 2), "as given")
        self.session = session or Session(self.volume, None, window)
        self._answered_elsewhere = session is not None
        self._model, self._adapter, self._device, self._predictor = model, adapter, device, predictor
        recipe: Mapping[str, Any] = {}
        if adapter is not None:
            from SAMFineTuneLib.models.adapters.adapter_store import AdapterStore

            recipe = AdapterStore().find(adapter).card.recipe
        self._tell = tell or _warn
        self._judged: State | None = None
        self._compared: State | None = None
        self._told: set[str] = set()
        read_here = () if isinstance(image, Volume) else self.volume.warnings
        self._tell_once([*read_here, *doubts_about_voxels(self.volume), *doubts_about_adapter(self.volume, recipe)])

    # ---- prompts

    def point(
        self, position: Position, label: str = "Segment 1", *, positive: bool = True, space: str = "ras",
        orientation: str = "axial",
    ) -> Segmenter:  # fmt: skip
        """Place a point inside a structure, or outside it with `positive=False`.

        Args:
            position: (right, anterior, superior) in mm, or (i, j, k) in voxels with `space="ijk"`.
            label: name of the segment; created when there is none of that name.
            positive: whether the point belongs to the structure.
            space: "ras" or "ijk".
            orientation: slices to segment on: "axial", "coronal" or "sagittal".

        Returns:
            The segmenter, so that calls can be chained.

        Raises:
            UserError: for a position outside the volume.
        """
        [position] = self._ras([position], space, "The point")
        if positive not in (True, False):
            raise UserError("positive must be True or False.")
        return self.prompt(PointPrompt(position, bool(positive)), label, orientation)

    def box(
        self, corner: Position, opposite: Position, label: str = "Segment 1", *, space: str = "ras",
        orientation: str = "axial",
    ) -> Segmenter:  # fmt: skip
        """Place a box by two opposite corners.

        Args:
            corner: a position, as for `point`.
            opposite: the opposite one. On another slice it makes a box over all slices between.
            label: name of the segment; created when there is none of that name.
            space: "ras" or "ijk".
            orientation: slices to segment on: "axial", "coronal" or "sagittal".

        Returns:
            The segmenter.

        Raises:
            UserError: for a box outside the volume or without area.
        """
        return self.prompt(BoxPrompt(*self._ras([corner, opposite], space, "The box")), label, orientation)

    def prompt(self, prompt: Prompt, label: str = "Segment 1", view: str | SlicePlane = "axial") -> Segmenter:
        """Place a prompt.

        Args:
            prompt: of any kind, see `SAMFineTuneLib.prompts`.
            label: the segment's name.
            view: the orientation of the slices on which it lies, or an oblique plane.
        """
        return self.prompts(PromptSet((SegmentPrompts(label, prompts=(prompt,)),)), view)

    @_one_at_a_time
    def prompts(self, prompts: PromptSet | str | Path, view: str | SlicePlane | None = None) -> Segmenter:
        """Place a set of prompts, or those of a file (.json, .mrk.json, .fcsv): all of them, or none.

        Args:
            prompts: a set, or the path of a file. A segment whose name exists gets more prompts.
            view: the orientation, or oblique plane, to place them on; default: the one in the set.

        Returns:
            The segmenter.

        Raises:
            UserError: for a file that cannot be read, or a prompt outside the volume.
        """
        if not isinstance(prompts, PromptSet):
            prompts = read_prompts(prompts, self.volume)
        if view is None:
            oblique = prompt_planes(self.volume, prompts)
            view = oblique[0] if oblique else prompts.orientation
        steps = 0
        try:
            for segment in prompts.segments:
                info = self._info(segment.name)
                if info is None:
                    info = self._add_segment(segment)
                    steps += 1
                for prompt in segment.prompts:
                    self.session.add_prompt(info.value, prompt, view)
                    steps += 1
                    self._tell_once(doubts_about_placing(self.volume, self.session.prompts[-1]))
        except UserError:
            for _ in range(steps):
                self.session.undo()
            raise
        return self

    @_one_at_a_time
    def undo(self) -> Segmenter:
        """Undo the last step: a prompt, a segment or a propagation."""
        self.session.undo()
        return self

    @_one_at_a_time
    def redo(self) -> Segmenter:
        """Redo the last step that was undone."""
        self.session.redo()
        return self

    @_one_at_a_time
    def check_prompts(self, propagating: bool = False) -> None:
        """Report doubtful positive points, such as one in air or outside its box.

        Args:
            propagating: whether propagation follows, which may bring a mask for lone negative points to correct.

        Raises:
            UserError: if a segment has only negative prompts on a plane, unless `propagating`.
        """
        names = {info.value: info.name for info in self.segments}
        for (value, _), task in self.session.state.tasks.items() if not propagating else ():
            if not any(part.says_where for part in task.prompts):
                raise UserError(
                    f"Segment {names[value]} has only negative prompts on {task.plane}: add a positive point or a box "
                    "there."
                )
        self._tell_once(doubts_about_points(self.volume, self.session.window, self.session.state))

    # ---- answers

    @property
    @_one_at_a_time
    def predictor(self) -> Predictor:
        """The open model with its adapter."""
        if self._predictor is None:
            from SAMFineTuneLib.inference.open_predictor import open_predictor

            self._predictor = open_predictor(self._model, self._adapter, self._device, tell=self._tell)
        return self._predictor

    @_one_at_a_time
    def use(self, predictor: Predictor) -> Segmenter:
        """Segment with another model, which is already open."""
        self._predictor = predictor
        if self.session.predictor is not None:
            self.session.set_model(predictor)
        return self

    @property
    @_one_at_a_time
    def scores(self) -> dict[int, float]:
        """Label value → the lowest predicted IoU among its prompted planes."""
        scores: dict[int, float] = {}
        for value, plane in self.prompted_planes:
            scores[value] = min(scores.get(value, 1.0), self._answering().score(value, plane))
        return scores

    @_one_at_a_time
    def predict(self, progress: Callable[[int, int], None] | None = None) -> Segmenter:
        """Make the masks of all prompts. `progress` is called with the number of finished slices and of all slices."""
        places = self.prompted_planes
        for done, (value, plane) in enumerate(places):
            self._answering().score(value, plane)
            if progress is not None:
                progress(done + 1, len(places))
        return self

    @_one_at_a_time
    def propagate(
        self, label: str | None = None, direction: str = "both", progress: Callable[[int, int], None] | None = None
    ) -> Segmenter:
        """Propagate a segment, or every segment, from its prompted slices through the volume.

        Args:
            label: name of the segment; None for all.
            direction: "both", "up" (towards superior, anterior or right), "down", or "fill" for only the slices between
                prompted ones.
            progress: called with the number of finished slices and of all slices.

        Returns:
            The segmenter.

        Raises:
            UserError: if there is nothing to start from, or propagation fails.
        """
        if not self.segments:
            raise UserError("There is nothing to propagate yet; place a point or a box first.")
        session = self._answering()
        self._judge()
        while not session.settled:  # so that the notices below come from the propagation
            session.work(0.0)
        for info in session.segments if label is None else [self._existing(label)]:
            if label is None and not self.filled_planes(info.value):
                continue
            failures: list[str] = []

            def listen(event: events.Event, name: str = info.name, failures: list[str] = failures) -> None:
                if isinstance(event, events.Busy) and progress is not None:
                    progress(event.done, event.total)
                elif isinstance(event, events.Notice):
                    self._tell(f"{name}: {event.text}")
                elif isinstance(event, events.Failed):
                    failures.append(event.text)

            stop = session.listen(listen)
            try:
                session.finish(session.propagate(info.value, PropagationSettings(direction=direction)))
            finally:
                stop()
            if failures:
                raise UserError(failures[0])
        return self

    @property
    def segments(self) -> tuple[SegmentInfo, ...]:
        """Names, label values and colours; an earlier segment keeps its voxels."""
        return self.session.segments

    @property
    def prompted_planes(self) -> list[tuple[int, SlicePlane]]:
        """Label value and plane of every mask that follows from prompts."""
        return [(place[0], task.plane) for place, task in self.session.state.tasks.items() if task.prompts]

    @_one_at_a_time
    def filled_planes(self, value: int) -> list[SlicePlane]:
        """The planes on which the segment of a label value has a mask that is not empty."""
        return [plane for plane in self.session.planes(value) if self._answering().mask(value, plane).any()]

    @property
    @_one_at_a_time
    def labelmap(self) -> np.ndarray:
        """All segments as label values, uint8 or uint16 [k, j, i]; 0 is background."""
        labelmap = self._answering().labelmap()
        self._judge()
        self._tell_what_others_keep(labelmap)
        return labelmap

    def mask(self, label: str | None = None) -> np.ndarray:
        """The mask of a segment, bool [k, j, i].

        Args:
            label: name of the segment; None if there is only one.

        Raises:
            UserError: if there is no such segment, or several and no name.
        """
        if label is None and len(self.segments) != 1:
            raise UserError(f"There are {len(self.segments)} segments; say which by its name.")
        value = self.segments[0].value if label is None else self._existing(label).value
        return self.labelmap == value

    def statistics(self) -> list[SegmentStatistics]:
        """Volume, grey values and extent of every segment."""
        return segment_statistics(self.volume, self.labelmap, self.segments)

    @_one_at_a_time
    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write all segments in the geometry of the volume; the ending chooses the format.

        Args:
            path: .nii.gz, .nii, .nrrd, .mha (label map), .seg.nrrd (Slicer segmentation) or .dcm (DICOM SEG).
            overwrite: whether to replace an existing file.

        Returns:
            The path.

        Raises:
            UserError: for an unknown ending, an existing file without `overwrite`, and for a file that was read, or
                lies among the slices that were.
        """
        path = Path(path).expanduser()
        check_output_path(path)
        require_apart(path, self._files)
        if path.exists() and not overwrite:
            raise UserError(f"“{path}” exists already: choose another name, or pass overwrite=True.")
        if path.name.lower().endswith(".dcm"):
            from SAMFineTuneLib.images.dicom_seg import check_dicom_seg

            check_dicom_seg(self.volume)  # before the masks are made
        labelmap = self.labelmap
        with only_new(not overwrite):
            notes = write_labelmap(path, labelmap, self.volume, self.segments)
        for note in notes:
            self._tell(note)
        return path

    def save_prompts(self, path: str | Path) -> list[Path]:
        """Write the prompts, for `prompts`, the command line or Slicer to read.

        Args:
            path: a new .json file; or a new or empty folder for Slicer's markups, one .mrk.json for each point list,
                box and line.

        Returns:
            The files.

        Raises:
            UserError: for prompts on slices of several orientations, for what exists already or would lie among the
                slices that were read, and for prompts that markups cannot hold.
        """
        path = Path(path).expanduser()
        require_apart(path, self._files)
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"“{path}” exists already: choose another name.")
        views = {getattr(one.view, "key", one.view): one.view for one in self.session.prompts}
        if len(views) > 1:
            raise UserError("The prompts lie on slices of several orientations, and a prompts file holds those of one.")
        view = next(iter(views.values()), "axial")
        segments = tuple(
            SegmentPrompts(info.name, info.value, info.color, prompts)
            for info in self.segments
            if (prompts := tuple(one.prompt for one in self.session.prompts if one.segment == info.value))
        )
        if isinstance(view, str):
            found = PromptSet(segments, view)
        else:
            found = PromptSet(segments, view=ObliqueView(view.origin, view.right, view.down))
        with only_new():
            if path.suffix.lower() != ".json":
                return write_markups(path, found, self.volume)
            write_prompts(path, found)
        return [path]

    @property
    def _files(self):
        """The files that the volume was read from."""
        return self.volume.source.files if self.volume.source is not None else ()

    # ---- pictures

    @_one_at_a_time
    def slice_image(self, plane: SlicePlane | int | None = None, legend: dict[int, str] | None = None) -> Any:
        """Draw a slice with masks, prompts and a legend.

        Args:
            plane: a plane, or the index of an axial slice; None for the prompted plane that the segments cover most.
            legend: label value → text; None for the names of the segments on the slice.

        Returns:
            A Pillow image.

        Raises:
            UserError: for a slice that the volume does not have.
        """
        if plane is None:
            plane = self.busiest_plane()
        elif not isinstance(plane, SlicePlane):
            plane = aligned_plane(self.volume, "axial", int(plane))
        return draw_slice(self.session, self.labelmap if self.segments else None, plane, legend)

    @_one_at_a_time
    def busiest_plane(self) -> SlicePlane:
        """The prompted plane that the segments cover most; without prompts the middle axial slice."""
        planes = {plane.key: plane for _, plane in self.prompted_planes}
        if not planes:
            return aligned_plane(self.volume, "axial", number_of_slices(self.volume, "axial") // 2)
        labelmap = self.labelmap
        covered = {
            key: np.count_nonzero(extract_labels(labelmap, self.volume, plane)) for key, plane in planes.items()
        }
        return planes[max(covered, key=covered.__getitem__)]

    def _repr_png_(self) -> bytes:
        return self.slice_image()._repr_png_()

    def __repr__(self) -> str:
        names = ", ".join(info.name for info in self.segments) or "no segments yet"
        return f"<Segmenter: {self.volume!s}; {names}>"

    # ---- inside

    def _judge(self) -> None:
        """Report possible mistakes in prompts and masks, once after every change."""
        if self.session.state is not self._judged:
            self._judged = self.session.state
            self._tell_once(doubts_about_masks(self.session))

    def _tell_what_others_keep(self, labelmap: np.ndarray) -> None:
        """Report segments that lost many voxels to earlier ones, once after every change."""
        if self.session.state is not self._compared:
            self._compared = self.session.state
            self._tell_once(doubts_about_overlaps(self.session, labelmap))

    def _tell_once(self, sentences: Iterable[str]) -> None:
        for sentence in sentences:
            if sentence not in self._told:
                self._told.add(sentence)
                self._tell(sentence)

    def _answering(self) -> Session:
        """The session, with the model opened as soon as there are prompts."""
        if not self._answered_elsewhere and self.session.predictor is None and self.session.state.tasks:
            self.session.set_model(self.predictor, str(self._adapter or ""), {})
        return self.session

    def _info(self, label: str) -> SegmentInfo | None:
        return next((info for info in self.segments if info.name == label.strip()), None)

    def _add_segment(self, segment: SegmentPrompts) -> SegmentInfo:
        """Add a segment, with another value and colour if its own belong to an existing one."""
        if segment.value not in {info.value for info in self.segments}:
            return self.session.add_segment(segment.name, segment.value, segment.color)
        own_color = segment.color if segment.color != segment_color(segment.value) else None
        return self.session.add_segment(segment.name, color=own_color)

    def _existing(self, label: str) -> SegmentInfo:
        info = self._info(label)
        if info is None:
            names = ", ".join(one.name for one in self.segments) or "none yet"
            raise UserError(f"There is no segment “{label}”; there are: {names}.")
        return info

    def _ras(self, positions: Sequence[Position], space: str, what: str) -> list[tuple[float, ...]]:
        coordinates = Coordinates(space, self.volume)
        given = [np.asarray(position).tolist() for position in positions]
        points = [coordinates.point(position, what) for position in given]
        coordinates.require_inside(given, what)
        return points


def _warn(sentence: str) -> None:
    """Warn at the line of the program that called this library."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("SAMFineTuneLib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=level)
