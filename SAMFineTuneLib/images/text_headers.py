"""Checks what ITK ignores in NRRD and MetaImage files: checksums of compressed voxels, missing files, units of length,
gaps in the header, and voxels that it does not mention.

ITK reads whatever is in memory where a MetaImage's voxels cannot be decompressed or lack a file, and takes all lengths
for mm.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import counted

_ANY_HEADER = 47  # zlib's code: streams of zlib and of gzip
_GZIP = b"\x1f\x8b"  # how a gzip stream begins; several may follow each other
_NUMBER = re.compile(rb"[^\s,]+")
_PIECE = 1 << 20  # bytes
_TRUE = ("T", "t", "1")  # how MetaImage's words for yes begin
_SAME_FILE = ("", "LOCAL")
_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}  # MetaImage's types
_ENCODINGS = ("raw", "gzip", "gz", "ascii", "text", "txt", "hex")  # of NRRD, those that ITK can read
_NRRD_WORDS = {"char": 1, "short": 2, "long long": 8, "int": 4, "float": 4, "double": 8}  # in the names of NRRD's types
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
        UserError: when a file that it names is missing, and for what a MetaImage says wrongly about its voxels.
    """
    notes = []
    with open(path, "rb") as file:
        header = _header(file)
        name = _data_file(header)
        _require_known_voxels(path, header)
        _require_voxels(path, name, header, file)
        if name in _SAME_FILE:
            there = _voxels_in(file, header)
        elif (voxels := path.parent / name).is_file():
            with open(voxels, "rb") as other:
                there = _voxels_in(other, {"CompressedDataSize": str(voxels.stat().st_size)} | header)
        else:  # several files
            there = None
        lengths = _lengths(header)
        if there is not None and lengths:
            stated, slice_ = math.prod(lengths), math.prod(lengths[:-1])
            if there < stated:
                raise UserError(f"“{path.name}” is cut off ({there} of {stated} voxels); copy or export it again.")
            if there - stated >= slice_ > 0:
                notes.append(longer(path, lengths))
    units = header.get("space units") or header.get("units") or header.get("DistanceUnits", "")
    others = {unit for unit in units.replace('"', " ").split() if unit.lower() not in _MILLIMETRES}
    if others:
        notes.append(
            f"“{path.name}” gives its lengths in {' and '.join(sorted(others))}, but they are taken for mm, as in "
            "Slicer; check lengths and volumes."
        )
    lengths = header.get("space directions") or header.get("spacings") or header.get("ElementSpacing")
    lengths = (lengths or header.get("ElementSize", "")).lower()
    if not lengths or "nan" in lengths or lengths.count("none") > max(0, int(header.get("dimension", 3)) - 3):
        notes.append(f"“{path.name}” does not say how large its voxels are; 1 mm is used instead.")
    elif "space directions" not in header and "-" in re.sub(r"e-", "", lengths):
        notes.append(
            f"“{path.name}” gives voxels of negative size ({lengths}), which turns an axis; check left and right, "
            "and up and down."
        )
    placed = {"TransformMatrix", "Orientation", "Rotation"} & header.keys()
    in_body = "space directions" in header and header.get("space", "").lower().startswith(_IN_THE_BODY)
    if not (placed or in_body):
        notes.append(f"“{path.name}” does not say where it lies in the patient; its axes are used as they are.")
    elif not {"space origin", "Offset", "Position", "Origin"} & header.keys():
        notes.append(
            f"“{path.name}” does not say where its first voxel lies; it is put at 0, 0, 0, so positions in millimetres "
            "count from there."
        )
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
    nrrd = file.read(4) == b"NRRD"  # whose readers ignore case
    file.seek(0)
    for line in file:
        text = line.decode("utf-8", "surrogateescape").strip()  # it may name a file
        if not text:  # NRRD's end
            break
        key, _, value = text.partition(":" if ":" in text.partition("=")[0] else "=")
        fields[key.strip().lower() if nrrd else key.strip()] = value.strip()
        if key.strip() == "ElementDataFile":  # MetaImage's end
            break
    return fields


def _data_file(header: Mapping[str, str]) -> str:
    return next((header[key] for key in ("data file", "datafile", "ElementDataFile") if key in header), "")


def _named(name: str, header: Mapping[str, str], file: BinaryIO) -> list[str]:
    """The names of files with voxels; those of a MetaImage's list follow its header. Patterns name none."""
    word, *numbers = name.split() or [""]
    if word == "LIST" and "ElementDataFile" in header:
        return [text for line in file if (text := line.decode("utf-8", "surrogateescape").strip())]
    return [] if name in _SAME_FILE or word == "LIST" or ("%" in word and len(numbers) > 1) else [name]


def longer(path: Path, lengths: Sequence[int]) -> str:
    """The sentence about a file with more voxels than the lengths of its sides."""
    sides = " × ".join(map(str, lengths))
    return f"“{path.name}” is longer than the {sides} voxels that its header states; the rest is left out."


def _require_known_voxels(path: Path, header: Mapping[str, str]) -> None:
    """Raise UserError for an encoding or a type of voxels that ITK cannot read."""
    encoding = header.get("encoding", "raw")
    kind = header.get("ElementType", "MET_SHORT")
    if encoding.lower() not in _ENCODINGS:
        problem = f"in the encoding “{encoding}”"
    elif kind.removeprefix("MET_").removeprefix("U").removesuffix("_ARRAY") not in _BYTES:
        problem = f"of the type “{kind}”"
    elif "type" in header and not _nrrd_bytes(header["type"]):
        problem = f"of the type “{header['type']}”"
    else:
        return
    raise UserError(
        f"“{path.name}” holds voxels {problem}, which is not supported; save it as 16-bit numbers, uncompressed or "
        "with gzip."
    )


