"""Brings label maps of any origin to the label values of a cohort."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from SAMFineTuneLib.cases.label_map import Meaning
from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.wording import same_name


def renumbered(
    array: np.ndarray, meaning: Meaning, known: Mapping[int, str], more: bool = False
) -> tuple[np.ndarray, dict[int, str]]:
    """A label map with the values of a cohort: by name where the file names its values, else as they are.

    Args:
        array: whole numbers [k, j, i].
        meaning: what they mean, as far as their file says.
        known: value → name of the cohort's structures.
        more: whether unknown structures are added rather than refused.

    Returns:
        The label map uint16, and the structures.

    Raises:
        UserError: for labels that overlap or are ignored, and for structures that the cohort does not have.
    """
    values = [int(value) for value in np.unique(array) if value]
    if any(value in meaning.members or value in meaning.ignored for value in values):
        raise UserError("Structures overlap or voxels are to be ignored, which a cohort does not keep.")
    names, table = dict(known), np.zeros(max(values, default=0) + 1, np.uint16)
    for value in values:
        name = meaning.names.get(value, "").strip()
        by_name = next((one for one, own in names.items() if same_name(own) == same_name(name)), None)
        if not name and value in names:
            by_name = value
        if by_name is None and not more:
            raise UserError(
                f"There is “{name or f'value {value}'}”, which is not a structure of the cohort: "
                f"{', '.join(known.values())}."
            )
        if by_name is None:
            by_name = value if value not in names else max(*names, *values) + 1
            names[by_name] = name or f"label {value}"
        table[value] = by_name
    return table[array.astype(np.intp)], names
