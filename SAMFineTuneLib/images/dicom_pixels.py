"""Voxel values of DICOM frames: decoding, rescaling, inversion of MONOCHROME1, padding.

Uncompressed data are decoded by pydicom, every compressed syntax (JPEG 2000, JPEG-LS, JPEG lossless and
lossy, RLE) by the GDCM library inside SimpleITK, which is in all its wheels. GDCM gets a temporary file
with nothing but the compressed frames and their format, because on whole files it decides about rescaling.
"""

from __future__ import annotations

import hashlib
import struct
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.dicom_geometry import DicomStack
from SAMFineTuneLib.images.dicom_headers import Frame
from SAMFineTuneLib.images.dicom_values import number, read_value, text, uid, whole_number
from SAMFineTuneLib.images.pydicom_versions import apply_modality_lut, encoded_frames, save, stored_values
from SAMFineTuneLib.images.sitk_images import quiet

_FORMAT = ("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "Rows", "Columns", "BitsAllocated",
           "BitsStored", "HighBit", "PixelRepresentation")  # fmt: skip
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_LOSSY_GREY = 2  # grey pictures stored in colour differ by this much between channels after lossy compression


@dataclass(frozen=True, eq=False)
class Piece:
    """Values of one frame, and which of them are padding rather than image."""

    values: np.ndarray  # [row, column]
    padding: np.ndarray | None  # bool [row, column]
    mirror: float | None  # for MONOCHROME1: shown value = mirror − stored value
    signed: bool = False  # whether stored values have a sign
    longer: bool = False  # whether the file holds a row or more behind the pixels that its header states
    looked_up: bool = False  # whether the values are those of the file's table (ModalityLUTSequence)


def read_frames(frames: Sequence[Frame]) -> tuple[dict[int, Piece], dict[Path, UserError]]:
    """Values of frames by their `id`, and the error for each file whose pixels cannot be decoded."""
    by_file: dict[Path, list[Frame]] = {}
    for frame in frames:
        by_file.setdefault(frame.file, []).append(frame)
    pieces: dict[int, Piece] = {}
    failures: dict[Path, UserError] = {}
    for path, own in by_file.items():
        try:
            pieces |= zip(map(id, own), _read_file(path, own), strict=True)
        except UserError as error:
            failures[path] = error
    return pieces, failures


def pixel_digest(frame: Frame) -> bytes:
    """Digest of a frame's values, however they are stored. UserError when the frame is damaged."""
    (piece,) = _read_file(frame.file, [frame])
    return hashlib.sha256(np.ascontiguousarray(piece.values, np.float64).data).digest()


def assemble(stack: DicomStack, pieces: Mapping[int, Piece]) -> tuple[np.ndarray, list[float | None]]:
    """Build the volume's array from the frames of a stack.

    Rescale slope and intercept are each frame's own. MONOCHROME1 is inverted, so that large values are bright. Padding
    outside the range of the image's other values is set to the lowest of these. Slices without a frame are
    interpolated linearly between the frames around them.

    Args:
        stack: which frame, or frames, each slice is made of.
        pieces: values of the frames, by the frames' `id`.

    Returns:
        The array [k, j, i], of the smallest of int16, uint16 and int32 that holds all values (uint8 stays uint8), or
        float32 when a rescale is not whole-numbered; and for each slice the mirror of an inverted image: a window of
        the file must be mirrored in the same way.
    """
    real = [pieces[id(frame)] for frame in stack.sources]
    genuine = [piece.values if piece.padding is None else piece.values[~piece.padding] for piece in real]
    genuine = [values for values in genuine if values.size] or [piece.values for piece in real]
    low, high = min(values.min() for values in genuine), max(values.max() for values in genuine)
    dtype = _dtype([piece.values.dtype for piece in real], low, high)

    def values_of(frame: Frame) -> np.ndarray:
        piece = pieces[id(frame)]
        kept = (piece.values >= low) & (piece.values <= high)
        if piece.padding is not None:
            kept |= ~piece.padding
        values = np.full(piece.values.shape, low, dtype)
        np.copyto(values, piece.values, where=kept, casting="unsafe")
        return values

    array = np.empty((len(stack.slices), *real[0].values.shape), dtype)
    for k, one in enumerate(stack.slices):
        values = values_of(one.lower)
        if one.upper is not None:
            values = values + one.share * (values_of(one.upper) - values.astype(np.float64))
            values = values if dtype.kind == "f" else np.rint(values)
        array[k] = values
    return array, [None if frame is None else pieces[id(frame)].mirror for frame in stack.frames]


