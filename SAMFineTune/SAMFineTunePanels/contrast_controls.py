"""The contrast in which the model sees the volume, with a picture of it."""

import time

import qt
from slicer.i18n import tr as _

from .qt_helpers import choose_in, chosen_in, fill_menu, pixmap_of, quiet, set_text
from .shown_views import looked_at_slice_node

AUTOMATIC, DISPLAYED, CUSTOM = "auto", "displayed", "custom"
LOOK_EVERY = 0.3  # s between two checks at the slice of the picture
_PICTURE = qt.QSize(360, 220)


class ContrastControls:
    """Folded by default; the title says which values are black and white."""

    def __init__(self, host, ui):
        self.host, self.ui = host, ui
        self._choices = []  # what the entries of the selector mean
        self._window = None  # in which the model sees the volume
        self._pictured = None  # what the picture shows
        self._look_after = 0.0
        self._fill_selector(None)
        host.connect(
            (ui.windowSelector, "currentIndexChanged(int)", self._chosen),
            (ui.lowSpinBox, "valueChanged(double)", self._range_changed),
            (ui.highSpinBox, "valueChanged(double)", self._range_changed),
        )
        host.listen("Turn", self._refresh)
        host.listen("StateChanged", self._state_changed)
        ui.windowRangeRow.setVisible(False)

    @property
    def choice(self):
        return chosen_in(self.ui.windowSelector)

    def show_session(self, session):
        """Offer what fits the session's volume, and select what the scene says was chosen."""
        self._fill_selector(session.volume)
        chosen = session.parameters.get("Contrast")
        if chosen in self._choices and chosen != self.choice:
            with quiet(self.ui.windowSelector):
                choose_in(self.ui.windowSelector, chosen)
        self.ui.windowRangeRow.setVisible(self.choice == CUSTOM)
        if session.window is not None:
            self._show(session.window, also_range=True)

    def begin(self, automatic=None):
        """Another volume: it keeps the chosen kind of contrast, but not two values that were meant for the former
        volume.

        Args: automatic: the window that is chosen automatically, where that is known.
        """
        if self.choice == CUSTOM:
            choose_in(self.ui.windowSelector, AUTOMATIC)
        self._apply(automatic)

    def _fill_selector(self, volume):
        from SAMFineTuneLib.images.intensity_window import CT_PRESETS

        entries = [(AUTOMATIC, _("Automatic")), (DISPLAYED, _("As displayed"))]
        if volume is None or volume.modality in ("", "CT"):
            for name, (level, width) in CT_PRESETS.items():
                label = _("CT {name} (level {level:g}, width {width:g})").format(name=name, level=level, width=width)
                entries.append(("ct-" + name, label))
        entries += [
            ("percentiles", _("Percentiles 0.5 to 99.5")),
            ("minmax", _("Lowest to highest value")),
            (CUSTOM, _("Range…")),
        ]
        choices = [name for name, label in entries]
        if choices != self._choices:
            before = self.choice
            self._choices = choices
            with quiet(self.ui.windowSelector):
                fill_menu(self.ui.windowSelector, entries, before)

    def _chosen(self, index):
        self.ui.windowRangeRow.setVisible(self.choice == CUSTOM)
        self._apply()

    def _range_changed(self, value):
        if self.choice == CUSTOM:
            self._apply()

    def _apply(self, automatic=None):
        session = self.host.session
        if session is not None and session.volume is not None:
            self.host.act(self._set_window, session, automatic)

    def _set_window(self, session, automatic):
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.images.intensity_window import IntensityWindow, choose_window

        choice = self.choice
        if choice == DISPLAYED:
            window = None  # the session follows it
        elif choice == CUSTOM:
            try:
                window = IntensityWindow(self.ui.lowSpinBox.value, self.ui.highSpinBox.value, _("as given"))
            except UserError as error:  # while one of the two values is missing
                set_text(self.ui.windowLabel, str(error))
                return
        elif choice == AUTOMATIC:
            window = automatic or choose_window(session.volume)
        else:
            window = choose_window(session.volume, choice)
        session.set_window(window)
        session.parameters.set("Contrast", choice)
        if window is not None:
            self._show(window)

    def _state_changed(self, event):
        if event.window is not None:
            self._show(event.window)

    def _show(self, window, also_range=False):
        self._window = window
        values = {"low": window.low, "high": window.high}
        name = f": {window.name}" if window.name else ""
        set_text(self.ui.windowLabel, _("Black up to {low:g}, white from {high:g}{name}.").format(name=name, **values))
        set_text(self.ui.contrastSection, _("Contrast: {low:g} to {high:g}").format(**values))
        if also_range or self.choice != CUSTOM:
            with quiet(self.ui.lowSpinBox, self.ui.highSpinBox):
                self.ui.lowSpinBox.value, self.ui.highSpinBox.value = window.low, window.high

    def _forget(self):
        self._window = self._pictured = None
        set_text(self.ui.windowLabel, "")
        set_text(self.ui.contrastSection, _("Contrast"))
        self.ui.previewLabel.clear()

    # ---- picture

    def _refresh(self):
        session = self.host.session
        if session is None or session.volume is None:
            if self._window is not None:
                self._forget()
        elif time.monotonic() >= self._look_after:
            self._look_after = time.monotonic() + LOOK_EVERY
            if self.ui.previewLabel.visible and self._window is not None:
                self._show_picture(session)

    def _show_picture(self, session):
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.images.slice_extraction import picture
        from SAMFineTuneLib.mrml.slice_views import plane_of_view
        from SAMFineTuneLib.mrml.volume_nodes import volume_from_node, voxel_time

        node = looked_at_slice_node()
        if node is None:
            return
        try:
            volume = volume_from_node(session.volume_node)  # the session may still have another frame of a sequence
            plane = plane_of_view(node, volume)
        except UserError:
            return
        state = (session.volume_node.GetID(), voxel_time(session.volume_node), plane.key, self._window.low,
                 self._window.high)  # fmt: skip
        if state == self._pictured:
            return
        self._pictured = state
        pixels = picture(volume, plane, self._window)
        pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
        step = max(1, max(pixels.shape) // 512)
        shown = pixmap_of(pixels[::step, ::step]).scaled(_PICTURE, qt.Qt.KeepAspectRatio, qt.Qt.SmoothTransformation)
        self.ui.previewLabel.setPixmap(shown)
