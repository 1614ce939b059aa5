"""Cases that a program exports for a training: unnamed images and label maps, and a list of them.

The writer works in pieces, so that the program's window stays responsive. The reader, in the training's process, joins
the label maps of a case on its image's grid and records what their values mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume, lps_from_affine
from SAMFineTuneLib.typed_json import loaded

if TYPE_CHECKING:
    from SAMFineTuneLib.cases.cases import Case

LIST = "cases.json"
_PIECE = 2 << 20  # bytes written at once: a few milliseconds
_STORED = {"bool": "uint8", "float16": "float32"}  # types that NRRD lacks
_NRRD_NAMES = {"float32": "float", "float64": "double"}  # of the others, NumPy's names are NRRD's


@dataclass(frozen=True, eq=False)
class LabelLayer:
    """Labels [k, j, i] with their own affine, and the names of their values."""

    array: np.ndarray
    affine: np.ndarray
    names: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class ExportedCase:
    """An image, its labels, and a number for its patient; nothing in it names anybody."""

    id: str
    patient: str
    image: Volume
    layers: Sequence[LabelLayer]


def write_cases(cases: Sequence[ExportedCase], folder: Path) -> Iterator[float]:
    """Write cases into a folder piece by piece, and yield the fraction done after each piece; UserError when the disk
    is full.
    """
    total = sum(case.image.array.nbytes + sum(layer.array.nbytes for layer in case.layers) for case in cases) or 1
    written, listed = 0, []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for case in cases:
            image = f"{case.id}-image.nrrd"
            layers = [(f"{case.id}-{number}.nrrd", layer) for number, layer in enumerate(case.layers)]
            parts = [(image, case.image.array, case.image.affine), *((n, x.array, x.affine) for n, x in layers)]
            for name, array, affine in parts:
                for size in _write_nrrd(folder / name, array, affine):
                    written += size
                    yield min(1.0, written / total)
            listed.append({
                "id": case.id, "patient": case.patient, "image": image,
                "layers": [{"file": name, "names": {str(key): text for key, text in layer.names.items()}}
                           for name, layer in layers],
            })  # fmt: skip
        (folder / LIST).write_text(json.dumps(listed), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The cases cannot be written into {folder} ({error.strerror or error}): free some space on the disk."
        ) from error


def read_cases(folder: Path) -> tuple[Case, ...]:
    """The cases in a folder, each with one label map; UserError when they are incomplete."""
    # These load file readers, which an exporting window does not need.
    from SAMFineTuneLib.cases.cases import Case
    from SAMFineTuneLib.cases.label_map import Meaning

    try:
        listed = loaded((folder / LIST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("The cases of this training no longer exist; start it again.") from error
    names = sorted({name for entry in listed for layer in entry["layers"] for name in layer["names"].values()})
    values = {name: value for value, name in enumerate(names, start=1)}
    cases = []
    for entry in listed:
        joined, told = folder / f"{entry['id']}-labels.nrrd", folder / f"{entry['id']}-labels.json"
        if not told.exists():
            _join(entry, folder, joined, told, values)
        known = loaded(told.read_text(encoding="utf-8"))
        members = {int(value): tuple(labels) for value, labels in known["members"].items()}
        meaning = Meaning({value: name for name, value in values.items()}, members)
        image, notes = folder / entry["image"], tuple(known["notes"])
        cases.append(Case(entry["id"], image, joined, entry["patient"], meaning, notes=notes))
    return tuple(cases)


def _join(entry: dict, folder: Path, joined: Path, told: Path, values: Mapping[str, int]) -> None:
    """Join all layers in one label map on the image's grid, by position, because a scene knows where everything lies.
    """
    from SAMFineTuneLib.cases.label_files import read_labels
    from SAMFineTuneLib.cases.label_grid import fit_labels
    from SAMFineTuneLib.cases.label_map import overlaid
    from SAMFineTuneLib.files import write_text
    from SAMFineTuneLib.images.labelmap_files import write_labelmap
    from SAMFineTuneLib.images.read_image import read_volume

    volume = read_volume(folder / entry["image"])
    masks, notes = [], []
    for layer in entry["layers"]:
        try:
            found = fit_labels(read_labels(folder / layer["file"]), volume, "position")
        except UserError as error:
            raise UserError(f"Case {entry['id']}: {error}") from error
        masks += [(values[name], found.array == int(value)) for value, name in layer["names"].items()]
        notes += found.notes
    labels, members = overlaid(masks, volume.shape, len(values) + 1)
    write_labelmap(joined, labels, volume)
    write_text(told, json.dumps({"members": members, "notes": list(dict.fromkeys(notes))}))
    for layer in entry["layers"]:
        (folder / layer["file"]).unlink()


def _write_nrrd(path: Path, array: np.ndarray, affine: np.ndarray) -> Iterator[int]:
    """Write an uncompressed NRRD file and yield the size of each piece."""
    kind = np.dtype(_STORED.get(array.dtype.name, array.dtype.name))
    array = np.ascontiguousarray(array, kind.newbyteorder("<"))
    origin, directions, spacing = lps_from_affine(affine)
    axes = (directions * spacing).T
    vectors = " ".join("(" + ",".join(repr(float(part)) for part in axis) + ")" for axis in axes)
    header = [
        "NRRD0004",
        f"type: {_NRRD_NAMES.get(kind.name, kind.name)}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in array.shape[::-1])}",
        f"space directions: {vectors}",
        "kinds: domain domain domain",
        "endian: little",
        "encoding: raw",
        f"space origin: ({','.join(repr(float(part)) for part in origin)})",
    ]
    with open(path, "wb") as file:
        file.write(("\n".join(header) + "\n\n").encode("ascii"))
        voxels = memoryview(array.reshape(-1)).cast("B")
        for start in range(0, len(voxels), _PIECE):
            yield file.write(voxels[start : start + _PIECE])
