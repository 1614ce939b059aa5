"""Qt helpers for every part of the panel, and the user's own settings in Slicer."""

import logging
from contextlib import contextmanager

import qt
import slicer

_SETTINGS = "SAMFineTune/"


class Connections:
    """Signal connections, (sender, signal, handler) each; `close` undoes all of them."""

    def __init__(self, *connections):
        self._made = []
        for connection in connections:
            self.add(*connection)

    def add(self, sender, signal, handler):
        """Connect, and log an error when the signal does not exist: PythonQt only prints and goes on."""
        if sender.connect(signal, handler) is False:
            logging.error("SAMFineTune: %s has no signal %s", sender, signal)
            return
        self._made.append((sender, signal, handler))

    def close(self):
        made, self._made = self._made, []
        for sender, signal, handler in made:
            try:
                sender.disconnect(signal, handler)
            except (RuntimeError, ValueError, AttributeError):
                pass  # the widget was deleted before


@contextmanager
def quiet(*widgets):
    """Block the signals of widgets in the block."""
    before = [widget.blockSignals(True) for widget in widgets]
    try:
        yield
    finally:
        for widget, blocked in zip(widgets, before, strict=True):
            widget.blockSignals(blocked)


class TextTable:
    """A QTableWidget of texts: as high as its rows within limits, every cell with its text as tooltip."""

    def __init__(self, widget, stretched, least=None, most=None):
        """Args: stretched: columns that share the remaining width; least, most: rows shown, None where the layout sets
        the table's height.
        """
        self.widget, self._limits = widget, (least, most)
        self._items = {}  # by (row, column): some bindings drop items without a reference in Python
        widget.verticalHeader().setDefaultSectionSize(_row_height(widget))
        header = widget.horizontalHeader()
        for column in range(widget.columnCount):
            mode = qt.QHeaderView.Stretch if column in stretched else qt.QHeaderView.ResizeToContents
            header.setSectionResizeMode(column, mode)
        self.fit()

    def fill(self, rows):
        """Show these rows of texts instead of the former ones, without signals about changed items."""
        with quiet(self.widget):
            self._items = {}
            self.widget.setRowCount(len(rows))
            for row, texts in enumerate(rows):
                self._set(row, texts)
        self.fit()

    def add(self, texts):
        """One more row; returns its items."""
        with quiet(self.widget):
            row = self.widget.rowCount
            self.widget.setRowCount(row + 1)
            return self._set(row, texts)

    def fit(self, rows=None):
        """Take the height of the present rows, or of as many as will come."""
        if None not in self._limits:
            fit_height(self.widget, self.widget.rowCount if rows is None else rows, *self._limits)

    @property
    def selected_rows(self):
        return [row for row in range(self.widget.rowCount) if self.widget.item(row, 0).isSelected()]

    def _set(self, row, texts):
        items = [qt.QTableWidgetItem(text) for text in texts]
        for column, item in enumerate(items):
            item.setToolTip(item.text())
            self.widget.setItem(row, column, item)
            self._items[row, column] = item
        return items


def load_ui(resource_path, name):
    """(widget, its named children) of a file in Resources/UI."""
    widget = slicer.util.loadUI(resource_path("UI/" + name + ".ui"))
    return widget, slicer.util.childWidgetVariables(widget)


def load_dialog(resource_path, name, title):
    """(dialog, widget in it, its named children) of a file in Resources/UI."""
    dialog = qt.QDialog(slicer.util.mainWindow())
    dialog.setWindowTitle(title)
    widget, ui = load_ui(resource_path, name)
    qt.QVBoxLayout(dialog).addWidget(widget)
    return dialog, widget, ui


def enable(*widgets):
    """Enable or disable widgets: (widget, whether it can be used) each."""
    for widget, usable in widgets:
        widget.setEnabled(bool(usable))


def set_text(label, text):
    """Set a text only when it differs, because every assignment lays out the panel again."""
    if label.text != text:
        label.text = text


