"""Dataclasses as bytes and back: intents, events, and the messages of `protocol`.

    8 bytes  length of the header, little-endian
    header   JSON {"message": value, "arrays": [[type, shape], ...]}
    data     the arrays, C order, little-endian, each from a multiple of 8 bytes on

A dataclass is written as {"is": its name, field: value, ...} without the fields that have their default value, a tuple
as a list, an array or bytes as {"array": its position}. Reading checks every value by the type of its field, and a
`WireError` names the field that is wrong. It runs no code, allocates no more than what arrived, and copies no array.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_plane import SlicePlane
from SAMFineTuneLib.prompts import Prompt
from SAMFineTuneLib.prompts.checked_json import Coordinates
from SAMFineTuneLib.prompts.prompt_kind import KINDS

Buffer = bytes | bytearray | memoryview
Value = TypeVar("Value")

_ARRAY_TYPES = frozenset(np.dtype(code) for code in "|b1 |i1 |u1 <i2 <u2 <i4 <u4 <i8 <u8 <f2 <f4 <f8".split())
_LARGEST_HEADER = 32 << 20
_MOST_DIMENSIONS = 8
_LARGEST_NUMBER = 1 << 53
_LONGEST_TEXT = 100_000
_LARGEST_SIDE = 16384  # pixels of a plane
_LARGEST_PLANE = 1 << 26


class WireError(ValueError):
    """Bytes that are not the expected message; the text says which field is wrong, and how."""


class Later(Generic[Value]):
    """A part of a message that is decoded on demand, so that one wrong or slow part does not hold up the rest."""

    def __init__(self, plain: Any, read: Callable[[], Value]) -> None:
        self.plain = plain
        """The part as it arrived, unchecked JSON values."""
        self.read = read
        """Check and make it; raises WireError or UserError."""


def encode(message: Any) -> list[Buffer]:
    """A dataclass as pieces to be sent one after another; arrays are not copied where they are contiguous.

    Raises WireError for an array of a type that cannot be sent.
    """
    arrays: list[np.ndarray] = []
    header = {"message": _plain(message, arrays), "arrays": [[one.dtype.str, list(one.shape)] for one in arrays]}
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    pieces: list[Buffer] = [len(text).to_bytes(8, "little") + text]
    for array in arrays:
        if array.nbytes:
            pieces.append(memoryview(array.reshape(-1)).cast("B"))
        if padding := -array.nbytes % 8:
            pieces.append(bytes(padding))
    return pieces


def decode(data: Buffer, kind: type[Value]) -> Value:
    """The dataclass of a kind (or of one of a union) in a message; its arrays are read-only views into `data`.

    Raises WireError for anything else, and UserError where the dataclass itself refuses its values.
    """
    view = memoryview(data).cast("B").toreadonly()
    length = int.from_bytes(view[:8], "little") if len(view) >= 8 else -1
    if not 0 <= length <= min(len(view) - 8, _LARGEST_HEADER):
        raise WireError("it is shorter than it says")
    try:
        header = json.loads(bytes(view[8 : 8 + length]), parse_constant=_refuse, object_pairs_hook=_object)
    except WireError:
        raise
    except (ValueError, RecursionError) as error:
        raise WireError("its header is not JSON") from error
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list) or "message" not in header:
        raise WireError("its header has no message")
    arrays = _arrays(header["arrays"], view[8 + length :])
    return _reader(kind)(header["message"], "message", arrays)


# ---- writing


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """A value as JSON values; arrays go into `arrays`. Numbers that JSON does not have become null."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return [_plain(item, arrays) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, arrays) for key, item in value.items()}
    if isinstance(value, SlicePlane):
        return value.to_dict()
    if isinstance(value, (np.ndarray, bytes, bytearray, memoryview)):
        arrays.append(_sendable(value))
        return {"array": len(arrays) - 1}
    if isinstance(value, Prompt):
        return {value.list_name: value.to_json()}
    if not dataclasses.is_dataclass(value):
        raise WireError(f"{type(value).__name__} cannot be sent")
    written = {"is": type(value).__name__}
    for field in dataclasses.fields(value):
        item = getattr(value, field.name)
        if item is not field.default and not (type(item) is type(field.default) and item == field.default):
            written[field.name] = _plain(item, arrays)
    return written


def _sendable(value: np.ndarray | Buffer) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else np.frombuffer(value, np.uint8)
    kind = array.dtype.newbyteorder("<")
    if kind not in _ARRAY_TYPES:
        raise WireError(f"an array of {array.dtype} cannot be sent")
    return np.ascontiguousarray(array, kind).reshape(array.shape)


# ---- reading

Reader = Callable[[Any, str, list[np.ndarray]], Any]
"""Makes a value from JSON values; the text names its place, for errors."""


