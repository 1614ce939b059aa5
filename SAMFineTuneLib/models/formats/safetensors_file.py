"""Finds the tensors in a safetensors file. Needs NumPy alone, because segmenting does not need the package
safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.typed_json import loaded

_FLOATS = {  # a value with all bits of the exponent set is not finite; NumPy has no bfloat16 to test it
    "F64": (np.uint64, np.uint64(0x7FF0000000000000)),
    "F32": (np.uint32, np.uint32(0x7F800000)),
    "F16": (np.uint16, np.uint16(0x7C00)),
    "BF16": (np.uint16, np.uint16(0x7F80)),
}


@dataclass(frozen=True)
class TensorPlace:
    """The place of one tensor: its type as the format names it (`F16`, `F32`, …), shape, offset and length in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


def first_not_finite(path: str | Path) -> str:
    """Name of the first tensor with NaN or an infinite number; "" when all are finite."""
    places = read_places(path)
    content = np.memmap(path, np.uint8, "r")
    for name, place in places.items():
        if kind := _FLOATS.get(place.dtype):
            bits, exponent = kind
            values = content[place.offset : place.offset + place.length].view(bits)
            if ((values & exponent) == exponent).any():
                return name
    return ""


def read_places(path: str | Path) -> dict[str, TensorPlace]:
    """The places of a file's tensors by name. UserError when it is truncated or not a safetensors file."""
    path = Path(path)
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = loaded(file.read(length)) if length <= size - 8 else None
        places = {}
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                places[name] = TensorPlace(entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a complete safetensors file: get it again.") from error
    if any(place.offset + place.length > size for place in places.values()):
        raise UserError(f"{path} is cut short ({size} bytes): get it again.")
    return places