def _voxels_in(file: BinaryIO, header: Mapping[str, str]) -> int | None:
    """How many voxels a file holds from here to its end; None where that cannot be told."""
    skipped = {"line skip", "lineskip", "byte skip", "byteskip", "HeaderSize"} & header.keys()
    encoding = header.get("encoding", "raw").lower()
    if encoding in ("gzip", "gz") or header.get("CompressedData", "").startswith(_TRUE):
        if {"line skip", "lineskip"} & header.keys():
            return None
        length = _decompress(file, _stored(header))
    elif skipped or encoding == "hex":
        return None
    elif encoding != "raw" or not header.get("BinaryData", "True").startswith(_TRUE):
        return sum(len(_NUMBER.findall(line)) for line in file) // int(header.get("ElementNumberOfChannels", 1))
    else:
        start = file.tell()
        length = file.seek(0, os.SEEK_END) - start
    size = _nrrd_bytes(header.get("type", "")) or _metaimage_bytes(header)
    return None if skipped else length // size


def voxel_files(path: Path) -> list[Path]:
    """The files of their own in which a NRRD or MetaImage file says that it has its voxels."""
    with open(path, "rb") as file:
        header = _header(file)
        return [path.parent / name for name in _named(_data_file(header), header, file)]


def unfinished_text(path: Path) -> Path | None:
    """The file with the voxels of a MetaImage, where these are written numbers that end without a line break: ITK does
    not read the last one."""
    with open(path, "rb") as file:
        header = _header(file)
    name = header.get("ElementDataFile", "")
    voxels = path if name in _SAME_FILE else path.parent / name
    if header.get("BinaryData", "True").startswith(_TRUE) or voxels.parent != path.parent or not voxels.is_file():
        return None
    with open(voxels, "rb") as file:
        file.seek(-min(1, voxels.stat().st_size), os.SEEK_END)
        return None if file.read().isspace() else voxels


def _lengths(header: Mapping[str, str]) -> list[int]:
    return _whole_numbers(header.get("sizes") or header.get("DimSize", ""))


def _nrrd_bytes(kind: str) -> int:
    """Bytes of a number of a NRRD's type, such as `unsigned short` or `uint16_t`; 0 for other words."""
    if bits := re.search(r"int(8|16|32|64)", kind):
        return int(bits[1]) // 8
    return next((size for word, size in _NRRD_WORDS.items() if word in kind.replace("longlong", "long long")), 0)


def _require_voxels(path: Path, name: str, header: Mapping[str, str], file: BinaryIO) -> None:
    """Raise UserError if a file that is named is missing, a MetaImage names fewer files than it has slices, or its
    voxels begin where ITK does not look; names of a list follow a MetaImage's header."""
    word, *numbers = name.split() or [""]
    pattern, listed = "%" in word and len(numbers) > 1, word == "LIST"
    named = _named(name, header, file)
    for one in named:
        if not (path.parent / one).exists():
            raise UserError(
                f"“{path.name}” has its voxels in “{one}”, which is not there; put the files into one folder again."
            )
    if word == "LOCAL" and int(header.get("HeaderSize", 0)) > 0:
        raise UserError(
            f"“{path.name}” has a HeaderSize, which is only for voxels in a file of their own; remove that line."
        )
    if "ElementDataFile" not in header or not (pattern or listed):
        return
    if pattern:
        first, last, *step = map(int, numbers)
        named = range(first, last + 1, *step)
    slices = math.prod(_whole_numbers(header.get("DimSize", ""))[2:])
    if len(named) < slices:
        raise UserError(
            f"“{path.name}” names {counted(len(named), 'file')} for its {slices} slices; give it a file for each "
            "slice, or save the image as one file."
        )


def _stored(header: Mapping[str, str]) -> tuple[int, int]:
    """Sizes of a MetaImage's voxels, compressed and not; nothing for NRRD, whose readers find out."""
    if "ElementDataFile" not in header:
        return 1 << 62, 0
    voxels = math.prod(_whole_numbers(header.get("DimSize", "")))
    return int(header.get("CompressedDataSize", 0)), voxels * _metaimage_bytes(header)


def _metaimage_bytes(header: Mapping[str, str]) -> int:
    """Bytes of a voxel of a MetaImage."""
    kind = header.get("ElementType", "").removeprefix("MET_")
    return _BYTES.get(kind.removeprefix("U"), 1) * int(header.get("ElementNumberOfChannels", 1))


def _whole_numbers(text: str) -> list[int]:
    return [int(word) for word in text.split() if word.isdecimal()]


def _decompress(file: BinaryIO, stored: tuple[int, int]) -> int:
    """The number of bytes that the file's bytes become. Raise zlib.error unless they can be decompressed: all of the
    voxels, from as many bytes as the header states.
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
                    _require(end - len(piece) - start, length, stored)
                    return length
                stream = zlib.decompressobj(_ANY_HEADER)
    if not stream.eof:
        raise zlib.error("the stream is cut off")
    _require(end - start, length, stored)
    return length


def _require(packed: int, length: int, stored: tuple[int, int]) -> None:
    if packed > stored[0] or length < stored[1]:
        raise zlib.error("the header states other sizes")