@functools.cache
def _reader(kind: Any) -> Reader:
    """The function that reads values of a type."""
    if kind in _READERS:
        return _READERS[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _union_reader(arguments)
    if origin is tuple:
        return _tuple_reader(arguments)
    if origin is Later:
        inner = _reader(arguments[0])
        return lambda value, where, arrays: Later(value, lambda: inner(value, where, arrays))
    if dataclasses.is_dataclass(kind):
        return _dataclass_reader(kind)
    raise TypeError(f"no value of {kind} can be read")


def _dataclass_reader(kind: type) -> Reader:
    types_of = typing.get_type_hints(kind)
    fields = [(field.name, _reader(types_of[field.name]), _is_optional(field)) for field in dataclasses.fields(kind)]

    def read(value: Any, where: str, arrays: list[np.ndarray]) -> Any:
        if not isinstance(value, dict) or value.get("is") != kind.__name__:
            raise WireError(f"{where} is not a {kind.__name__}")
        given = {}
        for name, reader, optional in fields:
            if name in value:
                given[name] = reader(value[name], f"{where}.{name}", arrays)
            elif not optional:
                raise WireError(f"{where} has no {name}")
        try:
            return kind(**given)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise WireError(f"{where} is not a {kind.__name__} ({error})") from error

    return read


def _is_optional(field: dataclasses.Field) -> bool:
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def _union_reader(kinds: Sequence[Any]) -> Reader:
    """Read dataclasses by their names, other kinds by trying each."""
    named = {kind.__name__: _reader(kind) for kind in kinds if dataclasses.is_dataclass(kind) and kind not in _READERS}
    others = [_reader(kind) for kind in kinds if kind is not types.NoneType and kind.__name__ not in named]
    takes_none = types.NoneType in kinds

    def read(value: Any, where: str, arrays: list[np.ndarray]) -> Any:
        if value is None and takes_none:
            return None
        name = value.get("is") if isinstance(value, dict) else None
        if isinstance(name, str) and name in named:
            return named[name](value, where, arrays)
        for position, reader in enumerate(others):
            try:
                return reader(value, where, arrays)
            except WireError:
                if position == len(others) - 1:
                    raise
        raise WireError(f"{where} is of an unknown kind")

    return read


def _tuple_reader(kinds: Sequence[Any]) -> Reader:
    any_length = len(kinds) == 2 and kinds[1] is Ellipsis
    readers = [_reader(kind) for kind in kinds if kind is not Ellipsis]

    def read(value: Any, where: str, arrays: list[np.ndarray]) -> tuple:
        if not isinstance(value, list) or not any_length and len(value) != len(readers):
            raise WireError(f"{where} is not a list{'' if any_length else f' of {len(readers)}'}")
        own = readers * len(value) if any_length else readers
        pairs = enumerate(zip(own, value, strict=True))
        return tuple(reader(item, f"{where}[{number}]", arrays) for number, (reader, item) in pairs)

    return read


def _read_bool(value: Any, where: str, _) -> bool:
    if not isinstance(value, bool):
        raise WireError(f"{where} is not true or false")
    return value


def _read_int(value: Any, where: str, _) -> int:
    if type(value) is not int or abs(value) >= _LARGEST_NUMBER:
        raise WireError(f"{where} is not a whole number")
    return value


def _read_float(value: Any, where: str, _) -> float:
    if type(value) not in (int, float) or abs(value) > _FLOAT_MAX:
        raise WireError(f"{where} is not a number")
    return float(value)


def _read_text(value: Any, where: str, _) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_TEXT:
        raise WireError(f"{where} is not a text of at most {_LONGEST_TEXT:,} characters")
    return value


def _read_array(value: Any, where: str, arrays: list[np.ndarray]) -> np.ndarray:
    number = value.get("array") if isinstance(value, dict) else None
    if type(number) is not int or not 0 <= number < len(arrays):
        raise WireError(f"{where} is not an array")
    return arrays[number]


def _read_bytes(value: Any, where: str, arrays: list[np.ndarray]) -> bytes:
    array = _read_array(value, where, arrays)
    if array.dtype != np.uint8 or array.ndim != 1:
        raise WireError(f"{where} is not a row of bytes")
    return array.tobytes()


def _read_mask(value: Any, where: str, arrays: list[np.ndarray]) -> PackedMask:
    mask = _dataclass_reader(PackedMask)(value, where, arrays)
    if min(mask.shape) < 0 or len(mask.data) != -(-mask.shape[0] * mask.shape[1] // 8):
        raise WireError(f"{where} is a mask of another size than it says")
    return mask


def _read_plane(value: Any, where: str, _) -> SlicePlane:
    if not isinstance(value, dict):
        raise WireError(f"{where} is not a plane")
    plane = SlicePlane.from_dict(value)
    if max(plane.shape) > _LARGEST_SIDE or plane.shape[0] * plane.shape[1] > _LARGEST_PLANE:
        raise UserError(f"A plane of {plane.shape[0]} × {plane.shape[1]} pixels is too large; zoom in.")
    return plane


def _read_prompt(value: Any, where: str, _) -> Prompt:
    """A prompt has the form that its kind has in our prompts file, under the name of its list there."""
    name, entry = next(iter(value.items())) if isinstance(value, dict) and len(value) == 1 else ("", None)
    if name not in KINDS:
        raise WireError(f"{where} is not a prompt")
    return KINDS[name].from_json(entry, where, Coordinates("ras", None))


_FLOAT_MAX = float(np.finfo(np.float64).max)
_READERS: dict[Any, Reader] = {
    bool: _read_bool, int: _read_int, float: _read_float, str: _read_text, bytes: _read_bytes,
    np.ndarray: _read_array, PackedMask: _read_mask, SlicePlane: _read_plane, Prompt: _read_prompt,
    Any: lambda value, where, arrays: value,
}  # fmt: skip


def _arrays(described: list, data: memoryview) -> list[np.ndarray]:
    arrays, start = [], 0
    for entry in described:
        try:
            code, shape = entry
            kind = np.dtype(code)
            sound = kind in _ARRAY_TYPES and kind.str == code and len(shape) <= _MOST_DIMENSIONS
            sound = sound and all(type(length) is int and length >= 0 for length in shape)
            size = math.prod(shape) * kind.itemsize
        except (TypeError, ValueError):
            sound = False
        if not sound or start + size > len(data):
            raise WireError(f"its array {len(arrays)} does not fit its description")
        arrays.append(np.frombuffer(data[start : start + size], kind).reshape(shape))
        start += size + -size % 8
    if start != len(data):
        raise WireError("it is longer or shorter than its arrays")
    return arrays


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise WireError("it names something twice")
    return values


def _refuse(constant: str) -> None:
    raise WireError(f"it holds {constant}, which is not a JSON number")
