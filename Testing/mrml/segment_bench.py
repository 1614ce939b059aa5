"""A small volume with segments and a writer, and what a user does to them, for the tests of segments."""

from __future__ import annotations

import numpy as np
from mrml.scenes import oriented_image_of, segment_voxels, tilted_volume

from SAMFineTuneLib.images.slice_extraction import covered_voxels
from SAMFineTuneLib.images.slice_plane import aligned_plane
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.segments.segment_writer import SegmentWriter
from SAMFineTuneLib.mrml.volume_nodes import volume_from_node

SHAPE = (7, 12, 10)
MASKS = (
    "EditAllowedEverywhere",
    "EditAllowedInsideAllSegments",
    "EditAllowedInsideVisibleSegments",
    "EditAllowedOutsideAllSegments",
    "EditAllowedOutsideVisibleSegments",
    "EditAllowedInsideSingleSegment",
)
OVERWRITES = ("OverwriteAllSegments", "OverwriteVisibleSegments", "OverwriteNone")


class Bench:
    """A small tilted volume with a segmentation and a writer."""

    def __init__(self, slicer_scene, names=("first", "second"), volume: Volume | None = None, parent=None):
        self.slicer_scene = slicer_scene
        self.volume_node = slicer_scene.add_volume(volume or tilted_volume(SHAPE), parent=parent)
        self.volume = volume_from_node(self.volume_node)
        self.node = slicer_scene.add_segmentation(self.volume_node, names)
        self.writer = SegmentWriter(self.node, self.volume_node, self.volume)

    @property
    def segmentation(self):
        return self.node.GetSegmentation()

    def draw(self, segment: str, voxels: np.ndarray, remove: bool = False) -> None:
        """As the user would with Paint: Slicer's own logic, everywhere allowed, others overwritten."""
        draw(self.slicer_scene, self.node, self.volume_node, segment, voxels, self.volume, remove)

    def voxels(self, segment: str) -> np.ndarray:
        return segment_voxels(self.node, segment, self.volume)

    def all(self) -> dict[str, np.ndarray]:
        return {segment: self.voxels(segment) for segment in self.segmentation.GetSegmentIDs()}

    def plane(self, orientation: str = "axial", index: int = 3):
        return aligned_plane(self.volume, orientation, index)

    def covered(self, plane, mask) -> np.ndarray:
        voxels = np.zeros(self.volume.shape, bool)
        voxels[tuple(covered_voxels(mask, plane, self.volume))] = True
        return voxels


def draw(slicer_scene, node, volume_node, segment, voxels, volume, remove=False) -> None:
    logic, editor = slicer_scene.add_editor(node, volume_node)
    editor.SetSelectedSegmentID(segment)
    affine = array_to_local(node, volume)
    image = oriented_image_of(voxels.astype(np.uint8), affine)
    mode = logic.ModificationModeRemove if remove else logic.ModificationModeAdd
    logic.ModifySegmentByLabelmap(node, segment, image, mode, True, False)
    slicer_scene.scene.RemoveNode(editor)


def array_to_local(node, volume: Volume) -> np.ndarray:
    """The volume's matrix in the coordinates of a segmentation node under the same transform."""
    import vtk

    to_world = vtk.vtkMatrix4x4()
    if node.GetParentTransformNode() is not None:
        node.GetParentTransformNode().GetMatrixTransformToWorld(to_world)
    world = np.array([[to_world.GetElement(r, c) for c in range(4)] for r in range(4)])
    return np.linalg.inv(world) @ volume.affine


def box(*ranges) -> np.ndarray:
    """bool [k, j, i], true in k0:k1, j0:j1, i0:i1."""
    voxels = np.zeros(SHAPE, bool)
    voxels[tuple(slice(a, b) for a, b in ranges)] = True
    return voxels


def random_mask(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < 0.5


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def drawn_bench(slicer_scene, separate: str = "") -> Bench:
    """Four segments: three side by side in one layer, one of which is hidden, and one in a layer of its own."""
    bench = Bench(slicer_scene, ("first", "second", "hidden", "apart"))
    bench.draw("first", box((2, 5), (0, 4), (0, 5)))
    bench.draw("second", box((2, 5), (4, 8), (0, 6)))
    bench.draw("hidden", box((2, 5), (8, 12), (0, 7)))
    bench.segmentation.SeparateSegmentLabelmap("apart")
    overlapping(bench, "apart", box((2, 5), (2, 10), (3, 9)))
    if separate:
        bench.segmentation.SeparateSegmentLabelmap(separate)
    bench.node.GetDisplayNode().SetSegmentVisibility("hidden", False)
    return bench


def overlapping(bench: Bench, segment: str, voxels: np.ndarray) -> None:
    logic, editor = bench.slicer_scene.add_editor(bench.node, bench.volume_node)
    editor.SetSelectedSegmentID(segment)
    editor.SetOverwriteMode(editor.OverwriteNone)
    image = oriented_image_of(voxels.astype(np.uint8), array_to_local(bench.node, bench.volume))
    logic.ModifySegmentByLabelmap(bench.node, segment, image, logic.ModificationModeAdd, True, False)
    bench.slicer_scene.scene.RemoveNode(editor)
