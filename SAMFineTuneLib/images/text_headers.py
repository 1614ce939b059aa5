"""Checks what ITK ignores in NRRD and MetaImage files: checksums of compressed voxels, missing file names, units of
length, and gaps in the header.

ITK reads whatever is in memory where a MetaImage's voxels cannot be decompressed or lack a file, and takes all lengths
for mm.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import counted

_ANY_HEADER = 47  # zlib's code: streams of zlib and of gzip
_GZIP = b"\x1f\x8b"  # how a gzip stream begins; several may follow each other
_PIECE = 1 << 20  # bytes
_SAME_FILE = ("", "LOCAL")
_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}  # MetaImage's types
_IN_THE_BODY = ("left", "right", "lps", "ras", "las")  # how NRRD's names of spaces of patients begin
_MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "??", "???", "none")


def check_text_header(path: Path) -> tuple[str, ...]:
    """Check the voxels of a NRRD or MetaImage file, or of the one file that it names, where they are compressed.

    Returns:
        Sentences about ignored units and scales, and about missing geometry.

    Raises:
        OSError: when a file cannot be read.
        zlib.error: when the voxels are damaged or cut off.
        ValueError: when a number in the header is not one.
        UserError: when a MetaImage names fewer files than it has slices.
    """
    with open(path, "rb") as file:
        header = _header(file)
        _require_all_files(path, header, file)
        gzipped = header.get("encoding", "").lower() in ("gzip", "gz")
        deflated = header.get("CompressedData", "").startswith(("T", "t", "1"))
        if (gzipped or deflated) and not {"line skip", "lineskip"} & header.keys():
            name = next((header[key] for key in ("data file", "datafile", "ElementDataFile") if key in header), "")
            if name in _SAME_FILE:
                _decompress(file, _stored(header))
            elif (voxels := path.parent / name).is_file():  # else several files, or a missing one, as ITK notices
                with open(voxels, "rb") as other:
                    _decompress(other, _stored({"CompressedDataSize": str(voxels.stat().st_size)} | header))
    units = header.get("space units") or header.get("units") or header.get("DistanceUnits", "")
    others = {unit for unit in units.replace('"', " ").split() if unit.lower() not in _MILLIMETRES}
    notes = []
    if others:
        notes.append(
            f"“{path.name}” gives its lengths in {' and '.join(sorted(others))}, but they are taken for mm, as in "
            "Slicer; check lengths and volumes."
        )
    lengths = header.get("space directions") or header.get("spacings") or header.get("ElementSpacing")
    lengths = (lengths or header.get("ElementSize", "")).lower()
    if not lengths or "nan" in lengths or lengths.count("none") > max(0, int(header.get("dimension", 3)) - 3):
        notes.append(f"“{path.name}” does not say how large its voxels are; 1 mm is used instead.")
    placed = {"TransformMatrix", "Orientation", "Rotation"} & header.keys()
    in_body = "space directions" in header and header.get("space", "").lower().startswith(_IN_THE_BODY)
    if not (placed or in_body):
        notes.append(f"“{path.name}” does not say where it lies in the patient; its axes are used as they are.")
    scale, offset = (header.get(f"ElementToIntensityFunction{word}", "") for word in ("Slope", "Offset"))
    if scale not in ("", "1") or offset not in ("", "0"):
        notes.append(
            f"“{path.name}” gives a scale of its values ({scale or 1}, offset {offset or 0}), which is not applied, as "
            "in Slicer; check grey values."
        )
    return tuple(notes)


def _header(file: BinaryIO) -> dict[str, str]:
    """The fields of a header; the file is left where its voxels begin."""
    fields: dict[str, str] = {}
    for line in file:
        text = line.decode("latin-1").strip()
        if not text:  # NRRD's end
            break
        key, _, value = text.partition(":" if ":" in text.partition("=")[0] else "=")
        fields[key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":  # MetaImage's end
            break
    return fields


def _require_all_files(path: Path, header: Mapping[str, str], file: BinaryIO) -> None:
    """Raise UserError if a MetaImage names fewer files than it has slices; names of a list follow the header."""
    name, *numbers = header.get("ElementDataFile", "").split() or [""]
    if name == "LIST":
        named = sum(bool(line.strip()) for line in file)
    elif "%" in name and len(numbers) > 1:
        first, last, *step = map(int, numbers)
        named = len(range(first, last + 1, *step))
    else:
        return
    slices = math.prod(_whole_numbers(header.get("DimSize", ""))[2:])
    if named < slices:
        raise UserError(
            f"“{path.name}” names {counted(named, 'file')} for its {slices} slices; give it a file for each "
            "slice, or save the image as one file."
        )


def _stored(header: Mapping[str, str]) -> tuple[int, int]:
    """Sizes of a MetaImage's voxels, compressed and not; nothing for NRRD, whose readers find out."""
    if "ElementDataFile" not in header:
        return 1 << 62, 0
    kind = header.get("ElementType", "").removeprefix("MET_")
    size = _BYTES.get(kind.removeprefix("U"), 1) * int(header.get("ElementNumberOfChannels", 1))
    return int(header.get("CompressedDataSize", 0)), math.prod(_whole_numbers(header.get("DimSize", ""))) * size


def _whole_numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdecimal()]


def _decompress(file: BinaryIO, stored: tuple[int, int]) -> None:
    """Raise zlib.error unless the bytes can be decompressed: all of the voxels, from as many bytes as the header
    states.
    """
    stream, start, length = zlib.decompressobj(_ANY_HEADER), file.tell(), 0
    end = start
    while piece := file.read(_PIECE):
        end += len(piece)
        while piece:
            length += len(stream.decompress(piece))
            piece = stream.unused_data
            if stream.eof:
                if not piece.startswith(_GZIP):
                    return _require(end - len(piece) - start, length, stored)
                stream = zlib.decompressobj(_ANY_HEADER)
    if not stream.eof:
        raise zlib.error("the stream is cut off")
    _require(end - start, length, stored)


def _require(packed: int, length: int, stored: tuple[int, int]) -> None:
    if packed > stored[0] or length < stored[1]:
        raise zlib.error("the header states other sizes")
