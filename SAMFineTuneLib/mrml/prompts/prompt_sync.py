"""Keeps the prompts in markups nodes and those in the session the same.

Users may change nodes with anything that Slicer has, so no single event is trusted. Both sides are compared with the
prompts that they last had in common: `PromptSync` sends to the session what differs in the nodes, and writes into the
nodes what differs in the session.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.prompts.node_content import MarkedPrompt, is_collapsed, same_prompt, turn_inside_in
from SAMFineTuneLib.mrml.prompts.prompt_nodes import PromptNodes, prompt_nodes
from SAMFineTuneLib.mrml.scene_watch import Observers
from SAMFineTuneLib.mrml.segments.segment_table import SegmentTable
from SAMFineTuneLib.mrml.slice_views import parallel_view
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.plane_prompts import planes_of
from SAMFineTuneLib.session.events import Event, Failed, Notice, PromptInfo
from SAMFineTuneLib.session.intents import View
from SAMFineTuneLib.wording import counted

_HELD_FOR = 3.0  # seconds without a change after which a node counts as let go


@dataclass
class Given:
    """A prompt as the session has it, or will have it when it has received everything, and as it was in the nodes."""

    segment_id: str
    prompt: Prompt
    view: View
    said: MarkedPrompt | None  # None for prompts that are not shown, such as masks


class PromptSync:
    """Synchronizes the prompts of one volume and segmentation."""

    def __init__(
        self,
        nodes: PromptNodes,
        table: SegmentTable,
        volume: Volume,
        client,
        view_at: Callable[[Sequence[float]], View],
        tell: Callable[[Event], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """`view_at` returns the view in which a prompt at a place in RAS was probably placed."""
        self.nodes = nodes
        self.given: dict[int, Given] = {}
        """By number."""
        self.dirty = True
        """Whether nodes may have changed since they were last read."""
        self.held: dict[str, float] = {}
        """IDs of nodes that the user is dragging, and when they last changed. They are read when the user lets go, or,
        since Slicer does not always report that, when they have not changed for `_HELD_FOR`."""
        self.placed_on: dict[tuple[str, str], View] = {}
        """Node and control point ID of what was just placed -> the view in which it was."""
        self.nodes_count = True
        """Whether the nodes prevail over the session's next state, because the session has just started."""
        self._outside: set[int] = set()  # prompts in nodes that the volume was moved away from, as the user was told
        self._unseen: set[str] = set()  # hidden segments that the user was told about
        self._table, self.volume, self._client = table, volume, client
        self._view_at, self._tell, self._clock = view_at, tell, clock

    # ---- nodes to session

    def expect(self, prompts: Sequence[PromptInfo]) -> None:
        """Start from these prompts of the session; `reconcile` sends it what differs in the nodes."""
        for info in prompts:
            segment_id = self._table.id_of(info.segment)
            said = MarkedPrompt(info.number, segment_id, info.prompt, info.view, "", "")
            shown = said if info.prompt.marker is not None else None
            self.given[info.number] = Given(segment_id, info.prompt, info.view, shown)

    def hold(self, node_id: str) -> None:
        """Note that the user is dragging a node."""
        self.held[node_id] = self._clock()

    def reconcile(self) -> bool:
        """Send changes of the nodes to the session; returns whether there were any."""
        if self.held:
            still = self._clock() - _HELD_FOR
            self.held = {node_id: changed for node_id, changed in self.held.items() if changed > still}
        if not self.dirty or self.held:
            return False
        self.dirty = False
        with self.own_writes():
            return self._tell_differences()

    @contextmanager
    def own_writes(self) -> Iterator[None]:
        """Write to the nodes without marking them as changed: they need not be read again for what was just written."""
        dirty = self.dirty
        try:
            yield
        finally:
            self.dirty = dirty

    def _tell_differences(self) -> bool:
        known, told, added, homeless = set(self.given), False, [], 0
        for marked in self.nodes.read(self.volume):
            if not self._table.has(marked.segment_id):
                self._remove(marked)
                homeless += 1
            elif marked.number not in known:
                added += self._add(marked)
            else:
                known.discard(marked.number)
                told |= self._move(marked)
        for number, marked in added:  # only now is every number in the nodes a new one
            self._remember(number, marked.segment_id, marked.prompt, marked.view)
        for number in [number for number in known if self.given[number].said is not None]:
            if self._put_back(number):
                continue
            del self.given[number]
            self._client.delete_prompt(number)
            told = True
        self.placed_on.clear()
        if homeless:
            name = self.nodes.segmentation_node.GetName()
            self._tell(Failed(f"Deleted {counted(homeless, 'prompt')}, because “{name}” no longer has their segments."))
        return bool(told or added)

    def add(self, segment_id: str, prompt: Prompt, view: View) -> int:
        """Add a prompt to session and nodes.

        Args:
            segment_id: of its segment.
            prompt: what it is.
            view: the orientation, or oblique view, on whose slices it lies.

        Returns:
            Its number.

        Raises:
            UserError: when it cannot be placed.
        """
        self._check(segment_id, prompt, view)
        number = self._client.add_prompt(self._table.use(segment_id, self._client), prompt, view)
        with self.own_writes():
            self.nodes.write(number, segment_id, prompt, view, self.volume)
            self._remember(number, segment_id, prompt, view)
        self._say_when_hidden(segment_id)
        return number

    def delete(self, number: int) -> bool:
        """Delete a prompt from session and nodes; False when there is no such prompt."""
        if self.given.pop(number, None) is None:
            return False
        with self.own_writes():
            self.nodes.remove(number)
        self._client.delete_prompt(number)
        return True

    def drop(self, segment_id: str | None) -> None:
        """Remove from the nodes the prompts of a segment, or all, which the session has deleted already."""
        with self.own_writes():
            for marked in self.nodes.read(self.volume):
                if segment_id in (None, marked.segment_id):
                    self._remove(marked)
            for number in [n for n, given in self.given.items() if segment_id in (None, given.segment_id)]:
                del self.given[number]
            if segment_id is not None and not self._table.has(segment_id):
                self.nodes.remove_segment(segment_id)

    def _add(self, marked: MarkedPrompt) -> list[tuple[int, MarkedPrompt]]:
        at = marked.prompt.anchor
        view = self.placed_on.get((marked.node_id, marked.point_id)) or marked.view or self._view_at(at)
        try:
            view = parallel_view(view, at, self.volume)
            self._check(marked.segment_id, marked.prompt, view)
        except UserError as error:
            if marked.number is None:  # it was just placed
                self._remove(marked)
                self._tell(Failed(str(error)))
            elif marked.number not in self._outside:
                self._outside.add(marked.number)
                self._tell(Failed(f"{error} It is kept, without a mask."))
            return []
        self._outside.discard(marked.number)
        marked = dataclasses.replace(marked, view=view)
        number = self._client.add_prompt(self._table.use(marked.segment_id, self._client), marked.prompt, view)
        self.nodes.number(marked, number)
        self._say_when_hidden(marked.segment_id)
        return [(number, marked)]

    def _move(self, marked: MarkedPrompt) -> bool:
        given = self.given[marked.number]
        if turn_inside_in(self.nodes.scene.GetNodeByID(marked.node_id)):
            self._tell(Failed("A box cannot mean everything outside it, and is not inside out any more; place negative "
                              "points instead."))  # fmt: skip
        if given.said is not None and marked.same_as(given.said):
            return False
        try:
            self._check(marked.segment_id, marked.prompt, marked.view)
        except UserError as error:
            self.nodes.write(marked.number, given.segment_id, given.prompt, given.view, self.volume)
            self._tell(Failed(str(error)))
            return False
        self.nodes.number(marked, marked.number)
        self._client.move_prompt(marked.number, marked.prompt, marked.view)
        self.given[marked.number] = Given(marked.segment_id, marked.prompt, marked.view, marked)
        return True

    def _put_back(self, number: int) -> bool:
        """Restore a box that the user has collapsed, which does not delete it. Returns whether it was such a box."""
        given, node = self.given[number], self.nodes.find(number)[0]
        if node is None or not is_collapsed(node):
            return False
        self.nodes.write(number, given.segment_id, given.prompt, given.view, self.volume)
        self._tell(Failed("The box had no area left and was restored; to delete it, use the list of prompts."))
        return True

    def _say_when_hidden(self, segment_id: str) -> None:
        """Tell the user, once, that a segment that gets a prompt is hidden."""
        display = self.nodes.segmentation_node.GetDisplayNode()
        if display is None or (display.GetVisibility() and display.GetSegmentVisibility(segment_id)):
            self._unseen.discard(segment_id)
        elif segment_id not in self._unseen:
            self._unseen.add(segment_id)
            name = self._table.segmentation.GetSegment(segment_id).GetName()
            self._tell(Notice(f"The segment “{name}” is hidden, so you cannot see it change: show it again."))

    def _check(self, segment_id: str, prompt: Prompt, view: View) -> None:
        """Raise UserError for a prompt that the session would refuse, sooner than the worker could report it."""
        segment = self._table.segmentation.GetSegment(segment_id)
        planes_of(self.volume, prompt, view, (segment.GetName() or "").strip() or segment_id)

    def _remove(self, marked: MarkedPrompt) -> None:
        node = self.nodes.scene.GetNodeByID(marked.node_id)
        if node is not None:
            self.nodes.remove_marked(node, marked.point_id)

    def _remember(self, number: int, segment_id: str, prompt: Prompt, view: View) -> None:
        self.given[number] = Given(segment_id, prompt, view, self.nodes.read_one(number, self.volume))

    # ---- session to nodes

    def take(self, prompts: Sequence[PromptInfo], late: Callable[[], bool] = lambda: False) -> bool:
        """Write the session's prompts into the nodes, until `late` says to continue in the next turn. Returns whether
        everything is written."""
        now = {info.number: info for info in prompts}
        with self.own_writes():
            for number in [number for number in self.given if number not in now]:
                self._lose(number)
                if late():
                    return False
            for number, info in now.items():
                if self._take(number, info) and late():
                    return False
        if self.nodes_count:
            self.nodes_count = False
            self.dirty = True
        return True

    def _lose(self, number: int) -> None:
        """Remove a prompt that the session no longer has; one that a new session still has to get stays."""
        given = self.given.pop(number)
        if not self.nodes_count and given.said is not None:
            self.nodes.remove(number)

    def _take(self, number: int, info: PromptInfo) -> bool:
        """Write a prompt of the session into the nodes; returns whether it differed."""
        given = self.given.get(number)
        segment_id = self._table.id_of(info.segment)
        if segment_id is None or (given is None and self.nodes_count):
            return False
        if given is not None and given.segment_id == segment_id:
            if same_prompt(given.prompt, given.view, info.prompt, info.view):
                return False
        self.nodes.write(number, segment_id, info.prompt, info.view, self.volume)
        self._remember(number, segment_id, info.prompt, info.view)
        return True


