"""Synchronises the nodes of a scene, the session and the segments at every turn of the host's timer.

Markups nodes hold the prompts, a segmentation holds the masks. The user may change either with any tool of Slicer, so
nothing here reacts to single edits: observers only note that something changed (`scene_watch`), and each turn compares.
`prompt_sync` and `segment_table` compare nodes with the session, `mask_display` writes masks into segments, and
`RecordKeeper` keeps the session's document in the scene. Nothing waits, and no thread is started.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.mrml import storage
from SAMFineTuneLib.mrml.prompts.node_content import segment_of
from SAMFineTuneLib.mrml.scene_input import SceneInput
from SAMFineTuneLib.mrml.scene_work import MOVED
from SAMFineTuneLib.mrml.slice_views import plane_of_view
from SAMFineTuneLib.mrml.volume_nodes import is_frame, volume_from_node, voxel_time
from SAMFineTuneLib.session import events

_STOPPED = (
    "The propagation was stopped, because another volume or segmentation was chosen: come back and propagate again."
)
_ANEW = (
    "The volume's voxels have changed: masks are computed again from the prompts, propagated slices are removed; "
    "propagate again."
)
_OTHER_FRAME = (
    "“{name}” shows another frame of its sequence. The masks stay those of their frame until you place a prompt or "
    "propagate, which computes them again on the frame that is shown."
)
_NO_CARD = (
    "The graphics card cannot be used, so models run as before. On this computer an NVIDIA card needs its driver and "
    "Slicer's extension PyTorch: install them, restart Slicer, and choose the card again. For a server, ask its "
    "administrator."
)
_SAVE_PATIENCE = 1.0  # seconds that saving the scene waits for the worker
_SAME_WINDOW = 1e-3  # of the window's width

_log = logging.getLogger(__name__)


class SceneSync(SceneInput):
    """The turns of the work on a volume and a segmentation. `SceneSession` adds what the panel can ask for."""

    views_first = False
    """Whether the last turn only wrote masks and left the rest to the next one, so that the views are drawn."""
    _closed = False
    _failing = ""  # how the last turn failed

    # ---- the host's timer

    def pump(self, budget: float = 0.03) -> list[events.Event]:
        """Work for about `budget` seconds; returns the events since the last call. Never raises."""
        if self._closed:
            return []
        try:
            self._move(self._clock() + budget)
            self._failing = ""
        except Exception as error:
            before, self._failing = self._failing, repr(error)
            if self._failing != before:  # else each of many turns would say so again
                self._say_failure(error)
        told, self._events = self._events, []
        return told

    def _say_failure(self, error: Exception) -> None:
        if isinstance(error, UserError):
            self._tell(events.Failed(str(error)))
            return
        _log.error("The session on the scene failed", exc_info=error)
        self._tell(events.Failed(f"Something went wrong ({type(error).__name__}); the log has the details."))

    @property
    def at_rest(self) -> bool:
        """Whether nodes, session, segments and the stored document agree, as far as is known."""
        if self._scene_watch.pending or self._volume_watch.pending:
            return False
        return self._work is None or (self._settled and self._work.at_rest)

    @property
    def outstanding(self) -> bool:
        """Whether turns must come quickly, because an answer is expected. Otherwise a turn now and then, and one after
        each `on_change`, are enough."""
        waiting = self._scene_watch.pending or self._next_state is not None or self.found.waiting
        work = self._work is not None and self._work.outstanding
        return bool(waiting or work or self.client.outstanding)

    def _move(self, end: float, hurry: bool = False) -> None:
        def late() -> bool:
            return self._clock() >= end

        self._pump_client(max(0.001, (end - self._clock()) * 0.6))
        if self._busy_elsewhere():
            return
        self._scene_watch.remove_orphans()
        self._follow_changes()
        if self._reconcile():  # sends it now rather than at the next turn
            self._pump_client(0.001)
        # First the masks, because they are what the user waits for. What is left to do waits for the next turn, so that
        # the views are drawn before; every second turn does it, however many masks come.
        shown = self._work is not None and self._work.masks.show(
            end, self._awaits_state or self._next_state is not None
        )
        self.views_first = shown and not self.views_first
        if self.views_first:
            return
        if self._next_state is not None and not (self._work is not None and self._work.prompts.held):
            self._take(self._next_state, late)
            if late():
                return
        if self._work is not None:
            self._show_prompts()
            self._work.keeper.ask(self._settled, hurry)
            if self._settled:
                self._work.sweep()
                self._work.check(end)
            if self._work.time_to_write:
                self._write_record()
        if self._work is None or not len(self._work.masks):
            self.found.step(late)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Have the model prepare the slice that the user looks at with an active tool, once the view rests."""
        node = self._views.active()
        if self.placing.kind is None or self.volume is None or node is None:
            return
        view = node.GetID(), node.GetSliceToRAS().GetMTime(), id(self.volume), self._given_window, self._model
        if self._resting_view.has_come_to_rest(view):
            with contextlib.suppress(UserError):
                self.client.look_at(plane_of_view(node, self.volume))
                self._pump_client(0.001)

    def _pump_client(self, budget: float) -> None:
        for event in self.client.pump(budget):
            self._hear(event)

    def _show_prompts(self) -> None:
        """Draw prompts of the chosen segment larger than others, with handles in the views they lie in."""
        look = (self.current_segment_id, *self._views.directions())
        if look != self._look and not self._work.prompts.held:
            self._work.nodes.look(look[0], self._views.nodes(), self.volume)
            self._look = look

    def _busy_elsewhere(self) -> bool:
        return self.scene.IsClosing() or self.scene.IsImporting() or self.scene.IsRestoring()

    def _hear(self, event: events.Event) -> None:
        work = self._work
        if isinstance(event, (events.Answered, events.Failed)) and event.request in self._own_requests:
            self._own_requests.discard(event.request)
            if work is not None:
                work.keeper.hear(event)
            return
        if isinstance(event, events.StateChanged):
            self._next_state = event
        elif isinstance(event, events.MaskChanged) and work is not None:
            work.masks.take(event)
            work.keeper.changed()
        elif isinstance(event, events.StatusChanged) and event.status.state != "ready" and work is not None:
            work.sweep_due = True
        elif isinstance(event, (events.Finished, events.Failed)) and work is not None:
            work.end_job(event.job)
        self._tell(self._without_card(event) if isinstance(event, events.Failed) else event)

    def _without_card(self, event: events.Failed) -> events.Failed:
        """Go on with the model that answers when the chosen one was refused. Where only the device was, say what can be
        done about that in Slicer."""
        now = self.client.model
        if self.client.has_no_model and self.device != "auto":  # from the start
            self.client.set_model(now.model, now.adapter)
            now = self.client.model
        before, chosen = self._model, (now.model, now.adapter, now.device)
        if not before[0] or chosen == before:
            return event
        self._keep_model(*chosen)
        return replace(event, text=_NO_CARD, details=event.text) if chosen[:2] == before[:2] else event

    def _keep_model(self, model: str, adapter: str, device: str) -> None:
        self._model, self.device = (model, adapter, device), device
        self.parameters.set("Model", model)
        self.parameters.set("Adapter", adapter)

    def _reconcile(self) -> bool:
        if self._work is None or self._busy_elsewhere():
            return False
        looked = self._work.prompts.dirty
        told = self._work.prompts.reconcile()
        if told:
            self._changed()
        if looked and self.placing.kind is None:
            self._work.nodes.remove_empty()
        if told:
            self._take_shown_frame()
        return told

    def _take(self, state: events.StateChanged, late: Callable[[], bool]) -> None:
        """Write a state into segment table and nodes; the next turn continues when the time is up."""
        self.state, self._awaits_state, self._look = state, False, None
        if self._work is not None and not (self._work.take_new_segments(state, late) and self._work.take(state, late)):
            return
        self._next_state = None
        if self._work is None:
            return
        if self.placing.kind is None:
            self._work.nodes.remove_empty()

    @property
    def _settled(self) -> bool:
        heard = not self._awaits_state and self._next_state is None
        return heard and self.state is not None and self.state.settled and self._reachable

    @property
    def _reachable(self) -> bool:
        return self.client.status.state == "ready"

    def store(self, patience: float = 0.0) -> None:
        """Store the session in the scene, as when the scene is saved; waits up to `patience` seconds for the worker."""
        if self._work is None:
            return
        self._reconcile()
        end = self._clock() + patience
        while self._work is not None and self._work.behind and self._reachable and self._clock() < end:
            self._move(self._clock() + 0.02, hurry=True)
        self._write_record()

    def scene_saves(self) -> None:
        """The scene is about to be saved, by an application that says so beforehand; Slicer 5.12 does not."""
        self.store(_SAVE_PATIENCE)

    def _write_record(self) -> None:
        if self._work is not None:
            self._work.write_record(*self._model[:2], self._recognised)

    def _leave(self, hide: bool = True) -> None:
        """Store the work in the scene and hide its prompts."""
        self.placing.stop()
        if self._work is not None and not self.scene.IsClosing():
            if self._work.jobs:
                self._tell(events.Notice(_STOPPED))
            self.store()
            if hide:
                self._work.nodes.set_visible(False)
            self._work.nodes.remove_empty()
        self._drop()

    # ---- what was changed elsewhere

    def _follow_changes(self) -> None:
        """Follow changes from Slicer's other modules once they are complete."""
        if self._volume_watch.has_changed("volume") or self._volume_watch.has_changed("place"):
            self._follow_volume()
        if self._volume_watch.has_changed("window"):
            self._follow_window()
        if self._scene_watch.segments_changed:
            self._follow_table()

    def _follow_table(self) -> None:
        """Follow segments that were removed, renamed or recoloured in Slicer's table."""
        self._scene_watch.segments_changed, self._look = False, None
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

    def _take_shown_frame(self) -> None:
        """Work on the frame of a sequence that is shown, because the user has pointed at something on it."""
        if self.volume_node is None or not is_frame(self.volume_node):
            return
        if self._volume_watch.has_changed("volume", at_once=True) or self._frame_waits:
            self._follow_volume(also_frame=True)

    @property
    def _has_masks(self) -> bool:
        return self._work is not None and bool(self._work.prompts.given or self._work.writer.masks())

    def _follow_volume(self, also_frame: bool = False) -> None:
        """When the volume's voxels or place changed, begin a new session with the same prompts.

        Args:
            also_frame: whether another frame of a sequence counts as a change. Otherwise the masks of the former frame
                stay.
        """
        if self.volume_node is None:
            return
        try:
            volume = volume_from_node(self.volume_node)
        except UserError as error:
            node = self.volume_node
            self._leave()
            self._set_volume(None, None)
            self._tell(events.Failed(f"{error} The volume “{node.GetName()}” was deselected."))
            return
        before, at = self._recognised, voxel_time(self.volume_node)
        untouched, frame = at == self._voxels_at, is_frame(self.volume_node)
        now = before | storage.place_of(volume) if untouched else storage.recognise(volume)
        if storage.same_voxels(before, now) and (untouched or frame or storage.all_checked(now)):
            self._voxels_at, self._frame_waits = at, False
            if storage.same_place(before, now):
                return
            self._tell(events.Notice(MOVED))
        elif frame and self._has_masks and not also_frame:
            if not self._frame_waits:
                self._tell(events.Notice(_OTHER_FRAME.format(name=self.volume_node.GetName())))
            self._frame_waits = True
            return
        else:
            self._tell(events.Notice(_ANEW))
        self.volume, self._recognised = volume, now
        self._voxels_at, self._frame_waits = at, False
        self._send_volume()
        if self._work is None:
            return
        try:
            self._work.masks.take_back()
            self._work.writer.close()
            self._open(storage.Record(values=self._table.values), None)
        except UserError:  # the segmentation cannot be edited
            self._drop()
            raise

    def _follow_window(self) -> None:
        window = self._wanted_window()
        if self.volume is None or window is None or _same_window(window, self._given_window):
            return
        self._given_window = window
        self.client.set_window(window)
        self._changed()


def _same_window(a: IntensityWindow, b: IntensityWindow | None) -> bool:
    return b is not None and max(abs(a.low - b.low), abs(a.high - b.high)) <= _SAME_WINDOW * (a.high - a.low)
