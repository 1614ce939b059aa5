"""Reads untrusted JSON, and checks its values against types such as those of a dataclass's fields."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

_SHOWN = 40  # characters of a value that does not fit
_types = cache(get_type_hints)  # of the fields of a dataclass
_ODD = re.compile(r"(?<!\\)(?:\\\\)*\\u(0000|[dD][89a-fA-F])")  # escapes of NUL and of halves of characters


def loaded(text: str | bytes, **options: Any) -> Any:
    """The value in a JSON text, which can be written again.

    Args:
        text: UTF-8 where it is bytes.
        options: of `json.loads`.

    Raises:
        ValueError: for what is not JSON or nested too deeply, and for texts with NUL or half a character, which no file
            could take. Names of files that are not UTF-8 (bytes are U+DC80 to U+DCFF in Python) are allowed.
    """
    text = text.decode() if isinstance(text, bytes) else text
    try:
        value = json.loads(text, **options)
        odd = {found[1] for found in _ODD.finditer(text)} if "\\u" in text else ()
        if "0000" in odd:
            raise ValueError("it contains a NUL character")
        if odd:
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it contains half a character (a lone surrogate)") from None
    return value


def made(kind: Any, value: Any, where: str = "") -> Any:
    """A JSON value as a type has it.

    Args:
        kind: a dataclass, whose fields may be missing if they have defaults, and unknown ones are ignored; a
            tuple, a Mapping, one of these or None, a type of JSON's own values, or Any.
        value: the JSON value.
        where: its place, for the error.

    Raises:
        ValueError: with the place of a value that does not fit.
        TypeError: if a dataclass lacks a field.
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