def _dtype(dtypes: list[np.dtype], low, high) -> np.dtype:
    if any(dtype.kind == "f" for dtype in dtypes):
        return np.dtype(np.float32)
    candidates = ("uint8",) if all(dtype == np.uint8 for dtype in dtypes) else ("int16", "uint16", "int32")
    for candidate in map(np.dtype, candidates):
        if np.iinfo(candidate).min <= low and high <= np.iinfo(candidate).max:
            return candidate
    return np.dtype(np.float32)


def _read_file(path: Path, frames: Sequence[Frame]) -> list[Piece]:
    """One piece for each of the file's asked frames."""
    kind = "DICOM"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, force=True)
            if not any(name in dataset for name in _PIXELS):
                raise UserError(f"“{path.name}” holds no pixels: it is cut off or not an image; copy it again.")
            if frames[0].instance_uid != uid(read_value(dataset, "SOPInstanceUID")):
                raise UserError(f"“{path.name}” was replaced by another image while it was read; read it again.")
            kind = text(_syntax(dataset).name)
            _complete(dataset)
            longer = _is_longer(dataset, path.name)
            stored = _decode(dataset, [frame.number - 1 for frame in frames])
            return [_piece(dataset, values, frame, longer) for values, frame in zip(stored, frames, strict=True)]
    except (UserError, MemoryError):
        raise
    except Exception as error:  # decoders raise errors of many kinds on damaged data
        raise UserError(
            f"The pixels of “{path.name}” ({kind}) cannot be decoded: the file is damaged or cut off (copy "
            "it again), or of a kind that is not supported (export it uncompressed)."
        ) from error


def _complete(dataset: Dataset) -> None:
    """Fill in attributes of the pixel format that are missing or garbled and follow from the others."""
    allocated = whole_number(read_value(dataset, "BitsAllocated"))
    stored = whole_number(read_value(dataset, "BitsStored")) or allocated
    samples = whole_number(read_value(dataset, "SamplesPerPixel")) or 1
    usual = {
        "SamplesPerPixel": samples,
        "BitsAllocated": allocated,
        "BitsStored": stored,
        "HighBit": None if stored is None else stored - 1,
        "PixelRepresentation": 0,
        "NumberOfFrames": 1,
        **({"PlanarConfiguration": 0} if samples > 1 else {}),
    }
    for keyword, value in usual.items():
        if number(read_value(dataset, keyword)) is None and value is not None:
            setattr(dataset, keyword, value)
    if not text(read_value(dataset, "PhotometricInterpretation")):
        dataset.PhotometricInterpretation = "MONOCHROME2" if samples == 1 else "RGB"


def _syntax(dataset: Dataset) -> UID:
    known = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if known:
        return known
    implicit, little = dataset.original_encoding  # files without a meta header
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _is_longer(dataset: Dataset, name: str) -> bool:
    """Whether uncompressed pixels go on for a row or more after the stated ones; UserError for a frame or more."""
    if _syntax(dataset).is_encapsulated:
        return False
    row = int(dataset.Columns) * int(dataset.SamplesPerPixel) * int(dataset.BitsAllocated) / 8
    frame = int(dataset.Rows) * row
    content = next(dataset[one].value for one in _PIXELS if one in dataset)
    there, stated = len(content), int(dataset.NumberOfFrames or 1) * frame
    beyond = there - stated
    if beyond >= frame > 0:
        raise UserError(
            f"“{name}” holds {there} bytes of pixels, but its header states {stated:.0f} (Rows, Columns, "
            "BitsAllocated, NumberOfFrames); export it again."
        )
    return beyond >= row > 0 and any(content[int(stated) :])  # not padding


