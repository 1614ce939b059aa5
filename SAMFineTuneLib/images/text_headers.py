"""Checks what ITK ignores in NRRD and MetaImage files: checksums of compressed voxels, and units of length.

ITK reads whatever is in memory where a MetaImage's voxels cannot be decompressed, and takes all lengths for mm.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

_ANY_HEADER = 47  # zlib's code: streams of zlib and of gzip
_GZIP = b"\x1f\x8b"  # how a gzip stream begins; several may follow each other
_PIECE = 1 << 20  # bytes
_SAME_FILE = ("", "LOCAL")
_MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "??", "???", "none")


def check_text_header(path: Path) -> tuple[str, ...]:
    """Check the voxels of a NRRD or MetaImage file, or of the one file that it names, where they are compressed.

    Returns:
        Sentences about units that are ignored.

    Raises:
        OSError: when a file cannot be read.
        zlib.error: when the voxels are damaged or cut off.
    """
    with open(path, "rb") as file:
        header = _header(file)
        gzipped = header.get("encoding", "").lower() in ("gzip", "gz")
        deflated = header.get("CompressedData", "").startswith(("T", "t", "1"))
        if (gzipped or deflated) and not {"line skip", "lineskip"} & header.keys():
            name = next((header[key] for key in ("data file", "datafile", "ElementDataFile") if key in header), "")
            if name in _SAME_FILE:
                _decompress(file)
            elif (voxels := path.parent / name).is_file():  # else several files, or ITK finds that it is not there
                with open(voxels, "rb") as other:
                    _decompress(other)
    units = header.get("space units") or header.get("units") or header.get("DistanceUnits", "")
    others = {unit for unit in units.replace('"', " ").split() if unit.lower() not in _MILLIMETRES}
    if not others:
        return ()
    return (
        f"“{path.name}” gives its lengths in {' and '.join(sorted(others))}, but they are taken for mm, as in Slicer; "
        "check lengths and volumes.",
    )


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


def _decompress(file: BinaryIO) -> None:
    stream = zlib.decompressobj(_ANY_HEADER)
    while piece := file.read(_PIECE):
        while piece:
            stream.decompress(piece)
            piece = stream.unused_data
            if stream.eof:
                if not piece.startswith(_GZIP):
                    return
                stream = zlib.decompressobj(_ANY_HEADER)
    if not stream.eof:
        raise zlib.error("the stream is cut off")
