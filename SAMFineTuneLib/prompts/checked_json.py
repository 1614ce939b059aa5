"""Reads checked values and coordinates out of JSON. Every message names the key that it is about."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.slice_plane import require_voxels
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.typed_json import loaded


def load_file(path: Path) -> bytes:
    """The content of a prompts file. Raises UserError when it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"The prompts file {path} does not exist: check its name.") from None
    except OSError as error:
        raise UserError(f"The prompts file {path} cannot be read: {error.strerror}.") from None


def load_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError when it cannot be read, or does not hold a JSON object."""
    content = load_file(path)
    try:
        values = loaded(content.decode("utf-8-sig"), object_pairs_hook=without_doubles)
    except UnicodeDecodeError:
        raise UserError(f"The prompts file {path} cannot be read: it is not text in UTF-8.") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"The prompts file {path.name} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from None
    except KeyError as error:
        raise UserError(f"The prompts file {path.name} has {error.args[0]}; join them, or remove one.") from None
    except ValueError as error:
        raise UserError(f"The prompts file {path.name} is not JSON that this program can read: {error}.") from None
    return mapping(values, path.name)


def without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object for `json.loads`, which would keep the last value of a key only. Raises KeyError for two of one."""
    values = dict(pairs)
    if len(values) < len(pairs):
        raise KeyError(f'the key "{next(key for n, (key, _) in enumerate(pairs) if key in dict(pairs[:n]))}" twice')
    return values


def mapping(value: Any, where: str, allowed: tuple[str, ...] | None = None) -> dict:
    """`value` as an object; with `allowed`, no other keys than these."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object in braces.")
    for key in value:
        if allowed is not None and key not in allowed:
            raise UserError(f'{where} has an unknown key "{key}": allowed are {", ".join(allowed)}.')
    return value


def sequence(value: Any, where: str) -> list:
    """A list; else UserError, in which `where` names the value."""
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list in brackets.")
    return value


def required(values: dict, key: str, where: str) -> Any:
    """The value of a key; UserError when `where` lacks it."""
    if key not in values:
        raise UserError(f'{where} lacks its "{key}".')
    return values[key]


def numbers(value: Any, where: str, count: int) -> list[float]:
    """A list of `count` finite numbers; else UserError, in which `where` names the value."""
    good = isinstance(value, list) and len(value) == count
    if not good or not all(isinstance(x, (int, float)) and not isinstance(x, bool) for x in value):
        raise UserError(f"{where} must be a list of {count} numbers.")
    try:
        result = [float(x) for x in value]
    except OverflowError:
        result = [math.inf]
    if not all(map(math.isfinite, result)):
        raise UserError(f"{where} must hold finite numbers, not NaN or infinity.")
    return result


def vectors(value: Any, where: str, count: int, what: str) -> np.ndarray:
    """A list of lists of three numbers.

    Args:
        value: what the file holds.
        where: its name in messages.
        count: how many lists there must be.
        what: the lists' name in messages.

    Returns:
        (count, 3).

    Raises:
        UserError: for anything else.
    """
    entries = sequence(value, where)
    if len(entries) != count:
        raise UserError(f"{where} must be a list of {count} {what}.")
    return np.array([numbers(entry, where, 3) for entry in entries])


def flag(value: Any, where: str) -> bool:
    """True or false; else UserError, in which `where` names the value."""
    if not isinstance(value, bool):
        raise UserError(f"{where} must be true or false.")
    return value


def text(value: Any, where: str) -> str:
    """A text; else UserError, in which `where` names the value."""
    if not isinstance(value, str):
        raise UserError(f"{where} must be a text in quotes.")
    return value


class Coordinates:
    """Turns the coordinates of a prompts file into RAS.

    Args:
        space: "ras", or "ijk" for voxel coordinates of `volume`.
    """

    def __init__(self, space: str, volume: Volume | None):
        if space not in ("ras", "ijk"):
            raise UserError(f'space must be "ras" or "ijk", not "{space}".')
        if space == "ijk" and volume is None:
            raise UserError('The prompts are in voxel coordinates (space "ijk"): give their volume too.')
        self._volume = volume if space == "ijk" else None
        self.axes = np.eye(3) if self._volume is None else self._volume.affine[:3, :3].T
        """(3, 3): the file's axes in RAS mm, one row an axis."""

    def point(self, value: Any, where: str) -> tuple:
        """A point that may lie anywhere."""
        point = numbers(value, where, 3)
        return tuple(point if self._volume is None else map(float, self._volume.ijk_to_ras(point)))

    def position(self, value: Any, where: str) -> tuple:
        """A point that must lie in the volume, if the file is in voxels."""
        point = self.point(value, where)
        self.require_inside([value], where)
        return point

    def points(self, value: Any, where: str, count: int | None = None) -> tuple:
        """Read points, at least one of which must lie in the volume if the file is in voxels.

        Args:
            value: what the file holds.
            where: its name in messages.
            count: how many points there must be, by default any number.

        Returns:
            The points in world RAS.

        Raises:
            UserError: for anything else.
        """
        entries = sequence(value, where)
        positions = vectors(value, where, len(entries) if count is None else count, "positions")
        if entries:
            self.require_inside(positions, where)
        return tuple(self.point(entry, f"{where}[{number}]") for number, entry in enumerate(entries))

    def direction(self, value: Any, where: str) -> tuple:
        """A direction in RAS, with the length that it has in the file's axes."""
        return tuple(map(float, np.array(numbers(value, where, 3)) @ self.axes))

    def require_inside(self, positions: Sequence[Sequence[float]], where: str) -> None:
        """Refuse, in a file in voxels, positions that lie outside the volume altogether."""
        if self._volume is not None:
            require_voxels(self._volume, positions, where)
