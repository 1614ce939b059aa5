"""A picture for people: the slice with masks as translucent, outlined colors and the prompts drawn on top."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from SAMFineTuneLib.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

Color = Sequence[float]

_SMALLEST_SIDE = 512  # pixels of the longer side; smaller slices are enlarged by a whole factor
_FILL = 0.3  # opacity inside the outline
_INSIDE, _OUTSIDE, _BOX = (40, 220, 60), (240, 50, 50), (255, 210, 40)


def overlay_image(
    picture: np.ndarray,
    masks: Iterable[tuple[np.ndarray, Color]] = (),
    points: Iterable[tuple[float, float, bool]] = (),
    boxes: Iterable[Sequence[float]] = (),
    legend: Iterable[tuple[str, Color]] = (),
    outlines: Iterable[tuple[np.ndarray, Color]] = (),
) -> Image:
    """Draw masks and prompts over a slice.

    Args:
        picture: uint8 [rows, columns].
        masks: pairs of a bool array of that shape and a color (r, g, b) from 0 to 1.
        points: (x, y, positive) in pixels, centres at integers; green inside and red outside.
        boxes: (x0, y0, x1, y1) in pixels, centres at integers.
        legend: lines of text under the slice, each with the color it explains.
        outlines: like masks; only their outline is drawn.

    Returns:
        A Pillow image, enlarged by a whole factor when the slice is small.
    """
    from PIL import Image, ImageDraw, ImageFont

    scale = max(1, math.ceil(_SMALLEST_SIDE / max(picture.shape)))
    rows, columns = (side * scale for side in picture.shape)
    grey = Image.fromarray(np.ascontiguousarray(picture)).resize((columns, rows), Image.Resampling.BICUBIC)
    canvas = np.repeat(np.asarray(grey, dtype=np.float32)[..., None], 3, axis=2)
    for mask, color, fill in ((*one, fill) for some, fill in ((masks, _FILL), (outlines, 0.0)) for one in some):
        if mask.shape != picture.shape:
            raise ValueError(f"The mask's shape {mask.shape} is not the picture's {picture.shape}.")
        paint = np.asarray(color, dtype=np.float32) * 255
        area = mask.astype(bool).repeat(scale, axis=0).repeat(scale, axis=1)
        canvas[area] = canvas[area] * (1 - fill) + paint * fill
        canvas[_outline(area, max(1, min(scale // 2, 3 if fill else 1)))] = paint
    legend = list(legend)
    line = max(1, max(rows, columns) // 400)
    step = 16 * line
    image = Image.new("RGB", (columns, rows + (len(legend) * step + step // 2 if legend else 0)))
    image.paste(Image.fromarray(np.rint(canvas).clip(0, 255).astype(np.uint8)))
    draw = ImageDraw.Draw(image)
    for box in boxes:
        x0, y0, x1, y1 = (_enlarged(value, scale) for value in box)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=_BOX, width=line)
    for x, y, positive in points:
        x, y, radius = _enlarged(x, scale), _enlarged(y, scale), 3 * line
        around = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(around, fill=_INSIDE if positive else _OUTSIDE, outline=(0, 0, 0), width=line)
    for number, (text, color) in enumerate(legend):
        top = rows + step // 4 + number * step
        swatch = (step // 2, top + step // 5, step, top + step * 7 // 10)
        draw.rectangle(swatch, fill=tuple(round(255 * part) for part in color))
        draw.text((step * 3 // 2, top), text, fill=(255, 255, 255), font=ImageFont.load_default(step * 3 // 4))
    return image


def side_by_side(images: Sequence[Image]) -> Image:
    """Several pictures in rows of at most three."""
    from PIL import Image

    across = min(3, len(images))
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (across * width, math.ceil(len(images) / across) * height))
    for number, image in enumerate(images):
        sheet.paste(image, (number % across * width, number // across * height))
    return sheet


def save_png(path: str | Path, image: Image) -> None:
    """Write a Pillow image as PNG, whatever the ending of `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")


def overlay_picture(path: str | Path, picture: np.ndarray, *drawn: Iterable[Any], **options: Any) -> None:
    """Write what `overlay_image` draws as PNG; the other arguments are its."""
    save_png(path, overlay_image(picture, *drawn, **options))


def _enlarged(value: float, scale: int) -> float:
    """A pixel coordinate on the enlarged picture, centres at integers on both."""
    return (float(value) + 0.5) * scale - 0.5


def _outline(area: np.ndarray, width: int) -> np.ndarray:
    """The pixels of `area` at most `width` steps from outside it, the picture's edge not counting."""
    core = area
    for _ in range(width):
        padded = np.pad(core, 1, mode="edge")
        core = core & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return area & ~core
