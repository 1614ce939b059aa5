"""A scene as Slicer has it, without the application: logics, volumes, segmentations, transforms.

Also for suites in other folders: `from mrml.scenes import SlicerScene`.
"""

from __future__ import annotations

import contextlib

import numpy as np

from SAMFineTuneLib.images.volume import Volume

_COLOURS = ((0.9, 0.2, 0.1), (0.1, 0.7, 0.2), (0.1, 0.3, 0.9))
_LOGICS = {
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Colors": "vtkMRMLColorLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
}


@contextlib.contextmanager
def quiet_vtk():
    """No complaints of VTK on the console: for what is known to complain."""
    import vtk

    before = vtk.vtkLogger.GetCurrentVerbosityCutoff()
    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
    try:
        yield
    finally:
        vtk.vtkLogger.SetStderrVerbosity(before)


class SlicerScene:
    """A fresh MRML scene with an application logic and the modules' logics, which it keeps alive."""

    def __init__(self):
        import slicer
        import vtk

        self.scene = slicer.vtkMRMLScene()
        self.application = slicer.vtkSlicerApplicationLogic()
        self.application.SetMRMLScene(self.scene)
        self.application.SetSliceLogics(vtk.vtkCollection())
        self.application.SetViewLogics(vtk.vtkCollection())
        self.logics = {}
        self._views = []
        with quiet_vtk():  # the terminologies' files come with the application only
            for name, class_name in _LOGICS.items():
                logic = getattr(slicer, class_name)()
                logic.SetMRMLApplicationLogic(self.application)
                logic.SetMRMLScene(self.scene)
                self.application.SetModuleLogic(name, logic)
                self.logics[name] = logic
        self.application.SetColorLogic(self.logics["Colors"])

    def close(self) -> None:
        for view in self._views:
            view.close()
        self._views.clear()
        self.scene.Clear(True)
        with quiet_vtk():
            for logic in self.logics.values():
                logic.SetMRMLScene(None)
            self.application.SetMRMLScene(None)

    # ---- nodes

    def add(self, class_name: str, name: str = ""):
        return self.scene.AddNewNodeByClass(class_name, name)

    def add_volume(self, volume: Volume, name: str = "volume", parent=None):
        """A scalar volume node of the volume's voxels and geometry, below transform node `parent`."""
        node = self.add("vtkMRMLScalarVolumeNode", name)
        node.SetAndObserveImageData(image_of(volume.array))
        node.SetIJKToRASMatrix(matrix_of(volume.affine))
        node.CreateDefaultDisplayNodes()
        if parent is not None:
            node.SetAndObserveTransformNodeID(parent.GetID())
        return node

    def add_transform(self, matrix: np.ndarray, name: str = "transform", parent=None):
        """A linear transform node to its parent (4×4)."""
        node = self.add("vtkMRMLLinearTransformNode", name)
        node.SetMatrixTransformToParent(matrix_of(matrix))
        if parent is not None:
            node.SetAndObserveTransformNodeID(parent.GetID())
        return node

    def add_segmentation(self, volume_node, names=("first", "second"), name: str = "segmentation"):
        """A segmentation with empty segments, whose IDs are their names, in the geometry of the volume node."""
        node = self.add("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        if volume_node is not None:
            node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
            node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        for number, segment in enumerate(names):  # colours said, or they are random, and now and then grey
            node.GetSegmentation().AddEmptySegment(segment, segment, _COLOURS[number % len(_COLOURS)])
        return node

    def add_editor(self, segmentation_node, volume_node):
        """(vtkSlicerSegmentEditorLogic, its vtkMRMLSegmentEditorNode) as the Segment Editor has them."""
        import slicer

        node = self.add("vtkMRMLSegmentEditorNode")
        logic = slicer.vtkSlicerSegmentEditorLogic()
        logic.SetMRMLScene(self.scene)
        logic.SetSegmentEditorNode(node)
        node.SetAndObserveSegmentationNode(segmentation_node)
        node.SetAndObserveSourceVolumeNode(volume_node)
        return logic, node

    def add_view(self, name: str = "Red", orientation: str = "Axial", size=(400, 400)):
        """A rendered `SliceView`, closed with the scene; skips the test where nothing can be rendered."""
        from mrml.views import SliceView

        view = SliceView(self, name, orientation, size)
        self._views.append(view)
        return view


def image_of(array: np.ndarray):
    """vtkImageData with a copy of array [k, j, i] as scalars."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape[::-1])
    array = array.astype(np.uint8) if array.dtype == bool else array
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(array).reshape(-1), deep=True))
    return image


def oriented_image_of(array: np.ndarray, affine: np.ndarray, start=(0, 0, 0)):
    """vtkOrientedImageData of array [k, j, i] whose first voxel has indices `start` (i, j, k)."""
    import slicer

    plain = image_of(array)
    image = slicer.vtkOrientedImageData()
    image.ShallowCopy(plain)
    ranges = [(int(first), int(first + n - 1)) for first, n in zip(start, array.shape[::-1], strict=True)]
    image.SetExtent(*[edge for ends in ranges for edge in ends])
    image.SetImageToWorldMatrix(matrix_of(affine))
    return image


def matrix_of(matrix: np.ndarray):
    """vtkMatrix4x4 of a 4×4 array."""
    import vtk

    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, float).reshape(-1).tolist())
    return result


def array_of(matrix) -> np.ndarray:
    """4×4 array of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def segment_voxels(segmentation_node, segment_id: str, volume: Volume) -> np.ndarray:
    """bool [k, j, i] over the volume's grid, which must be the labelmap's but for its extent: read from the node
    anew, by the labelmap's own extent, independently of the code under test."""
    from vtk.util.numpy_support import vtk_to_numpy

    voxels = np.zeros(volume.shape, bool)
    segment = segmentation_node.GetSegmentation().GetSegment(segment_id)
    image = segment.GetRepresentation("Binary labelmap")
    if image is None or image.IsEmpty() or image.GetPointData().GetScalars() is None:
        return voxels
    low, high = image.GetExtent()[::2], image.GetExtent()[1::2]
    labels = vtk_to_numpy(image.GetPointData().GetScalars())
    labels = labels.reshape([b - a + 1 for a, b in zip(low, high, strict=True)][::-1]) == segment.GetLabelValue()
    there, own = [], []
    for first, last, n in zip(low, high, volume.shape[::-1], strict=True):
        there.insert(0, slice(max(first, 0), min(last, n - 1) + 1))
        own.insert(0, slice(max(-first, 0), min(last, n - 1) + 1 - first))
    voxels[tuple(there)] = labels[tuple(own)]
    return voxels


def tilted_volume(shape=(7, 12, 10), spacing=(0.8, 1.1, 2.5), seed: int = 0) -> Volume:
    a, b, c = 0.3, -0.2, 0.45
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = x @ y @ z @ np.diag([-1, 1, 1]) * spacing
    affine[:3, 3] = (12.5, -31.0, 100.25)
    return Volume(np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16), affine)


def protect_others(editor_node) -> None:
    """Set a segment editor node so that painting a segment changes no other, as a new session starts. Slicer's own
    default erases what is painted over."""
    import slicer

    editor_node.SetMaskMode(slicer.vtkMRMLSegmentationNode.EditAllowedOutsideAllSegments)
    editor_node.SetOverwriteMode(slicer.vtkMRMLSegmentEditorNode.OverwriteNone)
