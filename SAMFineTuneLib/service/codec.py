"""Messages: a JSON value and named arrays, in the layout of safetensors files.

    8 bytes  length of the header, little-endian
    header   JSON: {"__metadata__": {"message": "<JSON>"}, "name": {"dtype", "shape", "data_offsets"}, ...}
    data     the arrays, C order, little-endian, one after another

Reading runs no code, allocates no more than what came, and makes no copy of the arrays. The layout is the one of
https://github.com/huggingface/safetensors (format section of its README).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from SAMFineTuneLib.service.protocol import Buffer

_TYPES = {
    "F64": "<f8", "I64": "<i8", "U64": "<u8", "F32": "<f4", "I32": "<i4", "U32": "<u4",
    "F16": "<f2", "I16": "<i2", "U16": "<u2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _TYPES.items()}
_METADATA = "__metadata__"
_LARGEST_HEADER = 32 << 20
_MOST_DIMENSIONS = 8


class CodecError(ValueError):
    """Bytes that are no message; the text says what is wrong with them."""


def encode(message: Any, arrays: Mapping[str, np.ndarray | Buffer] | None = None) -> list[Buffer]:
    """A message as pieces to be sent one after another; arrays are not copied where they are contiguous.

    Bytes are arrays of uint8. Types beyond those of safetensors raise CodecError.
    """
    header: dict[str, Any] = {_METADATA: {"message": json.dumps(message, allow_nan=False, separators=(",", ":"))}}
    prepared = {name: _plain(name, array) for name, array in (arrays or {}).items()}
    pieces: list[Buffer] = []
    offset = 0
    for name in sorted(prepared, key=lambda name: -prepared[name].itemsize):  # keeps every array aligned
        array = prepared[name]
        header[name] = {
            "dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]
        }  # fmt: skip
        offset += array.nbytes
        if array.nbytes:
            pieces.append(memoryview(array.reshape(-1)).cast("B"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little") + text, *pieces]


def decode(data: Buffer) -> tuple[Any, dict[str, np.ndarray]]:
    """Message and arrays; the arrays are read-only views into `data`. CodecError for anything else."""
    view = memoryview(data).cast("B")
    if len(view) < 8:
        raise CodecError("it is shorter than 8 bytes")
    length = int.from_bytes(view[:8], "little")
    if length > min(len(view) - 8, _LARGEST_HEADER):
        raise CodecError("its header is longer than it is")
    header = _json(bytes(view[8 : 8 + length]), "header")
    if not isinstance(header, dict):
        raise CodecError("its header is no object")
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not isinstance(metadata.get("message"), str):
        raise CodecError("it has no message")
    return _json(metadata["message"], "message"), _arrays(header, view[8 + length :].toreadonly())


def _arrays(header: dict[str, Any], data: memoryview) -> dict[str, np.ndarray]:
    arrays, spans = {}, []
    for name, entry in header.items():
        try:
            kind = np.dtype(_TYPES[entry["dtype"]])
            shape = tuple(entry["shape"])
            start, end = entry["data_offsets"]
            numbers = (*shape, start, end)
            sound = all(type(number) is int and number >= 0 for number in numbers) and len(shape) <= _MOST_DIMENSIONS
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound or not start <= end <= len(data) or math.prod(shape) * kind.itemsize != end - start:
            raise CodecError(f"its array {name[:40]!r} does not fit its description")
        spans.append((start, end))
        arrays[name] = np.frombuffer(data[start:end], kind).reshape(shape)
    reached = 0
    for start, end in sorted(spans):
        if start != reached:
            raise CodecError("its arrays overlap or leave gaps")
        reached = end
    if reached != len(data):
        raise CodecError("it is longer than its arrays")
    return arrays


def _plain(name: str, array: np.ndarray | Buffer) -> np.ndarray:
    if not isinstance(array, np.ndarray):
        array = np.frombuffer(array, np.uint8)
    array = np.ascontiguousarray(array).reshape(array.shape)
    little = array.dtype.newbyteorder("<")
    if little not in _NAMES:
        raise CodecError(f"the array {name!r} holds {array.dtype}, which cannot be sent")
    return array.astype(little, copy=False)


def _json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except CodecError:
        raise
    except (ValueError, RecursionError) as error:
        raise CodecError(f"its {what} is not JSON") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise CodecError("it names something twice")
    return values


def _refuse(constant: str) -> None:
    raise CodecError(f"it holds {constant}, which is no JSON number")
