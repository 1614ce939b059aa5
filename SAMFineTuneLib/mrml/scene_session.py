"""The session shown and edited through MRML nodes: what the panel talks to, and what Slicer's own tools change.

Markups nodes hold the prompts, a segmentation holds the masks. The user may change either with whatever Slicer has, so
nothing here reacts to single edits: observers only note that something changed, and `SceneSession.pump` compares what
the nodes say with what the session knows. Differences become intents; what the session says it has become (undo, a
restart, an adopted object) is written into the nodes. Nothing waits and no thread is started: the host calls `pump`
from a timer.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.plane import SlicePlane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.images.window import IntensityWindow
from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.export import is_empty
from SAMFineTuneLib.mrml.markups import (
    MarkedPrompt,
    PromptNodes,
    View,
    can_show,
    kind_of,
    orphans,
    parallel_view,
    prompt_nodes,
    same_prompt,
    segment_of,
    slice_box,
    volume_box,
)
from SAMFineTuneLib.mrml.observers import Observers
from SAMFineTuneLib.mrml.placing import Placing, slice_node_under_cursor
from SAMFineTuneLib.mrml.segment_table import SegmentTable
from SAMFineTuneLib.mrml.segments import SegmentWriter
from SAMFineTuneLib.mrml.slice_views import plane_of_view
from SAMFineTuneLib.mrml.volumes import displayed_window, volume_from_node
from SAMFineTuneLib.prompts.on_planes import on_planes
from SAMFineTuneLib.prompts.prompts import MaskPrompt, PointPrompt, Prompt, ScribblePrompt, SegmentPrompts
from SAMFineTuneLib.service.events import (
    Answered,
    Event,
    Failed,
    Finished,
    MaskChanged,
    Notice,
    PromptInfo,
    StateChanged,
    StatusChanged,
)

_SURFACE_DELAY = 0.7  # seconds without a new mask before the closed surface is made anew
_SNAPSHOT_DELAY = 0.15  # seconds without a change before the session is stored in the scene
_RECORD_DELAY = 0.3  # seconds without a change before what is shown is stored in the scene
_WINDOW_DELAY = 0.5  # seconds the displayed window must rest before the masks follow it
_GEOMETRY_DELAY = 0.3  # seconds a transform must rest
_SAVE_PATIENCE = 1.0  # seconds that saving the scene waits for the worker
_SAME_WINDOW = 1e-3  # of the window's width


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt for the panel's list."""

    number: int
    segment_id: str
    segment: int  # label value
    prompt: Prompt
    view: View


@dataclass
class _Given:
    """A prompt as the session has it, or will when it has heard everything, and as the nodes said it then."""

    segment_id: str
    prompt: Prompt
    view: View
    said: MarkedPrompt | None  # None: there is nothing to show, as of a mask prompt


@dataclass(frozen=True)
class _CutMask:
    """A mask that other segments kept out of some voxels, one bit a pixel."""

    plane: SlicePlane
    bits: np.ndarray
    score: float | None
    points: np.ndarray

    def event(self, segment: int) -> MaskChanged:
        rows, columns = self.plane.shape
        mask = np.unpackbits(self.bits, count=rows * columns).reshape(rows, columns).astype(bool)
        return MaskChanged(segment, self.plane, mask, self.score, self.points)


