"""The volume and the segmentation that a session on a scene works on, and the work on them: opened, dropped, deleted.

The parameter node names both, so that a saved scene opens with them. `scene_sync` takes the turns of the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.prompts.placing import Placing
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes
from SAMFineTuneLib.mrml.prompts.prompt_sync import PromptSync, PromptWatch
from SAMFineTuneLib.mrml.scene_watch import Observers, SceneWatch, VolumeWatch
from SAMFineTuneLib.mrml.scene_work import Work
from SAMFineTuneLib.mrml.segments.labelmaps import set_up_on
from SAMFineTuneLib.mrml.segments.mask_display import FoundDisplay, MaskDisplay
from SAMFineTuneLib.mrml.segments.segment_table import SegmentTable
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.mrml.slice_views import RestingView, ViewFinder, slice_node_under_cursor
from SAMFineTuneLib.mrml.volume_nodes import displayed_window, voxel_time
from SAMFineTuneLib.session import events
from SAMFineTuneLib.session.intents import View


class SceneInput:
    """A volume node, a segmentation node, and the `Work` on them while there are both."""

    def __init__(
        self,
        scene,
        client,
        active_slice_node: Callable[[], object | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            scene: the vtkMRMLScene.
            client: a SessionClient with `segments_are_steps=False`.
            active_slice_node: gives the slice node in which the user clicks; the default asks the crosshair.
            clock: seconds, monotonic.
        """
        if client.segments_are_steps:
            raise ValueError("the scene's segment table has an undo of its own: segments_are_steps must be False")
        self.scene = scene
        self.client = client
        self.parameters = storage.ParameterNode(scene)
        self.state: events.StateChanged | None = None
        """The newest state that the session reported."""
        self.volume_node = None
        self.segmentation_node = None
        self.volume: Volume | None = None
        self.placing = Placing(scene)
        self.found = FoundDisplay(scene)
        self.save_undo_state: Callable[[], object] = lambda: None
        """Called before masks are written into a segmentation that was changed elsewhere, for Slicer's own undo."""
        self._clock = clock
        self.on_change: Callable[[], object] = lambda: None
        """Called when something changed in the scene, so that the host takes the next turn soon."""
        self._observers = Observers(lambda: self.on_change())
        self._views = ViewFinder(scene, active_slice_node or slice_node_under_cursor(scene))
        self._volume_watch = VolumeWatch(self._observers, clock)
        self._prompt_watch = PromptWatch(scene, self._observers, lambda ras: self._views.view_at(ras, self.volume))
        self._events: list[events.Event] = []
        self._own_requests: set[int] = set()
        self._work: Work | None = None
        self._table: SegmentTable | None = None
        self._current: str | None = None
        self._recognised: dict = {}
        self._voxels_at: tuple | None = None  # the image data whose voxels were looked at last, and their time
        self._frame_waits = False  # whether a sequence shows another frame than the session's
        self._given_window: IntensityWindow | None = None
        self._model: tuple[str, str, str] = ("", "", "auto")
        self.device = "auto"
        """Where the model runs; belongs to the computer, so scenes do not keep it."""
        self._next_state: events.StateChanged | None = None  # told, but not yet written into the nodes
        self._awaits_state = False
        self._resting_view = RestingView(clock)
        self._look: tuple | None = None  # the segment and the views for which the prompts are drawn
        self._scene_watch = SceneWatch(scene, self._observers, self._prompt_watch, self)

    @property
    def _nodes(self) -> PromptNodes | None:
        return None if self._work is None else self._work.nodes

    @property
    def current_segment_id(self) -> str | None:
        """The segment for which prompts are placed; the first one when none was chosen."""
        if self._table is None:
            return None
        if self._current is None or not self._table.has(self._current):
            ids = self._table.ids()
            self._current = ids[0] if ids else None
        return self._current

    def _set_volume(self, node, volume: Volume | None, tell: bool = True) -> None:
        self._volume_watch.watch(node)
        self.found.clear()
        self.volume_node, self.volume = node, volume
        self._recognised = {} if volume is None else storage.recognise(volume)
        self._voxels_at, self._frame_waits = None if node is None else voxel_time(node), False
        if node is not None or (tell and not self.scene.IsClosing() and not self.scene.IsImporting()):
            self.parameters.refer("volume", node)

    def _set_segmentation(self, node) -> None:
        self._scene_watch.watch_segments(self.segmentation_node, node)
        self.segmentation_node = node
        self._table = None if node is None else SegmentTable(node)
        self._current = None
        if not self.scene.IsClosing():
            self.parameters.refer("segmentation", node)

    def _send_volume(self) -> None:
        self._given_window = self._wanted_window()
        self.client.set_volumetric(self.parameters.volumetric)
        self.client.set_volume(self.volume, self._given_window)

    def _enter(self) -> None:
        """Continue the work on volume and segmentation that is stored in the scene."""
        if self.volume is None or self.segmentation_node is None:
            return
        record = storage.read_record(self.scene, self.volume_node, self.segmentation_node)
        self._open(record, record.owners)
        self._given_window = self._work.restore(record, self._recognised) or self._given_window
        self._work.nodes.set_visible(True)

    def _open(self, record: storage.Record, owners) -> None:
        self._table = SegmentTable(self.segmentation_node, record.values, self.client.segment_values)
        writer = SegmentWriter(self.segmentation_node, self.volume_node, self.volume)
        writer.editor_node = lambda: self.parameters.referenced("editor")
        writer.save_undo_state = lambda: self.save_undo_state()
        if owners is not None and not writer.from_dict(owners):
            self._tell(events.Notice(
                "The segmentation's grid has changed since its masks were stored: they now count as drawn by hand."
            ))  # fmt: skip
        nodes = PromptNodes(self.scene, self.volume_node, self.segmentation_node)
        prompts = PromptSync(nodes, self._table, self.volume, self.client, self._view_at, self._tell, self._clock)
        masks = MaskDisplay(writer, self._table, self._tell, self._clock)
        keeper = storage.RecordKeeper(record, self.client, self._own_requests, self._clock)
        self._work = Work(self.client, self._table, prompts, masks, keeper, self._tell)
        self._prompt_watch.sync = prompts
        self._changed()

    def _forget_segments(self, table: SegmentTable | None, jobs: set[int]) -> None:
        """Remove the segments of a table from the session, and cancel jobs."""
        for job in jobs:
            self.client.cancel(job, keep_results=False)
        if table is not None:
            table.remove_all(self.client)

    def _drop(self) -> None:
        """End the work; the scene stays as it is."""
        self.placing.stop()
        if self._work is not None:
            self._work.writer.close()
        self._work = self._prompt_watch.sync = self.state = self._next_state = None
        self._awaits_state = self._scene_watch.segments_changed = False
        self._volume_watch.forget()

    def make_segmentation(self) -> None:
        """Work on a new segmentation of the volume."""
        node = self.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", self.scene.GenerateUniqueName("Segmentation"))
        set_up_on(node, self.volume_node)
        self._set_segmentation(node)
        self._enter()

    def _require_volume(self) -> None:
        if self.volume is None:
            raise UserError("There is no volume; choose one first.")

    def _require_input(self) -> None:
        """Raise UserError unless there is a volume, and the segmentation, where there is one, can be edited."""
        self._require_volume()
        if self._work is None:
            self._enter()

    def _wanted_window(self) -> IntensityWindow | None:
        return self.parameters.window or displayed_window(self.volume_node)

    def _view_at(self, ras) -> View:
        """The view for a prompt whose view is not known: one that shows it, else the axial one."""
        view = self._views.view_at(ras, self.volume)
        return "axial" if view is None else view

    def _changed(self) -> None:
        """Note that the session was sent an intent: a state that includes it will come, and older states are ignored.
        """
        self._awaits_state, self._next_state, self._look = True, None, None
        if self._work is not None:
            self._work.keeper.changed()

    def _tell(self, event: events.Event) -> None:
        self._events.append(event)

    # ---- what happens in the scene and cannot wait: called by `scene_watch`

    def input_removed(self, node) -> bool:
        """Drop the work on a node that is about to be removed. Returns whether it is the volume or the segmentation."""
        if node is not self.volume_node and node is not self.segmentation_node:
            return False
        work, table = self._work, self._table
        jobs = set() if work is None else set(work.jobs)
        prompts = work is not None and bool(work.prompts.given)
        self._drop()
        if node is self.volume_node:
            what, jobs = "volume", jobs | self.client.jobs
            self._set_volume(None, None, tell=False)
        else:
            what = "segmentation"
            self._set_segmentation(None)
        self._forget_segments(table, jobs)
        if prompts or jobs:
            stopped = ", and what was computed for it was stopped" if jobs else ""
            self._tell(events.Notice(f"The {what} “{node.GetName()}” was deleted: its prompts went with it{stopped}."))
        return True

    def scene_closes(self) -> None:
        """The scene is about to be closed."""
        self.found.clear()
        self._drop()
        self._set_volume(None, None, tell=False)
        self._set_segmentation(None)
