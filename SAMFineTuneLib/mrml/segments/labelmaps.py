"""A segmentation's binary labelmaps as arrays in one grid, and the closed surfaces that are made of them.

Slicer keeps segments that do not overlap in one shared labelmap, a layer, each with its own value. After every edit it
crops layers to what they hold and replaces their memory. Arrays are therefore fetched for each write and never kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume, same_grid
from SAMFineTuneLib.mrml.volume_nodes import filled_matrix, from_array, require_linear, world_matrix

BINARY, SURFACE = "Binary labelmap", "Closed surface"
_SAME = 1e-3  # voxels that two grids may be apart and still count as the same
_JOINT = "Joint smoothing"
_MANY = 10  # segments of a labelmap
_SPARE_PART, _LEAST_SPARE = 8, 4  # labelmaps grow by an eighth of the grid, or by four voxels


@dataclass(frozen=True)
class Grid:
    """The voxels in which a segmentation is edited: its reference geometry."""

    affine: np.ndarray  # 4×4: voxel i, j, k -> the segmentation node's own coordinates
    shape: tuple[int, int, int]  # k, j, i

    @classmethod
    def of(cls, segmentation_node, volume_node) -> Grid:
        """The segmentation's reference geometry; when it has none yet, it becomes the volume's, as in Slicer.

        Raises UserError when the segmentation cannot be edited as binary labelmaps.
        """
        import slicer

        segmentation = segmentation_node.GetSegmentation()
        name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        if not segmentation.GetConversionParameter(name):
            segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)
        image = slicer.vtkOrientedImageData()
        text = segmentation.GetConversionParameter(name)
        read = bool(text) and slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False)
        if not read or min(image.GetDimensions()) < 1:
            raise UserError(
                f"“{segmentation_node.GetName()}” has no voxel grid: choose its source geometry in the Segment Editor, "
                "or another segmentation."
            )
        return cls(image_affine(image), image.GetDimensions()[::-1])

    def same_as(self, other: Grid) -> bool:
        """Whether another grid has the same voxels, up to rounding."""
        return self.shape == other.shape and np.allclose(self.affine, other.affine)

    def volume(self, segmentation_node) -> Volume:
        """The grid in world RAS, as a volume without values."""
        affine = world_matrix(segmentation_node) @ self.affine
        affine[3] = (0, 0, 0, 1)
        return Volume(np.broadcast_to(np.uint8(0), self.shape), affine)

    def to_dict(self) -> dict:
        """The grid as stored in a scene's record."""
        return {"matrix": self.affine.tolist(), "start": [0, 0, 0], "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: dict) -> Grid:
        """`start` is the index that earlier versions gave the first voxel."""
        matrix = np.array(values["matrix"], float).reshape(4, 4)
        return cls(from_array(matrix, values["start"]), tuple(map(int, values["shape"])))


def set_up_on(segmentation_node, volume_node) -> None:
    """Give a new segmentation node the geometry and transform of a volume, and a display."""
    segmentation_node.CreateDefaultDisplayNodes()
    # The transform comes first, because the geometry is relative to it.
    segmentation_node.SetAndObserveTransformNodeID(volume_node.GetTransformNodeID())
    segmentation_node.SetReferenceImageGeometryParameterFromVolumeNode(volume_node)


def require_editable(segmentation_node) -> None:
    """Raise UserError unless the segmentation is edited as binary labelmaps and its transforms are linear."""
    if segmentation_node is None or segmentation_node.GetSegmentation() is None:
        raise UserError("No segmentation is selected: choose one, or add one in the Segments section.")
    segmentation = segmentation_node.GetSegmentation()
    if segmentation.GetSourceRepresentationName() != BINARY:
        if segmentation.GetNumberOfSegments():
            raise UserError(
                f"“{segmentation_node.GetName()}” stores its segments as {segmentation.GetSourceRepresentationName()}: "
                "make Binary labelmap their source representation in the Segmentations module, or choose another one."
            )
        segmentation.SetSourceRepresentationName(BINARY)  # an empty segmentation has nothing to lose
    require_linear(segmentation_node)


class Layer:
    """One labelmap and the segments in it."""

    def __init__(self, image, grid: Grid, has_surfaces: bool):
        self.image = image
        self.grid = grid
        self._has_surfaces = has_surfaces
        self.labels: dict[str, int] = {}  # segment -> its value
        self._segments: list = []

    def add(self, segment_id: str, segment) -> None:
        """Add a segment that shares the labelmap."""
        self.labels[segment_id] = segment.GetLabelValue()
        self._segments.append(segment)

    @cached_property
    def start(self) -> np.ndarray | None:
        """Array index (i, j, k), which may be negative, of the grid's first voxel; None when the labelmap has other
        voxels than the grid. Then it is resampled when it is written."""
        return first_voxel(self.image, self.grid.affine, self.grid.shape)

    def values(self, places: np.ndarray) -> np.ndarray:
        """Labels (N,) at grid voxels (3, N), given as k, j, i; 0 outside the labelmap."""
        if has_no_voxels(self.image):
            return np.zeros(places.shape[1], np.uint8)
        array = image_array(self.image)
        there = self._positions(places)
        inside = ((there >= 0) & (there < np.array(array.shape)[:, None])).all(axis=0)
        values = np.zeros(places.shape[1], array.dtype)
        values[inside] = array[tuple(there[:, inside])]
        return values

    def put(self, places: np.ndarray, value: int) -> None:
        """Set grid voxels (3, N) to a value; call `make_room` first."""
        if places.size:
            image_array(self.image)[tuple(self._positions(places))] = value

    def _positions(self, places: np.ndarray) -> np.ndarray:
        """Positions in the array (3, N) of grid voxels (3, N), both as k, j, i."""
        if self.start is not None:
            return places + self.start[::-1, None]
        between = np.linalg.inv(image_affine(self.image)) @ self.grid.affine
        return np.floor(between[:3, :3] @ places[::-1] + between[:3, 3:] + 0.5).astype(np.intp)[::-1]

    def make_room(self, places: np.ndarray) -> None:
        """Make the labelmap large enough for grid voxels (3, N), with some to spare, and for its segments' values.

        It does not grow to the whole grid at once, because views draw all of it, and Slicer's undo and files copy all
        of it. Where there are closed surfaces, the segments get a new labelmap with the old content: if the old one
        got another extent, the segmentation would drop the surfaces.
        """
        old = self._on_grids_lattice()
        size = np.array(self.grid.shape[::-1])
        spare = np.maximum(_LEAST_SPARE, size // _SPARE_PART)
        need = np.stack([places.min(axis=1), places.max(axis=1)])[:, ::-1]  # first and last i, j, k on the grid
        roomy = np.clip(need + np.array([[-1], [1]]) * spare, 0, size - 1)
        start = first_voxel(old, self.grid.affine, self.grid.shape)
        now = np.stack([-start, np.array(old.GetDimensions()) - 1 - start])
        largest = max(self.labels.values())
        if has_no_voxels(old):
            extent, dtype = roomy, _smallest_type(largest)
        else:
            beyond = np.stack([need[0] < now[0], need[1] > now[1]])
            extent, dtype = np.where(beyond, roomy, now), image_array(old).dtype
            if old.GetScalarTypeMax() < largest:
                dtype = _smallest_type(largest)
            elif not beyond.any() and old is self.image:
                return
        image = new_labelmap(old, extent + start + np.array(old.GetExtent()[::2]), dtype)
        if not has_no_voxels(old):
            low, high = (now - extent[0])[:, ::-1]
            image_array(image)[tuple(map(slice, low, high + 1))] = image_array(old)
        if self._has_surfaces or len(self._segments) < _MANY:
            for segment in self._segments:
                segment.AddRepresentation(BINARY, image)
            self.image = image
        else:  # views and other modules hear of it at once, but once instead of for each of hundreds of segments
            self.image.ShallowCopy(image)
        self.start = first_voxel(self.image, self.grid.affine, self.grid.shape)

    def _on_grids_lattice(self):
        """The labelmap, resampled when its voxels are not the grid's, as Slicer does when it edits one."""
        import slicer

        if has_no_voxels(self.image):
            return geometry(self.grid.affine, (0, 0, 0))
        if self.start is not None:
            return self.image
        reference = geometry(self.grid.affine, self.grid.shape)
        resampled = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            self.image, reference, resampled, False, True
        )
        return resampled

    def written(self) -> None:
        """Have views draw the voxels at the next render. `image.Modified()` would drop the closed surfaces."""
        self.image.GetPointData().GetScalars().Modified()


def layers_of(segmentation, grid: Grid) -> dict[str, Layer]:
    """The labelmap of each segment, by segment ID; segments that share a labelmap have the same layer."""
    import slicer

    layers: dict[str, Layer] = {}
    by_image: dict[object, Layer] = {}
    has_surfaces = segmentation.ContainsRepresentation(SURFACE)
    for segment_id in segmentation.GetSegmentIDs():
        segment = segmentation.GetSegment(segment_id)
        image = segment.GetRepresentation(BINARY)
        if image is None:
            image = slicer.vtkOrientedImageData()
            segment.AddRepresentation(BINARY, image)
        layers[segment_id] = by_image.setdefault(image, Layer(image, grid, has_surfaces))
        layers[segment_id].add(segment_id, segment)
    return layers


def image_affine(image) -> np.ndarray:
    """4×4 from array indices (i, j, k, 1) of a labelmap to the segmentation's coordinates."""
    return from_array(filled_matrix(image.GetImageToWorldMatrix), image.GetExtent()[::2])


def first_voxel(image, affine: np.ndarray, shape: tuple[int, int, int], tolerance: float = _SAME) -> np.ndarray | None:
    """Find the first voxel of a grid in a labelmap.

    Args:
        image: the labelmap.
        affine: of the grid, from (i, j, k, 1) to mm.
        shape: slices, rows, columns of the grid.
        tolerance: in voxels.

    Returns:
        Array index (i, j, k), which may be negative, of the grid's first voxel; None when their voxels lie further
        apart anywhere in the grid than `tolerance`.
    """
    between = np.linalg.inv(image_affine(image)) @ affine
    first = np.round(between[:3, 3])
    moved = np.eye(4)
    moved[:3, 3] = first
    return first.astype(np.intp) if same_grid(between, moved, shape, tolerance) else None


def _smallest_type(largest: int) -> np.dtype:
    """The type that Slicer gives a labelmap with this largest value: unsigned bytes if possible, else signed."""
    return np.dtype(np.uint8 if largest <= 255 else np.int16 if largest <= 32767 else np.int32)


def has_no_voxels(image) -> bool:
    """Whether a labelmap is empty, or was never filled."""
    return image.IsEmpty() or image.GetPointData().GetScalars() is None


def is_empty(segment) -> bool:
    """Whether a segment's labelmap holds no voxel of it."""
    image = segment.GetRepresentation(BINARY)
    return image is None or has_no_voxels(image) or not (image_array(image) == segment.GetLabelValue()).any()


def image_array(image) -> np.ndarray:
    """[k, j, i] view of a labelmap's memory as it is now."""
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def geometry(affine: np.ndarray, shape: tuple[int, int, int]):
    """A labelmap without memory: where the voxels of a grid of `shape` (k, j, i) lie."""
    import slicer

    image = slicer.vtkOrientedImageData()
    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(affine))
    image.SetDimensions(*shape[::-1])
    return image


