"""Draws slices.png and tutorial-*.png: the tutorial's first part, done by this script in views without a window.

    python docs/pictures/draw_slices.py

The phantom, Slicer's own slice views and markups, the session and the bundled model in its worker process are real; the
bars above the views and the 3-D view are drawn here.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "Testing")]

from mrml.scenes import SlicerScene, quiet_vtk  # noqa: E402

from SAMFineTuneLib.images import body_phantom  # noqa: E402
from SAMFineTuneLib.images.slice_extraction import extract_labels  # noqa: E402
from SAMFineTuneLib.mrml.scene_session import SceneSession  # noqa: E402
from SAMFineTuneLib.mrml.slice_views import plane_of_view  # noqa: E402
from SAMFineTuneLib.service.client import SessionClient  # noqa: E402
from SAMFineTuneLib.service.worker import LocalWorker  # noqa: E402

VIEWS = (("Red", "Axial", "#f34a33"), ("Yellow", "Sagittal", "#edd54c"), ("Green", "Coronal", "#6eb04b"))
THREE_D = ("1", "#7479a9")
WIDTH, HEIGHT, BAR, GAP = 420, 330, 20, 4  # pixels
FIELD = 330  # mm across
COLORS = {"right kidney": (0.73, 0.40, 0.16), "liver": (0.87, 0.51, 0.36), "left kidney": (0.90, 0.65, 0.20),
          "spleen": (0.62, 0.43, 0.65), "aorta": (0.85, 0.28, 0.25)}  # fmt: skip
PATIENCE = 120.0  # s


class Desk:
    """The scene, its views and the session."""

    def __init__(self):
        self.volume, self.labels, self.names = body_phantom()
        self.slicer = SlicerScene()
        self.views = [self.slicer.add_view(name, orientation, (WIDTH, HEIGHT)) for name, orientation, _ in VIEWS]
        node = self.slicer.add_volume(self.volume, "phantom")
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevel(400, 40)
        self.segmentation = self.slicer.add_segmentation(node, names=())
        for view in self.views:
            view.node.RotateToVolumePlane(node)
            view.show(node)
            view.node.SetFieldOfView(FIELD, FIELD * HEIGHT / WIDTH, 1)
            view.node.UpdateMatrices()
        self.session = SceneSession(self.slicer.scene, SessionClient(LocalWorker(), segments_are_steps=False))
        self.session.set_segmentation_node(self.segmentation)
        self.session.set_volume_node(node)

    def close(self) -> None:
        self.session.close()
        self.session.client.close()
        self.slicer.close()

    # ---- what the user does

    def add(self, organ: str) -> None:
        """A new segment, which prompts then go to."""
        self.segmentation.GetSegmentation().AddEmptySegment(organ, organ, COLORS[organ])
        self.session.current_segment_id = organ

    def click(self, organ: str, index: int | None = None) -> None:
        """A point in the middle of an organ in the red view, at the height of an axial slice of the volume."""
        plane, rows, columns = self._seen(organ, index)
        self.session.place("positive", self.views[0].node, plane.pixel_to_ras([(columns.mean(), rows.mean())]))
        self.work()

    def box(self, organ: str, index: int | None = None) -> None:
        """A box round an organ in the red view."""
        plane, rows, columns = self._seen(organ, index)
        corners = [(columns.min() - 1, rows.min() - 1), (columns.max() + 1, rows.max() + 1)]
        self.session.place("box", self.views[0].node, plane.pixel_to_ras(corners))
        self.work()

    def propagate(self, **settings) -> None:
        self.session.propagate(settings=settings)
        self.work()

    def _seen(self, organ: str, index: int | None):
        """(plane, rows, columns) of an organ in the red view, moved to a slice: by default where it is largest."""
        value = next(value for value, name in self.names.items() if name == organ)
        index = int((self.labels == value).sum(axis=(1, 2)).argmax()) if index is None else index
        rows, columns = (self.labels[index] == value).nonzero()
        self.look_at(self.volume.ijk_to_ras(np.array([columns.mean(), rows.mean(), index])))
        plane = plane_of_view(self.views[0].node, self.volume)
        return (plane, *(extract_labels(self.labels, self.volume, plane) == value).nonzero())

    def look_at(self, ras) -> None:
        for view in self.views:
            view.go_to(ras)

    def work(self) -> None:
        """Until the worker has had nothing to say for a while."""
        end, quiet_since = time.monotonic() + PATIENCE, time.monotonic()
        while time.monotonic() - quiet_since < 1.0:
            if self.session.pump() or self.session.client.status.state != "ready":
                quiet_since = time.monotonic()
            if time.monotonic() > end:
                raise SystemExit(f"The worker did not come to rest: {self.session.client.status}")
            time.sleep(0.01)

    # ---- what the user sees

    def picture(self) -> Image.Image:
        """The four views, two by two; without the handles of boxes, which would cover much of such small views."""
        for node in self.slicer.scene.GetNodesByClass("vtkMRMLMarkupsROINode"):
            node.GetDisplayNode().SetHandlesInteractive(False)
        panes = [pane(view.pixels()[::-1], name[0], color)
                 for view, (name, _, color) in zip(self.views, VIEWS, strict=True)]  # fmt: skip
        panes.insert(1, pane(self._surfaces(), *THREE_D))
        whole = Image.new("RGB", (2 * WIDTH + GAP, 2 * (HEIGHT + BAR) + GAP), "white")
        for number, each in enumerate(panes):
            whole.paste(each, (number % 2 * (WIDTH + GAP), number // 2 * (HEIGHT + BAR + GAP)))
        return whole

    def _surfaces(self) -> np.ndarray:
        """The segments as surfaces, seen from the front: uint8 [y, x, 3], the top row first."""
        import vtk
        from vtk.util.numpy_support import vtk_to_numpy

        self.segmentation.CreateClosedSurfaceRepresentation()
        renderer, window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
        renderer.SetBackground(0.7568, 0.7647, 0.9098)
        window.SetOffScreenRendering(1)
        window.SetMultiSamples(0)
        window.SetSize(WIDTH, HEIGHT)
        window.AddRenderer(renderer)
        segmentation = self.segmentation.GetSegmentation()
        for segment_id in segmentation.GetSegmentIDs():
            surface = vtk.vtkPolyData()
            self.segmentation.GetClosedSurfaceRepresentation(segment_id, surface)
            actor = vtk.vtkActor()
            actor.SetMapper(vtk.vtkPolyDataMapper())
            actor.GetMapper().SetInputData(surface)
            actor.GetMapper().ScalarVisibilityOff()
            actor.GetProperty().SetColor(segmentation.GetSegment(segment_id).GetColor())
            renderer.AddActor(actor)
        camera = renderer.GetActiveCamera()
        camera.SetPosition(120, 520, 120)
        camera.SetFocalPoint(0, 0, 0)
        camera.SetViewUp(0, 0, 1)
        camera.SetViewAngle(28)
        renderer.ResetCameraClippingRange()
        window.Render()
        reader = vtk.vtkWindowToImageFilter()
        reader.SetInput(window)
        reader.ReadFrontBufferOff()
        reader.Update()
        pixels = vtk_to_numpy(reader.GetOutput().GetPointData().GetScalars()).reshape(HEIGHT, WIDTH, 3)[::-1].copy()
        window.Finalize()
        self.segmentation.RemoveClosedSurfaceRepresentation()
        return pixels


def pane(pixels: np.ndarray, letter: str, color: str) -> Image.Image:
    """A view below its coloured bar."""
    whole = Image.new("RGB", (WIDTH, HEIGHT + BAR), color)
    whole.paste(Image.fromarray(np.ascontiguousarray(pixels)), (0, BAR))
    ImageDraw.Draw(whole).text((8, 2), letter, fill="black", font=ImageFont.load_default(13))
    return whole


def steps(desk: Desk):
    """(name of the picture, what leads to it) in the tutorial's order."""

    def first():
        desk.add("right kidney")
        desk.click("right kidney")

    def second():
        desk.propagate()

    def third():
        desk.add("liver")
        desk.box("liver", 16)

    def last():
        for index in (8, 24, 32, 38):
            desk.box("liver", index)
        desk.propagate(direction="fill")
        for organ, range_ in (("left kidney", (2, 22)), ("aorta", (0, 39)), ("spleen", (17, 33))):
            desk.add(organ)
            desk.box(organ, sum(range_) // 2)
            desk.propagate(first=range_[0], last=range_[1])
        desk.look_at(np.add(desk.session.prompts[0].prompt.ras, (0, 0, 18)))

    yield "tutorial-1", first
    yield "tutorial-2", second
    yield "tutorial-3", third
    yield "slices", last


def main() -> None:
    """Do every step, and save what is seen after it."""
    os.environ["SAMFINETUNE_HOME"] = tempfile.mkdtemp(prefix="pictures-")
    with quiet_vtk():
        desk = Desk()
        try:
            for name, step in steps(desk):
                step()
                save(desk.picture, HERE / f"{name}.png")
        finally:
            desk.close()


def save(draw: Callable[[], Image.Image], path: Path) -> None:
    draw().quantize(160, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
