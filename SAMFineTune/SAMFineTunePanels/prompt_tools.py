"""Prompts: the tools, the list of what has been placed, undo and redo."""

import time

import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import Connections, load_ui, quiet, set_text
from .rubber_band import DrawingView, RubberBand
from .shortcuts import Shortcuts

POINTS = ("positive", "negative")
TOOLS = {  # kind -> (button, icon, hint)
    "positive": ("positiveButton", "PointPositive", _("Click inside the structure in any slice view.")),
    "negative": ("negativeButton", "PointNegative", _("Click on what does not belong to the structure.")),
    "box": ("boxButton", "Box", _("Drag from one corner to the opposite one, close round the structure.")),
    "box3d": ("box3dButton", "Box3D", _("Drag a box round the structure, then pull its handles in the other views.")),
    "scribble+": ("scribbleButton", "ScribblePositive", _("Draw a line through the structure.")),
    "scribble-": ("eraseScribbleButton", "ScribbleNegative", _("Draw a line over what does not belong to it.")),
}
FIRST_TOOL = "positive"  # so that the first click needs no other one before it
LIST_EVERY = 0.1  # s between two looks at what there is to list
_NO_TOOL = _("Choose a tool to point at a structure.")
_NO_VOLUME = _("Choose a volume first.")


class PromptsSection:
    """One tool at a time. Points go through Slicer's own place mode; boxes and strokes are drawn (`rubber_band`)."""

    def __init__(self, host, resource_path):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "Prompts")
        self._connections = Connections()
        self.chosen = FIRST_TOOL  # by the user: stays so until put away
        self.tool = None  # the active one: at rest without a volume, and while the module is not shown
        self.placed = 0  # by tools, since the panel was made
        self._band = None
        self._listed = None
        self._items = []
        self._list_after = 0.0
        self.shortcuts = Shortcuts(self.act)
        self._dress_tools(resource_path)
        self._make_clear_menu()
        ui = self.ui
        ui.promptsTable.verticalHeader().setDefaultSectionSize(22)
        for sender, signal, handler in (
            (ui.undoButton, "clicked()", self.undo),
            (ui.redoButton, "clicked()", self.redo),
            (ui.deleteButton, "clicked()", self.delete_selected),
            (ui.promptsTable, "cellDoubleClicked(int,int)", self._jump),
            (ui.promptsTable, "itemSelectionChanged()", self._show_buttons),
        ):
            self._connections.add(sender, signal, handler)
        host.drawing = lambda: self._band is not None and self._band.drawing
        host.listen("Turn", self.refresh)
        host.listen("SessionEnded", lambda _: self._forget())

    def _dress_tools(self, resource_path):
        for kind, (name, icon, _hint) in TOOLS.items():
            button = getattr(self.ui, name)
            button.setIcon(qt.QIcon(resource_path("Icons/" + icon + ".svg")))
            self._connections.add(button, "clicked(bool)", self._toggler(kind))

    def _toggler(self, kind):
        def toggled(checked):
            self.choose(kind if checked else None)

        return toggled

    def _make_clear_menu(self):
        self._menu = qt.QMenu(self.ui.clearButton)
        for text, handler in (
            (_("Slice shown, of the selected segment"), self.clear_slice),
            (_("Selected segment"), self.clear_segment),
            (_("All segments"), self.clear_all),
        ):
            self._connections.add(self._menu.addAction(text), "triggered()", handler)
        self.ui.clearButton.setMenu(self._menu)

    def close(self):
        self.leave()
        self._connections.close()

    # ---- shown and not

    def enter(self):
        self.shortcuts.install()

    def leave(self):
        """Nothing of ours may act in the views any more."""
        self.rest()
        self.shortcuts.remove()

    def views_changed(self):
        """The layout is another one: draw in its views."""
        if self._band is not None:
            self._start_band(self.tool)

    # ---- tools

    def choose(self, kind):
        """Make this the user's tool from now on, on every volume; None puts the tool away."""
        self.chosen = kind
        if kind is not None and self.host.start().volume_node is None:
            self.host.warn(_NO_VOLUME)
            kind = None
        self._activate(kind)

    def rest(self):
        """No tool is active; `resume` takes the chosen one up again."""
        self._activate(None)

    def resume(self):
        """There is a volume: the chosen tool is active."""
        if self.tool != self.chosen or self.tool in POINTS:  # Slicer's place mode ends with the volume before
            self._activate(self.chosen)

    def _activate(self, kind):
        session = self.host.session
        self._stop_band()
        if self.tool in POINTS and kind not in POINTS and session is not None:
            self.host.act(session.stop_placing)
        self.tool = kind
        if kind in POINTS:
            self.host.act(session.start_placing, kind)
        elif kind is not None:
            self._start_band(kind)
        self._show_tool()
        self.host.wake()

    def _show_tool(self):
        for kind, (name, _icon, _hint) in TOOLS.items():
            button = getattr(self.ui, name)
            if button.checked != (kind == self.tool):
                button.setChecked(kind == self.tool)
        self._show_hint()

    def _show_hint(self):
        session = self.host.session
        if self.tool is not None:
            hint = TOOLS[self.tool][2]
        else:
            hint = _NO_TOOL if session is not None and session.volume_node is not None else _NO_VOLUME
        set_text(self.ui.hintLabel, hint)

    def _start_band(self, kind):
        self._stop_band()
        shape = "box" if kind in ("box", "box3d") else "stroke"
        self._band = RubberBand(_views(), shape, self._drawn, self._may_start)

    def _stop_band(self):
        band, self._band = self._band, None
        if band is not None:
            band.close()

    def _drawn(self, slice_node, ras_points):
        session = self.host.session
        if session is not None and self.tool is not None:
            if self.host.act(session.place, self.tool, slice_node, ras_points) is not None:
                self.placed += 1

    def _may_start(self, view):
        """A press right on a handle of a box moves it; beside it, where Slicer would take it, too, it draws."""
        from SAMFineTuneLib.mrml.prompts.prompt_look import grabs

        position = view.interactor.GetEventPosition()[:2]
        screen = view.interactor.GetRenderWindow().GetScreenSize()
        name = "vtkMRMLMarkupsROINode"
        scene = slicer.mrmlScene
        boxes = [scene.GetNthNodeByClass(n, name) for n in range(scene.GetNumberOfNodesByClass(name))]
        return not any(grabs(box, view.node, position, screen) for box in boxes)

    def _watch_tool(self):
        """A right click in a view ends Slicer's place mode, and puts the tool away. It rests when volume or
        segmentation were deleted."""
        session = self.host.session
        if self.tool is None or session is None:
            return
        if session.volume_node is None:
            self.rest()
        elif self.tool in POINTS and session.placing.kind != self.tool:
            if session.segmentation_node is None:
                self.rest()
            else:
                self.choose(None)

    # ---- keys

    def act(self, action):
        """What a shortcut means. A second press of a tool's key puts the tool away."""
        if action in TOOLS:
            self.choose(None if self.tool == action else action)
        elif action == "stop":
            self.stop()
        elif action == "undo":
            self.undo()
        elif action == "redo":
            self.redo()

    def stop(self):
        """First what is being drawn, then the tool."""
        if self._band is not None and self._band.drawing:
            self._band.cancel()
        else:
            self.choose(None)

    # ---- history

    def undo(self):
        if self.host.session is not None:
            self.host.act(self.host.session.undo)

    def redo(self):
        if self.host.session is not None:
            self.host.act(self.host.session.redo)

    def clear_slice(self):
        from .volume_controls import first_slice_node, view_under_mouse

        session = self.host.session
        node = view_under_mouse() or first_slice_node()
        if session is not None and session.current_segment_id and node is not None:
            self.host.act(session.clear, segment_id=session.current_segment_id, slice_node=node)

    def clear_segment(self):
        session = self.host.session
        if session is not None and session.current_segment_id:
            self.host.act(session.clear, segment_id=session.current_segment_id)

    def clear_all(self):
        if self.host.session is not None:
            self.host.act(self.host.session.clear)

    # ---- the list

    @property
    def selected_numbers(self):
        return [row[0] for n, row in enumerate(self._listed or ()) if self.ui.promptsTable.item(n, 0).isSelected()]

    def delete_selected(self):
        for number in self.selected_numbers:
            self.host.act(self.host.session.delete, number)

    def _jump(self, row, column):
        if self.host.session is not None:
            self.host.act(self.host.session.jump_to, self._listed[row][0])

    def _forget(self):
        self.tool = None
        self._stop_band()
        self._list_after = 0.0
        self.refresh()

    def refresh(self):
        self._watch_tool()
        self._show_hint()
        if time.monotonic() >= self._list_after:
            self._list_after = time.monotonic() + LIST_EVERY
            self._show_list()
            self._show_buttons()

    def _show_list(self):
        session = self.host.session
        rows = [] if session is None else [row_of(info, session) for info in session.prompts]
        if rows == self._listed:
            return
        table = self.ui.promptsTable
        selected = set(self.selected_numbers)
        grown = self._listed is not None and len(rows) > len(self._listed)
        with quiet(table):
            self._listed = rows
            self._items = []  # before there are new ones: some bindings drop items when nobody holds them
            table.setRowCount(len(rows))
            for n, (number, *texts) in enumerate(rows):
                for column, text in enumerate(texts):
                    item = qt.QTableWidgetItem(text)
                    item.setToolTip(text)  # names of segments can be longer than the column
                    table.setItem(n, column, item)
                    item.setSelected(number in selected)
                    self._items.append(item)
        table.resizeColumnToContents(0)
        if grown:
            table.scrollToBottom()

    def _show_buttons(self):
        session = self.host.session
        undo, redo = (None, None) if session is None else (session.undo_name, session.redo_name)
        ui = self.ui
        for button, usable, tip in (
            (ui.undoButton, undo is not None, _("Undo") + (": " + undo if undo else "") + " (Ctrl+Z)"),
            (ui.redoButton, redo is not None, _("Redo") + (": " + redo if redo else "") + " (Ctrl+Y)"),
            (ui.deleteButton, bool(self.selected_numbers), _("Deletes the selected prompts")),
            (ui.clearButton, bool(self._listed), _("Removes several prompts, and the masks that follow from them")),
        ):
            if button.enabled != usable:
                button.setEnabled(usable)
            if button.toolTip != tip:
                button.toolTip = tip


