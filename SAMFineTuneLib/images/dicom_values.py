"""Reads DICOM attributes as numbers and text; a value that cannot be understood is None or empty."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.valuerep import format_number_as_ds

_LONGEST = 64  # characters of a text: DICOM's own limit for descriptions


def read_value(dataset: Dataset, keyword: str | int) -> Any:
    """An attribute's value; None when it is missing, empty or cannot be decoded."""
    try:
        value = dataset.get(keyword)
        value = value.value if isinstance(keyword, int) and value is not None else value
    except MemoryError:
        raise
    except Exception:  # pydicom converts values on first access, and raises errors of many kinds
        return None
    return None if value == "" else value


@dataclass(frozen=True, eq=False)
class Attributes:
    """The attributes of frame `index` (0-based) of a file, each from the first of several datasets that has it."""

    datasets: tuple[Dataset, ...]
    index: int
    in_groups: bool  # whether the file describes each of its frames

    def __getitem__(self, keyword: str | int) -> Any:
        found = (read_value(dataset, keyword) for dataset in self.datasets)
        return next((value for value in found if value is not None), None)


def in_groups(groups: Dataset | None) -> Dataset:
    """The attributes in an enhanced file's functional groups (DICOM PS3.3 C.7.6.16), whichever group they are in."""
    items = (first_item(read_value(groups, tag)) for tag in (groups or {}).keys())
    return Dataset({tag: element for item in items if item is not None for tag, element in item.items()})


def numbers(value: Any, count: int) -> np.ndarray | None:
    """The first `count` numbers of a value; None when missing, too few or not finite."""
    if value is None or isinstance(value, (bytes, Dataset)):
        return None
    values = [value] if isinstance(value, (str, int, float)) or not hasattr(value, "__iter__") else list(value)
    if len(values) < count:
        return None
    try:
        found = np.array([float(one) for one in values[:count]])
    except (TypeError, ValueError, OverflowError):
        return None
    return found if np.isfinite(found).all() else None


def first_item(value: Any) -> Dataset | None:
    """The first item of a sequence."""
    first = value[0] if isinstance(value, Sequence) and len(value) else None
    return first if isinstance(first, Dataset) else None


def number(value: Any) -> float | None:
    """The first number of a value."""
    found = numbers(value, 1)
    return None if found is None else float(found[0])


def whole_number(value: Any) -> int | None:
    """The first number of a value, when it is a positive whole one."""
    found = number(value)
    return int(found) if found is not None and found >= 1 and found.is_integer() else None


def text(value: Any) -> str:
    """A value in one line of readable characters, several values with backslashes between."""
    if value is None or isinstance(value, (bytes, Dataset, Sequence)):
        return ""
    try:
        parts = [str(value)] if isinstance(value, (str, int, float)) else [str(part) for part in value]
    except Exception:  # names in a character set that does not exist
        return ""
    line = " ".join("\\".join(parts).split())
    return "".join(letter for letter in line if letter.isprintable())[:_LONGEST]


def uid(value: Any) -> str:
    """A value as a UID; "" when it is not one."""
    return text(value).strip("\0 ")


def decimals(values: Iterable[float]) -> list[str]:
    """Numbers as DICOM writes them: at most 16 characters each, as precise as those allow."""
    return [format_number_as_ds(float(value)) for value in values]