def _require_size(encoded: bytes, rows: int, columns: int, name: str) -> None:
    """Raise UserError if a compressed JPEG or JPEG-LS picture has another size than the header states: GDCM would cut
    it off, or begin its rows in wrong places.
    """
    at = 2
    while encoded[:2] == b"\xff\xd8" and at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            own = int.from_bytes(encoded[at + 5 : at + 7], "big"), int.from_bytes(encoded[at + 7 : at + 9], "big")
            if own[0] and own != (rows, columns):  # without a height it follows the picture
                raise UserError(
                    f"The compressed picture in “{name}” has {own[1]} × {own[0]} pixels, but its header states "
                    f"{columns} × {rows}; export it again."
                )
            return
        at += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")


def _require_rle_size(encoded: bytes, rows: int, columns: int, name: str) -> None:
    """Raise UserError if a segment of a picture in RLE, which holds one byte of each pixel, has a row more than the
    header states: GDCM would cut it off. ValueError if it has fewer pixels: GDCM does not notice that in empty ones.
    """
    count, *offsets = struct.unpack_from("<16I", encoded)
    for start, end in pairwise([*offsets[:count], len(encoded)]):
        at, pixels = start, 0
        while at < end - 1:
            head = encoded[at]
            if head < 128:  # as many bytes as they are
                at += head + 2
                pixels += head + 1
            else:  # one byte, repeated; 128 has none
                at += 2 if head > 128 else 1
                pixels += 257 - head if head > 128 else 0
        if pixels < rows * columns:
            raise ValueError(f"{pixels} pixels")
        if pixels >= (rows + 1) * columns:
            raise UserError(
                f"The compressed picture in “{name}” has {pixels} pixels, but its header states {columns} × {rows}; "
                "export it again."
            )


