"""Makes a labelled, CT-like abdomen from formulas, for demonstrations, tests and pre-training.

It is not anatomy: ellipsoids with wavy surfaces in Hounsfield units, tilted in the scanner like a real patient.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write
from SAMFineTuneLib.images.dicom_values import decimals
from SAMFineTuneLib.images.volume import Volume, affine_from_lps, lps_from_affine

# value: (name, Hounsfield units, centre (x, y, z), radii (x, y, z)) in LPS mm from the middle of the body:
# x grows to the left, y to the back, z to the head. Later ones lie over earlier ones.
_ORGANS = {
    1: ("liver", 110.0, (-62.0, -12.0, 12.0), (74.0, 62.0, 52.0)),
    2: ("spleen", 122.0, (98.0, 34.0, 22.0), (27.0, 38.0, 30.0)),
    3: ("right kidney", 178.0, (-64.0, 56.0, -32.0), (25.0, 27.0, 40.0)),
    4: ("left kidney", 178.0, (66.0, 54.0, -24.0), (25.0, 27.0, 40.0)),
    5: ("aorta", 220.0, (13.0, 34.0, 0.0), (11.0, 11.0, 400.0)),
    6: ("vertebra", 310.0, (0.0, 70.0, 0.0), (25.0, 20.0, 400.0)),
    7: ("spinal cord", 42.0, (0.0, 84.0, 0.0), (9.5, 8.0, 400.0)),
}
_BODY, _FAT, _RIM = (156.0, 112.0), -96.0, 17.0  # radii and depth of the fat below the skin, mm
_TISSUE, _AIR, _NOISE = 42.0, -1000.0, 11.0  # Hounsfield units
_TILT = np.radians((6.0, -4.0, 3.0))  # about LPS x, y, z


def body_phantom(
    seed: int = 0,
    shape: tuple[int, int, int] = (40, 256, 256),
    spacing: tuple[float, float, float] = (1.4, 1.4, 3.0),
) -> tuple[Volume, np.ndarray, dict[int, str]]:
    """Make a phantom, tilted in the scanner by about 8°.

    Args:
        seed: decides sizes, places, surfaces and noise; the same seed gives the same phantom.
        shape: slices, rows, columns.
        spacing: mm along i, j, k.

    Returns:
        The volume in int16 Hounsfield units, its uint8 labels [k, j, i], and the names of the label values.
    """
    if len(shape) != 3 or min(shape) < 1 or len(spacing) != 3 or not min(spacing) > 0:
        raise UserError("A phantom needs a shape of three numbers from 1 and a spacing of three numbers above 0.")
    random = np.random.default_rng(seed)
    # Patient coordinates of every voxel: the body stays straight, only the scanner's grid is tilted.
    k, j, i = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape)
    x = i[None, None, :] * np.float32(spacing[0])
    y = j[None, :, None] * np.float32(spacing[1])
    z = k[:, None, None] * np.float32(spacing[2])

    outline = np.hypot(x / _BODY[0], y / _BODY[1])
    inside = outline < 1
    values = np.where(inside, np.where(outline < 1 - _RIM / _BODY[1], _TISSUE, _FAT), _AIR) + 0 * z
    labels = np.zeros(shape, np.uint8)
    for value, (_, units, centre, radii) in _ORGANS.items():
        centre = np.array(centre) + random.normal(0, 2.5, 3)
        radii = np.array(radii) * random.uniform(0.9, 1.1, 3)
        organ = _wavy_ellipsoid(x, y, z, centre, radii, random) & (outline < 1 - _RIM / _BODY[1])
        labels[organ] = value
        values[organ] = units + random.normal(0, 5)
    noise = random.standard_normal(shape, dtype=np.float32) * np.float32(_NOISE)
    values = np.rint(np.clip(values + noise, -1024, 3071)).astype(np.int16)

    directions = _rotation(_TILT)
    middle = (np.array(shape[::-1]) - 1) / 2 * np.asarray(spacing)
    affine = affine_from_lps(-directions @ middle, directions, spacing)
    names = {value: name for value, (name, *_) in _ORGANS.items()}
    return Volume(values, affine, modality="CT"), labels, names


def _wavy_ellipsoid(x, y, z, centre, radii, random: np.random.Generator) -> np.ndarray:
    """An ellipsoid, bool [k, j, i], whose surface varies by up to a tenth of its radius."""
    u, v, w = ((axis - np.float32(c)) / np.float32(r) for axis, c, r in zip((x, y, z), centre, radii, strict=True))
    phases = random.uniform(0, 2 * np.pi, 3).astype(np.float32)
    wave = np.sin(4 * u + phases[0]) * np.sin(3 * v + phases[1]) + np.sin(5 * v + phases[2])
    return u * u + v * v + w * w < (1 + np.float32(0.05) * wave) ** 2


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Rotation matrix (3, 3) about x, then y, then z."""
    (a, b, c), (sa, sb, sc) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -sa], [0, sa, a]])
    about_y = np.array([[b, 0, sb], [0, 1, 0], [-sb, 0, b]])
    about_z = np.array([[c, -sc, 0], [sc, c, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def write_dicom_series(volume: Volume, folder: str | Path) -> list[Path]:
    """Write a volume as a CT series of a fictitious patient.

    There is one file a slice, and as in archives its name does not tell its order. `read_volume(folder)` returns the
    same voxels and geometry.

    Args:
        volume: whole numbers from -1024 to 64511, on a right-handed grid.
        folder: where the files are written; it may exist.

    Returns:
        The files in the order of the slices.
    """
    array = volume.array
    if array.dtype.kind not in "iu" or array.min() < -1024 or array.max() > 64511:
        raise UserError("Only whole numbers from -1024 to 64511 can be written as a CT series.")
    folder = Path(folder)
    origin, directions, spacing = lps_from_affine(volume.affine)
    if not np.allclose(np.cross(directions[:, 0], directions[:, 1]), directions[:, 2], atol=1e-6):
        raise UserError("Only a volume with a right-handed, straight grid can be written as a CT series.")
    same_for_all = {
        "SOPClassUID": CTImageStorage, "Modality": volume.modality or "CT", "SeriesDescription": "Body phantom",
        "PatientName": "PHANTOM", "PatientID": "PHANTOM", "PatientBirthDate": "", "PatientSex": "O",
        "StudyInstanceUID": generate_uid(), "SeriesInstanceUID": generate_uid(), "FrameOfReferenceUID": generate_uid(),
        "StudyDate": "20200101", "StudyTime": "120000", "StudyID": "1", "AccessionNumber": "",
        "ReferringPhysicianName": "", "Manufacturer": "SAMFineTune", "ManufacturerModelName": "phantom",
        "SeriesNumber": 1, "AcquisitionNumber": 1, "ImageType": ["DERIVED", "SECONDARY", "AXIAL"], "KVP": "120",
        "PositionReferenceIndicator": "", "PatientPosition": "HFS", "PixelSpacing": decimals(spacing[1::-1]),
        "ImageOrientationPatient": decimals([*directions[:, 0], *directions[:, 1]]),
        "SliceThickness": decimals(spacing[2:])[0], "RescaleIntercept": "-1024", "RescaleSlope": "1",
        "RescaleType": "HU", "WindowCenter": "40", "WindowWidth": "400",
    }  # fmt: skip
    shuffled = np.random.default_rng(len(array)).permutation(len(array))
    files = []
    for k, stored in enumerate((array.astype(np.int32) + 1024).astype(np.uint16)):
        dataset = Dataset()
        for keyword, value in same_for_all.items():
            setattr(dataset, keyword, value)
        dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), k + 1
        dataset.ImagePositionPatient = decimals(origin + k * spacing[2] * directions[:, 2])
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.set_pixel_data(stored, "MONOCHROME2", bits_stored=16, generate_instance_uid=False)
        path = folder / f"IM{shuffled[k]:04d}"
        with atomic_write(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
        files.append(path)
    return files
