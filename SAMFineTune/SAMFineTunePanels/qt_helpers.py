"""What every section needs of Qt."""

import logging

import qt
import slicer


class Connections:
    """Signal connections, all undone by `close`."""

    def __init__(self):
        self._made = []

    def add(self, sender, signal, handler):
        """Connect, and say so in the log when there is no such signal: PythonQt only prints and goes on."""
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


class NodeObservers:
    """Observations of VTK objects, all undone by `close`."""

    def __init__(self):
        self._made = []

    def add(self, observed, event, callback, priority=0.0):
        tag = observed.AddObserver(event, callback, priority)
        self._made.append((observed, tag))
        return tag

    def close(self):
        made, self._made = self._made, []
        for observed, tag in made:
            observed.RemoveObserver(tag)

    def __len__(self):
        return len(self._made)


class quiet:
    """Widgets whose signals are blocked meanwhile."""

    def __init__(self, *widgets):
        self._widgets = widgets

    def __enter__(self):
        self._before = [widget.blockSignals(True) for widget in self._widgets]

    def __exit__(self, *error):
        for widget, before in zip(self._widgets, self._before, strict=False):
            widget.blockSignals(before)


def load_ui(resource_path, name):
    """(widget, its named children) of a file in Resources/UI."""
    widget = slicer.util.loadUI(resource_path("UI/" + name + ".ui"))
    return widget, slicer.util.childWidgetVariables(widget)


def set_text(label, text):
    """Only when it changes: every assignment would lay the panel out again."""
    if label.text != text:
        label.text = text


def fill_menu(selector, entries, chosen=None):
    """Give a QComboBox its entries, (what it means, what is shown) each; the first is chosen unless told otherwise."""
    with quiet(selector):
        selector.clear()
        for meaning, text in entries:
            selector.addItem(text, meaning)
    choose_in(selector, chosen)


def chosen_in(selector):
    """What the chosen entry of a menu means."""
    return selector.itemData(selector.currentIndex)


def choose_in(selector, meaning):
    """Choose the entry that means this; the first when there is none."""
    selector.setCurrentIndex(0 if meaning is None else max(0, selector.findData(meaning)))


def set_visible(widget, visible):
    """What the widget itself wants, whether or not its section is open. Qt does nothing when it wants that already."""
    widget.setVisible(bool(visible))


def fit_height(view, rows, least, most, row_height=22):
    """As high as the rows of a table or list, but for its header, and within limits; more rows are scrolled to.

    Not while the user takes rows away: the buttons below would move under the mouse.
    """
    heading = row_height + 2 if hasattr(view, "horizontalHeader") else 0
    height = heading + row_height * min(max(rows, least), most) + 4
    if view.minimumHeight != height or view.maximumHeight != height:
        view.setFixedHeight(height)


def pixmap_of(pixels):
    """QPixmap of grey values uint8 [row, column]."""
    import numpy as np
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    rows, columns = pixels.shape
    image = vtk.vtkImageData()
    image.SetDimensions(columns, rows, 1)
    colors = np.ascontiguousarray(np.repeat(pixels[::-1].reshape(-1, 1), 3, axis=1))  # VTK's first row is the lowest
    image.GetPointData().SetScalars(numpy_to_vtk(colors, deep=True))
    picture = qt.QImage()
    slicer.qMRMLUtils().vtkImageDataToQImage(image, picture)
    return qt.QPixmap.fromImage(picture)


def confirmed(text, button_text):
    """Ask before something that costs; the answer to a question that cannot be shown is no."""
    box = qt.QMessageBox(slicer.util.mainWindow())
    box.setIcon(qt.QMessageBox.Question)
    box.setWindowTitle("SAMFineTune")
    box.setText(text)
    box.setStandardButtons(qt.QMessageBox.Ok | qt.QMessageBox.Cancel)
    box.setDefaultButton(qt.QMessageBox.Ok)
    ok = box.button(qt.QMessageBox.Ok)
    ok.setText(button_text)
    if slicer.app.testingEnabled():
        logging.info("SAMFineTune, not asked in testing mode: %s", text)
        box.deleteLater()
        return False
    answer = box.exec_() if hasattr(box, "exec_") else box.exec()
    box.deleteLater()
    return answer == qt.QMessageBox.Ok
