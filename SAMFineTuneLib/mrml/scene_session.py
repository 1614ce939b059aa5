"""The interactive session on a scene: everything that the panel can ask for.

Below it, `SceneInput` holds the volume and the segmentation, and `SceneSync` synchronises the nodes of the scene, the
session and the segments. The host calls `pump` from a timer. Nothing here waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.inference.settings import EverythingSettings, PropagationSettings
from SAMFineTuneLib.mrml.scene_sync import SceneSync
from SAMFineTuneLib.mrml.slice_views import plane_of_view, settle_view, view_of
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.prompt_kind import drawn_prompt
from SAMFineTuneLib.service.protocol import DEFAULT_MODEL
from SAMFineTuneLib.session.events import Failed
from SAMFineTuneLib.session.intents import View


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt for the panel's list."""

    number: int
    segment_id: str
    segment: int  # label value
    prompt: Prompt
    view: View


class SceneSession(SceneSync):
    """One session on a scene: a volume node, a segmentation node, and the prompts and masks between them."""

    _place_again: str | None = None  # the kind to go on placing at the next turn

    # ---- what it works on

    def set_volume_node(self, node) -> None:
        """Work on a volume: shows its prompts and hides those of the former volume. Raises UserError."""
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
        """Work on a segmentation: shows its prompts and hides those of the former one."""
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
        """Work on the volume and segmentation that the scene's parameter node names. Raises UserError."""
        model = self.parameters.get("Model")
        if model or self.device != "auto":
            self.set_model(model or DEFAULT_MODEL, self.parameters.get("Adapter"), self.device)
        segmentation, volume = self.parameters.referenced("segmentation"), self.parameters.referenced("volume")
        if segmentation is not self.segmentation_node:
            self._leave()
            self._set_segmentation(segmentation)
        if volume is not self.volume_node:
            self.set_volume_node(volume)
        elif self._work is None:
            self._enter()

    def scene_was_imported(self) -> None:
        """Continue the work in a scene that was loaded."""
        try:
            self.attach()
        except UserError as error:
            self._tell(Failed(str(error)))

    def set_window(self, window: IntensityWindow | None) -> None:
        """Show the model the volume in a window; None follows the displayed one."""
        self.parameters.window = window
        self._follow_window()

    @property
    def window(self) -> IntensityWindow | None:
        """The window that was set; None while the displayed one is followed."""
        return self.parameters.window

    @property
    def volumetric(self) -> bool:
        """Whether a changed prompt answers for the whole object; stored in the scene."""
        return self.parameters.volumetric

    @volumetric.setter
    def volumetric(self, on: bool) -> None:
        self._reconcile()  # what was placed before counts as before
        self.parameters.volumetric = on
        if self.volume is not None:
            self.client.set_volumetric(on)
            self._changed()

    def set_model(self, model_id: str, adapter: str = "", device: str = "auto") -> None:
        """Choose the model, an adapter on it, and the device, which belongs to the computer and not to the scene."""
        chosen = (model_id, adapter, device)
        if chosen != self._model:
            self.client.set_model(*chosen)
        self._keep_model(*chosen)

    @property
    def editor_node(self):
        """The segment editor node whose masking and overwrite mode apply; None protects all other segments."""
        return self.parameters.referenced("editor")

    @editor_node.setter
    def editor_node(self, node) -> None:
        self.parameters.refer("editor", node)

    @SceneSync.current_segment_id.setter
    def current_segment_id(self, segment_id: str | None) -> None:
        changed, self._current = segment_id != self._current, segment_id
        if changed and self.placing.kind is not None:
            self.start_placing(self.placing.kind)

    # ---- prompts

    def place(self, kind: str, slice_node, ras_points: Sequence) -> int:
        """Place a prompt of the current segment in a slice view, or nothing when that fails.

        Args:
            kind: name of a tool, see `prompt_kind.tools`, whose gesture says what the points are: one point, two
                opposite corners, or a line.
            slice_node: of the view.
            ras_points: world RAS in mm.

        Returns:
            The prompt's number.

        Raises:
            UserError: when there is no volume, or the prompt cannot be placed.
        """
        self._take_shown_frame()
        segment_id = self._ensure_segment()
        points = [tuple(float(x) for x in point) for point in ras_points]
        if not points or slice_node is None:
            raise UserError("There is nothing to place; click into a slice view.")
        settle_view(slice_node, self.volume)
        plane = plane_of_view(slice_node, self.volume, points[0])
        prompt = drawn_prompt(kind, plane, points)
        self._reconcile()
        number = self._work.prompts.add(segment_id, prompt, view_of(plane))
        self._changed()
        return number

    def start_placing(self, kind: str) -> None:
        """Enter Slicer's place mode: every click places a prompt of the current segment, until `stop_placing`. When
        there is no segment, the first click makes one. Raises UserError."""
        self._require_input()
        for slice_node in self._views.nodes():
            settle_view(slice_node, self.volume)
        self.placing.start(kind, self._nodes, self.current_segment_id)
        if self.placing.is_click_list(self.placing.node):
            self._observers.add(self.placing.node, self.placing.node.PointPositionDefinedEvent, lambda _: None)
        self._look = None

    def stop_placing(self) -> None:
        """Leave Slicer's place mode. A click that has not been handled yet still places its prompt."""
        self._place_again = None
        self._place_clicks_that_wait()
        self.placing.stop()
        if self._work is not None:
            self._work.nodes.remove_empty()

    def _follow_changes(self) -> None:
        """Also handle what the user did with the active tool."""
        super()._follow_changes()
        kind, self._place_again = self._place_again, None
        if kind is not None and self.volume is not None and self.placing.kind is None:
            self.start_placing(kind)
        if (self.placing.list_is_gone or self.placing.list_is_full) and self.volume is not None:
            self.start_placing(self.placing.kind)
        elif self.placing.ended_elsewhere:
            self.stop_placing()
        elif self.placing.clicks():
            self._place_clicks()

    def _place_clicks_that_wait(self) -> None:
        if self.volume is not None and self.placing.clicks():
            self._place_clicks()

    def store(self, patience: float = 0.0) -> None:
        """As `SceneSync.store`, including a click that has not been handled yet. Slicer does not say when it saves a
        scene, so a program that saves right after placing prompts calls this first.
        """
        self._place_clicks_that_wait()
        super().store(patience)

    def _place_clicks(self) -> None:
        kind, clicks = self.placing.kind, self.placing.clicks()
        self.placing.clear_clicks()
        try:
            self.place(kind, self._views.node_at(clicks[0]), clicks)
        except UserError as error:
            self._tell(Failed(str(error)))
        self.start_placing(kind)  # into the segment's list, if the segment is a new one

    def _ensure_segment(self) -> str:
        """The current segment; makes segmentation and segment when there is none."""
        self._require_input()
        if self.segmentation_node is None:
            self.make_segmentation()
        segment_id = self.current_segment_id
        if segment_id is None:
            segment_id = self.segmentation_node.GetSegmentation().AddEmptySegment("")
            self._current = segment_id
        return segment_id

    def input_removed(self, node) -> bool:
        """As `SceneInput.input_removed`; the active tool is chosen again once the scene is quiet."""
        kind = self.placing.kind
        removed = super().input_removed(node)
        if removed:
            self._place_again = kind  # not now, while the scene removes a node
        return removed

    def scene_closes(self) -> None:
        """As `SceneInput.scene_closes`; the active tool is put away."""
        self._place_again = None
        super().scene_closes()

    def delete(self, number: int) -> None:
        """Delete a prompt."""
        if self._work is not None and self._work.prompts.delete(number):
            self._changed()

    def clear(self, segment_id: str | None = None, slice_node=None) -> None:
        """Delete prompts and propagated masks: of a segment, on the slice of a view, both, or all."""
        if self._work is None:
            return
        self._reconcile()
        plane = None if slice_node is None else plane_of_view(slice_node, self.volume)
        value = None if segment_id is None else self._table.values.get(segment_id)
        if segment_id is not None and not self._table.knows(value):
            return
        if plane is None and self._work.prompts.nodes_count:  # otherwise the session would get them again
            self._work.prompts.drop(segment_id)
        self.client.clear(value, plane)
        self._changed()

    def jump_to(self, number: int) -> None:
        """Move the slice views to a prompt."""
        import slicer

        given = None if self._work is None else self._work.prompts.given.get(number)
        if given is not None:
            at = given.prompt.anchor
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
        """Undo the last step."""
        self._reconcile()
        self.client.undo()
        self._changed()

    def redo(self) -> None:
        """Redo the last step that was undone."""
        self._reconcile()
        self.client.redo()
        self._changed()

    def propagate(self, segment_id: str | None = None, settings=None, orientation: str | None = None) -> int:
        """Carry a segment's prompted slices through the volume.

        Args:
            segment_id: of the segment; None is the current one.
            settings: fields of `PropagationSettings`, the others keep their defaults.
            orientation: of the slices; None is that of the last prompt.

        Returns:
            The job's number.

        Raises:
            UserError: when the segment has no prompts, or there is no volume.
        """
        self._take_shown_frame()
        self._require_volume()
        self._reconcile()
        segment_id = segment_id or self.current_segment_id
        value = self._table.values.get(segment_id) if self._table is not None else None
        if value is None or not any(prompt.segment_id == segment_id for prompt in self.prompts):
            raise UserError("The segment has no prompts yet; click into it on a slice first.")
        job = self.client.propagate(value, PropagationSettings(**(settings or {})), orientation)
        self._work.jobs.add(job)
        self._changed()
        return job

    def everything(self, orientation: str, settings=None, first: int | None = None, last: int | None = None) -> int:
        """Find all objects of a range of slices.

        Args:
            orientation: of the slices.
            settings: fields of `EverythingSettings`, the others keep their defaults.
            first: index of the first slice, by default 0.
            last: index of the last slice, which belongs to the range, by default the volume's last.

        Returns:
            The job's number.

        Raises:
            UserError: when there is no volume, or it has no such slices.
        """
        self._take_shown_frame()
        self._require_volume()
        return self.client.everything(orientation, EverythingSettings(**(settings or {})), first, last)

    def adopt(self, job: int, objects: Sequence[int], names: Sequence[str] | None = None) -> None:
        """Make segments of found objects, with these names or default ones."""
        self._require_input()
        if self._work is None:
            self.make_segmentation()
        self._table.reserve(self.client.adopt(job, objects, names=names))
        self._changed()

    def show_found(self, masks: Sequence) -> None:
        """Show found objects, as the client's `ask_for_masks` gives them, in the views only; no objects hide them."""
        if self.volume is None:
            self.found.clear()
        else:
            self.found.show(masks, self.volume_node, self.volume)

    def embed_around(self, slice_node) -> None:
        """Embed the slices around the one that a view shows, in the background."""
        self._require_volume()
        plane = plane_of_view(slice_node, self.volume)
        if plane.index is not None:
            self.client.embed(plane.orientation, plane.index)

    # ---- surfaces, and the end

    @property
    def refresh_due(self) -> bool:
        """Whether the closed surface is stale and the masks no longer change."""
        return self._work is not None and self._work.masks.surface_due

    def refresh_surface(self) -> None:
        """Rebuild the closed surface of one segment, which takes up to a second."""
        if self._work is not None:
            self._work.writer.refresh_surface()

    def close(self) -> None:
        """Leave the scene: its nodes stay, and observers are removed."""
        if self._closed:
            return
        self._leave(hide=False)
        self.found.clear()
        self._closed = True
        self._observers.remove()
        self._set_volume(None, None, tell=False)
        self.segmentation_node = self._table = None
