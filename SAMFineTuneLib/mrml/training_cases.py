"""Takes cases for a training from the scene: volumes with the segmentations drawn on them.

Exported cases have numbers instead of names. Arrays are views of the nodes' memory, so nothing is copied or resampled
here; the training process does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from SAMFineTuneLib.cases.exported_cases import ExportedCase, LabelLayer
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import is_sheared
from SAMFineTuneLib.mrml.segments.labelmaps import BINARY, SURFACE, image_affine, image_array
from SAMFineTuneLib.mrml.volume_nodes import require_linear, volume_from_node, world_matrix


@dataclass(frozen=True, eq=False)
class SceneCase:
    """A volume node and a segmentation node, with the names of its segments. `problem` says why the case cannot be
    used, and is empty when it can."""

    volume_node: object
    segmentation_node: object
    names: tuple[str, ...]
    problem: str = ""

    @property
    def title(self) -> str:
        """The names of both nodes, for the panel."""
        return f"{self.volume_node.GetName()} – {self.segmentation_node.GetName()}"


def scene_cases(scene) -> list[SceneCase]:
    """All segmentations that are not empty, with the volumes that they were drawn on. Voxels are not read."""
    cases = []
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLSegmentationNode")
        volume_node = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
        names = tuple(dict.fromkeys(segment.GetName() for segment in _segments(node) if not _is_empty(segment)))
        if node.GetHideFromEditors() or volume_node is None or not names:
            continue
        cases.append(SceneCase(volume_node, node, names, _problem(volume_node, node)))
    return cases


def export_of(cases: Sequence[SceneCase], names: Sequence[str] | None = None) -> list[ExportedCase]:
    """Cases in the form a training needs, with segments of these names, or all. Raises UserError for an unfit case."""
    patients: dict[str, str] = {}
    exported = []
    for number, case in enumerate(cases, start=1):
        if case.problem:
            raise UserError(case.problem)
        patient = patient_of(case.volume_node) or f"volume {case.volume_node.GetID()}"
        patients.setdefault(patient, str(len(patients) + 1))
        image = volume_from_node(case.volume_node)
        layers = tuple(_layers(case.segmentation_node, names))
        exported.append(ExportedCase(str(number), patients[patient], image, layers))
    return exported


def are_all_ct(cases: Sequence[SceneCase]) -> bool:
    """Whether every volume is a CT, which the exported files do not say."""
    return bool(cases) and all(volume_from_node(case.volume_node).modality == "CT" for case in cases)


def patient_of(volume_node) -> str:
    """The patient's DICOM number, "" when it is not known. It serves comparisons and never enters files."""
    import slicer

    scene = volume_node.GetScene()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.GetItemByDataNode(volume_node) if hierarchy is not None else 0
    patient = hierarchy.GetItemAncestorAtLevel(item, "Patient") if item else 0
    number = hierarchy.GetItemUID(patient, "DICOM") if patient else ""
    return number or _patient_in_database(volume_node)


def _patient_in_database(volume_node) -> str:
    import slicer

    instances = (volume_node.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if not instances or database is None or not database.isOpen:
        return ""
    return str(database.instanceValue(instances[0], "0010,0020") or "").strip()


def _problem(volume_node, segmentation_node) -> str:
    try:
        affine = volume_from_node(volume_node).affine
        require_linear(segmentation_node)
    except UserError as error:
        return str(error)
    if is_sheared(affine):
        return f"“{volume_node.GetName()}” is sheared by the transform it is under: harden the transform first."
    segmentation = segmentation_node.GetSegmentation()
    if not segmentation.ContainsRepresentation(BINARY):
        return (
            f"“{segmentation_node.GetName()}” has no label maps, only {segmentation.GetSourceRepresentationName()}: "
            "create Binary labelmap in the Segmentations module first."
        )
    return ""


def _segments(node) -> list:
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(index) for index in range(segmentation.GetNumberOfSegments())]


def _is_empty(segment) -> bool:
    """Whether a segment is empty, judged by its labelmap's extent; a segment with a closed surface is not."""
    image = segment.GetRepresentation(BINARY)
    if image is not None:
        return image.IsEmpty()
    return segment.GetRepresentation(SURFACE) is None


def _layers(node, names: Sequence[str] | None) -> list[LabelLayer]:
    """The labelmaps of a segmentation, each with the names of its wanted values."""
    wanted: dict[object, dict[int, str]] = {}
    for segment in _segments(node):
        image = segment.GetRepresentation(BINARY)
        if image is not None and not image.IsEmpty() and (names is None or segment.GetName() in names):
            wanted.setdefault(image, {})[segment.GetLabelValue()] = segment.GetName()
    layers = []
    for image, values in wanted.items():
        affine = world_matrix(node) @ image_affine(image)
        affine[3] = (0, 0, 0, 1)
        layers.append(LabelLayer(image_array(image), affine, values))
    return layers