class SceneSession:
    """One session on a scene: a volume node, a segmentation node, and the prompts and masks between them.

    `active_slice_node` gives the slice node in which the user clicks; the default asks the crosshair.
    """

    def __init__(
        self,
        scene,
        client,
        log: logging.Logger | None = None,
        active_slice_node: Callable[[], object | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.scene = scene
        self.client = client
        self.parameters = storage.ParameterNode(scene)
        self.state: StateChanged | None = None
        """What the session said last."""
        self.volume_node = None
        self.segmentation_node = None
        self.volume: Volume | None = None
        self._log = log or logging.getLogger(__name__)
        self._active_slice_node = active_slice_node or slice_node_under_cursor(scene)
        self._clock = clock
        self._observers = Observers(self._log)
        self._closed = False
        self._events: list[Event] = []
        self._current: str | None = None
        self._editor_node = None
        self._window: IntensityWindow | None = None
        self._given_window: IntensityWindow | None = None
        self._model: tuple[str, str, str] = ("", "", "auto")
        self._table: SegmentTable | None = None
        self._display = None
        self._recognised: dict = {}
        self._own_requests: set[int] = set()
        self.placing = Placing(scene)
        self._forget_work()
        self._observe_scene()
        self._observe_prompt_nodes()

    # ---- what it works on

    def set_volume_node(self, node) -> None:
        """Work on a volume; its prompts are shown, those of the volume before are hidden. Raises UserError."""
        if node is self.volume_node:
            return
        self._leave()
        self._set_volume(None, None)
        volume = None if node is None else volume_from_node(node)
        self._set_volume(node, volume)
        if volume is not None:
            self._send_volume()
            self._enter()

    def set_segmentation_node(self, node) -> None:
        """Work on a segmentation; the prompts of another one on the same volume are hidden."""
        if node is self.segmentation_node:
            return
        self._leave()
        if self._table is not None:
            for value in self._table.values.values():
                if self._table.knows(value):
                    self.client.remove_segment(value)
        self._set_segmentation(node)
        self._enter()

    def attach(self) -> None:
        """Work on what the scene's parameter node says, as after loading a scene. Raises UserError."""
        model = self.parameters.get("Model")
        if model:
            self.set_model(model, self.parameters.get("Adapter"), self.parameters.get("Device", "auto"))
        self._window = self.parameters.window
        segmentation, volume = self.parameters.referenced("segmentation"), self.parameters.referenced("volume")
        self.editor_node = self.parameters.referenced("editor")
        if segmentation is not self.segmentation_node:
            self._leave()
            self._set_segmentation(segmentation)
        if volume is not self.volume_node:
            self.set_volume_node(volume)
        elif self._nodes is None:
            self._enter()

    def set_window(self, window: IntensityWindow | None) -> None:
        """See the volume through a window; None follows the displayed one."""
        self._window = window
        self.parameters.window = window
        self._follow_window()

    @property
    def window(self) -> IntensityWindow | None:
        """The window that was set, None while the displayed one is followed."""
        return self._window

    def set_model(self, model_id: str, adapter: str = "", device: str = "auto") -> None:
        """Answer with a model, an adapter on it, and a device."""
        for name, value in (("Model", model_id), ("Adapter", adapter), ("Device", device)):
            self.parameters.set(name, value)
        if (model_id, adapter, device) != self._model:
            self._model = (model_id, adapter, device)
            self.client.set_model(model_id, adapter, device)

    @property
    def editor_node(self):
        """The segment editor node whose masking and overwrite mode count; None protects all other segments."""
        return self._editor_node

    @editor_node.setter
    def editor_node(self, node) -> None:
        self._editor_node = node
        if self._writer is not None:
            self._writer.editor_node = node
        if node is not None:
            self.parameters.refer("editor", node)

    @property
    def current_segment_id(self) -> str | None:
        """The segment that prompts are placed for; the first when none was chosen."""
        if self._table is None:
            return None
        if self._current is None or not self._table.has(self._current):
            ids = self._table.ids()
            self._current = ids[0] if ids else None
        return self._current

    @current_segment_id.setter
    def current_segment_id(self, segment_id: str | None) -> None:
        changed, self._current = segment_id != self._current, segment_id
        if changed and self.placing.kind is not None:
            self.start_placing(self.placing.kind)

    # ---- prompts

    def place(self, kind: str, slice_node, ras_points: Sequence) -> int:
        """Place a prompt of the current segment in a slice view; returns its number.

        `kind` is "positive", "negative" (one point), "box", "box3d" (two opposite corners), "scribble+" or
        "scribble-" (a stroke). Points are world RAS in mm. Raises UserError and places nothing.
        """
        segment_id = self._ensure_segment()
        points = [tuple(float(x) for x in point) for point in ras_points]
        if not points:
            raise UserError("There is nothing to place; click into a slice view.")
        plane = plane_of_view(slice_node, self.volume, points[0])
        prompt = _prompt_of(kind, plane, points)
        return self._add(segment_id, prompt, _view_of(plane))

    def start_placing(self, kind: str) -> None:
        """Enter Slicer's place mode: every click places a prompt of the current segment, until `stop_placing`."""
        segment_id = self._ensure_segment()
        self.placing.start(kind, self._nodes, segment_id)

    def stop_placing(self) -> None:
        """Leave Slicer's place mode."""
        self.placing.stop()
        if self._nodes is not None:
            self._nodes.remove_empty()

    def delete(self, number: int) -> None:
        """Delete a prompt."""
        given = self._given.pop(number, None)
        if given is not None:
            self._nodes.remove(number)
            self.client.delete_prompt(number)
            self._changed()

    def clear(self, segment_id: str | None = None, slice_node=None) -> None:
        """Delete prompts and propagated masks: of a segment, on what a view shows, both, or all."""
        if self._nodes is None:
            return
        self._reconcile()
        plane = None if slice_node is None else plane_of_view(slice_node, self.volume)
        value = None if segment_id is None else self._table.values.get(segment_id)
        if segment_id is not None and not self._table.knows(value):
            return
        if plane is None:
            for number in [n for n, given in self._given.items() if segment_id in (None, given.segment_id)]:
                self._nodes.remove(number)
                del self._given[number]
        self.client.clear(value, plane)
        self._changed()

    def jump_to(self, number: int) -> None:
        """Move the slice views to a prompt."""
        import slicer

        given = self._given.get(number)
        if given is None:
            return
        at = _middle_of(given.prompt)
        slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *at, slicer.vtkMRMLSliceNode.OffsetJumpSlice)

    @property
    def prompts(self) -> tuple[ScenePrompt, ...]:
        """All prompts, in the order in which they came."""
        if self._table is None:
            return ()
        return tuple(
            ScenePrompt(number, given.segment_id, self._table.values.get(given.segment_id, 0), given.prompt, given.view)
            for number, given in sorted(self._given.items())
        )

    # ---- steps and jobs

    def undo(self) -> None:
        """Take back the last step."""
        self._reconcile()
        self.client.undo()
        self._changed()

    def redo(self) -> None:
        """Do again what was undone last."""
        self._reconcile()
        self.client.redo()
        self._changed()

    @property
    def undo_name(self) -> str | None:
        """What `undo` takes back, None when there is nothing."""
        return None if self.state is None else self.state.undo_name

    @property
    def redo_name(self) -> str | None:
        """What `redo` does again, None when there is nothing."""
        return None if self.state is None else self.state.redo_name

    def propagate(self, segment_id: str | None = None, settings=None, orientation: str | None = None) -> int:
        """Carry a segment's prompted slices through the volume; returns the job's number."""
        self._require_volume()
        self._reconcile()
        segment_id = segment_id or self.current_segment_id
        value = self._table.values.get(segment_id) if self._table is not None else None
        if value is None or not any(given.segment_id == segment_id for given in self._given.values()):
            raise UserError("The segment has no prompts yet; click into it on a slice first.")
        job = self.client.propagate(value, settings, orientation)
        self._jobs.add(job)
        self._changed()
        return job

    def everything(self, orientation: str, settings=None, first: int | None = None, last: int | None = None) -> int:
        """Find all objects of a range of slices; returns the job's number."""
        self._require_volume()
        return self.client.everything(orientation, settings, first, last)

    def adopt(self, job: int, objects: Sequence[int]) -> None:
        """Make found objects segments."""
        self._require_volume()
        if self._table is None:
            self._make_segmentation()
        self._table.reserve(self.client.adopt(job, objects))
        self._changed()

    def cancel(self, job: int, keep_results: bool = True) -> None:
        """Stop a job."""
        self.client.cancel(job, keep_results)

    def embed_around(self, slice_node) -> None:
        """Prepare the slices around the one a view shows, in the background."""
        self._require_volume()
        plane = plane_of_view(slice_node, self.volume)
        if plane.index is not None:
            self.client.embed(plane.orientation, plane.index)

    # ---- the host's timer

    def pump(self, budget: float = 0.03) -> list[Event]:
        """Move everything on for about this long; returns what became true. Never raises."""
        if self._closed:
            return []
        end = self._clock() + budget
        try:
            self._move(end)
        except Exception as error:
            self._log.exception("The session on the scene failed")
            self._tell(Failed(f"Something went wrong ({type(error).__name__}); the log has the details."))
        told, self._events = self._events, []
        return told

    @property
    def at_rest(self) -> bool:
        """Whether nodes, session, segments and the stored document say the same, as far as is known."""
        waiting = self._dirty or self._table_dirty or self._orphans or self._record_stale or bool(self._masks)
        resting = self._window_changed is None and self._geometry_changed is None and not self._held
        return not waiting and resting and (self._nodes is None or (self._settled and not self._unstored))

    @property
    def refresh_due(self) -> bool:
        """Whether the closed surface is stale, and the masks have come to rest."""
        return (
            self._writer is not None
            and self._writer.surface_stale
            and not self._masks
            and self._clock() - self._last_mask >= _SURFACE_DELAY
        )

    def refresh_surface(self) -> None:
        """Make the closed surface anew; takes about a second."""
        if self._writer is not None:
            self._writer.refresh_surface()

    def store(self, patience: float = 0.0) -> None:
        """Put the session into the scene, as is done when it is saved; waits `patience` seconds for the worker."""
        if self._nodes is None:
            return
        self._reconcile()
        end = self._clock() + patience
        while self._unstored and self._reachable and self._clock() < end:
            self._move(self._clock() + 0.02, hurry=True)
        self._write_record()

    def close(self) -> None:
        """Leave the scene: what is in it stays, no observer does."""
        if self._closed:
            return
        self.placing.stop()
        self._leave()
        self._closed = True
        self._observers.remove()
        self._forget_work()
        self._set_volume(None, None, tell=False)

    # ---- inside: coming and going

    def _forget_work(self) -> None:
        """Everything that belongs to one volume and segmentation."""
        self._nodes: PromptNodes | None = None
        self._writer: SegmentWriter | None = None
        self._given: dict[int, _Given] = {}
        self._masks: dict[tuple[int, str], MaskChanged] = {}
        self._cut: dict[tuple[int, str], _CutMask] = {}
        self._placed_on: dict[tuple[str, str], View] = {}
        self._held: set[str] = set()
        self._adopted: set[str] = set()
        self._record = storage.Record()
        self._dirty = self._table_dirty = self._orphans = False
        self._nodes_count = False  # whether what the nodes say outweighs the session's next word
        self._awaits_state = False
        self._snapshot_stale = False
        self._snapshot_request: int | None = None
        self._sweep_due = True  # whether there may be masks in the segments that the session does not have
        self._jobs: set[int] = set()
        self._record_stale = False
        self._last_change = self._last_mask = self._clock()
        self._window_changed: float | None = None
        self._geometry_changed: float | None = None
        self.state = None

    def _set_volume(self, node, volume: Volume | None, tell: bool = True) -> None:
        if self.volume_node is not None:
            self._observers.remove(self.volume_node)
            if self._display is not None:
                self._observers.remove(self._display)
        self.volume_node, self.volume = node, volume
        self._recognised = {} if volume is None else storage.recognise(volume)
        self._display = node.GetDisplayNode() if node is not None else None
        if node is None:
            if tell and not self.scene.IsClosing() and not self.scene.IsImporting():
                self.parameters.refer("volume", None)
            return
        self.parameters.refer("volume", node)
        self._observers.add(node, node.TransformModifiedEvent, self._on_geometry)
        self._observers.add(node, node.ImageDataModifiedEvent, self._on_geometry)
        self._observers.add(node, "ModifiedEvent", self._on_geometry)
        if self._display is not None:
            self._observers.add(self._display, "ModifiedEvent", self._on_display)

    def _set_segmentation(self, node) -> None:
        import slicer

        if self.segmentation_node is not None:
            self._observers.remove(self.segmentation_node)
        self.segmentation_node = node
        self._table = None if node is None else SegmentTable(node)
        self._current = None
        if not self.scene.IsClosing():
            self.parameters.refer("segmentation", node)
        if node is not None:
            for name in ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified"):
                self._observers.add(node, getattr(slicer.vtkSegmentation, name), self._on_segments)

    def _send_volume(self) -> None:
        self._given_window = self._wanted_window()
        self.client.set_volume(self.volume, self._given_window)

    def _enter(self) -> None:
        """Take up the work on volume and segmentation where the scene has it."""
        if self.volume is None or self.segmentation_node is None:
            return
        self._nodes = PromptNodes(self.scene, self.volume_node, self.segmentation_node)
        self._record = storage.read_record(self.scene, self.volume_node, self.segmentation_node)
        self._table = SegmentTable(self.segmentation_node, self._record.values)
        self._open_writer(self._record.claims)
        self._restore()
        self._nodes.set_visible(True)
        self._dirty = True
        self._changed()

    def _open_writer(self, claims) -> None:
        self._writer = SegmentWriter(self.segmentation_node, self.volume_node, self.volume)
        self._writer.editor_node = self._editor_node
        if claims is None:
            return
        if not self._writer.from_dict(claims):
            self._tell(Notice(
                "The segmentation has another grid than when its masks were stored: they now count as drawn by hand."
            ))  # fmt: skip

    def _restore(self) -> None:
        """Give the session the stored document; where it does not fit, the prompts in the nodes are given anew."""
        document, known = self._record.document, self._record.volume
        self._nodes_count = True
        if document is None:
            return
        if not storage.same_voxels(known, self._recognised):
            self._tell(Notice(
                "The prompts were placed on another image than this one: masks are made anew, propagated slices stay "
                "as they are."
            ))  # fmt: skip
            return
        if not storage.same_place(known, self._recognised):
            self._say_moved()
            self._take_back_masks()
            return
        try:
            prompts = storage.prompts_of(document)
            segments, window = storage.segments_of(document), storage.window_of(document)
        except UserError as error:
            self._tell(Notice(str(error)))
            return
        self.client.restore(document)
        self._given_window = window or self._given_window
        self._table.take_over(segments)
        for info in prompts:
            segment_id = self._table.id_of(info.segment)
            said = MarkedPrompt(info.number, segment_id, info.prompt, info.view, "", "")
            self._given[info.number] = _Given(
                segment_id, info.prompt, info.view, said if can_show(info.prompt) else None
            )

    def _leave(self) -> None:
        """Store the work in the scene and put its prompts out of sight."""
        self.placing.stop()
        if self._nodes is not None:
            if not self.scene.IsClosing():
                self.store()
                self._nodes.set_visible(False)
                self._nodes.remove_empty()
            self._writer.close()
        self._forget_work()

    def _drop(self) -> None:
        """The scene took volume or segmentation away: there is nothing to store."""
        self.placing.stop()
        if self._writer is not None:
            self._writer.close()
        self._forget_work()

    def _make_segmentation(self) -> None:
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", self.scene.GenerateUniqueName("Segmentation"))
        node.CreateDefaultDisplayNodes()
        node.SetAndObserveTransformNodeID(self.volume_node.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(self.volume_node)
        self._set_segmentation(node)
        self._enter()

    def _ensure_segment(self) -> str:
        """The current segment; segmentation and segment are made when there is none."""
        self._require_volume()
        if self.segmentation_node is None:
            self._make_segmentation()
        segment_id = self.current_segment_id
        if segment_id is None:
            segment_id = self.segmentation_node.GetSegmentation().AddEmptySegment("")
            self._current = segment_id
        return segment_id

    def _require_volume(self) -> None:
        if self.volume is None:
            raise UserError("There is no volume; choose one first.")

    # ---- inside: a round of the timer

    def _move(self, end: float, hurry: bool = False) -> None:
        state = None
        for event in self.client.pump(max(0.001, (end - self._clock()) * 0.6)):
            state = self._hear(event) or state
        if self._busy_elsewhere():
            return
        if self._orphans:
            self._remove_orphans()
        self._follow_changes()
        sent = self._reconcile()
        if state is not None and not sent and not self._held:
            self._take(state)
        self._show_masks(end)
        self._keep_snapshot(hurry)
        if self._record_stale and not self._masks and self._clock() - self._last_change >= _RECORD_DELAY:
            self._write_record()

    def _busy_elsewhere(self) -> bool:
        scene = self.scene
        return scene.IsClosing() or scene.IsImporting() or scene.IsRestoring()

    def _hear(self, event: Event) -> StateChanged | None:
        if isinstance(event, (Answered, Failed)) and event.request in self._own_requests:
            self._own_requests.discard(event.request)
            if event.request == self._snapshot_request:
                self._snapshot_request = None
                if isinstance(event, Answered) and self._nodes is not None:
                    self._take_snapshot(event.value)
            return None
        if isinstance(event, MaskChanged):
            self._masks.pop((event.segment, event.plane.key), None)
            self._masks[(event.segment, event.plane.key)] = event
            self._snapshot_stale = True
            self._last_change = self._clock()
        if isinstance(event, StatusChanged) and event.status.state != "ready":
            self._sweep_due = True
        if isinstance(event, Finished):
            self._jobs.discard(event.job)
        self._tell(event)
        return event if isinstance(event, StateChanged) else None

    def _follow_changes(self) -> None:
        """What was changed in Slicer's other modules, once it has come to rest."""
        now = self._clock()
        if self._geometry_changed is not None and now - self._geometry_changed >= _GEOMETRY_DELAY:
            self._geometry_changed = None
            self._follow_volume()
        if self._window_changed is not None and now - self._window_changed >= _WINDOW_DELAY:
            self._follow_window()
        if self._table_dirty and self._table is not None and self._nodes is not None:
            self._follow_table()
        if self.placing.corners() and len(self.placing.corners()) >= 2:
            self._place_corners()
        if self.placing.ended_elsewhere:
            self.stop_placing()

    def _follow_table(self) -> None:
        """Segments that were removed, renamed or recoloured in Slicer's table."""
        self._table_dirty = False
        gone, changed = self._table.tell_changes(self.client)
        for segment_id in gone:
            self._writer.forget(segment_id)
        if gone:
            self._cut = {place: cut for place, cut in self._cut.items() if self._table.id_of(place[0]) is not None}
            self._show_cut_again(0)
        for segment_id in gone:
            self._nodes.remove_segment(segment_id)
            for number in [n for n, given in self._given.items() if given.segment_id == segment_id]:
                del self._given[number]
        for segment_id in {segment_of(node) for node in self._nodes.nodes()}:
            if self._table.has(segment_id):
                self._nodes.dress(segment_id)
            else:
                self._nodes.remove_segment(segment_id)
        if gone or changed:
            self._changed()

    def _follow_volume(self) -> None:
        """Voxels or place of the volume are others than the session has: it begins anew with the prompts."""
        if self.volume_node is None:
            return
        try:
            volume = volume_from_node(self.volume_node)
        except UserError as error:
            node = self.volume_node
            self._leave()
            self._set_volume(None, None)
            self._tell(Failed(f"{error} The volume “{node.GetName()}” was put aside."))
            return
        before, now = self._recognised, storage.recognise(volume)
        if storage.same_voxels(before, now):
            if storage.same_place(before, now):
                return
            self._say_moved()
        else:
            self._tell(Notice("The volume's voxels have changed: masks are made anew from the prompts."))
        self.volume, self._recognised = volume, now
        self._given_window = self._wanted_window()
        self.client.set_volume(volume, self._given_window)
        if self._nodes is None:
            return
        self._take_back_masks()
        self._table = SegmentTable(self.segmentation_node, self._table.values)
        self._writer.close()
        self._open_writer(None)
        self._given.clear()
        self._masks.clear()
        self._record = storage.Record()
        self._nodes_count = self._dirty = True
        self._changed()

    def _say_moved(self) -> None:
        self._tell(Notice(
            "The volume was moved, its prompts stayed where they are: masks are made anew from them, propagated slices "
            "are taken back; propagate again."
        ))  # fmt: skip

    def _take_back_masks(self) -> None:
        for claim in self._writer.claims():
            self._writer.take_back(claim.segment_id, claim.plane_key)

    def _follow_window(self) -> None:
        self._window_changed = None
        window = self._wanted_window()
        if self.volume is None or window is None or _same_window(window, self._given_window):
            return
        self._given_window = window
        self.client.set_window(window)
        self._changed()

    def _wanted_window(self) -> IntensityWindow | None:
        return self._window or displayed_window(self.volume_node)

    def _place_corners(self) -> None:
        corners = self.placing.corners()[:2]
        self.placing.clear_corners()
        try:
            number = self.place(self.placing.kind, self._slice_node_at(corners[0]), corners)
            self._log.debug("Box %s placed", number)
        except UserError as error:
            self._tell(Failed(str(error)))

    # ---- inside: nodes to session

    def _reconcile(self) -> bool:
        """Tell the session what the nodes hold; returns whether there was anything to tell."""
        if self._nodes is None or not self._dirty or self._held or self._busy_elsewhere():
            return False
        self._dirty = False
        marked_prompts = self._nodes.read(self.volume)
        known, told, added = set(self._given), False, []
        for marked in marked_prompts:
            if not self._table.has(marked.segment_id):
                self._remove_marked(marked)
            elif marked.number not in known:
                added += self._add_marked(marked)
            else:
                known.discard(marked.number)
                told |= self._move_marked(marked)
        for number, marked in added:
            self._remember(number, marked.segment_id, marked.prompt, marked.view)
        for number in [number for number in known if self._given[number].said is not None]:
            del self._given[number]
            self.client.delete_prompt(number)
            told = True
        if self.placing.kind is None:
            self._nodes.remove_empty()
        self._placed_on.clear()
        if told or added:
            self._changed()
        return bool(told or added)

    def _add_marked(self, marked: MarkedPrompt) -> list[tuple[int, MarkedPrompt]]:
        """Give the session a prompt that it does not know; the numbers of others may still be stale."""
        view = self._placed_on.get((marked.node_id, marked.point_id)) or marked.view or self._view_at(marked.prompt)
        try:
            view = parallel_view(view, _middle_of(marked.prompt), self.volume)
            self._check(marked.segment_id, marked.prompt, view)
        except UserError as error:
            self._remove_marked(marked)
            self._tell(Failed(str(error)))
            return []
        marked = dataclasses.replace(marked, view=view)
        number = self.client.add_prompt(self._table.use(marked.segment_id, self.client), marked.prompt, view)
        self._nodes.number(marked, number)
        return [(number, marked)]

    def _move_marked(self, marked: MarkedPrompt) -> bool:
        given = self._given[marked.number]
        if given.said is not None and marked.same_as(given.said):
            return False
        try:
            self._check(marked.segment_id, marked.prompt, marked.view)
        except UserError as error:
            self._nodes.write(marked.number, given.segment_id, given.prompt, given.view, self.volume)
            self._tell(Failed(str(error)))
            return False
        self._nodes.number(marked, marked.number)
        self.client.move_prompt(marked.number, marked.prompt, marked.view)
        self._given[marked.number] = _Given(marked.segment_id, marked.prompt, marked.view, marked)
        return True

    def _remove_marked(self, marked: MarkedPrompt) -> None:
        node = self.scene.GetNodeByID(marked.node_id)
        if node is not None:
            self._nodes.remove_marked(node, marked.point_id)

    def _add(self, segment_id: str, prompt: Prompt, view: View) -> int:
        self._reconcile()
        self._check(segment_id, prompt, view)
        number = self.client.add_prompt(self._table.use(segment_id, self.client), prompt, view)
        self._nodes.write(number, segment_id, prompt, view, self.volume)
        self._remember(number, segment_id, prompt, view)
        self._changed()
        return number

    def _remember(self, number: int, segment_id: str, prompt: Prompt, view: View) -> None:
        self._given[number] = _Given(segment_id, prompt, view, self._nodes.read_one(number, self.volume))

    def _check(self, segment_id: str, prompt: Prompt, view: View) -> None:
        """UserError when the session could not take the prompt; the worker would say the same, later."""
        segment = self._table.segmentation.GetSegment(segment_id)
        on_planes_of(self.volume, prompt, view, segment.GetName() or segment_id)

    def _view_at(self, prompt: Prompt) -> View:
        """For what was placed where nobody saw it: the view that shows it, or else any."""
        at = _middle_of(prompt)
        node = self._slice_node_at(at)
        try:
            return _view_of(plane_of_view(node, self.volume, at)) if node is not None else "axial"
        except UserError:
            return "axial"

    def _slice_node_at(self, ras):
        """The slice view in which a point was clicked: the one under the cursor, or else one that shows it."""
        shown = [node for node in self._slice_nodes() if _shows(node, ras)]
        active = self._active_slice_node()
        if active is not None and (active in shown or not shown):
            return active
        return shown[0] if shown else None

    def _slice_nodes(self) -> list:
        nodes = self.scene.GetNodes()
        every = (nodes.GetItemAsObject(number) for number in range(nodes.GetNumberOfItems()))
        return [node for node in every if node.IsA("vtkMRMLSliceNode")]

    # ---- inside: session to nodes

    def _take(self, state: StateChanged) -> None:
        """Write what the session says into the nodes."""
        self.state = state
        self._awaits_state = False
        if self._nodes is None:
            return
        self._take_segments(state)
        now = {info.number: info for info in state.prompts}
        for number in [n for n in self._given if n not in now]:
            self._lose(number)
        for number, info in now.items():
            self._take_prompt(number, info)
        if self._nodes_count:
            self._nodes_count = False
            self._dirty = True
        if self.placing.kind is None:
            self._nodes.remove_empty()

    def _take_segments(self, state: StateChanged) -> None:
        known = {info.value for info in state.segments}
        for info in state.segments:
            if self._table.id_of(info.value) is None:
                self._adopted.add(self._table.adopt(info))
        for segment_id, value in list(self._table.values.items()):
            if self._table.knows(value) and value not in known and segment_id in self._adopted:
                self._unadopt(segment_id, value)
        self._table.take_over(state.segments)

    def _unadopt(self, segment_id: str, value: int) -> None:
        """Adopting was undone: the segment goes, unless the user has drawn in it or prompted it."""
        for claim in self._writer.claims():
            if claim.segment_id == segment_id:
                self._writer.take_back(segment_id, claim.plane_key)
        self._masks = {place: event for place, event in self._masks.items() if place[0] != value}
        if is_empty(self.segmentation_node, segment_id):
            self._table.forget(segment_id)
            self._adopted.discard(segment_id)
            self._writer.forget(segment_id)
            self._table.segmentation.RemoveSegment(segment_id)

    def _lose(self, number: int) -> None:
        """The session has a prompt no more. Right after loading, it never had it: then it is given anew."""
        given = self._given.pop(number)
        if not self._nodes_count and given.said is not None:
            self._nodes.remove(number)

    def _take_prompt(self, number: int, info: PromptInfo) -> None:
        given = self._given.get(number)
        segment_id = self._table.id_of(info.segment)
        if segment_id is None:
            return
        if given is not None and given.segment_id == segment_id and _same(given, info):
            return
        if given is None and self._nodes_count:
            return  # deleted in the nodes while the session was away
        self._nodes.write(number, segment_id, info.prompt, info.view, self.volume)
        self._remember(number, segment_id, info.prompt, info.view)

    def _show_masks(self, end: float) -> None:
        """Masks into segments, in the order in which they came, until the time is up; at least one."""
        if self._writer is None:
            return
        for place, event in list(self._masks.items()):
            segment_id = self._table.id_of(event.segment)
            if segment_id is None and self._table.awaits(event.segment):
                continue  # of a segment that is not in Slicer's table yet
            del self._masks[place]
            if segment_id is not None and self._table.has(segment_id):
                self._show(segment_id, event)
            if self._clock() >= end:
                return

    def _show(self, segment_id: str, event: MaskChanged) -> None:
        place = (event.segment, event.plane.key)
        self._cut.pop(place, None)
        try:
            points = event.points if len(event.points) else None
            changed = self._writer.show(segment_id, event.plane, event.mask, points)
        except UserError as error:
            self._tell(Failed(str(error)))
            changed = False
        if self._writer.was_cut:
            self._cut[place] = _CutMask(event.plane, np.packbits(event.mask), event.score, event.points)
        if changed:
            self._show_cut_again(event.segment)
        self._last_mask = self._clock()
        self._record_stale = True

    def _show_cut_again(self, but: int) -> None:
        """What other segments had kept masks out of may be free now: it belongs to them."""
        for (value, key), cut in list(self._cut.items()):
            if value != but and (value, key) not in self._masks:
                self._masks[(value, key)] = cut.event(value)

    # ---- inside: storing

    def _changed(self) -> None:
        """Something was asked of the session; a state will come that knows of it."""
        self._awaits_state = self._snapshot_stale = True
        self._last_change = self._clock()

    def _keep_snapshot(self, hurry: bool) -> None:
        """Have the newest document at hand, since saving a scene cannot wait for the worker."""
        rested = hurry or self._clock() - self._last_change >= _SNAPSHOT_DELAY
        if self._snapshot_stale and self._snapshot_request is None and rested and self._settled:
            self._snapshot_stale = False
            self._snapshot_request = self.client.snapshot()
            self._own_requests.add(self._snapshot_request)

    @property
    def _unstored(self) -> bool:
        return self._snapshot_stale or self._snapshot_request is not None or bool(self._masks)

    @property
    def _settled(self) -> bool:
        if self._nodes is None or self._awaits_state or self.state is None:
            return False
        return self._reachable and self.state.settled

    @property
    def _reachable(self) -> bool:
        return self.client.status.state == "ready"

    def _take_snapshot(self, document: dict) -> None:
        self._record.document = document
        self._record_stale = True
        if self._sweep_due and not (self._snapshot_stale or self._masks or self._jobs):
            self._sweep(document)

    def _sweep(self, document: dict) -> None:
        """Take back masks that the session does not have: their prompts went while the worker was away."""
        self._sweep_due = False
        wanted = set()
        for info, keys in storage.places_of(document):
            keys = keys or on_planes_of(self.volume, info.prompt, info.view)
            wanted.update((self._table.id_of(info.segment), key) for key in keys)
        wanted.update((self._table.id_of(value), key) for value, key in storage.propagated_of(document))
        for claim in self._writer.claims():
            if (claim.segment_id, claim.plane_key) not in wanted:
                self._writer.take_back(claim.segment_id, claim.plane_key)
                self._show_cut_again(0)

    def _write_record(self) -> None:
        self._record_stale = False
        record = self._record
        if record.document is None and not len(self._writer.claims()):
            return
        record.values = dict(self._table.values)
        record.claims = self._writer.to_dict()
        record.model, record.adapter = self._model[:2]
        record.volume = self._recognised
        storage.write_record(self.scene, self.volume_node, self.segmentation_node, record)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    # ---- inside: observers

    def _observe_scene(self) -> None:
        import slicer

        scene, observers = self.scene, self._observers
        observers.add_with_node(scene, slicer.vtkMRMLScene.NodeAddedEvent, self._on_node_added)
        observers.add_with_node(scene, slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._on_node_removed)
        observers.add(scene, slicer.vtkMRMLScene.StartSaveEvent, lambda _: self.store(_SAVE_PATIENCE))
        observers.add(scene, slicer.vtkMRMLScene.StartCloseEvent, self._on_start_close)
        observers.add(scene, slicer.vtkMRMLScene.EndCloseEvent, self._on_end_close)
        observers.add(scene, slicer.vtkMRMLScene.EndImportEvent, self._on_end_import)

    def _observe_prompt_nodes(self) -> None:
        for node in prompt_nodes(self.scene):
            self._observe_prompt_node(node)

    def _observe_prompt_node(self, node) -> None:
        observers = self._observers
        observers.remove(node)
        observers.add_with_index(node, node.PointPositionDefinedEvent, self._on_point_defined)
        observers.add(node, node.PointStartInteractionEvent, lambda caller: self._held.add(caller.GetID()))
        observers.add(node, node.PointEndInteractionEvent, self._on_interaction_end)
        for event in (
            node.PointPositionUndefinedEvent,
            node.PointRemovedEvent,
            node.PointModifiedEvent,
            node.TransformModifiedEvent,
            "ModifiedEvent",
        ):
            observers.add(node, event, self._on_prompt_changed)

    def _on_prompt_changed(self, _) -> None:
        self._dirty = True

    def _on_interaction_end(self, node) -> None:
        self._held.discard(node.GetID())
        self._dirty = True

    def _on_point_defined(self, node, index: int | None) -> None:
        """Note in which view the user clicked: later the mouse is elsewhere."""
        self._dirty = True
        if self._nodes is None or index is None or index >= node.GetNumberOfControlPoints():
            return
        ras = tuple(node.GetNthControlPointPositionWorld(index))
        slice_node = self._slice_node_at(ras)
        if slice_node is None:
            return
        try:
            view = _view_of(plane_of_view(slice_node, self.volume, ras))
        except UserError:
            return
        self._placed_on[(node.GetID(), node.GetNthControlPointID(index))] = view

    def _on_segments(self, _) -> None:
        self._table_dirty = True

    def _on_geometry(self, node) -> None:
        if self.volume is not None:
            self._geometry_changed = self._clock()
        if node.GetDisplayNode() is not self._display:
            if self._display is not None:
                self._observers.remove(self._display)
            self._display = node.GetDisplayNode()
            if self._display is not None:
                self._observers.add(self._display, "ModifiedEvent", self._on_display)

    def _on_display(self, _) -> None:
        if self._window is None:
            self._window_changed = self._clock()

    def _on_node_added(self, node) -> None:
        if kind_of(node) is not None:
            self._observe_prompt_node(node)
            self._dirty = True

    def _on_node_removed(self, node) -> None:
        self._observers.remove(node)
        if self.scene.IsClosing():
            return
        if kind_of(node) is not None:
            self._held.discard(node.GetID())
            self._dirty = True
        elif node is self.volume_node or node is self.segmentation_node:
            self._drop()
            if node is self.volume_node:
                self._set_volume(None, None, tell=False)
            else:
                self._set_segmentation(None)
            self._orphans = True
        elif node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLSegmentationNode"):
            self._orphans = True
        elif node is self._editor_node:
            self.editor_node = None

    def _remove_orphans(self) -> None:
        """Prompts and records whose volume or segmentation is gone."""
        self._orphans = False
        for node in orphans(self.scene):
            PromptNodes(self.scene, self.volume_node, self.segmentation_node).remove_node(node)
        for node in storage.orphans(self.scene):
            self.scene.RemoveNode(node)

    def _on_start_close(self, _) -> None:
        self._drop()
        self._set_volume(None, None, tell=False)
        self._set_segmentation(None)
        self._editor_node = None
        self._window = None

    def _on_end_close(self, _) -> None:
        self._observe_prompt_nodes()

    def _on_end_import(self, _) -> None:
        self._observe_prompt_nodes()
        try:
            self.attach()
        except UserError as error:
            self._tell(Failed(str(error)))


# ---- small things


def on_planes_of(volume: Volume, prompt: Prompt, view: View, name: str = "segment") -> list[str]:
    """Keys of the planes that a prompt lies on. Raises UserError when it cannot be placed."""
    alone = SegmentPrompts(name, 1, None, (prompt,))
    if isinstance(prompt, MaskPrompt):
        view = prompt.plane
    if isinstance(view, SlicePlane) and view.index is not None:
        view = view.orientation
    on_plane = isinstance(view, SlicePlane)
    orientation, planes = ("axial", (view,)) if on_plane else (view, ())
    return [plane.key for plane in on_planes(volume, alone, orientation, planes, negative_only=True)]


def _prompt_of(kind: str, plane: SlicePlane, points: list) -> Prompt:
    if kind in ("positive", "negative"):
        return PointPrompt(points[0], kind == "positive")
    if kind in ("scribble+", "scribble-"):
        return ScribblePrompt(tuple(_thinned(points, plane.pixel_size / 2)), kind == "scribble+")
    if kind in ("box", "box3d"):
        if len(points) < 2:
            raise UserError("A box needs two opposite corners; drag from one to the other.")
        return slice_box(plane, points[:2]) if kind == "box" else volume_box(plane, points[:2])
    raise ValueError(f'"{kind}" is no kind of prompt.')


def _thinned(points: list, tolerance: float) -> list:
    """A stroke without the points that a straight line does without, at `tolerance` mm (Douglas and Peucker)."""
    line = np.asarray(points, dtype=np.float64)
    keep = np.zeros(len(line), bool)
    keep[[0, -1]] = True
    pieces = [(0, len(line) - 1)]
    while pieces:
        first, last = pieces.pop()
        if last - first < 2:
            continue
        direction = line[last] - line[first]
        length = np.linalg.norm(direction)
        offsets = line[first + 1 : last] - line[first]
        along = offsets @ direction / length**2 if length > 0 else np.zeros(len(offsets))
        far = np.linalg.norm(offsets - np.clip(along, 0, 1)[:, None] * direction, axis=1)
        worst = int(far.argmax())
        if far[worst] > tolerance:
            keep[first + 1 + worst] = True
            pieces += [(first, first + 1 + worst), (first + 1 + worst, last)]
    return [tuple(point) for point in line[keep]]


def _view_of(plane: SlicePlane) -> View:
    return plane.orientation if plane.index is not None else plane


def _middle_of(prompt: Prompt) -> tuple[float, float, float]:
    if isinstance(prompt, PointPrompt):
        return prompt.ras
    if isinstance(prompt, ScribblePrompt):
        return tuple(np.mean(prompt.ras, axis=0))
    if hasattr(prompt, "center"):
        return prompt.center
    if hasattr(prompt, "corner_a"):
        return tuple((np.array(prompt.corner_a) + prompt.corner_b) / 2)
    return tuple(prompt.plane.origin)


def _shows(slice_node, ras) -> bool:
    """Whether a point lies on the slice of a view, to a tenth of a millimetre."""
    matrix = slice_node.GetSliceToRAS()
    normal = np.array([matrix.GetElement(row, 2) for row in range(3)])
    origin = np.array([matrix.GetElement(row, 3) for row in range(3)])
    return bool(abs((np.asarray(ras) - origin) @ normal) <= 0.1)


def _same(given: _Given, info: PromptInfo) -> bool:
    return same_prompt(given.prompt, given.view, info.prompt, info.view)


def _same_window(a: IntensityWindow, b: IntensityWindow | None) -> bool:
    return b is not None and max(abs(a.low - b.low), abs(a.high - b.high)) <= _SAME_WINDOW * (a.high - a.low)
