"""The session shown and edited through MRML nodes: what the panel talks to, and what Slicer's own tools change.

Markups nodes hold the prompts, a segmentation holds the masks. The user may change either with whatever Slicer has, so
nothing here reacts to single edits: observers only note that something changed, and `SceneSession.pump` brings nodes
and session together (`prompt_sync`, `segment_table`), shows masks (`mask_display`) and keeps the document in the scene
(`record_keeper`). Nothing waits and no thread is started: the host calls `pump` from a timer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.observers import Observers
from SAMFineTuneLib.mrml.prompts.making import middle_of, prompt_of, view_of
from SAMFineTuneLib.mrml.prompts.markups_nodes import PromptNodes, View, companions_of, kind_of, orphans, segment_of
from SAMFineTuneLib.mrml.prompts.placing import Placing, slice_node_under_cursor
from SAMFineTuneLib.mrml.prompts.prompt_sync import PromptSync
from SAMFineTuneLib.mrml.prompts.prompt_watch import PromptWatch
from SAMFineTuneLib.mrml.prompts.view_finder import ViewFinder
from SAMFineTuneLib.mrml.record_keeper import RecordKeeper
from SAMFineTuneLib.mrml.scene_work import MOVED, Work
from SAMFineTuneLib.mrml.segments.found_objects import FoundObjects
from SAMFineTuneLib.mrml.segments.mask_display import MaskDisplay
from SAMFineTuneLib.mrml.segments.segment_table import SegmentTable
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.mrml.slice_views import plane_of_view, settle_view
from SAMFineTuneLib.mrml.volume_nodes import displayed_window, volume_from_node
from SAMFineTuneLib.mrml.volume_watch import VolumeWatch
from SAMFineTuneLib.prompts.prompts import Prompt
from SAMFineTuneLib.session.events import (
    Answered,
    Event,
    Failed,
    Finished,
    MaskChanged,
    Notice,
    StateChanged,
    StatusChanged,
)

_STOPPED = (
    "The propagation was stopped, because another volume or segmentation was chosen: come back and propagate again."
)
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


class SceneSession:
    """One session on a scene: a volume node, a segmentation node, and the prompts and masks between them.

    The client is one with `segments_are_steps=False`. `active_slice_node` gives the slice node in which the user
    clicks; the default asks the crosshair.
    """

    def __init__(
        self,
        scene,
        client,
        log: logging.Logger | None = None,
        active_slice_node: Callable[[], object | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        if client.segments_are_steps:
            raise ValueError("the scene's segment table has an undo of its own: segments_are_steps must be False")
        self.scene = scene
        self.client = client
        self.parameters = storage.ParameterNode(scene)
        self.state: StateChanged | None = None
        """What the session said last."""
        self.volume_node = None
        self.segmentation_node = None
        self.volume: Volume | None = None
        self.placing = Placing(scene)
        self.found = FoundObjects(scene)
        self.save_undo_state: Callable[[], object] | None = None
        """Called before masks go into a segmentation that somebody else has changed, for Slicer's own undo."""
        self._log = log or logging.getLogger(__name__)
        self._clock = clock
        self._observers = Observers(self._log)
        self._views = ViewFinder(scene, active_slice_node or slice_node_under_cursor(scene))
        self._volume_watch = VolumeWatch(self._observers, clock)
        self._prompt_watch = PromptWatch(scene, self._observers, lambda ras: self._views.view_at(ras, self.volume))
        self._closed = False
        self._events: list[Event] = []
        self._own_requests: set[int] = set()
        self._work: Work | None = None
        self._table: SegmentTable | None = None
        self._current: str | None = None
        self._editor_node = None
        self._recognised: dict = {}
        self._window: IntensityWindow | None = None
        self._given_window: IntensityWindow | None = None
        self._model: tuple[str, str, str] = ("", "", "auto")
        self._next_state: StateChanged | None = None  # said, but not yet written into the nodes
        self._awaits_state = self._table_dirty = self._orphans = False
        self._look: tuple | None = None  # for which segment and views the prompts have their looks
        self._place_again: str | None = None  # a kind
        self._companions: list = []  # display and storage nodes of prompts that somebody else removed
        self._observe_scene()
        self._prompt_watch.watch_all()

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
        kind = self.placing.kind
        table, jobs = self._table, set() if self._work is None else set(self._work.jobs)
        self._leave()
        self._forget_segments(table, jobs)
        self._set_segmentation(node)
        self._enter()
        if kind is not None and self.volume is not None:
            self.start_placing(kind)

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
        elif self._work is None:
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
        if self._work is not None:
            self._work.writer.editor_node = node
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

    def _save_undo_state(self) -> None:
        if self.save_undo_state is not None:
            self.save_undo_state()

    # ---- prompts

    def place(self, kind: str, slice_node, ras_points: Sequence) -> int:
        """Place a prompt of the current segment in a slice view; returns its number.

        `kind` is "positive", "negative" (one point), "box", "box3d" (two opposite corners), "scribble+" or
        "scribble-" (a stroke). Points are world RAS in mm. Raises UserError and places nothing.
        """
        segment_id = self._ensure_segment()
        points = [tuple(float(x) for x in point) for point in ras_points]
        if not points or slice_node is None:
            raise UserError("There is nothing to place; click into a slice view.")
        settle_view(slice_node, self.volume)
        plane = plane_of_view(slice_node, self.volume, points[0])
        prompt = prompt_of(kind, plane, points)
        self._reconcile()
        number = self._work.prompts.add(segment_id, prompt, view_of(plane))
        self._changed()
        return number

    def start_placing(self, kind: str) -> None:
        """Enter Slicer's place mode: every click places a prompt of the current segment, until `stop_placing`. Where
        there is no segment yet, the first click makes it."""
        self._require_volume()
        for slice_node in self._views.nodes():
            settle_view(slice_node, self.volume)
        self.placing.start(kind, self._nodes, self.current_segment_id)
        self._look = None

    def stop_placing(self) -> None:
        """Leave Slicer's place mode."""
        self._place_again = None
        self.placing.stop()
        if self._work is not None:
            self._work.nodes.remove_empty()

    def delete(self, number: int) -> None:
        """Delete a prompt."""
        if self._work is not None and self._work.prompts.delete(number):
            self._changed()

    def clear(self, segment_id: str | None = None, slice_node=None) -> None:
        """Delete prompts and propagated masks: of a segment, on what a view shows, both, or all."""
        if self._work is None:
            return
        self._reconcile()
        plane = None if slice_node is None else plane_of_view(slice_node, self.volume)
        value = None if segment_id is None else self._table.values.get(segment_id)
        if segment_id is not None and not self._table.knows(value):
            return
        if plane is None and self._work.prompts.nodes_count:  # or they would be given anew
            self._work.prompts.drop(segment_id)
        self.client.clear(value, plane)
        self._changed()

    def jump_to(self, number: int) -> None:
        """Move the slice views to a prompt."""
        import slicer

        given = None if self._work is None else self._work.prompts.given.get(number)
        if given is not None:
            at = middle_of(given.prompt)
            slicer.vtkMRMLSliceNode.JumpAllSlices(self.scene, *at, slicer.vtkMRMLSliceNode.OffsetJumpSlice)

    @property
    def prompts(self) -> tuple[ScenePrompt, ...]:
        """All prompts, in the order in which they came."""
        if self._work is None:
            return ()
        return tuple(
            ScenePrompt(number, given.segment_id, self._table.values.get(given.segment_id, 0), given.prompt, given.view)
            for number, given in sorted(self._work.prompts.given.items())
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
        if value is None or not any(prompt.segment_id == segment_id for prompt in self.prompts):
            raise UserError("The segment has no prompts yet; click into it on a slice first.")
        job = self.client.propagate(value, settings, orientation)
        self._work.jobs.add(job)
        self._changed()
        return job

    def everything(self, orientation: str, settings=None, first: int | None = None, last: int | None = None) -> int:
        """Find all objects of a range of slices; returns the job's number."""
        self._require_volume()
        return self.client.everything(orientation, settings, first, last)

    def adopt(self, job: int, objects: Sequence[int], names: Sequence[str] | None = None) -> None:
        """Make found objects segments, of these names or of names of their own."""
        self._require_volume()
        if self._work is None:
            self._make_segmentation()
        self._table.reserve(self.client.adopt(job, objects, names=names))
        self._changed()

    def show_found(self, masks: Sequence) -> None:
        """Show found objects, as `object_masks` of the client answers them, in the views only; none to end that."""
        if self.volume is None:
            self.found.clear()
        else:
            self.found.show(masks, self.volume_node, self.volume)

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
        try:
            self._move(self._clock() + budget)
        except Exception as error:
            self._log.exception("The session on the scene failed")
            self._tell(Failed(f"Something went wrong ({type(error).__name__}); the log has the details."))
        told, self._events = self._events, []
        return told

    @property
    def at_rest(self) -> bool:
        """Whether nodes, session, segments and the stored document say the same, as far as is known."""
        if self._table_dirty or self._orphans or self._volume_watch.pending:
            return False
        return self._work is None or (self._settled and self._work.at_rest)

    @property
    def refresh_due(self) -> bool:
        """Whether the closed surface is stale, and the masks have come to rest."""
        return self._work is not None and self._work.masks.surface_due

    def refresh_surface(self) -> None:
        """Make the closed surface anew; takes about a second."""
        if self._work is not None:
            self._work.writer.refresh_surface()

    def store(self, patience: float = 0.0) -> None:
        """Put the session into the scene, as is done when it is saved; waits `patience` seconds for the worker."""
        if self._work is None:
            return
        self._reconcile()
        end = self._clock() + patience
        while self._work is not None and self._work.behind and self._reachable and self._clock() < end:
            self._move(self._clock() + 0.02, hurry=True)
        self._write_record()

    def close(self) -> None:
        """Leave the scene: what is in it stays, no observer does."""
        if self._closed:
            return
        self._leave(hide=False)
        self.found.clear()
        self._closed = True
        self._observers.remove()
        self._set_volume(None, None, tell=False)
        self.segmentation_node = self._table = None

    # ---- inside: coming and going

    @property
    def _nodes(self) -> PromptNodes | None:
        return None if self._work is None else self._work.nodes

    @property
    def _writer(self) -> SegmentWriter | None:
        return None if self._work is None else self._work.writer

    def _set_volume(self, node, volume: Volume | None, tell: bool = True) -> None:
        self._volume_watch.watch(node)
        self.found.clear()
        self.volume_node, self.volume = node, volume
        self._recognised = {} if volume is None else storage.recognise(volume)
        if node is None:
            if tell and not self.scene.IsClosing() and not self.scene.IsImporting():
                self.parameters.refer("volume", None)
            return
        self.parameters.refer("volume", node)

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
        record = storage.read_record(self.scene, self.volume_node, self.segmentation_node)
        self._open(record, record.claims)
        self._given_window = self._work.restore(record, self._recognised) or self._given_window
        self._work.nodes.set_visible(True)

    def _open(self, record: storage.Record, claims) -> None:
        self._table = SegmentTable(self.segmentation_node, record.values, self.client.segment_values)
        writer = SegmentWriter(self.segmentation_node, self.volume_node, self.volume)
        writer.editor_node = self._editor_node
        writer.save_undo_state = self._save_undo_state
        if claims is not None and not writer.from_dict(claims):
            self._tell(Notice(
                "The segmentation has another grid than when its masks were stored: they now count as drawn by hand."
            ))  # fmt: skip
        nodes = PromptNodes(self.scene, self.volume_node, self.segmentation_node)
        prompts = PromptSync(nodes, self._table, self.volume, self.client, self._view_at, self._tell, self._clock)
        masks = MaskDisplay(writer, self._table, self._tell, self._clock)
        keeper = RecordKeeper(record, self.client, self._own_requests, self._clock)
        self._work = Work(self.client, self._table, prompts, masks, keeper, self._tell)
        self._prompt_watch.sync = prompts
        self._changed()

    def _leave(self, hide: bool = True) -> None:
        """Store the work in the scene and put its prompts out of sight."""
        self.placing.stop()
        if self._work is not None and not self.scene.IsClosing():
            if self._work.jobs:
                self._tell(Notice(_STOPPED))
            self.store()
            if hide:
                self._work.nodes.set_visible(False)
            self._work.nodes.remove_empty()
        self._drop()

    def _forget_segments(self, table: SegmentTable | None, jobs: set[int]) -> None:
        """The session works on these segments no longer."""
        for job in jobs:
            self.client.cancel(job, keep_results=False)
        if table is not None:
            for value in table.told_values():
                self.client.remove_segment(value)

    def _drop(self) -> None:
        """End the work; what the scene has of it stays as it is."""
        self.placing.stop()
        if self._work is not None:
            self._work.writer.close()
        self._work = self._prompt_watch.sync = self.state = self._next_state = None
        self._awaits_state = self._table_dirty = False
        self._volume_watch.forget()

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
        def late() -> bool:
            return self._clock() >= end

        for event in self.client.pump(max(0.001, (end - self._clock()) * 0.6)):
            self._hear(event)
        if self._busy_elsewhere():
            return
        if self._orphans or self._companions:
            self._remove_orphans()
        self._follow_changes()
        if self._reconcile():  # on its way now, rather than at the host's next turn
            for event in self.client.pump(0.001):
                self._hear(event)
        if self._next_state is not None and not (self._work is not None and self._work.prompts.held):
            self._take(self._next_state, late)
            if late():  # nodes have this round, masks the next ones
                return
        if self._work is not None:
            self._show_prompts()
            self._work.masks.show(end)
            self._work.keeper.ask(self._settled, hurry)
            if self._settled:
                self._work.sweep()
                self._work.check(end)
            if self._work.unwritten and not len(self._work.masks) and self._work.keeper.rested:
                self._write_record()
        if self._work is None or not len(self._work.masks):
            self.found.step(late)

    def _show_prompts(self) -> None:
        """Prompts of the chosen segment are larger than others, and have handles in the views they lie in."""
        look = (self.current_segment_id, *self._views.directions())
        if look != self._look and not self._work.prompts.held:
            self._work.nodes.look(look[0], self._views.nodes(), self.volume)
            self._look = look

    def _busy_elsewhere(self) -> bool:
        return self.scene.IsClosing() or self.scene.IsImporting() or self.scene.IsRestoring()

    def _hear(self, event: Event) -> None:
        work = self._work
        if isinstance(event, (Answered, Failed)) and event.request in self._own_requests:
            self._own_requests.discard(event.request)
            if work is not None:
                work.keeper.hear(event)
            return
        if isinstance(event, StateChanged):
            self._next_state = event
        elif isinstance(event, MaskChanged) and work is not None:
            work.masks.take(event)
            work.keeper.changed()
        elif isinstance(event, StatusChanged) and event.status.state != "ready" and work is not None:
            work.sweep_due = True
        elif isinstance(event, (Finished, Failed)) and work is not None:
            work.end_job(event.job)
        self._tell(event)

    def _reconcile(self) -> bool:
        if self._work is None or self._busy_elsewhere():
            return False
        looked = self._work.prompts.dirty
        told = self._work.prompts.reconcile()
        if told:
            self._changed()
        if looked and self.placing.kind is None:
            self._work.nodes.remove_empty()
        return told

    def _take(self, state: StateChanged, late: Callable[[], bool]) -> None:
        """Write what the session says into segment table and nodes; what there is no time for, in the next round."""
        self.state, self._awaits_state, self._look = state, False, None
        if self._work is not None and not (self._work.take_new_segments(state, late) and self._work.take(state, late)):
            return
        self._next_state = None
        if self._work is None:
            return
        if self.placing.kind is None:
            self._work.nodes.remove_empty()

    def _changed(self) -> None:
        """Something was asked of the session; a state will come that knows of it, and older ones do not count."""
        self._awaits_state, self._next_state, self._look = True, None, None
        if self._work is not None:
            self._work.keeper.changed()

    @property
    def _settled(self) -> bool:
        heard = not self._awaits_state and self._next_state is None
        return heard and self.state is not None and self.state.settled and self._reachable

    @property
    def _reachable(self) -> bool:
        return self.client.status.state == "ready"

    def _write_record(self) -> None:
        if self._work is not None:
            self._work.write_record(*self._model[:2], self._recognised)

    def _tell(self, event: Event) -> None:
        self._events.append(event)

    # ---- inside: what was changed elsewhere

    def _follow_changes(self) -> None:
        """What was changed in Slicer's other modules, once it has come to rest."""
        if self._volume_watch.has_changed():
            self._follow_volume()
        if self._volume_watch.window_has_changed():
            self._follow_window()
        if self._table_dirty:
            self._follow_table()
        kind, self._place_again = self._place_again, None
        if kind is not None and self.volume is not None and self.placing.kind is None:
            self.start_placing(kind)
        if self.placing.list_is_gone and self.volume is not None:
            self.start_placing(self.placing.kind)
        elif self.placing.ended_elsewhere:
            self.stop_placing()
        elif self.placing.clicks():
            self._place_clicks()

    def _follow_table(self) -> None:
        """Segments that were removed, renamed or recoloured in Slicer's table."""
        self._table_dirty, self._look = False, None
        if self._work is None:
            return
        gone, changed = self._table.tell_changes(self.client)
        self._work.masks.forget_gone(gone)
        for segment_id in {*gone, *(segment_of(node) for node in self._work.nodes.nodes())}:
            if self._table.has(segment_id):
                self._work.nodes.name(segment_id)
            else:
                self._work.prompts.drop(segment_id)
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
            self._tell(Notice(MOVED))
        else:
            self._tell(Notice("The volume's voxels have changed: masks are made anew from the prompts."))
        self.volume, self._recognised = volume, now
        self._send_volume()
        if self._work is not None:
            self._work.masks.take_back()
            self._work.writer.close()
            self._open(storage.Record(values=self._table.values), None)

    def _follow_window(self) -> None:
        window = self._wanted_window()
        if self.volume is None or window is None or _same_window(window, self._given_window):
            return
        self._given_window = window
        self.client.set_window(window)
        self._changed()

    def _wanted_window(self) -> IntensityWindow | None:
        return self._window or displayed_window(self.volume_node)

    def _place_clicks(self) -> None:
        kind, clicks = self.placing.kind, self.placing.clicks()
        self.placing.clear_clicks()
        try:
            self.place(kind, self._views.node_at(clicks[0]), clicks)
        except UserError as error:
            self._tell(Failed(str(error)))
        self.start_placing(kind)  # into the list of the segment, if it was made just now

    def _remove_orphans(self) -> None:
        """Prompts and records whose volume or segmentation is gone, and what showed prompts that are gone."""
        self._orphans = False
        companions, self._companions = self._companions, []
        for node in companions:
            if node.GetScene() is not None:
                self.scene.RemoveNode(node)
        for node in orphans(self.scene):
            PromptNodes(self.scene, self.volume_node, self.segmentation_node).remove_node(node)
        for node in storage.orphans(self.scene):
            self.scene.RemoveNode(node)

    def _view_at(self, ras) -> View:
        """For what was placed where nobody saw it: the view that shows it, or else any."""
        view = self._views.view_at(ras, self.volume)
        return "axial" if view is None else view

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

    def _on_segments(self, _) -> None:
        self._table_dirty = True

    def _on_node_added(self, node) -> None:
        if kind_of(node) is not None:
            self._prompt_watch.watch(node)
            self._prompt_watch.changed(node)

    def _on_node_removed(self, node) -> None:
        self._observers.remove(node)
        if self.scene.IsClosing():
            return
        if kind_of(node) is not None:
            self._companions += companions_of(node)
            self._prompt_watch.let_go(node)
        elif node is self.volume_node or node is self.segmentation_node:
            self._input_removed(node)
        elif node.IsA("vtkMRMLVolumeNode") or node.IsA("vtkMRMLSegmentationNode"):
            self._orphans = True
        elif node is self._editor_node:
            self.editor_node = None

    def _input_removed(self, node) -> None:
        """Volume or segmentation was deleted, and the prompts between them go with it."""
        work, table, kind = self._work, self._table, self.placing.kind
        jobs = set() if work is None else set(work.jobs)
        prompts = work is not None and bool(work.prompts.given)
        self._drop()
        self._orphans = True
        if node is self.volume_node:
            what, jobs = "volume", jobs | self.client.jobs
            self._set_volume(None, None, tell=False)
        else:
            what = "segmentation"
            self._set_segmentation(None)
        self._forget_segments(table, jobs)
        if prompts or jobs:
            stopped = ", and what was computed for it was stopped" if jobs else ""
            self._tell(Notice(f"The {what} “{node.GetName()}” was deleted: its prompts went with it{stopped}."))
        self._place_again = kind  # not now: the scene is about to remove a node

    def _on_start_close(self, _) -> None:
        self._companions.clear()
        self._place_again = None
        self.found.clear()
        self._drop()
        self._set_volume(None, None, tell=False)
        self._set_segmentation(None)
        self._editor_node = None
        self._window = None

    def _on_end_close(self, _) -> None:
        self._prompt_watch.watch_all()

    def _on_end_import(self, _) -> None:
        self._prompt_watch.watch_all()
        try:
            self.attach()
        except UserError as error:
            self._tell(Failed(str(error)))


# ---- small things


def _same_window(a: IntensityWindow, b: IntensityWindow | None) -> bool:
    return b is not None and max(abs(a.low - b.low), abs(a.high - b.high)) <= _SAME_WINDOW * (a.high - a.low)
