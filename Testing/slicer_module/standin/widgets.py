"""The CTK and Slicer widgets that the panel uses, as far as it uses them, on the real scene."""

from __future__ import annotations

import types

import slicer
import vtk
from PySide6 import QtCore, QtWidgets

Property, Signal, Slot = QtCore.Property, QtCore.Signal, QtCore.Slot


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A titled section. The real one is a push button with its contents below the title."""

    contentsCollapsed = Signal(bool)
    _TITLE = 26  # pixels

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed = False
        self._title = QtWidgets.QPushButton(self)
        self._title.setStyleSheet("text-align: left; padding-left: 8px; font-weight: bold")
        self._title.clicked.connect(lambda: self._set_collapsed(not self._collapsed))
        self._words = ""

    def _get_text(self):
        return self._words

    def _set_text(self, text):
        self._words = text
        self._name()

    def _name(self):
        self._title.setText(("▸  " if self._collapsed else "▾  ") + self._words)

    def _get_collapsed(self):
        return self._collapsed

    def _set_collapsed(self, collapsed):
        self._collapsed = bool(collapsed)
        self._name()
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
            if child is not self._title:
                child.setVisible(not collapsed)
        self._fit()
        self.contentsCollapsed.emit(self._collapsed)

    text = Property(str, _get_text, _set_text)
    collapsed = Property(bool, _get_collapsed, _set_collapsed)

    def _fit(self):
        self.setMaximumHeight(self._TITLE if self._collapsed else 16777215)
        layout = QtWidgets.QWidget.layout(self)
        if layout is not None:
            layout.setContentsMargins(4, self._TITLE + 4, 4, 0 if self._collapsed else 4)

    def resizeEvent(self, event):
        self._title.setGeometry(0, 0, event.size().width(), self._TITLE)

    def showEvent(self, event):  # children that came later are hidden, too
        self._set_collapsed(self._collapsed)


class ctkCollapsibleGroupBox(QtWidgets.QGroupBox):
    """A group box whose contents fold away."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._collapsed_height = 14
        self.setCheckable(True)
        self.toggled.connect(self._show)

    def _show(self, shown):
        for child in self.findChildren(QtWidgets.QWidget, options=QtCore.Qt.FindDirectChildrenOnly):
            child.setVisible(shown)
        title = self.fontMetrics().height() + self._collapsed_height
        self.setMaximumHeight(16777215 if shown else title)

    def showEvent(self, event):  # children that came later are hidden, too
        self._show(self.isChecked())

    def _get(self):
        return not self.isChecked()

    def _set(self, collapsed):
        self.setChecked(not collapsed)
        self._show(not collapsed)

    collapsed = Property(bool, _get, _set)
    collapsedHeight = Property(
        int, lambda self: self._collapsed_height, lambda self, height: setattr(self, "_collapsed_height", height)
    )


