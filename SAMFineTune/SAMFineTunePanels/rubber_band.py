"""The left button in slice views: boxes, strokes and loops are drawn with it, and a double click is one click.

Slicer's own interaction keeps working: the events are taken from it only while something is being drawn.
"""

import vtk

PRIORITY = 10.0  # before Slicer's own interactor style
SMALLEST_BOX = 4  # pixels a side; less is a click
STROKE_STEP = 3  # pixels between the points of a stroke


class DrawingView:
    """The parts of a slice view that drawing needs."""

    def __init__(self, slice_widget):
        view = slice_widget.sliceView()
        self.node = slice_widget.mrmlSliceNode()
        self.interactor = view.interactor()
        self.renderer = view.renderWindow().GetRenderers().GetItemAsObject(0)
        self.redraw = view.scheduleRender


class _Mouse:
    """Handles mouse events of views before Slicer does, which does not see those that a handler says are its own."""

    drawing = False

    def __init__(self, views, **handlers):
        """Args: handlers: by the VTK event; each is called with the view and says whether the event is its own."""
        self._observed = []
        for view in views:
            for event, handler in handlers.items():
                self._observe(view, event, handler)

    def _observe(self, view, event, handler):
        holder = []

        def called(caller, name):
            if handler(view):
                command = caller.GetCommand(holder[0])
                if command is not None:
                    command.SetAbortFlag(1)

        holder.append(view.interactor.AddObserver(event, called, PRIORITY))
        self._observed.append((view.interactor, holder[0]))

    def close(self):
        observed, self._observed = self._observed, []
        for interactor, tag in observed:
            interactor.RemoveObserver(tag)


class SingleClicks(_Mouse):
    """Ignores the second click of a double click, with which Slicer would end its place mode."""

    def __init__(self, views):
        self._ignored = False  # whether the button is down for the second time
        super().__init__(
            views,
            LeftButtonPressEvent=lambda view: self._ignore(False),
            LeftButtonDoubleClickEvent=lambda view: self._ignore(True),
            LeftButtonReleaseEvent=lambda view: self._ignored,
        )

    def _ignore(self, ignored):
        self._ignored = ignored
        return ignored


class RubberBand(_Mouse):
    """Lets the user draw in the views until it is closed. `shape` is "box", "stroke" or "loop".

    `finished(slice_node, ras_points)` gets the two corners of a box, or the points of a line.
    `may_start(view)` says whether a press draws; otherwise Slicer handles it.
    """

    def __init__(self, views, shape, finished, may_start):
        self.shape = shape
        self._finished = finished
        self._may_start = may_start
        self._view = None
        self._points = []
        self._actor = None
        super().__init__(
            views,
            LeftButtonPressEvent=self._press,
            LeftButtonDoubleClickEvent=self._press,  # a quick second one; Slicer would enlarge the view
            MouseMoveEvent=self._move,
            LeftButtonReleaseEvent=self._release,
        )

    @property
    def drawing(self):
        return self._view is not None

    def cancel(self):
        """Forget what is being drawn."""
        self._erase()
        self._view, self._points = None, []

    def close(self):
        self.cancel()
        super().close()

    # ---- the mouse

    def _press(self, view):
        interactor = view.interactor
        if interactor.GetShiftKey() or interactor.GetControlKey() or interactor.GetAltKey():
            return False
        if not self._may_start(view):
            return False
        self.cancel()
        self._view, self._points = view, [interactor.GetEventPosition()]
        return True

    def _move(self, view):
        if view is not self._view:
            return False
        position = view.interactor.GetEventPosition()
        if self.shape == "box":
            self._points[1:] = [position]
        elif _apart(position, self._points[-1], STROKE_STEP):
            self._points.append(position)
        self._draw()
        return True

    def _release(self, view):
        if self._view is None:
            return False
        self._move(self._view)
        drawn_in, points = self._view, self._points
        self.cancel()
        if self.shape == "box":
            (x0, y0), (x1, y1) = points[0], points[-1]
            if min(abs(x1 - x0), abs(y1 - y0)) < SMALLEST_BOX:
                return True
        from SAMFineTuneLib.mrml.slice_views import ras_at

        self._finished(drawn_in.node, [ras_at(drawn_in.node, point) for point in points])
        return True

    # ---- the line that is seen meanwhile

    def _draw(self):
        points, lines = vtk.vtkPoints(), vtk.vtkCellArray()
        corners = self._points
        if self.shape == "box":
            (x0, y0), (x1, y1) = corners[0], corners[-1]
            corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        elif self.shape == "loop":
            corners = [*corners, corners[0]]
        lines.InsertNextCell(len(corners))
        for x, y in corners:
            lines.InsertCellPoint(points.InsertNextPoint(x, y, 0.0))
        shape = vtk.vtkPolyData()
        shape.SetPoints(points)
        shape.SetLines(lines)
        if self._actor is None:
            self._actor = vtk.vtkActor2D()
            self._actor.SetMapper(vtk.vtkPolyDataMapper2D())
            self._actor.GetProperty().SetColor(1.0, 0.85, 0.1)
            self._actor.GetProperty().SetLineWidth(2.0)
            self._view.renderer.AddViewProp(self._actor)
        self._actor.GetMapper().SetInputData(shape)
        self._view.redraw()

    def _erase(self):
        if self._actor is not None:
            self._view.renderer.RemoveViewProp(self._actor)
            self._actor = None
            self._view.redraw()


def _apart(a, b, distance):
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 >= distance**2
