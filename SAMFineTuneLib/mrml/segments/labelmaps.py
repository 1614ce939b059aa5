"""A segmentation's binary labelmaps as arrays in one grid.

Slicer keeps segments that do not overlap in one shared labelmap, a layer, each with its own value. After every edit it
crops layers to what they hold and replaces their memory. Arrays are therefore fetched for each write and never kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.mrml.volume_nodes import filled_matrix, from_array, require_linear, world_matrix

BINARY, SURFACE = "Binary labelmap", "Closed surface"
_SAME = 1e-3  # voxels that two grids may be apart and still count as the same
_SPARE_PART, _LEAST_SPARE = 8, 4  # labelmaps grow by an eighth of the grid, or by four voxels


@dataclass(frozen=True)
class Grid:
    """The voxels in which a segmentation is edited: its reference geometry."""

    matrix: np.ndarray  # 4×4: labelmap index i, j, k -> the segmentation node's own coordinates
    start: tuple[int, int, int]  # labelmap index i, j, k of the grid's first voxel
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
        low, high = _extent(image)
        if not read or (high < low).any():
            raise UserError(
                f"“{segmentation_node.GetName()}” has no voxel grid: choose its source geometry in the Segment Editor, "
                "or another segmentation."
            )
        shape = tuple(int(n) for n in (high - low + 1)[::-1])
        return cls(filled_matrix(image.GetImageToWorldMatrix), tuple(int(n) for n in low), shape)

    def same_as(self, other: Grid) -> bool:
        return self.start == other.start and self.shape == other.shape and np.allclose(self.matrix, other.matrix)

    def volume(self, segmentation_node) -> Volume:
        """The grid in world RAS, as a volume without values."""
        affine = from_array(world_matrix(segmentation_node) @ self.matrix, self.start)
        affine[3] = (0, 0, 0, 1)
        return Volume(np.broadcast_to(np.uint8(0), self.shape), affine)

    def to_dict(self) -> dict:
        return {"matrix": self.matrix.tolist(), "start": list(self.start), "shape": list(self.shape)}

    @classmethod
    def from_dict(cls, values: dict) -> Grid:
        matrix = np.array(values["matrix"], float).reshape(4, 4)
        return cls(matrix, tuple(map(int, values["start"])), tuple(map(int, values["shape"])))


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
        segmentation.SetSourceRepresentationName(BINARY)  # there is nothing to lose
    require_linear(segmentation_node)


class Layer:
    """One labelmap and the segments in it."""

    def __init__(self, image, grid: Grid):
        self.image = image
        self.grid = grid
        self.labels: dict[str, int] = {}  # segment -> its value
        self._segments: list = []
        self._first = _first_voxel(image, grid)

    def add(self, segment_id: str, segment) -> None:
        self.labels[segment_id] = segment.GetLabelValue()
        self._segments.append(segment)

    @property
    def empty(self) -> bool:
        return _is_empty(self.image)

    @property
    def on_lattice(self) -> bool:
        """Whether its voxels are the grid's; others are resampled when they are written."""
        return self._first is not None

    def array(self) -> np.ndarray:
        """[k, j, i] view of the labelmap as it is now."""
        return image_array(self.image)

    def values(self, places: np.ndarray) -> np.ndarray:
        """Labels (N,) at grid voxels (3, N), given as k, j, i; 0 outside the labelmap."""
        if self.empty:
            return np.zeros(places.shape[1], np.uint8)
        array = self.array()
        there = self._positions(places)
        lengths = np.array(array.shape)[:, None]
        inside = ((there >= 0) & (there < lengths)).all(axis=0)
        if inside.all():
            return array[tuple(there)]
        values = np.zeros(places.shape[1], array.dtype)
        values[inside] = array[tuple(there[:, inside])]
        return values

    def put(self, places: np.ndarray, value: int) -> None:
        """Set grid voxels (3, N) to a value; call `make_room` first."""
        self.array()[tuple(self._positions(places))] = value

    def _positions(self, places: np.ndarray) -> np.ndarray:
        """Positions in the array (3, N) of grid voxels (3, N), both as k, j, i."""
        low, _ = _extent(self.image)
        if self._first is not None:
            return places + (self._first - low)[::-1, None]
        between = np.linalg.inv(filled_matrix(self.image.GetImageToWorldMatrix)) @ self.grid.matrix
        ijk = places[::-1] + np.array(self.grid.start)[:, None]
        ijk = between[:3, :3] @ ijk + between[:3, 3:]
        return (np.floor(ijk + 0.5).astype(np.intp) - low[:, None])[::-1]

    def make_room(self, places: np.ndarray) -> None:
        """Make the labelmap large enough for grid voxels (3, N), with some to spare, and for its segments' values.

        It does not grow to the whole grid at once, because views draw all of it, and Slicer's undo and files copy all
        of it. The segments get a new labelmap with the old content: if the old one got another extent, the
        segmentation would drop the closed surfaces.
        """
        image = self._on_grids_lattice()
        first = _first_voxel(image, self.grid)
        dtype = _smallest_type(max(self.labels.values(), default=1))
        need = first + places.min(axis=1)[::-1], first + places.max(axis=1)[::-1]
        last = first + np.array(self.grid.shape[::-1]) - 1
        spare = np.maximum(_LEAST_SPARE, np.array(self.grid.shape[::-1]) // _SPARE_PART)
        roomy = np.maximum(need[0] - spare, first), np.minimum(need[1] + spare, last)
        if _is_empty(image):
            self._exchange(image, *roomy, dtype)
            return
        held = image.GetPointData().GetScalars().GetDataTypeMax()
        old_low, old_high = _extent(image)
        fits = (old_low <= need[0]).all() and (old_high >= need[1]).all()
        if fits and held >= np.iinfo(dtype).max and image is self.image:
            return
        low = np.where(need[0] < old_low, roomy[0], old_low)
        high = np.where(need[1] > old_high, roomy[1], old_high)
        self._exchange(image, low, high, image_array(image).dtype if held >= np.iinfo(dtype).max else dtype)

    def _exchange(self, old, low: np.ndarray, high: np.ndarray, dtype: np.dtype) -> None:
        """Replace the segments' labelmap by one of extent `low` to `high` (i, j, k) with the content of `old`."""
        image = new_labelmap(old, low, high, dtype)
        if not _is_empty(old):
            ends = zip(*((edge - low)[::-1] for edge in _extent(old)), strict=True)
            image_array(image)[tuple(slice(a, b + 1) for a, b in ends)] = image_array(old)
        for segment in self._segments:
            segment.AddRepresentation(BINARY, image)
        self.image, self._first = image, _first_voxel(image, self.grid)

    def _on_grids_lattice(self):
        """The labelmap, resampled when its voxels are not the grid's, as Slicer does when it edits one."""
        import slicer

        if self._first is not None and not self.empty:
            return self.image
        reference = slicer.vtkOrientedImageData()
        _set_geometry(reference, self.grid)
        if self.empty:
            reference.SetExtent(0, -1, 0, -1, 0, -1)
            return reference
        resampled = slicer.vtkOrientedImageData()
        slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
            self.image, reference, resampled, False, True
        )
        return resampled

    def written(self) -> None:
        """Have views draw the voxels at the next render. `image.Modified()` would drop the closed surfaces."""
        self.image.GetPointData().GetScalars().Modified()


