"""Propagation of the selected segment from its prompted slices to their neighbours."""

from slicer.i18n import tr as _

from .qt_helpers import chosen_in, enable, fill_menu
from .shown_views import shown_slice

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


class PropagationControls:
    """Direction, slices, range and the button; the status strip shows progress and Cancel."""

    def __init__(self, host, ui):
        self.host, self.ui = host, ui
        self._volume = None
        fill_menu(ui.directionSelector, DIRECTIONS)
        fill_menu(ui.orientationSelector, ORIENTATIONS)
        host.connect(
            (ui.propagateButton, "clicked()", self.propagate),
            (ui.rangeBox, "toggled(bool)", self._show_range),
            (ui.orientationSelector, "currentIndexChanged(int)", lambda index: self._limit_range()),
            (ui.firstHereButton, "clicked()", lambda: self._here(ui.firstSpinBox)),
            (ui.lastHereButton, "clicked()", lambda: self._here(ui.lastSpinBox)),
        )
        host.listen("Turn", self._refresh)
        ui.sliceRangeRow.setVisible(False)

    @property
    def orientation(self):
        return chosen_in(self.ui.orientationSelector) or None

    def _refresh(self):
        session = self.host.session
        running = self.host.runs("propagate")
        enable((self.ui.propagateButton, session is not None and session.prompts and not running))
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
            settings["first"], settings["last"] = sorted((self.ui.firstSpinBox.value, self.ui.lastSpinBox.value))
        self.host.act(session.propagate, settings=settings, orientation=self.orientation)

    # ---- range

    def _show_range(self, shown):
        self.ui.sliceRangeRow.setVisible(shown)
        self._limit_range()

    def _shown_orientation(self):
        """Orientation of the slices that the range counts."""
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

    def _here(self, box):
        index = shown_slice(self._volume, self._shown_orientation())
        if index is not None:
            box.value = index
