"""Checked values out of JSON: every complaint names the key it is about."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from SAMFineTuneLib.errors import UserError


def load_json(path: Path) -> dict:
    """The object in a JSON file. Raises UserError when it cannot be read, or is no JSON object."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"The prompts file {path} does not exist: check its name.") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text in UTF-8"
        raise UserError(f"The prompts file {path} cannot be read: {reason}.") from None
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"The prompts file {path.name} is not valid JSON at line {error.lineno}, column {error.colno}: "
            f"{error.msg}."
        ) from None
    except (RecursionError, ValueError):  # nested, or numbers, beyond all reason
        raise UserError(f"The prompts file {path.name} is not JSON that this program can read.") from None
    return mapping(values, path.name)


def mapping(value: Any, where: str, allowed: tuple[str, ...] | None = None) -> dict:
    """`value` as an object; with `allowed`, no other keys than these."""
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a JSON object in braces.")
    for key in value:
        if allowed is not None and key not in allowed:
            raise UserError(f'{where} has an unknown key "{key}": allowed are {", ".join(allowed)}.')
    return value


def sequence(value: Any, where: str) -> list:
    if not isinstance(value, list):
        raise UserError(f"{where} must be a list in brackets.")
    return value


def required(values: dict, key: str, where: str) -> Any:
    if key not in values:
        raise UserError(f'{where} lacks its "{key}".')
    return values[key]


def numbers(value: Any, where: str, count: int) -> list[float]:
    """`count` finite numbers."""
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


def flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"{where} must be true or false.")
    return value


def text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where} must be a text in quotes.")
    return value
