"""Reads PNG and JPEG pictures as volumes of one slice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume, VolumeSource

PICTURES = (".png", ".jpg", ".jpeg")
_LOSSY_GREY = 2  # JPEG's channels of a grey picture may differ by rounding


def read_picture(path: Path) -> Volume:
    """Read a grey picture (8 or 16 bits, or colour with equal channels) as one axial slice of 1 mm pixels.

    The first pixel lies at the origin; columns grow to the patient's left, rows to posterior (LPS's axes), so that an
    axial view shows the picture as a screen does. The file's resolution (dpi) concerns printers and is not used.
    Transparency is ignored.

    Raises:
        UserError: when the file is damaged or the picture is in colour.
    """
    with opened_picture(path) as picture:
        kind = "PNG" if picture.format == "PNG" else "JPEG"
        pixels = _pixels(picture)
    return Volume(
        pixels[None],
        np.diag([-1.0, -1.0, 1.0, 1.0]),
        source=VolumeSource((path,), kind),
        warnings=("A picture holds no geometry; pixels of 1 mm in an axial slice are assumed.",),
    )


@contextmanager
def opened_picture(path: Path) -> Iterator[Image.Image]:
    """Open a picture; UserError when it proves damaged, also while it is read inside the block."""
    try:
        with Image.open(path) as picture:
            yield picture
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"“{path.name}” cannot be read as a picture: it is damaged, cut off or not what its ending says; "
            "copy or export it again."
        ) from error


def _pixels(picture: Image.Image) -> np.ndarray:
    """Grey values [row, column]: uint8, uint16 or int32."""
    mode = picture.mode
    if mode.startswith("I;16"):
        return np.asarray(picture).astype(np.uint16)
    if mode == "I":  # older Pillow versions open 16-bit PNG like this
        values = np.asarray(picture)
        return values.astype(np.uint16) if values.min() >= 0 and values.max() < 65536 else values
    if mode in ("1", "L"):
        return np.asarray(picture.convert("L"))
    if mode in ("LA", "La"):
        return np.asarray(picture)[..., 0]
    colour = np.asarray(picture.convert("RGB"))
    if np.ptp(colour.astype(np.int16), axis=-1).max() > _LOSSY_GREY:
        raise UserError(
            f"“{Path(picture.filename).name}” is a colour picture, and only grey images can be segmented; "
            "convert it to grey."
        )
    return colour[..., 1]