def set_elided(label, text, lines=1):
    """Show a text in so many lines, whatever its length; the tooltip has the whole text."""
    room = max(60, label.width) * (lines - 0.15 * (lines - 1))  # lines break between words
    set_text(label, label.fontMetrics().elidedText(text, qt.Qt.ElideRight, int(room)))
    if label.toolTip != text:
        label.toolTip = text


def keep_lines(label, lines):
    """Give a label the height of so many lines for good, so that no button moves when its text changes."""
    label.setFixedHeight(lines * label.fontMetrics().lineSpacing() + 2)


def fill_menu(selector, entries, chosen=None):
    """Give a QComboBox its entries, (value, text) each; the first is chosen by default."""
    with quiet(selector):
        selector.clear()
        for row, (meaning, text) in enumerate(entries):
            selector.addItem(text, meaning)
            selector.setItemData(row, text, qt.Qt.ToolTipRole)
    choose_in(selector, chosen)


def chosen_in(selector):
    """The value of the chosen entry of a menu."""
    return selector.itemData(selector.currentIndex)


def choose_in(selector, meaning):
    """Choose the entry with this value; the first when there is none."""
    selector.setCurrentIndex(0 if meaning is None else max(0, selector.findData(meaning)))


def fit_height(view, rows, least, most):
    """Make a table or list as high as its rows, within limits."""
    # Slicer's own tables wrap one of Qt's.
    views = [child for child in (view, *slicer.util.findChildren(view)) if child.inherits("QAbstractItemView")]
    inner = views[0] if views else view
    row_height, heading = _row_height(inner), 0
    if inner.inherits("QTableView"):
        row_height, heading = inner.verticalHeader().defaultSectionSize, row_height + 4
    height = heading + row_height * min(max(rows, least), most) + 4
    if view.minimumHeight != height or view.maximumHeight != height:
        view.setFixedHeight(height)


def _row_height(view):
    return max(22, view.fontMetrics().lineSpacing() + 6)


def succeeded(host, action, *arguments):
    """Have the host call an action that returns nothing; returns whether it succeeded."""

    def act():
        action(*arguments)
        return True

    return bool(host.act(act))


def pixmap_of(pixels):
    """QPixmap of grey values uint8 [row, column], or of colours [row, column, 3]."""
    import numpy as np
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    rows, columns = pixels.shape[:2]
    image = vtk.vtkImageData()
    image.SetDimensions(columns, rows, 1)
    turned = pixels[::-1]  # VTK's first row is the lowest
    colors = np.ascontiguousarray(np.repeat(turned.reshape(-1, 1), 3, axis=1) if turned.ndim == 2 else turned)
    colors = colors.reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(colors, deep=True))
    picture = qt.QImage()
    slicer.qMRMLUtils().vtkImageDataToQImage(image, picture)
    return qt.QPixmap.fromImage(picture)


def confirmed(text, button_text):
    """Ask the user to confirm; False in testing mode, where no question can be shown."""
    if slicer.app.testingEnabled():
        logging.info("SAMFineTune, not asked in testing mode: %s", text)
        return False
    box = qt.QMessageBox(slicer.util.mainWindow())
    box.setIcon(qt.QMessageBox.Question)
    box.setWindowTitle("SAMFineTune")
    box.setText(text)
    box.setStandardButtons(qt.QMessageBox.Ok | qt.QMessageBox.Cancel)
    box.setDefaultButton(qt.QMessageBox.Ok)
    box.button(qt.QMessageBox.Ok).setText(button_text)
    answer = box.exec_() if hasattr(box, "exec_") else box.exec()
    box.deleteLater()
    return answer == qt.QMessageBox.Ok


# ---- what belongs to the user rather than to the scene


def read_setting(name, default=""):
    return str(slicer.util.settingsValue(_SETTINGS + name, default))


def read_flag(name):
    return slicer.util.settingsValue(_SETTINGS + name, False, converter=slicer.util.toBool)


def write_setting(name, value):
    """Keep a value; None forgets it."""
    settings = qt.QSettings()
    if value is None:
        settings.remove(_SETTINGS + name)
    elif settings.value(_SETTINGS + name) != value:
        settings.setValue(_SETTINGS + name, value)