class Layers:
    """All labelmaps of a segmentation, as they are now."""

    def __init__(self, segmentation, grid: Grid):
        self.layers: list[Layer] = []
        self.of: dict[str, Layer] = {}
        by_image: dict[str, Layer] = {}
        for index in range(segmentation.GetNumberOfSegments()):
            segment_id = segmentation.GetNthSegmentID(index)
            segment = segmentation.GetNthSegment(index)
            image = segment.GetRepresentation(BINARY) or _empty_labelmap(segment, grid)
            key = image.GetAddressAsString("")
            if key not in by_image:
                by_image[key] = Layer(image, grid)
                self.layers.append(by_image[key])
            by_image[key].add(segment_id, segment)
            self.of[segment_id] = by_image[key]

    def together(self, segment_id: str) -> tuple[str, ...]:
        """The segments in the same labelmap, including this one."""
        return tuple(self.of[segment_id].labels) if segment_id in self.of else ()


def _empty_labelmap(segment, grid: Grid):
    import slicer

    image = slicer.vtkOrientedImageData()
    segment.AddRepresentation(BINARY, image)
    return image


def _set_geometry(image, grid: Grid) -> None:
    import slicer

    image.SetImageToWorldMatrix(slicer.util.vtkMatrixFromArray(grid.matrix))
    high = np.array(grid.start) + np.array(grid.shape[::-1]) - 1
    _set_extent(image, grid.start, high)


def _extent(image) -> tuple[np.ndarray, np.ndarray]:
    """First and last index (i, j, k) of a labelmap."""
    extent = image.GetExtent()
    return np.array(extent[::2]), np.array(extent[1::2])


def _first_voxel(image, grid: Grid) -> np.ndarray | None:
    """Labelmap index (i, j, k) of the grid's first voxel; None when the voxels of the two do not coincide."""
    between = np.linalg.inv(filled_matrix(image.GetImageToWorldMatrix)) @ grid.matrix
    offset = between[:3, 3] + between[:3, :3] @ np.array(grid.start)
    first = np.round(offset)
    drift = np.abs(between[:3, :3] - np.eye(3)) @ np.array(grid.shape[::-1])
    if (drift > _SAME).any() or (np.abs(offset - first) > _SAME).any():
        return None
    return first.astype(np.intp)


def _smallest_type(largest: int) -> np.dtype:
    """The type that Slicer gives a labelmap with this largest value: unsigned bytes if possible, else signed."""
    return np.dtype(np.uint8 if largest <= 255 else np.int16 if largest <= 32767 else np.int32)


def _is_empty(image) -> bool:
    low, high = _extent(image)
    return bool((low > high).any()) or image.GetPointData().GetScalars() is None


def is_empty(segment) -> bool:
    """Whether a segment's labelmap holds no voxel of it."""
    image = segment.GetRepresentation(BINARY)
    return image is None or _is_empty(image) or not (image_array(image) == segment.GetLabelValue()).any()


def image_array(image) -> np.ndarray:
    """[k, j, i] view of a labelmap's memory."""
    from vtk.util.numpy_support import vtk_to_numpy

    return vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])


def new_labelmap(like, low, high, dtype: np.dtype):
    """A labelmap of 0 with the voxels of another one and an extent from `low` to `high` (i, j, k)."""
    import slicer
    from vtk.util.numpy_support import get_vtk_array_type

    image = slicer.vtkOrientedImageData()
    image.CopyDirections(like)
    image.SetSpacing(like.GetSpacing())
    image.SetOrigin(like.GetOrigin())
    _set_extent(image, low, high)
    image.AllocateScalars(get_vtk_array_type(dtype), 1)
    image_array(image)[...] = 0
    return image


def _set_extent(image, low, high) -> None:
    image.SetExtent(*[int(edge) for ends in zip(low, high, strict=True) for edge in ends])
