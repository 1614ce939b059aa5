"""Slicer's slice views without a window: the real displayable managers, rendered off-screen, with a mouse.

    view = SliceView(slicer_scene, "Red", "Axial")
    view.show(volume_node)
    view.click(view.xy_of(ras))
    before, after = view.pixels(), ...

A position in a view is (x, y) in pixels from its lower left corner, as in Slicer's XY.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import numpy as np
import pytest

MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLCrosshairDisplayableManager",
    "vtkMRMLMarkupsDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
)
_PROBE = """
import vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(1)
window.SetMultiSamples(0)
window.AddRenderer(vtk.vtkRenderer())
window.Render()
print("OpenGL", "yes" if window.SupportsOpenGL() else "no")
"""


@functools.cache
def reason_not_to_render() -> str:
    """Empty when OpenGL works without a display. Tried in a process of its own: a missing driver may abort."""
    _prefer_egl()
    try:
        tried = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"off-screen rendering could not be tried: {error}"
    if tried.returncode == 0 and "OpenGL yes" in tried.stdout:
        return ""
    return "no off-screen OpenGL on this machine (libegl1, libgl1 and libgl1-mesa-dri give it)"


def require_rendering() -> None:
    """Skips the test, with the reason, where nothing can be rendered."""
    reason = reason_not_to_render()
    if reason:
        pytest.skip(reason)


def _prefer_egl() -> None:
    """Without a display VTK would first try X, and print a warning for every window."""
    if sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


class SliceView:
    """One slice view: its logic, slice node, renderer and interactor, as Slicer's own widget puts them together.

    `slicer_scene` is a `SlicerScene`. `renders_asked_for` counts what the real application would redraw.
    """

    def __init__(self, slicer_scene, name: str = "Red", orientation: str = "Axial", size=(400, 400)):
        require_rendering()
        import slicer
        import vtk

        self.name, self.size, self.scene = name, size, slicer_scene.scene
        self.renders_asked_for = 0
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)  # five times faster with Mesa
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.renderer.GetActiveCamera().ParallelProjectionOn()  # handles of boxes are drawn with it
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        self.interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())

        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(slicer_scene.application)
        self.logic.SetMRMLScene(self.scene)
        self.node = self.logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        slicer_scene.application.GetSliceLogics().AddItem(self.logic)

        self._connect_managers(slicer, slicer_scene.application)
        self._image = vtk.vtkImageMapper()
        self._image.SetColorWindow(255)
        self._image.SetColorLevel(127.5)
        background = vtk.vtkActor2D()
        background.SetMapper(self._image)
        background.GetProperty().SetDisplayLocationToBackground()
        self.renderer.AddViewProp(background)
        self.logic.ResizeSliceNode(*size)
        self.interactor.Initialize()

    def _connect_managers(self, slicer, application) -> None:
        self._factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory()
        self._factory.SetMRMLApplicationLogic(application)
        for manager in MANAGERS:
            if not self._factory.IsDisplayableManagerRegistered(manager):  # the factory is one for all views
                self._factory.RegisterDisplayableManager(manager)
        self.managers = slicer.vtkMRMLDisplayableManagerGroup()
        self.managers.SetRenderer(self.renderer)
        self.managers.SetMRMLDisplayableNode(self.node)
        self.managers.Initialize(self._factory, self.renderer)
        # With an observer the managers ask for a render instead of rendering at once, as in the application.
        self.managers.AddObserver("UpdateEvent", self._asked_to_render)
        self.style = slicer.vtkMRMLSliceViewInteractorStyle()
        self.style.SetSliceLogic(self.logic)
        self.style.SetInteractor(self.interactor)
        self.style.SetDisplayableManagers(self.managers)
        self.logic.SetDisplayableManagerGroup(self.managers)

    def _asked_to_render(self, *_) -> None:
        self.renders_asked_for += 1

    # ---- what it shows

    def show(self, volume_node) -> None:
        """The volume as background, zoomed to fit."""
        self.logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume_node.GetID() if volume_node else None)
        self.logic.FitSliceToAll()

    def go_to(self, ras) -> None:
        """Moves the slice, in parallel, so that it runs through a RAS point."""
        self.node.JumpSliceByOffsetting(*map(float, ras))

    def turn(self, right, down, through) -> None:
        """Makes the slice run along two RAS directions, through a point, which becomes the view's centre."""
        import vtk

        right, down, through = (np.asarray(vector, float) for vector in (right, down, through))
        right = right / np.linalg.norm(right)
        up = -(down - right * (right @ down))
        up /= np.linalg.norm(up)
        matrix = vtk.vtkMatrix4x4()
        for column, vector in enumerate((right, up, np.cross(right, up), through)):
            for row in range(3):
                matrix.SetElement(row, column, vector[row])
        self.node.GetSliceToRAS().DeepCopy(matrix)
        self.node.UpdateMatrices()

    def ras_of(self, xy) -> np.ndarray:
        """RAS (3,) of a position in the view."""
        return np.array(self.node.GetXYToRAS().MultiplyPoint((float(xy[0]), float(xy[1]), 0.0, 1.0))[:3])

    def xy_of(self, ras) -> tuple[int, int]:
        """The view's pixel nearest to a RAS point, seen along the view's normal."""
        import vtk

        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.node.GetXYToRAS(), matrix)
        x, y = matrix.MultiplyPoint((*map(float, ras), 1.0))[:2]
        return int(round(x)), int(round(y))

    def render(self) -> None:
        # The logic exchanges its last filter when layers come and go.
        self._image.SetInputConnection(self.logic.GetImageDataConnection())
        self.window.Render()

    def pixels(self) -> np.ndarray:
        """uint8 [y, x, 3] of the rendered view, row 0 at the bottom, so that `pixels()[y, x]` is position (x, y)."""
        import vtk
        from vtk.util.numpy_support import vtk_to_numpy

        self.render()
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(self.window)
        reader.SetInputBufferTypeToRGB()
        reader.ReadFrontBufferOff()
        reader.ShouldRerenderOff()
        reader.Update()
        scalars = reader.GetOutput().GetPointData().GetScalars()
        return vtk_to_numpy(scalars).reshape(self.size[1], self.size[0], 3).copy()

    # ---- the mouse

    def move(self, xy) -> None:
        self._event(xy, "MouseMoveEvent")

    def press(self, xy) -> None:
        self._event(xy, "LeftButtonPressEvent")

    def release(self, xy) -> None:
        self._event(xy, "LeftButtonReleaseEvent")

    def enter(self, xy) -> None:
        self._event(xy, "EnterEvent")

    def leave(self, xy=(0, 0)) -> None:
        self._event(xy, "LeaveEvent")

    def click(self, xy) -> None:
        """The mouse comes in, points at `xy`, presses and releases its left button there."""
        self.enter(xy)
        self.move(xy)
        self.press(xy)
        self.release(xy)

    def double_click(self, xy) -> None:
        """As Qt and VTK report it: the second press is not one."""
        self.click(xy)
        self._event(xy, "LeftButtonDoubleClickEvent")
        self.release(xy)

    def drag(self, start, end, steps: int = 4) -> None:
        """Press at `start`, move in `steps` to `end`, release. What lies at `start` must be drawn already."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        self.render()  # a markup is found where it was last drawn
        self.enter(start)
        self.move(start)
        self.press(start)
        for step in range(1, steps + 1):
            self.move(start + (end - start) * step / steps)
        self.release(end)

    def _event(self, xy, name: str) -> None:
        self.interactor.SetEventInformation(int(round(float(xy[0]))), int(round(float(xy[1]))), 0, 0)
        self.interactor.InvokeEvent(name)

    # ---- ending

    def close(self) -> None:
        """Takes the view out of the application; the order avoids calls into what is gone."""
        if self.window is None:
            return
        self.managers.RemoveAllObservers()
        self.style.SetDisplayableManagers(None)
        self.style.SetInteractor(None)
        self.logic.SetDisplayableManagerGroup(None)
        self.managers.SetMRMLDisplayableNode(None)
        self.window.Finalize()
        self.window = None
