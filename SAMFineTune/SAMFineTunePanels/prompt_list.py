"""The list of prompts, undo and redo, and deleting prompts."""

import time

import qt
from slicer.i18n import tr as _

from .qt_helpers import TextTable, enable, quiet
from .shown_views import looked_at_slice_node

LIST_EVERY = 0.1  # s between two checks of what to list
_ROWS = (3, 6)  # prompts seen at once: at least, at most


class PromptList:
    """One row for each prompt of the session, in the order in which they came."""

    def __init__(self, host, ui):
        self.host, self.ui = host, ui
        self._listed = None
        self._list_after = 0.0
        self._table = TextTable(ui.promptsTable, (1,), *_ROWS)
        host.connect(
            (ui.undoButton, "clicked()", self.undo),
            (ui.redoButton, "clicked()", self.redo),
            (ui.deleteButton, "clicked()", self.delete_selected),
            (ui.promptsTable, "cellActivated(int,int)", self._jump),
            (ui.promptsTable, "itemSelectionChanged()", self._show_buttons),
        )
        self._menu = qt.QMenu(ui.clearButton)
        for text, handler in (
            (_("Slice shown, of the selected segment"), self.clear_slice),
            (_("Selected segment"), self.clear_segment),
            (_("All segments"), self.clear_all),
        ):
            host.connect((self._menu.addAction(text), "triggered()", handler))
        ui.clearButton.setMenu(self._menu)
        host.listen("Turn", self._refresh)
        host.listen("SessionEnded", lambda event: self._look())

    # ---- history

    def _ask(self, action, *arguments, **options):
        """Call a method of the session, when there is one."""
        if self.host.session is not None:
            self.host.act(getattr(self.host.session, action), *arguments, **options)

    def undo(self):
        self._ask("undo")

    def redo(self):
        self._ask("redo")

    def clear_slice(self):
        node = looked_at_slice_node()
        if node is not None:
            self.clear_segment(slice_node=node)

    def clear_segment(self, **options):
        session = self.host.session
        if session is not None and session.current_segment_id:
            self._ask("clear", segment_id=session.current_segment_id, **options)

    def clear_all(self):
        self._ask("clear")

    # ---- the list

    @property
    def selected_numbers(self):
        return [self._listed[row][0] for row in self._table.selected_rows]

    def delete_selected(self):
        for number in self.selected_numbers:
            self._ask("delete", number)

    def _jump(self, row, column):
        self._ask("jump_to", self._listed[row][0])

    def _refresh(self):
        if time.monotonic() >= self._list_after:
            self._look()

    def _look(self):
        self._list_after = time.monotonic() + LIST_EVERY
        session = self.host.session
        rows = [] if session is None else [_row_of(info, session) for info in session.prompts]
        if rows != self._listed:
            self._show(rows)
        self._show_buttons()

    def _show(self, rows):
        table = self.ui.promptsTable
        selected = set(self.selected_numbers)
        grown = self._listed is not None and len(rows) > len(self._listed)
        self._listed = rows
        self._table.fill([texts for number, *texts in rows])
        with quiet(table):
            for row, (number, *_texts) in enumerate(rows):
                for column in range(table.columnCount) if number in selected else ():
                    table.item(row, column).setSelected(True)
        if grown:
            table.scrollToBottom()

    def _show_buttons(self):
        session, ui = self.host.session, self.ui
        state = None if session is None else session.state
        undo, redo = (None, None) if state is None else (state.undo_name, state.redo_name)
        enable((ui.undoButton, undo is not None), (ui.redoButton, redo is not None),
               (ui.deleteButton, self.selected_numbers), (ui.clearButton, self._listed))  # fmt: skip
        for button, tip in (
            (ui.undoButton, _("Undo") + (": " + undo if undo else "") + " (Ctrl+Z)"),
            (ui.redoButton, _("Redo") + (": " + redo if redo else "") + " (Ctrl+Y)"),
            (ui.deleteButton, _("Deletes the selected prompts")),
            (ui.clearButton, _("Removes several prompts, and the masks that follow from them")),
        ):
            if button.toolTip != tip:
                button.toolTip = tip


def _row_of(info, session):
    """(number, what, segment's name, slice) of a prompt, for the list."""
    segment = session.segmentation_node.GetSegmentation().GetSegment(info.segment_id)
    name = segment.GetName() if segment is not None else ""
    return info.number, _(info.prompt.label), name, _where(info.prompt, info.view, session.volume)


def _where(prompt, view, volume):
    from SAMFineTuneLib.images.slice_plane import ORIENTATIONS, plane_through

    if not isinstance(view, str):
        return _("oblique")
    name = {"axial": _("axial"), "coronal": _("coronal"), "sagittal": _("sagittal")}.get(view, view)
    if view not in ORIENTATIONS or volume is None or not prompt.on_one_slice:
        return name
    try:
        return f"{name} {plane_through(volume, view, prompt.anchor).index}"
    except ValueError:
        return name
