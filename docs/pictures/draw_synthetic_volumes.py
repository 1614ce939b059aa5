"""Draws synthetic-volumes.png: volumes like those that the volume memory learned from, six slices of each, and their
objects in colours.

    python docs/pictures/draw_synthetic_volumes.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from SAMFineTuneLib.training.synthetic_volumes import synthetic_volume  # noqa: E402

VOLUMES, SLICES = 6, 6


def main() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(VOLUMES):
        volume = synthetic_volume((11, number))
        shown = np.linspace(0, len(volume.image) - 1, SLICES).round().astype(int)
        colours = rng.integers(60, 255, (256, 3)).astype(np.uint8)
        grey = np.concatenate(list(volume.image[shown]), axis=1).astype(np.uint8)
        labels = np.concatenate(list(volume.tissue[shown]), axis=1)
        rows.append(np.concatenate([np.repeat(grey[..., None], 3, axis=2), colours[labels]], axis=1))
    Image.fromarray(np.concatenate(rows)).quantize(64).save(HERE / "synthetic-volumes.png", optimize=True)


if __name__ == "__main__":
    main()
