"""Draws synthetic.png: pictures like those that the bundled model learned from, and their objects outlined.

    python docs/pictures/draw_synthetic.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from SAMFineTuneLib.training.synthetic_pictures import synthetic_pictures  # noqa: E402

ACROSS, DOWN = 4, 4
COLOURS = np.uint8([(255, 80, 60), (80, 220, 90), (90, 140, 255), (255, 210, 60)])


def outlined(grey: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A picture (H, W) with the outlines of its masks (m, H, W), uint8 (H, W, 3)."""
    colour = np.repeat(grey[..., None], 3, axis=2)
    for mask, own in zip(masks, COLOURS, strict=True):
        padded = np.pad(mask, 1)
        inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        colour[mask & ~inside] = own
    return colour


def main() -> None:
    pictures = synthetic_pictures((2,), ACROSS * DOWN, len(COLOURS))
    tiles = [
        np.concatenate([np.repeat(grey[..., None], 3, axis=2), outlined(grey, masks)], axis=1)
        for grey, masks in zip(pictures.image.numpy().astype(np.uint8), pictures.masks.numpy(), strict=True)
    ]
    rows = [np.concatenate(tiles[row * ACROSS : (row + 1) * ACROSS], axis=1) for row in range(DOWN)]
    Image.fromarray(np.concatenate(rows)).quantize(128).save(HERE / "synthetic.png", optimize=True)


if __name__ == "__main__":
    main()