def row_of(info, session):
    """(number, what, segment's name, slice) of a prompt, for the list."""
    prompt, view = info.prompt, info.view
    kind = type(prompt).__name__
    positive = getattr(prompt, "positive", True)
    what = {  # as the tools are called
        "PointPrompt": _("Include") if positive else _("Exclude"),
        "BoxPrompt": _("Box"),
        "Box3DPrompt": _("3-D box"),
        "ScribblePrompt": _("Scribble") if positive else _("Scribble −"),
        "MaskPrompt": _("Mask"),
    }.get(kind, kind)
    segment = session.segmentation_node.GetSegmentation().GetSegment(info.segment_id)
    name = segment.GetName() if segment is not None else ""
    return info.number, what, name, _where(prompt, view, session.volume)


def _where(prompt, view, volume):
    from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, plane_through

    if not isinstance(view, str):
        return _("oblique")
    name = {"axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}.get(view, view)
    if view not in ORIENTATIONS or volume is None or type(prompt).__name__ == "Box3DPrompt":
        return name
    ras = {"PointPrompt": "ras", "BoxPrompt": "corner_a", "ScribblePrompt": "ras"}[type(prompt).__name__]
    at = getattr(prompt, ras)
    at = at[0] if type(prompt).__name__ == "ScribblePrompt" else at
    try:
        return f"{name} {plane_through(volume, view, at).index}"
    except ValueError:
        return name


def _views():
    """The slice views of the present layout."""
    manager = slicer.app.layoutManager()
    if manager is None:
        return []
    widgets = [manager.sliceWidget(name) for name in manager.sliceViewNames()]
    return [DrawingView(widget) for widget in widgets if widget is not None]
