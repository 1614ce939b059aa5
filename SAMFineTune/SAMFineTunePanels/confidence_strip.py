"""The confidence of a proposal in each slice, as a strip between slice slider and view; a click jumps to the slice."""

import numpy as np
import qt
import slicer
from slicer.i18n import tr as _

from .qt_helpers import pixmap_of
from .shown_views import shown_slice, shown_slice_nodes

# Blue, grey and orange differ for colour-blind people, too.
SURE, FAIR, DOUBTFUL = (0, 114, 178), (190, 190, 190), (230, 97, 0)
_NOTHING, _GROUND, _HERE = (60, 60, 60), (30, 30, 30), (255, 255, 255)
_LOW, _MIDDLE, _HIGH = 0.5, 0.8, 0.95  # expected Dice of the three colours
_ALONG = 0.95  # cosine of the angle that a view may be turned by
_MOST, _ROW, _GAP = 6, 7, 1  # labels shown; pixels of a row, and below it


class ConfidenceStrip:
    """Shows `cohort.confidence.Confidence`; calls `clicked(slice index)`."""

    def __init__(self, clicked):
        self._clicked = clicked
        self._rows = None  # colours uint8 [label, slice, 3], the left-most slice first
        self._orientation, self._volume, self._backwards = "axial", None, False
        self._drawn = None  # (width, slice) of the picture
        self.labels = []  # of the rows, the least sure first
        self.widget = qt.QLabel()
        self.widget.setSizePolicy(qt.QSizePolicy.Ignored, qt.QSizePolicy.Fixed)
        self.widget.setCursor(qt.QCursor(qt.Qt.PointingHandCursor))
        self._presses = _Presses(self.widget, self._pressed)
        self.widget.installEventFilter(self._presses)
        self.widget.hide()

    def close(self):
        self.widget.removeEventFilter(self._presses)
        self.widget.hide()
        self.widget.deleteLater()

    def show(self, confidence, volume):
        """Show the confidence of a case on a `Volume`; None hides the strip."""
        usable = confidence is not None and any(confidence.slices.values())
        self._volume = volume if usable else None
        if not usable:
            self._rows = None
            self.widget.hide()
            return
        self._orientation = confidence.orientation
        self._backwards = runs_backwards(volume, confidence.orientation)
        lowest = {label: min((v for v in values if v is not None), default=2.0)
                  for label, values in confidence.slices.items()}  # fmt: skip
        self.labels = sorted(lowest, key=lowest.get)[:_MOST]
        values = [[np.nan if v is None else v for v in confidence.slices[label]] for label in self.labels]
        self._rows = colours_of(np.array(values, float))
        if self._backwards:
            self._rows = self._rows[:, ::-1]
        self._drawn = None
        self.widget.setFixedHeight(len(self.labels) * (_ROW + _GAP) + _GAP)
        self.widget.toolTip = _(
            "How sure the proposal is of each slice, from top to bottom: {labels}. Orange is doubtful, blue is sure, "
            "dark means that no label is expected. Click to jump to a slice."
        ).format(labels=", ".join(self.labels))
        self._place()

    def refresh(self):
        """Follow the view's slice and width."""
        if self._rows is None:
            return
        if not self.widget.visible:  # another layout is shown
            self._place()
        state = (self.widget.width, shown_slice(self._volume, self._orientation))
        if state != self._drawn and state[0] > 0:
            self._drawn = state
            self.widget.setPixmap(pixmap_of(self.picture(*state)))

    def picture(self, width, index):
        """Pixels uint8 [row, column, 3] of the strip; `index` of the slice shown may be None."""
        count = self._rows.shape[1]
        columns = np.minimum(np.arange(width) * count // width, count - 1)
        pixels = np.full((len(self.labels) * (_ROW + _GAP) + _GAP, width, 3), _GROUND, np.uint8)
        for number, row in enumerate(self._rows):
            top = _GAP + number * (_ROW + _GAP)
            pixels[top:top + _ROW] = row[columns]
        if index is not None:
            at = count - 1 - index if self._backwards else index
            middle = int((at + 0.5) * width / count)
            pixels[:, max(0, middle - 1):middle + 1] = _HERE
        return pixels

    def slice_at(self, x):
        """Index of the slice at a horizontal position in pixels."""
        count = self._rows.shape[1]
        at = min(max(int(x) * count // max(1, self.widget.width), 0), count - 1)
        return count - 1 - at if self._backwards else at

    def _pressed(self, x):
        if self._rows is not None:
            self._clicked(self.slice_at(x))

    def _place(self):
        """Into the slice view of the orientation, between its slider and its picture."""
        manager, shown = slicer.app.layoutManager(), shown_slice_nodes()
        for name in manager.sliceViewNames() if manager is not None else ():
            view = manager.sliceWidget(name)
            node = view.mrmlSliceNode()
            if node in shown and looks_along(node, self._volume, self._orientation):
                column = view.layout()
                if column.indexOf(self.widget) < 0:
                    column.insertWidget(column.count() - 1, self.widget)
                self.widget.show()
                return


class _Presses(qt.QObject):
    """Tells where a mouse button was pressed on a widget."""

    def __init__(self, widget, pressed):
        qt.QObject.__init__(self, widget)
        self._pressed = pressed

    def eventFilter(self, watched, event):
        if event.type() == qt.QEvent.MouseButtonPress:
            self._pressed(event.pos().x())
            return True
        return False


def colours_of(values):
    """Colours uint8 [..., 3] of expected Dice values; NaN where nothing is expected."""
    known = np.nan_to_num(values)
    colours = np.stack([
        np.interp(known, (_LOW, _MIDDLE, _HIGH), parts) for parts in zip(DOUBTFUL, FAIR, SURE, strict=True)
    ], axis=-1)  # fmt: skip
    return np.where(np.isnan(values)[..., None], _NOTHING, colours).astype(np.uint8)


def looks_along(slice_node, volume, orientation):
    """Whether a view shows slices of that orientation of the volume, up to a few degrees."""
    from SAMFineTuneLib.images.slice_plane import view_axes

    axis = view_axes(volume, orientation)[2]
    matrix = slice_node.GetSliceToRAS()
    normal = np.array([matrix.GetElement(row, 2) for row in range(3)])
    return abs(normal @ volume.affine[:3, axis]) > _ALONG * volume.spacing[axis]


def runs_backwards(volume, orientation):
    """Whether slice indices grow to the right, back or down, against the slice slider."""
    from SAMFineTuneLib.images.slice_plane import view_axes

    axis = view_axes(volume, orientation)[2]
    return volume.affine[{"axial": 2, "coronal": 1, "sagittal": 0}[orientation], axis] < 0
