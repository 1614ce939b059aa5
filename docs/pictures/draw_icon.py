"""Draws the extension's icon: a prompt box and a point, and the organ that they give.

    python docs/pictures/draw_icon.py

Few, thick shapes: Slicer shows it 21 pixels wide.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ICON = Path(__file__).resolve().parents[2] / "SAMFineTune" / "Resources" / "Icons" / "SAMFineTune.png"
SIZE, FINE = 128, 8  # pixels; drawn this many times as large and made smaller, for smooth edges

NIGHT, BODY, ORGAN, RIM, PROMPT, WHITE = "#16202b", "#4f6175", "#35c08d", "#c9f7e4", "#ffb02e", "#ffffff"


def main() -> None:
    """Draw and save."""
    picture = Image.new("RGBA", (SIZE * FINE, SIZE * FINE))
    draw = ImageDraw.Draw(picture)
    draw.rounded_rectangle(_fine(2, 2, 126, 126), radius=24 * FINE, fill=NIGHT)
    draw.ellipse(_fine(9, 19, 119, 109), fill=BODY)
    draw.polygon(_organ(4), fill=RIM)
    draw.polygon(_organ(0), fill=ORGAN)
    _corners(draw, (21, 21, 107, 107), arm=25, width=10)
    draw.ellipse(_fine(53, 53, 83, 83), fill=WHITE)
    for bar in ((58.5, 65.5, 77.5, 70.5), (65.5, 58.5, 70.5, 77.5)):
        draw.rectangle(_fine(*bar), fill=NIGHT)
    ICON.parent.mkdir(parents=True, exist_ok=True)
    picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(ICON, optimize=True)


def _fine(*numbers: float) -> tuple[float, ...]:
    return tuple(number * FINE for number in numbers)


def _organ(margin: float) -> list[tuple[float, ...]]:
    """A bean, its outline `margin` pixels further out."""
    angle = np.linspace(0, 2 * np.pi, 240)
    radius = 31 + 5 * np.cos(2 * angle - 0.6) - 4 * np.cos(3 * angle + 0.4) + margin
    return [_fine(66 + r * np.cos(a), 66 + 0.92 * r * np.sin(a)) for a, r in zip(angle, radius, strict=True)]


def _corners(draw: ImageDraw.ImageDraw, box: tuple[float, ...], arm: float, width: float) -> None:
    """The four corners of a box."""
    left, top, right, bottom = box
    for x, inward_x in ((left, 1), (right, -1)):
        for y, inward_y in ((top, 1), (bottom, -1)):
            for dx, dy in ((arm, width), (width, arm)):
                xs, ys = sorted((x, x + inward_x * dx)), sorted((y, y + inward_y * dy))
                draw.rectangle(_fine(xs[0], ys[0], xs[1], ys[1]), fill=PROMPT)


if __name__ == "__main__":
    main()
