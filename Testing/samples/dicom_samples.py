"""Small DICOM files with chosen contents, for the tests in this folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def image_dataset(stored: np.ndarray, bits: int | None = None) -> Dataset:
    """Pixel module of a grey image [row, column] or frames [n, row, column], uncompressed."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        dataset.NumberOfFrames = len(stored)
    data = stored.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OW"
    return dataset


def save(dataset: Dataset, path: Path, **attributes) -> Path:
    """Write with `attributes` added; None removes one."""
    for name, value in attributes.items():
        if value is None:
            dataset.pop(name, None)
        else:
            setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def garbled(keyword: str | int, vr: str, value) -> DataElement | RawDataElement:
    """An element whose kind of value (VR) and contents need not belong to it; UN and OB are bytes as they come."""
    tag = Tag(keyword)
    if isinstance(value, bytes):
        value += b"\0" * (len(value) % 2)
        return RawDataElement(tag, vr, len(value), value, 0, False, True)
    return DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)


def garble(path: Path, values: dict[str | int, tuple[str, object]]) -> Path:
    """Give attributes of a file a kind of value and contents as of `garbled`."""
    dataset = pydicom.dcmread(path)
    for keyword, (vr, value) in values.items():
        dataset[Tag(keyword)] = garbled(keyword, vr, value)
    dataset.save_as(path)
    return path


def decimals(numbers) -> list[str]:
    """DICOM's decimal strings, at most 16 characters."""
    return [f"{number:.9g}" for number in numbers]


def write_series(
    folder: Path,
    stored: np.ndarray,
    *,
    positions=None,
    orientation=AXIAL,
    pixel_spacing=(0.8, 0.7),
    step=2.5,
    uid: str | None = None,
    shuffle: bool = True,
    **attributes,
) -> str:
    """One single-frame file a slice of `stored` [k, row, column]; returns the SeriesInstanceUID.

    Slice k lies at `positions[k]` (LPS mm), by default `step` mm further along the normal. File names and
    instance numbers follow no order unless `shuffle` is False.
    """
    uid = uid or generate_uid()
    count = len(stored)
    if positions is None:
        normal = np.cross(orientation[:3], orientation[3:])
        positions = [np.array([-20.0, 10.0, 30.0]) + k * step * normal for k in range(count)]
    names = np.random.default_rng(count).permutation(count) if shuffle else np.arange(count)
    study, frame_of_reference = generate_uid(), generate_uid()
    for k in range(count):
        defaults = {
            "StudyInstanceUID": study,
            "SeriesInstanceUID": uid,
            "FrameOfReferenceUID": frame_of_reference,
            "PatientID": "TEST",
            "PatientName": "TEST^",
            "Modality": "CT",
            "SeriesDescription": "sample",
            "SeriesNumber": 1,
            "InstanceNumber": int(names[k]) + 1,
            "ImagePositionPatient": decimals(positions[k]),
            "ImageOrientationPatient": decimals(orientation),
            "PixelSpacing": decimals(pixel_spacing),
            "SliceThickness": "2.5",
        }
        chosen = {name: value(k) if callable(value) else value for name, value in attributes.items()}
        save(image_dataset(stored[k]), folder / f"{names[k]:03d}", **(defaults | chosen))
    return uid


def _item(**attributes) -> Dataset:
    dataset = Dataset()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def write_enhanced(
    path: Path,
    stored: np.ndarray,
    order,
    *,
    step=2.5,
    rescale=None,
    compress: str | None = None,
    **attributes,
) -> Path:
    """Enhanced CT file whose n-th frame is slice `order[n]` of `stored` [k, row, column].

    `rescale[k]` = (slope, intercept) is stored per frame; without it (1, 0) is shared by all frames.
    """
    dataset = image_dataset(np.ascontiguousarray(stored[list(order)]))
    if compress:
        dataset.compress(compress, generate_instance_uid=False)

    def transformation(slope, intercept):
        item = _item(RescaleSlope=str(slope), RescaleIntercept=str(intercept), RescaleType="HU")
        return Sequence([item])

    shared = _item(
        PlaneOrientationSequence=Sequence([_item(ImageOrientationPatient=list(AXIAL))]),
        PixelMeasuresSequence=Sequence([_item(PixelSpacing=["0.8", "0.7"], SliceThickness="2.5")]),
    )
    if rescale is None:
        shared.PixelValueTransformationSequence = transformation(1, 0)
    frames = []
    for k in order:
        frame = _item(
            PlanePositionSequence=Sequence([_item(ImagePositionPatient=["-20", "10", f"{30 + step * k:g}"])]),
            FrameVOILUTSequence=Sequence([_item(WindowCenter="40", WindowWidth="401")]),
        )
        if rescale is not None:
            frame.PixelValueTransformationSequence = transformation(*rescale[k])
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    defaults = {
        "SOPClassUID": EnhancedCTImageStorage,
        "StudyInstanceUID": generate_uid(),
        "SeriesInstanceUID": generate_uid(),
        "FrameOfReferenceUID": generate_uid(),
        "PatientID": "TEST",
        "Modality": "CT",
    }
    return save(dataset, path, **(defaults | attributes))
