"""What the panel's timer does for a session on a scene, and workers for it: one in this process, and real ones."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from mrml.scenes import matrix_of

from SAMFineTuneLib.images.slice_plane import aligned_plane

TOKEN = "a token for tests"


class SceneHost:
    """Pumps a `SceneSession` until a condition holds, and keeps the events."""

    def __init__(self, session):
        self.session = session
        self.told: list = []
        self.longest = 0.0

    def pump(self) -> list:
        begun = time.thread_time()  # of the processor: a busy machine does not make it longer
        new = self.session.pump()
        self.longest = max(self.longest, time.thread_time() - begun)
        self.told += new
        return new

    def until(self, wanted: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not wanted():
            assert time.monotonic() < end, f"in vain: {self.told[-5:]}, {self.session.client.status}"
            self.pump()
            time.sleep(0.001)

    def until_told(self, kind: type, seconds: float = 60.0, **values):
        """Pump until a new event of a kind with these values comes; returns it."""
        seen = len(self.told)

        def found():
            return [
                event
                for event in self.told[seen:]
                if isinstance(event, kind) and all(getattr(event, name) == value for name, value in values.items())
            ]

        self.until(lambda: bool(found()), seconds)
        return found()[0]

    def settle(self, seconds: float = 60.0) -> None:
        """Until nodes, session, segments and the stored document say the same."""
        self.until(lambda: self.session.at_rest, seconds)

    def texts(self, kind: type) -> list[str]:
        return [event.text for event in self.told if isinstance(event, kind)]


def in_process_worker():
    """(server application, connection) with the region engine; close the application at the end."""
    from in_process import InProcess
    from region_engine import RegionEngine

    from SAMFineTuneLib.errors import UserError
    from SAMFineTuneLib.service.open_models import Engines
    from SAMFineTuneLib.service.protocol import Limits
    from SAMFineTuneLib.service.server_app import ServerApp

    class RegionEngines(Engines):
        def _load(self, model, adapter, device):
            if model not in ("compact", "region"):
                raise UserError(f"There is no model {model!r}.")
            return RegionEngine()

    app = ServerApp(TOKEN, Limits(sessions=100), RegionEngines())  # tests lose sessions, which live on for a while
    return app, InProcess(app, TOKEN)


def held_voxels(session, segment_id: str) -> np.ndarray:
    """bool [k, j, i] of what a segment holds, read from the node."""
    from mrml.scenes import segment_voxels

    return segment_voxels(session.segmentation_node, segment_id, session.volume)


def slice_node(slicer_scene, volume, orientation, index, name="Red"):
    import slicer

    node = slicer.vtkMRMLSliceNode()
    node.SetName(name)
    node.SetLayoutName(name)
    node = slicer_scene.scene.AddNode(node)
    turn_to(node, aligned_plane(volume, orientation, index))
    return node


def turn_to(node, plane):
    matrix = np.eye(4)
    matrix[:3, 0], matrix[:3, 1] = plane.right, -plane.down
    matrix[:3, 2] = np.cross(matrix[:3, 0], matrix[:3, 1])
    matrix[:3, 3] = plane.pixel_to_ras((np.array(plane.shape[::-1]) - 1) / 2)
    node.GetSliceToRAS().DeepCopy(matrix_of(matrix))
    node.UpdateMatrices()


def ras(volume, i, j, k):
    return tuple(volume.ijk_to_ras((i, j, k)))


def tube(k):
    """A voxel in the middle of the phantom's leaning tube."""
    return round(14 + 0.3 * k), 16, k


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)
