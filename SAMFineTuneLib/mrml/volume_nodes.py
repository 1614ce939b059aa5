"""Volume nodes as volumes: geometry in world RAS, and voxels as a view of the node's memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.scene_nodes import nodes_of

_HOUNSFIELD = ("hnsf'U", "[hnsf'U]")  # UCUM, as Slicer's DICOM reader stores it


def volume_from_node(node) -> Volume:
    """The volume of a vtkMRMLScalarVolumeNode where the user sees it, below all its linear parent transforms.

    The array is a view: call again when the node's voxels or transforms change. Raises UserError when there are
    no voxels, several values a voxel or several frames, no value that is a number, or when a parent transform is not
    linear.
    """
    require_volume(node)
    affine = world_matrix(node) @ own_affine(node)
    affine[3] = (0, 0, 0, 1)
    volume = Volume(_voxels(node, node.GetImageData()), affine, modality=_modality(node))
    if volume.array.dtype.kind == "f" and not any(np.isfinite(piece).any() for piece in volume.array):
        raise UserError(f"No voxel of “{node.GetName()}” holds a real number: choose another volume.")
    return volume


def require_volume(node) -> None:
    """Raise UserError unless the node has a volume for `volume_from_node`. Voxels are not read."""
    if node is None:
        raise UserError("No volume is selected: load one, or choose it in the Input section.")
    name = f"“{node.GetName()}”"
    if node.IsA("vtkMRMLSequenceNode") or node.IsA("vtkMRMLSequenceBrowserNode"):
        raise UserError(f"{name} is a sequence of images: choose one of its frames, which is a volume of its own.")
    if not node.IsA("vtkMRMLScalarVolumeNode"):
        raise UserError(f"{name} is not a scalar volume: choose an image with one value a voxel.")
    image = node.GetImageData()
    scalars = image.GetPointData().GetScalars() if image is not None else None
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        raise UserError(f"{name} holds no voxels: load its image again, or choose another volume.")
    components = scalars.GetNumberOfComponents()
    if components != 1:
        kind = "a colour or vector image, or one with several frames"
        raise UserError(f"{name} has {components} values a voxel ({kind}): choose a volume with one value a voxel.")
    require_linear(node)


def require_linear(node) -> None:
    """Raise UserError when a parent transform of the node is not linear."""
    parent = node.GetParentTransformNode()
    if parent is not None and not parent.IsTransformToWorldLinear():
        raise UserError(
            f"“{node.GetName()}” is below the non-linear transform “{parent.GetName()}”: harden the transform, or take "
            "the volume out of it."
        )


def files_of(node) -> list[Path]:
    """Files that a node was read from, or saved in last, as its storage nodes say."""
    stores = [node.GetNthStorageNode(number) for number in range(node.GetNumberOfStorageNodes())]
    names = [store.GetFullNameFromFileName() for store in stores if store is not None]
    names += [store.GetFullNameFromNthFileName(number) for store in stores if store is not None
              for number in range(store.GetNumberOfFileNames())]  # fmt: skip
    return [Path(name) for name in dict.fromkeys(names) if name]


def is_frame(node) -> bool:
    """Whether a node shows a frame of a sequence: browsing the sequence exchanges its voxels."""
    browsers = nodes_of(node.GetScene(), "vtkMRMLSequenceBrowserNode")
    return any(browser.IsProxyNodeID(node.GetID()) for browser in browsers)


def voxel_time(node) -> tuple:
    """The image data of a volume node and when it changed last: equal as long as the voxels are the same."""
    image = node.GetImageData()
    return image, None if image is None else image.GetMTime()


def displayed_window(node) -> IntensityWindow | None:
    """The window in which the slice views show the node; None without one."""
    display = node.GetDisplayNode() if node is not None else None
    if display is None or not hasattr(display, "GetWindowLevelMin"):
        return None
    low, high = display.GetWindowLevelMin(), display.GetWindowLevelMax()
    if not (np.isfinite([low, high]).all() and high > low):
        return None
    return IntensityWindow(float(low), float(high), "as displayed")


def world_matrix(node) -> np.ndarray:
    """4×4 from the node's own coordinates to world RAS; its parent transforms must be linear."""
    parent = node.GetParentTransformNode()
    return np.eye(4) if parent is None else filled_matrix(parent.GetMatrixTransformToWorld)


def own_affine(node) -> np.ndarray:
    """4×4 from array indices (i, j, k, 1) of a volume node to the node's own coordinates in mm, without its parent
    transforms."""
    return from_array(filled_matrix(node.GetIJKToRASMatrix), node.GetImageData().GetExtent()[::2])


def from_array(affine: np.ndarray, start) -> np.ndarray:
    """Turn a 4×4 from VTK's indices, which begin at `start` (i, j, k), into one from array indices from 0."""
    moved = affine.copy()
    moved[:3, 3] += affine[:3, :3] @ np.asarray(start, float)
    return moved


def filled_matrix(fill: Callable) -> np.ndarray:
    """float64 (4, 4) of the vtkMatrix4x4 that `fill(matrix)` fills."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    fill(matrix)
    return array_from_matrix(matrix)


def array_from_matrix(matrix) -> np.ndarray:
    """float64 (4, 4) of a vtkMatrix4x4."""
    import slicer

    return slicer.util.arrayFromVTKMatrix(matrix)


def _voxels(node, image) -> np.ndarray:
    """The voxels [k, j, i] without copying them."""
    from vtk.util.numpy_support import vtk_to_numpy

    try:
        values = vtk_to_numpy(image.GetPointData().GetScalars())
    except (TypeError, ValueError, AssertionError) as error:
        kind = image.GetScalarTypeAsString()
        name = node.GetName()
        raise UserError(f"“{name}” holds voxels of type {kind}, which are not numbers: cast it first.") from error
    return values.reshape(image.GetDimensions()[::-1])


def _modality(node) -> str:
    """The modality that the DICOM reader noted, such as "CT" or "MR"; "" when it is not known."""
    import slicer

    scene = node.GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene) if scene is not None else None
    noted = ""
    if hierarchy is not None:
        item = hierarchy.GetItemByDataNode(node)
        noted = hierarchy.GetItemAttribute(item, "DICOM.Modality") if item else ""
    if noted:
        return noted.upper()
    units = node.GetVoxelValueUnits()
    return "CT" if units is not None and units.GetCodeValue() in _HOUNSFIELD else ""
