"""A simulated user for the self test: clicks and boxes in Slicer's slice views, and the voxels that follow."""

import time

import numpy as np
import slicer

PATIENCE = 120.0  # s for anything that the worker does


class SimulatedUser:
    """Works on `volume` with the module, and fails `test`, a unittest.TestCase, when something expected does not
    happen.
    """

    def __init__(self, test):
        self.test = test
        self.step = ""  # what is being done
        self.volume = self.labels = None  # a phantom, and where its organs are [k, j, i]

    # ---- what is there

    @property
    def panel(self):
        widget = getattr(slicer.modules, "SAMFineTuneWidget", None)
        return widget.panel if widget is not None else None

    @property
    def session(self):
        return self.panel.host.session

    def voxels(self, segment_id=None, every=False):
        """bool [k, j, i] of a segment, the selected one by default, on the volume's grid."""
        from SAMFineTuneLib.errors import UserError
        from SAMFineTuneLib.mrml.segment_export import finished, labelmap_steps

        session = self.session
        if session.segmentation_node is None:
            return np.zeros(self.volume.shape, bool)
        ids = None if every else [segment_id or session.current_segment_id]
        try:
            return finished(labelmap_steps(session.segmentation_node, session.volume_node, ids)).labels > 0
        except UserError:
            return np.zeros(self.volume.shape, bool)

    def settled(self):
        """Whether the worker has answered everything, and all of it is shown."""
        return self.session is not None and self.session.state is not None and self.session.at_rest

    def middle_of(self, value):
        """RAS of a voxel of an organ, near its middle."""
        places = np.argwhere(self.labels == value)
        nearest = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
        return self.volume.ijk_to_ras(nearest[::-1])

    def box_round(self, value, plane):
        """Two RAS corners of the box round an organ on a plane."""
        places = np.argwhere((self.labels == value) & self.slab(plane))
        pixels = plane.ras_to_pixel(self.volume.ijk_to_ras(places[:, ::-1]))
        return plane.pixel_to_ras(pixels.min(axis=0) - 1), plane.pixel_to_ras(pixels.max(axis=0) + 1)

    def slab(self, plane):
        """bool [k, j, i]: the voxels of an aligned plane."""
        from SAMFineTuneLib.images.slice_plane import view_axes

        voxels = np.zeros(self.volume.shape, bool)
        axis = 2 - view_axes(self.volume, plane.orientation)[2]
        voxels[tuple(plane.index if n == axis else slice(None) for n in range(3))] = True
        return voxels

    def slices_of(self, voxels):
        return np.flatnonzero(voxels.any(axis=(1, 2)))

    def dice_on(self, plane, voxels, truth):
        slab = self.slab(plane)
        return dice_of(voxels & slab, truth & slab)

    def assert_covered(self, ras):
        k, j, i = np.round(self.volume.ras_to_ijk(ras)).astype(int)[::-1]
        self.test.assertTrue(self.voxels()[k, j, i], "the mask does not cover the clicked voxel")

    # ---- doing

    def say(self, text):
        self.step = text
        self.test.delayDisplay(text)

    def clear(self):
        self.panel.prompts.choose(None)
        self.panel.prompt_list.clear_all()
        self.wait(lambda: not self.voxels(every=True).any(), "nothing after clearing")

    def propagate(self, meanwhile=None):
        self.panel.propagate.propagate()
        self.wait(lambda: self.panel.host.jobs, "propagation to begin")
        if meanwhile is not None:
            meanwhile()
        self.wait(lambda: self.settled() and not self.panel.host.jobs, "propagation to end")

    def slice_node(self, name):
        return slicer.app.layoutManager().sliceWidget(name).mrmlSliceNode()

    def plane(self, name):
        from SAMFineTuneLib.mrml.slice_views import plane_of_view

        return plane_of_view(self.slice_node(name), self.volume)

    def go_to(self, name, ras):
        self.slice_node(name).JumpSliceByOffsetting(*[float(x) for x in ras])

    def xy_of(self, name, ras):
        import vtk

        matrix = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.slice_node(name).GetXYToRAS(), matrix)
        x, y = matrix.MultiplyPoint((*[float(part) for part in ras], 1.0))[:2]
        return int(round(x)), int(round(y))

    def mouse(self, name, event, xy):
        interactor = slicer.app.layoutManager().sliceWidget(name).sliceView().interactor()
        interactor.SetEventInformation(xy[0], xy[1], 0, 0)
        interactor.InvokeEvent(event)

    def click(self, name, ras, tool="positive"):
        """Click at a RAS point in a view, in Slicer's own place mode."""
        self.go_to(name, ras)
        if self.panel.prompts.tool != tool:
            self.panel.prompts.choose(tool)
        self.passing(0.05)
        xy = self.xy_of(name, ras)
        for event in ("EnterEvent", "MouseMoveEvent", "LeftButtonPressEvent", "LeftButtonReleaseEvent"):
            self.mouse(name, event, xy)
        self.passing(0.05)

    def drag_box(self, name, corner_a, corner_b):
        self.panel.prompts.choose("box")
        self.passing(0.05)
        start, end = self.xy_of(name, corner_a), self.xy_of(name, corner_b)
        middle = ((start[0] + end[0]) // 2, (start[1] + end[1]) // 2)
        self.mouse(name, "EnterEvent", start)
        self.mouse(name, "MouseMoveEvent", start)
        self.mouse(name, "LeftButtonPressEvent", start)
        for xy in (middle, end):
            self.mouse(name, "MouseMoveEvent", xy)
        self.mouse(name, "LeftButtonReleaseEvent", end)
        self.panel.prompts.choose(None)
        self.passing(0.05)

    # ---- time

    def passing(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            slicer.app.processEvents()
            time.sleep(0.001)

    def wait(self, condition, what):
        """Let Slicer run until a condition holds."""
        end = time.monotonic() + PATIENCE
        while not condition():
            slicer.app.processEvents()
            time.sleep(0.001)
            if time.monotonic() > end:
                self.test.fail(f"Waited in vain for {what}; the panel says {self.panel.status.messages}")


def dice_of(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())