def _decode(dataset: Dataset, frames: Sequence[int]) -> np.ndarray:
    """Stored values [n, row, column] of 0-based `frames`, one channel."""
    photometric = text(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        raise UserError("This DICOM image is in colour (a palette); only grey images can be segmented.")
    if not (syntax := _syntax(dataset)).is_encapsulated:
        if not getattr(dataset, "file_meta", None):
            dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        for table in _OFFSETS:  # they concern compressed pixels only
            dataset.pop(table, None)
        values = _shifted_down(dataset)
        values = values if int(dataset.get("NumberOfFrames") or 1) > 1 else values[None]
        values = values[list(frames)]
    else:
        values = _decode_with_gdcm(dataset, syntax, frames)
    if int(dataset.SamplesPerPixel) == 1:
        return values
    if int(np.ptp(values.astype(np.int32), axis=-1).max()) > _LOSSY_GREY:
        raise UserError("This DICOM image is in colour; only grey images can be segmented.")
    return values[..., 1]


def _shifted_down(dataset: Dataset) -> np.ndarray:
    """Uncompressed stored values. Old images may keep them in the upper bits of each pixel, above zeros."""
    stored, high = int(dataset.BitsStored), int(dataset.HighBit)
    if not stored <= high < int(dataset.BitsAllocated):
        return stored_values(dataset)
    dataset.BitsStored = high + 1
    values = stored_values(dataset)
    dataset.BitsStored = stored
    below = (1 << high + 1 - stored) - 1
    return stored_values(dataset) if (values & below).any() else values >> high + 1 - stored


def _decode_with_gdcm(dataset: Dataset, syntax: UID, frames: Sequence[int]) -> np.ndarray:
    count = int(dataset.get("NumberOfFrames") or 1)
    tables = [table for name in _OFFSETS if isinstance(table := read_value(dataset, name), bytes)]
    encoded = encoded_frames(dataset.PixelData, count, tuple(tables) if len(tables) == 2 else None)
    check = _require_rle_size if syntax == RLELossless else _require_size
    for n in frames:
        check(encoded[n], int(dataset.Rows), int(dataset.Columns), Path(dataset.filename).name)
    plain = Dataset()
    plain.file_meta = FileMetaDataset()
    plain.file_meta.TransferSyntaxUID = syntax
    single = len(frames) == 1
    kind = SecondaryCaptureImageStorage if single else MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    plain.file_meta.MediaStorageSOPClassUID = plain.SOPClassUID = kind
    plain.file_meta.MediaStorageSOPInstanceUID = plain.SOPInstanceUID = generate_uid()
    for keyword in _FORMAT:
        if keyword in dataset:
            setattr(plain, keyword, dataset[keyword].value)  # not the element itself, which both would share
    if int(dataset.SamplesPerPixel) == 1:
        plain.PhotometricInterpretation = "MONOCHROME2"
    plain.NumberOfFrames = len(frames)
    plain.PixelData = encapsulate([encoded[n] for n in frames])
    with tempfile.TemporaryDirectory() as folder, quiet(native=True):
        path = Path(folder) / "frames.dcm"
        save(plain, path)
        values = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    channels = () if int(dataset.SamplesPerPixel) == 1 else (int(dataset.SamplesPerPixel),)
    return values.reshape(len(frames), int(dataset.Rows), int(dataset.Columns), *channels)


def _piece(dataset: Dataset, stored: np.ndarray, frame: Frame, longer: bool) -> Piece:
    padding = _padding(dataset, stored)
    slope, intercept, mirror = 1.0, 0.0, None
    values = _looked_up(stored, dataset) if frame.has_table else None
    looked_up = values is not None
    if not looked_up:
        values, slope, intercept = stored, frame.slope, frame.intercept
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        both_ends = -1 if dataset.PixelRepresentation else (1 << int(dataset.BitsStored)) - 1
        mirror = both_ends * slope + 2 * intercept
        slope, intercept = -slope, mirror - intercept
    if padding is not None and not padding.any():
        padding = None
    signed = bool(dataset.PixelRepresentation)
    return Piece(_rescaled(values, slope, intercept), padding, mirror, signed, longer, looked_up)


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Which pixels [row, column] are padding; None when the file names no padding value."""
    pad = number(read_value(dataset, "PixelPaddingValue"))
    if pad is None or stored.dtype.kind not in "iu":
        return None
    limit = number(read_value(dataset, "PixelPaddingRangeLimit"))
    low, high = sorted(_as_stored(value, stored.dtype) for value in (pad, pad if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _as_stored(value: float, dtype: np.dtype) -> float:
    """Correct a value that is written as unsigned although the pixels are signed, or the other way round."""
    info = np.iinfo(dtype)
    return value if info.min <= value <= info.max else (value - info.min) % (1 << info.bits) + info.min


def _looked_up(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """Values through the file's lookup table; None when the table cannot be used."""
    try:
        return np.asarray(apply_modality_lut(stored, dataset)).astype(np.int32)
    except Exception:  # a garbled table makes pydicom raise errors of many kinds
        return None


def _rescaled(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """A new array of `stored · slope + intercept`: whole numbers stay whole as int16 or int32, all others are
    float32."""
    if slope == 1 and intercept == 0 and stored.dtype in (np.uint8, np.int16):
        return stored.copy()
    values = stored.astype(np.float64) * slope + intercept  # float64 holds all 32-bit whole numbers
    whole = stored.dtype.kind != "f" and slope.is_integer() and intercept.is_integer()
    for dtype in (np.int16, np.int32) if whole else ():
        if np.iinfo(dtype).min <= values.min() and values.max() <= np.iinfo(dtype).max:
            return values.astype(dtype)
    return values.astype(np.float32)