def new_labelmap(like, extent: np.ndarray, dtype: np.dtype):
    """A labelmap filled with 0.

    Args:
        like: the labelmap whose voxels it has.
        extent: (2, 3), first and last (i, j, k).
        dtype: of its values.
    """
    import slicer
    from vtk.util.numpy_support import get_vtk_array_type

    image = slicer.vtkOrientedImageData()
    image.CopyDirections(like)
    image.SetSpacing(like.GetSpacing())
    image.SetOrigin(like.GetOrigin())
    image.SetExtent(*extent.T.reshape(-1).tolist())
    image.AllocateScalars(get_vtk_array_type(dtype), 1)
    image_array(image)[...] = 0
    return image


# ---- closed surfaces


def refresh_surface(segmentation, grid: Grid, segment_id: str) -> set[str]:
    """Rebuild the surface of a segment, and with joint smoothing also those of segments that share its labelmap,
    because their surfaces depend on each other. Returns the segments whose surfaces were rebuilt.

    Slicer converts with the segmentation's settings. Converting within the segmentation would rebuild all segments over
    the whole grid; here a copy of the part that the segments fill is converted in a temporary segmentation.
    """
    import slicer
    import vtk

    layer = layers_of(segmentation, grid)[segment_id]
    joint = float(segmentation.GetConversionParameter(_JOINT) or 0) > 0
    members = set(layer.labels) if joint else {segment_id}
    workshop = slicer.vtkSegmentation()
    workshop.SetSourceRepresentationName(BINARY)
    workshop.CopyConversionParameters(segmentation)
    part = _filled_part(layer.image)
    for member in members if part is not None else ():
        segment = slicer.vtkSegment()
        segment.SetLabelValue(layer.labels[member])
        segment.AddRepresentation(BINARY, part)
        workshop.AddSegment(segment, member)
    made = part is not None and workshop.CreateRepresentation(SURFACE)
    for member in members:
        surface = workshop.GetSegment(member).GetRepresentation(SURFACE) if made else vtk.vtkPolyData()
        segmentation.GetSegment(member).AddRepresentation(SURFACE, surface)
        segmentation.InvokeEvent(segmentation.RepresentationModified, member)
    return members


def _filled_part(image):
    """A copy of a labelmap around its non-zero voxels; None when it has none."""
    import slicer

    extent = [0] * 6
    resample = slicer.vtkOrientedImageDataResample
    if has_no_voxels(image) or not resample.CalculateEffectiveExtent(image, extent):
        return None
    part = slicer.vtkOrientedImageData()
    resample.CopyImage(image, part, extent)
    return part
