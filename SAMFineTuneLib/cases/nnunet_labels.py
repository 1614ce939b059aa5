"""Labels in nnU-Net's `dataset.json`: names, regions, and the label to be ignored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from SAMFineTuneLib.cases.label_map import Meaning
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.prompts.checked_json import without_doubles
from SAMFineTuneLib.typed_json import loaded

IGNORE = "ignore"


def read_meaning(path: Path) -> Meaning:
    """Read the meaning of label values from a `dataset.json` of version 1 (value: name) or 2 (name: value).

    A name with several values is a region. Labels are then numbered as in nnU-Net's predictions, by
    `regions_class_order`, and a voxel belongs to every region that has its value. Without the file nothing is known;
    UserError when it cannot be understood.
    """
    if not path.is_file():
        return Meaning()
    try:
        content = loaded(path.read_text(encoding="utf-8-sig"), object_pairs_hook=without_doubles)
        named = _values_by_name(content["labels"])
    except OSError as error:
        raise UserError(f"“{path}” cannot be read ({error.strerror}); check its permissions.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"“{path}” is not a usable dataset.json of nnU-Net; correct or remove it.") from error
    if len({name.casefold() for name in named}) < len(content["labels"]):
        raise UserError(f"“{path}” gives several labels one name; give each its own.")
    if twice := [name for name, values in named.items() if list(named.values()).count(values) > 1]:
        raise UserError(f"“{path}” gives {' and '.join(twice)} the same values; give each name its own.")
    ignored = tuple(value for name, values in named.items() if name.casefold() == IGNORE for value in values)
    regions = {name: tuple(value for value in values if value) for name, values in named.items()
               if name.casefold() != IGNORE and any(values)}  # fmt: skip
    if all(len(values) == 1 for values in regions.values()):
        return Meaning({values[0]: name for name, values in regions.items()}, ignored=ignored)
    order = content.get("regions_class_order") or list(range(1, len(regions) + 1))
    if not isinstance(order, list) or not all(type(n) is int and n > 0 for n in order):
        raise UserError(f"“{path}” has a regions_class_order that does not list whole numbers from 1 on; correct it.")
    if len(order) != len(regions) or len(set(order)) < len(order):
        raise UserError(
            f"“{path}” names {len(regions)} regions, and its regions_class_order {len(order)}; give each a number of "
            "its own."
        )
    numbers = dict(zip(regions, order, strict=True))
    members = {
        value: tuple(sorted(numbers[name] for name, values in regions.items() if value in values))
        for value in sorted({value for values in regions.values() for value in values})
    }
    return Meaning({number: name for name, number in numbers.items()}, members, ignored)


def _values_by_name(entries: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    if all(str(key).isdigit() for key in entries):  # version 1, and the Medical Segmentation Decathlon
        return {str(name): (int(value),) for value, name in entries.items()}
    return {
        str(name): tuple(int(one) for one in value) if isinstance(value, list) else (int(value),)
        for name, value in entries.items()
    }
