"""The Automatic tab: find objects without prompts, then pick, name or drop them."""

import time

import qt
from slicer.i18n import tr as _

from .adapter_labels import ON_SLICE, AdapterLabels
from .qt_helpers import TextTable, chosen_in, enable, fill_menu, load_ui, quiet, succeeded
from .shown_views import shown_slice

WHERE = ((ON_SLICE, _("Slice shown")), ("volume", _("Whole volume")))
ORIENTATIONS = (("axial", _("Axial")), ("coronal", _("Coronal")), ("sagittal", _("Sagittal")))
POINTS_PER_SIDE = ((12, _("Quick")), (24, _("Normal")), (32, _("Thorough")))
_SHOWN = 200  # objects in the list
_DRAWN = 40  # objects at once in the views
_ROWS = (3, 10)  # rows shown: at least, at most
_AT_ONCE = 0.012  # s of a turn
_TOPIC = "objects"


class AutomaticTab:
    """Lists the objects that a job found; those that the user ticks become segments."""

    def __init__(self, host, resource_path):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "AutomaticTab")
        self._job = None
        self._volume = None  # in which the objects in the list were found
        self._awaits = False  # whether its objects are still to come
        self._found_none = False
        self._numbers = []  # of the objects in the list, by row
        self._drawn = []  # those that the views show
        self._listing = None  # steps that fill the list, while there are any
        ui = self.ui
        fill_menu(ui.whereSelector, WHERE)
        fill_menu(ui.viewSelector, ORIENTATIONS)
        fill_menu(ui.detailSelector, POINTS_PER_SIDE, 24)
        self._table = TextTable(ui.objectsTable, (0,), *_ROWS)
        host.connect(
            (ui.findButton, "clicked()", self.find),
            (ui.keepButton, "clicked()", self.keep),
            (ui.dropButton, "clicked()", self.drop_selected),
            (ui.dropAllButton, "clicked()", self.drop_all),
            (ui.objectsTable, "itemSelectionChanged()", self._show_objects),
        )
        self.labels = AdapterLabels(host, ui, self.keep_objects)
        host.listen("Objects", self._found)
        host.listen("Finished", self._finished)
        host.listen("Turn", self.refresh)
        host.listen("SessionEnded", lambda event: self.drop_all())

    def close(self):
        self._wipe()

    def refresh(self):
        if self._numbers and not self._is_current:
            self.drop_all()
        self._go_on_listing()
        enable(
            (self.ui.findButton, self.host.has_volume and not self.host.runs("everything")),
            (self.ui.keepButton, self._numbers),
            (self.ui.dropButton, self._table.selected_rows),
            (self.ui.dropAllButton, self._numbers),
        )

    @property
    def _is_current(self):
        """Whether the volume in which the objects were found is still the session's, with the same voxels."""
        return self.host.session is not None and self.host.session.volume is self._volume

    def find(self):
        session = self.host.session
        if session is None or session.volume is None:
            return
        orientation = chosen_in(self.ui.viewSelector)
        first = last = None
        settings = {"points_per_side": chosen_in(self.ui.detailSelector)}
        if chosen_in(self.ui.whereSelector) == ON_SLICE:
            first = last = shown_slice(session.volume, orientation)
            if first is None:
                text = _("No view shows a slice of that orientation; choose another one, or the whole volume.")
                self.host.warn(text, _TOPIC)
                return
            settings["min_slices"] = 1
        self.drop_all()
        self._found_none = False
        self._job = self.host.act(session.everything, orientation, settings=settings, first=first, last=last)
        self._awaits = self._job is not None
        if self._awaits:
            self.ui.findButton.setEnabled(False)

    def _found(self, event):
        if event.job == self._job and self._awaits:  # they come again when the worker restarts
            self._awaits, self._found_none = False, not event.objects
            self._volume, self._listing = self.host.session.volume, self._list(event.objects)
            self.host.wake()

    def _finished(self, event):
        if event.job == self._job and self._found_none and not event.cancelled:
            self.host.say(_("No objects were found; try another contrast, or a more thorough search."), _TOPIC)

    def _list(self, objects):
        """Fill the list, a row in each step: many rows at once would stop the window."""
        shown = objects[:_SHOWN]
        self._numbers = []
        self._table.fill(())
        self._table.fit(len(shown))
        for info in shown:
            name = _("Object {number}").format(number=info.number)
            items = self._table.add((name, _size(info), f"{info.score:.2f}"))
            with quiet(self.ui.objectsTable):
                items[0].setIcon(_swatch(info.number))
                items[0].setCheckState(qt.Qt.Unchecked)
            self._numbers.append(info.number)
            yield
        self._show_objects()
        if len(objects) > _SHOWN:
            self.host.say(_("{count} objects were found; the {shown} largest are listed.").format(
                count=len(objects), shown=_SHOWN), _TOPIC)

    def _go_on_listing(self):
        end = time.monotonic() + _AT_ONCE
        while self._listing is not None and time.monotonic() < end:
            self.host.go_on()
            if next(self._listing, self) is self:
                self._listing = None

    # ---- the list

    def _name(self, row):
        given = self.ui.objectsTable.item(row, 0).text().strip()
        return given or _("Object {number}").format(number=self._numbers[row])

    def keep(self):
        """Make segments of the ticked objects, or of the selected ones when none is ticked."""
        table = self.ui.objectsTable
        rows = [row for row in range(len(self._numbers)) if table.item(row, 0).checkState() == qt.Qt.Checked]
        rows = rows or self._table.selected_rows
        if not rows:
            self.host.say(_("Check the objects to keep first."), _TOPIC)
            return
        if self.keep_objects(self._job, [self._numbers[row] for row in rows], [self._name(row) for row in rows]):
            self._drop(rows)

    def keep_objects(self, job, numbers, names):
        """Make segments of objects that a job found; returns whether that succeeded."""
        return succeeded(self.host, self.host.session.adopt, job, numbers, names)

    def drop_selected(self):
        self._drop(self._table.selected_rows)

    def drop_all(self):
        self._listing = None
        self._drop(range(len(self._numbers)))

    def _drop(self, rows):
        with quiet(self.ui.objectsTable):
            for row in sorted(rows, reverse=True):
                self.ui.objectsTable.removeRow(row)
                del self._numbers[row]
        self._show_objects()

    # ---- what the objects look like

    def _show_objects(self):
        """Show the selected objects in the views, or all of them when none is selected."""
        rows = self._table.selected_rows or range(min(len(self._numbers), _DRAWN))
        numbers = [self._numbers[row] for row in rows]
        if numbers == self._drawn:
            return
        self._drawn = numbers
        self._wipe()
        if numbers and self.host.client is not None and self._job is not None:
            request = self.host.act(self.host.client.ask_for_masks, self._job, numbers)
            if request is not None:
                self.host.ask(
                    request, lambda masks: self._draw(masks) if numbers == self._drawn else None, self._not_drawn
                )

    def _not_drawn(self, event):
        """Say why, unless the list is cleared for another volume."""
        if self._is_current:
            self.host.warn(event.text, _TOPIC)

    def _draw(self, masks):
        if self.host.session is not None:
            self.host.act(self.host.session.show_found, masks)

    def _wipe(self):
        if self.host.session is not None:
            self.host.session.show_found([])


def _size(info):
    first, last = info.slices
    if first == last:
        return _("{count} px").format(count=info.area)
    return _("{count} px, slices {first} to {last}").format(count=info.area, first=first, last=last)


def _swatch(number):
    """The colour that an object has in the views."""
    from SAMFineTuneLib.prompts import segment_color

    pixmap = qt.QPixmap(12, 12)
    pixmap.fill(qt.QColor(*(int(255 * part) for part in segment_color(number))))
    return qt.QIcon(pixmap)