class ctkPathLineEdit(QtWidgets.QWidget):
    """A path with a button to choose it."""

    currentPathChanged = Signal(str)
    Dirs, Files, Readable, Writable = 0x1, 0x2, 0x10, 0x20

    def __init__(self, parent=None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._edit = QtWidgets.QLineEdit()
        row.addWidget(self._edit)
        button = QtWidgets.QToolButton()
        button.clicked.connect(self.browse)
        row.addWidget(button)
        self._edit.textChanged.connect(self.currentPathChanged)
        self._filters, self._names = 0, []

    @Slot()
    def browse(self):
        """Ask for a file where files are among what is wanted, as CTK does; for a folder only where they are not."""
        if self._filters & self.Files:
            path, _ = QtWidgets.QFileDialog.getOpenFileName(self)
        else:
            path = QtWidgets.QFileDialog.getExistingDirectory(self)
        if path:
            self._edit.setText(path)

    currentPath = Property(str, lambda self: self._edit.property("text"), lambda self, path: self._edit.setText(path))
    filters = Property(int, lambda self: self._filters, lambda self, value: setattr(self, "_filters", value))
    nameFilters = Property("QStringList", lambda self: self._names, lambda self, value: setattr(self, "_names", value))


class qMRMLWidget(QtWidgets.QWidget):
    """Knows the scene, and hands it on to what is connected to its signal."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        self._scene = None

    @Slot(object)
    def setMRMLScene(self, scene):
        self._scene = scene
        for child in self.findChildren(QtWidgets.QWidget):  # instead of the connections in the .ui file
            if hasattr(type(child), "setMRMLScene"):
                child.setMRMLScene(scene)
        self.mrmlSceneChanged.emit(scene)


def _option(name, kind, default):
    def read(self):
        return self._options.get(name, default)

    def write(self, value):
        self._options[name] = value

    return Property(kind, read, write)


class qMRMLNodeComboBox(QtWidgets.QWidget):
    """Nodes of some classes by name; follows the scene, and holds no node that is gone."""

    nodeTypes = _option("nodeTypes", "QStringList", [])
    hideChildNodeTypes = _option("hideChildNodeTypes", "QStringList", [])
    noneEnabled = _option("noneEnabled", bool, False)
    noneDisplay = _option("noneDisplay", str, "None")
    addEnabled = _option("addEnabled", bool, True)
    removeEnabled = _option("removeEnabled", bool, True)
    renameEnabled = _option("renameEnabled", bool, False)

    currentNodeChanged = Signal(object)
    nodeActivated = Signal(object)

    def __init__(self, parent=None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._combo = QtWidgets.QComboBox()
        row.addWidget(self._combo)
        self._combo.activated.connect(self._activated)
        self._scene, self._tags, self._current, self._options = None, [], None, {}
        self._name = ""

    def setMRMLScene(self, scene):
        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        if scene is not None:
            events = slicer.vtkMRMLScene
            for event in (events.NodeAddedEvent, events.NodeRemovedEvent, events.EndBatchProcessEvent):
                self._tags.append(scene.AddObserver(event, lambda *_: self._follow()))
            for event in (events.EndImportEvent, events.EndCloseEvent):
                self._tags.append(scene.AddObserver(event, lambda *_: self._rebuild()))
            self._tags.append(scene.AddObserver(events.NodeAboutToBeRemovedEvent, self._goes, -10.0))
        self._fill()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _goes(self, scene, event, going):
        """Select a neighbour of the current node that is removed, as Qt does when a row goes."""
        nodes = self._nodes()
        if going.GetID() == self._current and not scene.IsClosing():
            at = nodes.index(going)
            del nodes[at]
            self._combo.removeItem(self._combo.findData(going.GetID()))
            self.setCurrentNode(nodes[min(at, len(nodes) - 1)] if nodes else None)

    def _nodes(self):
        if self._scene is None:
            return []
        hidden = self._options.get("hideChildNodeTypes", [])
        nodes = [self._scene.GetNthNode(n) for n in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if any(node.IsA(kind) for kind in self._options.get("nodeTypes", []))
                and not any(node.IsA(kind) for kind in hidden) and not node.GetHideFromEditors()]

    def _follow(self):
        if not (self._scene.IsImporting() or self._scene.IsClosing()):
            self._fill()

    def _rebuild(self):
        """Remove all rows and fill them again, which leaves the first one selected."""
        self._combo.setCurrentIndex(0)
        self._changed()
        self._fill()

    def _fill(self):
        current = self._current
        combo = self._combo
        combo.blockSignals(True)
        combo.clear()
        combo.addItem(self._options.get("noneDisplay", "None"), "")
        for node in self._nodes():
            combo.addItem(node.GetName(), node.GetID())
        combo.setCurrentIndex(max(0, combo.findData(current)) if current else 0)
        combo.blockSignals(False)
        self._changed()

    def _changed(self):
        now = self._combo.currentData or None
        if now != self._current:
            self._current = now
            before, self._name = self._name, self._combo.currentText
            if self._name != before:  # as with Qt 6, where nothing is told of another node with the same name
                self.currentNodeChanged.emit(self.currentNode())

    def _activated(self, _):
        self._changed()
        self.nodeActivated.emit(self.currentNode())

    def currentNode(self):
        return self._scene.GetNodeByID(self._current) if self._current and self._scene is not None else None

    @Slot(object)
    def setCurrentNode(self, node):
        before = self._current
        self._combo.setCurrentIndex(max(0, self._combo.findData(node.GetID())) if node else 0)
        self._changed()
        if node is not None and self._current != before:  # it is chosen by a key press that the widget makes up
            self.nodeActivated.emit(node)

    def setCurrentNodeID(self, node_id):
        self.setCurrentNode(self._scene.GetNodeByID(node_id) if node_id else None)


def _show_node(widget, node, events, update):
    """Make a widget show another segmentation node: `update` now, and at each of its events."""
    if node is widget._node:
        return
    for tag in widget._tags:
        widget._node.RemoveObserver(tag)
    widget._node = node
    widget._tags = [] if node is None else [node.AddObserver(event, lambda *_: update()) for event in events]
    update()


class qMRMLSegmentsTableView(qMRMLWidget):
    """The segments of a segmentation by name, one of them selected."""

    # The real one hands over two QItemSelection.
    selectionChanged = Signal(QtCore.QItemSelection, QtCore.QItemSelection)

    def __init__(self, parent=None):
        super().__init__(parent)
        column = QtWidgets.QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self._list = QtWidgets.QListWidget()
        column.addWidget(self._list)
        self._node, self._tags, self._mode = None, [], 3
        self._list.itemSelectionChanged.connect(self._selected)

    selectionMode = Property(int, lambda self: self._mode, lambda self, mode: self.setSelectionMode(mode))
    segmentCount = Property(int, lambda self: self._list.property("count"))

    def setSelectionMode(self, mode):
        self._mode = mode
        self._list.setSelectionMode(QtWidgets.QAbstractItemView.SelectionMode(mode))

    def segmentationNode(self):
        return self._node

    @Slot(object)
    def setSegmentationNode(self, node):
        kinds = slicer.vtkSegmentation
        _show_node(self, node, (kinds.SegmentAdded, kinds.SegmentRemoved, kinds.SegmentModified), self._fill)

    def _ids(self):
        if self._node is None or self._node.GetSegmentation() is None:
            return []
        return list(self._node.GetSegmentation().GetSegmentIDs())

    def _fill(self):
        chosen = self.selectedSegmentIDs()
        self._list.blockSignals(True)
        self._list.clear()
        for segment_id in self._ids():
            segment = self._node.GetSegmentation().GetSegment(segment_id)
            item = QtWidgets.QListWidgetItem(segment.GetName())
            item.setData(QtCore.Qt.UserRole, segment_id)
            self._list.addItem(item)
            item.setSelected(segment_id in chosen)
        self._list.blockSignals(False)
        if self.selectedSegmentIDs() != chosen:
            self._selected()

    def _selected(self):
        self.selectionChanged.emit(QtCore.QItemSelection(), QtCore.QItemSelection())

    def selectedSegmentIDs(self):
        return tuple(item.data(QtCore.Qt.UserRole) for item in self._list.selectedItems())

    def setSelectedSegmentIDs(self, segment_ids):
        for row in range(self._list.property("count")):
            item = self._list.item(row)
            item.setSelected(item.data(QtCore.Qt.UserRole) in segment_ids)

    def clearSelection(self):
        self._list.clearSelection()


class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """Makes and removes the closed surface; enabled and pressed as the segmentation says."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self._node, self._tags = None, []
        self.setCheckable(True)
        self.setEnabled(False)
        self.toggled.connect(self._show)

    def segmentationNode(self):
        return self._node

    @Slot(object)
    def setSegmentationNode(self, node):
        kinds = slicer.vtkSegmentation
        _show_node(self, node, ("ModifiedEvent", kinds.SegmentAdded, kinds.SegmentRemoved,
                                kinds.ContainedRepresentationNamesModified), self._update)

    def _update(self):
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        self.setEnabled(segmentation is not None and segmentation.GetNumberOfSegments() > 0)
        before = self.blockSignals(True)
        self.setChecked(segmentation is not None and segmentation.ContainsRepresentation("Closed surface"))
        self.blockSignals(before)

    def _show(self, shown):
        if self._node is not None and shown:
            self._node.CreateClosedSurfaceRepresentation()
        elif self._node is not None:
            self._node.RemoveClosedSurfaceRepresentation()


UI_WIDGETS = (
    ctkCollapsibleButton,
    ctkCollapsibleGroupBox,
    ctkPathLineEdit,
    qMRMLWidget,
    qMRMLNodeComboBox,
    qMRMLSegmentsTableView,
    qMRMLSegmentationShow3DButton,
)


def ctk_module() -> types.ModuleType:
    """The module `ctk`."""
    module = types.ModuleType("ctk")
    for kind in UI_WIDGETS:
        if kind.__name__.startswith("ctk"):
            setattr(module, kind.__name__, kind)
    return module
