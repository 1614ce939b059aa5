"""Loss and validation Dice of a training, as curves in a Slicer plot."""

import slicer
from slicer.i18n import tr as _

_COLOURS = ((0.12, 0.47, 0.71), (0.17, 0.63, 0.17), (0.84, 0.15, 0.16), (0.58, 0.4, 0.74), (1.0, 0.5, 0.05))
_TITLES = {"loss": _("Loss"), "dice": _("Validation Dice")}


class Curves:
    """Makes nodes while the curves are shown, and keeps them out of lists and files."""

    title, along, up = "Training", "Step", _("Loss, Dice")

    def __init__(self):
        self._points = {}  # (kind, training) -> [(step, value)]
        self._tables = {}  # the same -> table node
        self._nodes = []
        self._steps = 0  # that the training takes
        self._layout = None  # before the curves were shown
        self.chart = None

    def clear(self):
        """Forget the training; the curves of the next one are shown when the user asks for them."""
        self._points, self._steps = {}, 0
        if self.chart is not None:
            self.hide()

    def take(self, event):
        """Keep an event of a training, and draw it when the curves are shown."""
        if event.get("event") == "start":  # resumed: steps since the last checkpoint are repeated
            return
        if event.get("stage") != "training":
            return
        self._steps = max(self._steps, event.get("steps") or 0, event["step"])
        for kind in _TITLES:
            if event.get(kind) is not None:
                self._add((kind, event["part"]), event["step"], event[kind])
        self._fit_axes()

    @property
    def points(self):
        return self._points

    @property
    def drawable(self):
        """Whether there is a line to draw, because an empty plot is black."""
        return any(len(points) > 1 for points in self._points.values())

    @property
    def shown(self):
        return self.chart is not None

    def show(self):
        """Show the curves; Slicer chooses a layout with a plot view."""
        layout = _layout_node()
        self._layout = layout.GetViewArrangement() if layout is not None else None
        self._make_chart()
        slicer.modules.plots.logic().ShowChartInLayout(self.chart)

    def hide(self):
        """Remove the curves and bring back the layout from before."""
        self._remove_nodes()
        layout = _layout_node()
        if self._layout is not None and layout is not None:
            layout.SetViewArrangement(self._layout)
        self._layout = None

    def close(self):
        self._remove_nodes()

    # ---- inside

    def _add(self, key, step, value):
        points = self._points.setdefault(key, [])
        while points and points[-1][0] >= step:
            points.pop()
            if key in self._tables:
                self._tables[key].GetTable().RemoveRow(len(points))
        points.append((step, value))
        if self.chart is None:
            return
        if key in self._tables:
            table = self._tables[key].GetTable()
            self._append(table, step, value)
            table.Modified()
        elif len(points) > 1:
            self._make_series(key)

    @staticmethod
    def _append(table, step, value):
        row = table.InsertNextBlankRow()
        table.SetValue(row, 0, step)
        table.SetValue(row, 1, value)

    def _make_chart(self):
        self.chart = self._node("vtkMRMLPlotChartNode", self.title)
        self.chart.SetTitle(self.title)
        self.chart.SetXAxisTitle(self.along)
        self.chart.SetYAxisTitle(self.up)
        for key, points in self._points.items():
            if len(points) > 1:
                self._make_series(key)
        self._fit_axes()

    def _fit_axes(self):
        """Set the ranges of the axes: Slicer fits them to a series when it is added, not to rows that come later."""
        if self.chart is None or not self.drawable:
            return
        highest = max(value for points in self._points.values() for _, value in points)
        was_modifying = self.chart.StartModify()
        self.chart.SetXAxisRangeAuto(False)
        self.chart.SetXAxisRange(0.0, float(max(self._steps, 2)))
        self.chart.SetYAxisRangeAuto(False)
        self.chart.SetYAxisRange(0.0, 1.05 * max(highest, 1.0))
        self.chart.EndModify(was_modifying)

    @staticmethod
    def title_of(kind, part):
        return _("{curve}, training {part}").format(curve=_TITLES[kind], part=part)

    def _make_series(self, key):
        import vtk

        kind, part = key
        title = self.title_of(kind, part)
        table_node = self._node("vtkMRMLTableNode", title)
        table = table_node.GetTable()
        for name in (self.along, title):
            column = vtk.vtkFloatArray()
            column.SetName(name)
            table.AddColumn(column)
        for step, value in self._points[key]:
            self._append(table, step, value)
        series = self._node("vtkMRMLPlotSeriesNode", title)
        series.SetAndObserveTableNodeID(table_node.GetID())
        series.SetXColumnName(self.along)
        series.SetYColumnName(title)
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        dashed = slicer.vtkMRMLPlotSeriesNode.LineStyleDash
        series.SetLineStyle(dashed if kind == "dice" else slicer.vtkMRMLPlotSeriesNode.LineStyleSolid)
        series.SetColor(*_COLOURS[(part - 1) % len(_COLOURS)])
        self._tables[key] = table_node
        self.chart.AddAndObservePlotSeriesNodeID(series.GetID())

    def _node(self, kind, name):
        node = slicer.mrmlScene.CreateNodeByClass(kind)
        node.UnRegister(None)
        node.SetName(name)
        node.SetHideFromEditors(True)
        node.SetSaveWithScene(False)
        self._nodes.append(slicer.mrmlScene.AddNode(node))
        return self._nodes[-1]

    def _remove_nodes(self):
        nodes, self._nodes = self._nodes, []
        self.chart, self._tables = None, {}
        for node in reversed(nodes):
            if slicer.mrmlScene.IsNodePresent(node):
                slicer.mrmlScene.RemoveNode(node)


def _layout_node():
    return slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
