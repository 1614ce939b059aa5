"""Propagate: the selected segment from its prompted slices to their neighbours."""

from slicer.i18n import tr as _

from .qt_helpers import Connections, chosen_in, fill_menu, load_ui, set_visible

DIRECTIONS = (
    ("both", _("Up and down")),
    ("up", _("Up")),
    ("down", _("Down")),
    ("fill", _("Fill between prompted slices")),
)
AS_PROMPTED = ""
ORIENTATIONS = (
    (AS_PROMPTED, _("Slices that have prompts")),
    ("axial", _("Axial slices")),
    ("coronal", _("Coronal slices")),
    ("sagittal", _("Sagittal slices")),
)


class PropagateSection:
    """Direction, range and the button; progress and cancel are in the busy line at the top."""

    def __init__(self, host, resource_path):
        self.host = host
        self.widget, self.ui = load_ui(resource_path, "Propagate")
        self._connections = Connections()
        self._volume = None
        ui = self.ui
        fill_menu(ui.directionSelector, DIRECTIONS)
        fill_menu(ui.orientationSelector, ORIENTATIONS)
        for sender, signal, handler in (
            (ui.propagateButton, "clicked()", self.propagate),
            (ui.rangeBox, "toggled(bool)", self._show_range),
            (ui.orientationSelector, "currentIndexChanged(int)", self._orientation_chosen),
            (ui.firstHereButton, "clicked()", self._first_here),
            (ui.lastHereButton, "clicked()", self._last_here),
        ):
            self._connections.add(sender, signal, handler)
        host.listen("Turn", self.refresh)
        set_visible(ui.rangeRow, False)

    def close(self):
        self._connections.close()

    @property
    def orientation(self):
        return chosen_in(self.ui.orientationSelector) or None

    def refresh(self):
        session = self.host.session
        running = any(busy.what == "propagate" for busy in self.host.jobs.values())
        usable = session is not None and bool(session.prompts) and not running
        if self.ui.propagateButton.enabled != usable:
            self.ui.propagateButton.setEnabled(usable)
        volume = session.volume if session is not None else None
        if volume is not self._volume:
            self._volume = volume
            self._limit_range()

    def propagate(self):
        session = self.host.session
        if session is None:
            return
        settings = {"direction": chosen_in(self.ui.directionSelector)}
        if self.ui.rangeBox.checked:
            ends = sorted((self.ui.firstSpinBox.value, self.ui.lastSpinBox.value))
            settings["first"], settings["last"] = ends
        self.host.act(session.propagate, settings=settings, orientation=self.orientation)

    # ---- range

    def _show_range(self, shown):
        set_visible(self.ui.rangeRow, shown)
        self._limit_range()

    def _orientation_chosen(self, index):
        self._limit_range()

    def _shown_orientation(self):
        """Of the slices that the range counts."""
        if self.orientation is not None:
            return self.orientation
        session = self.host.session
        views = [info.view for info in session.prompts if isinstance(info.view, str)] if session is not None else []
        return views[-1] if views else "axial"

    def _limit_range(self):
        from SAMFineTuneLib.images.slice_plane import number_of_slices

        if self._volume is None:
            return
        last = number_of_slices(self._volume, self._shown_orientation()) - 1
        for box in (self.ui.firstSpinBox, self.ui.lastSpinBox):
            box.maximum = last
        if self.ui.lastSpinBox.value == 0:
            self.ui.lastSpinBox.value = last

    def _first_here(self):
        self._here(self.ui.firstSpinBox)

    def _last_here(self):
        self._here(self.ui.lastSpinBox)

    def _here(self, box):
        index = shown_slice(self._volume, self._shown_orientation())
        if index is not None:
            box.value = index


def shown_slice(volume, orientation):
    """Index of the volume's slice that a view of that orientation shows; None when none does."""
    from SAMFineTuneLib.errors import UserError
    from SAMFineTuneLib.mrml.slice_views import plane_of_view

    from .volume_controls import shown_slice_nodes

    for node in shown_slice_nodes() if volume is not None else ():
        try:
            plane = plane_of_view(node, volume)
        except UserError:
            continue
        if plane.orientation == orientation:
            return plane.index
    return None