class PromptWatch:
    """Observes every node of a scene that holds prompts, of any volume, and marks `sync` as dirty."""

    def __init__(self, scene, observers: Observers, view_at: Callable[[Sequence[float]], View | None]):
        """`view_at` returns the view in which a point was just clicked, or None."""
        self.sync: PromptSync | None = None
        """The synchronisation that is notified of changed nodes; None while no volume is segmented."""
        self._scene, self._observers, self._view_at = scene, observers, view_at

    def watch_all(self) -> None:
        """Observe all nodes, for example after loading a scene."""
        for node in prompt_nodes(self._scene):
            self.watch(node)

    def watch(self, node) -> None:
        """Observe a node, once."""
        observers = self._observers
        observers.remove(node)
        observers.add(node, node.PointPositionDefinedEvent, self._defined, "VTK_INT")
        observers.add(node, node.PointModifiedEvent, self._moved, "VTK_INT")
        observers.add(node, node.PointStartInteractionEvent, self._held)
        observers.add(node, node.PointEndInteractionEvent, self.let_go)
        for event in (
            node.PointPositionUndefinedEvent,
            node.PointRemovedEvent,
            node.TransformModifiedEvent,
            "ModifiedEvent",
        ):
            observers.add(node, event, self.changed)

    def changed(self, node) -> None:
        """Note that a node has changed."""
        if self.sync is not None:
            self.sync.dirty = True
            if node.GetID() in self.sync.held:
                self._held(node)

    def _moved(self, node, index: int | None) -> bool:
        """A point was moved; False when it is the preview under the mouse, which is not placed yet."""
        if index is not None and 0 <= index < node.GetNumberOfControlPoints():
            if node.GetNthControlPointPositionStatus(index) == node.PositionPreview:
                return False
        self.changed(node)
        return True

    def let_go(self, node) -> None:
        """Note that the user has let go of a node."""
        if self.sync is not None:
            self.sync.held.pop(node.GetID(), None)
            self.sync.dirty = True

    def _held(self, node) -> None:
        if self.sync is not None:
            self.sync.hold(node.GetID())

    def _defined(self, node, index: int | None) -> None:
        """Note in which view the user clicked, before the mouse moves on."""
        self.changed(node)
        if self.sync is None or index is None or index >= node.GetNumberOfControlPoints():
            return
        view = self._view_at(node.GetNthControlPointPositionWorld(index))
        if view is not None:
            self.sync.placed_on[(node.GetID(), node.GetNthControlPointID(index))] = view
