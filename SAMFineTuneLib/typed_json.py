"""Values of JSON as the fields of dataclasses have them, by the types of these fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

_SHOWN = 40  # characters of a value that does not fit
_types = cache(get_type_hints)  # of the fields of a dataclass


def made(kind: Any, value: Any, where: str = "") -> Any:
    """A value of JSON as its type has it.

    Args:
        kind: a dataclass, whose fields may be missing where they have defaults and of which others are left out; a
            tuple, a Mapping, one of these or None, a type of JSON's own values, or Any.
        value: what was read.
        where: its place, for the error.

    Raises:
        ValueError: with the place of a value that does not fit.
        TypeError: where a dataclass lacks a field.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:  # with None
        return None if value is None else made(inner[0], value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        own = {name: made(of, value[name], f"{where}.{name}") for name, of in _types(kind).items() if name in value}
        return kind(**own)
    if origin is tuple and isinstance(value, list):
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        return tuple(made(of, one, f"{where}.{n}") for n, (of, one) in enumerate(zip(kinds, value, strict=True)))
    if origin is Mapping and isinstance(value, dict):
        return {inner[0](name): made(inner[1], one, f"{where}.{name}") for name, one in value.items()}
    if kind is Any or type(value) is kind or (kind is float and type(value) is int):
        return value
    raise ValueError(f"{where.lstrip('.')} is {str(value)[:_SHOWN]}")
