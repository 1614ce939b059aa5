"""What several sub-commands print: sentences about volumes, facts in columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from SAMFineTuneLib.cli import console
from SAMFineTuneLib.wording import counted

if TYPE_CHECKING:
    from SAMFineTuneLib.images import IntensityWindow, Volume
    from SAMFineTuneLib.inference.predictor import Predictor

_DIRECTIONS = (("Left", "Right"), ("Posterior", "Anterior"), ("Inferior", "Superior"))
_ALONG = {"sagittal": 0, "coronal": 1, "axial": 2}  # orientation → the RAS axis its slices are stacked along
_UPRIGHT = 0.1  # degrees; scanners round their direction cosines


class Answering(NamedTuple):
    """The model that answers: its id, its display name, and its device."""

    model: str
    name: str
    device: str

    @classmethod
    def of(cls, predictor: Predictor) -> Answering:
        """A model that is open in this process."""
        return cls(predictor.engine.spec.id, predictor.engine.spec.name, str(predictor.engine.device))


def print_inputs(
    volume: Volume, window: IntensityWindow, answering: Answering, adapter: str | None = None
) -> dict[str, Any]:
    """Print the volume as the model will see it.

    Args:
        volume: the volume.
        window: the grey values that the model sees.
        answering: the model, and where it runs.
        adapter: the adapter's name, None without one.

    Returns:
        The same for a program's document.
    """
    print(f"volume      {what(volume)}")
    print(f"            {grid(volume)}")
    print(f"            {orientation(volume)}")
    for warning in volume.warnings:
        console.note(warning)
    print(f"window      {window}")
    named = f" ({answering.name})" if answering.name else ""
    print(f"model       {answering.model}{named} on {answering.device}", flush=True)
    if adapter:
        print(f"adapter     {adapter}", flush=True)
    known = facts(volume, window)
    inputs = {name: known[name] for name in ("modality", "size", "spacing_mm", "window")}
    return {**inputs, "model": answering.model, "device": answering.device, "adapter": adapter}


def facts(volume: Volume, window: IntensityWindow) -> dict[str, Any]:
    """The facts about a volume, for a program: size and spacing along i, j, k, the voxel-to-RAS matrix in mm, values.
    """
    source = volume.source
    return {
        "modality": volume.modality,
        "description": source.description if source is not None else "",
        "series": source.series_uid if source is not None else "",
        "files": len(source.files) if source is not None else 0,
        "size": list(reversed(volume.shape)),
        "spacing_mm": [float(mm) for mm in volume.spacing],
        "ijk_to_ras": volume.affine.tolist(),
        "orientation": orientation(volume),
        "type": str(volume.array.dtype),
        "minimum": float(volume.array.min()),
        "maximum": float(volume.array.max()),
        "window": {"low": float(window.low), "high": float(window.high), "name": window.name},
    }


def what(volume: Volume) -> str:
    """Modality, description and number of files: `CT, “Abdomen”, 20 DICOM files`."""
    source = volume.source
    words = [volume.modality or "unknown modality"]
    if source is not None:
        if source.description:
            words.append(f"“{source.description}”")
        words.append(counted(len(source.files), f"{source.format} file"))
    return ", ".join(words)


def grid(volume: Volume) -> str:
    """Size and spacing along i, j, k: `512 × 512 × 20 voxels of 0.977 × 0.977 × 2 mm`."""
    size = " × ".join(str(n) for n in reversed(volume.shape))
    spacing = " × ".join(f"{mm:.4g}" for mm in volume.spacing)
    return f"{size} voxels of {spacing} mm"


def orientation(volume: Volume) -> str:
    """Which way the axes run, and by how much they are tilted: `axial slices, i → Left, …, tilted by 10.8°`."""
    from SAMFineTuneLib.images.slice_plane import view_axes

    across = {view_axes(volume, name)[2]: name for name in _ALONG}  # volume axis → the slices it counts
    arrows, alignment = [], 1.0
    for axis, letter in enumerate("ijk"):
        ras = _ALONG[across[axis]]
        cosine = volume.affine[ras, axis] / volume.spacing[axis]
        arrows.append(f"{letter} → {_DIRECTIONS[ras][int(cosine > 0)]}")
        alignment = min(alignment, abs(cosine))
    tilt = float(np.degrees(np.arccos(alignment)))
    upright = f"oblique, tilted by {tilt:.1f}°" if tilt > _UPRIGHT else "not tilted"
    return f"{across[2]} slices, {', '.join(arrows)}, {upright}"


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows in columns as wide as their cells; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Labels and texts in two columns, wrapped."""
    width = max((len(label) for label, _ in facts), default=0) + 2
    for label, text in facts:
        print(textwrap.fill(text, 110, initial_indent=f"{label:<{width}}", subsequent_indent=" " * width,
                            break_long_words=False, break_on_hyphens=False))
