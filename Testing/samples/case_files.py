"""Small annotated images on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.images.sitk_images import to_sitk

AFFINE = np.diag([-1.0, -1.0, 2.5, 1.0])


def blob(shape=(6, 32, 32), centre=(15.0, 17.0), radius=7.0, value=1) -> np.ndarray:
    """A cylinder [k, j, i] through all but the outer slices."""
    _, rows, columns = np.indices(shape)
    labels = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2) * np.uint8(value)
    labels[[0, -1]] = 0
    return labels.astype(np.uint8)


def image_of(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """A noisy picture in which what is labelled is brighter."""
    noise = np.random.default_rng(seed).normal(0, 15, labels.shape)
    return np.clip(80 + 70 * (labels > 0) + noise, 0, 255).astype(np.int16)


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, fields: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = to_sitk(np.ascontiguousarray(array), affine)
    for key, value in (fields or {}).items():
        image.SetMetaData(key, value)
    sitk.WriteImage(image, str(path))
    return path


def case_folder(folder: Path, count: int = 3, ending: str = ".nii.gz", shape=(6, 32, 32)) -> Path:
    """`images/` and `labels/` of cases a, b, c … whose blobs differ in place and size."""
    rng = np.random.default_rng(5)
    for number in range(count):
        name = chr(ord("a") + number)
        labels = blob(shape, (shape[1] / 2, shape[2] / 2) + rng.uniform(-3, 3, 2), rng.uniform(5, 8))
        save(folder / "images" / f"{name}{ending}", image_of(labels, number))
        save(folder / "labels" / f"{name}{ending}", labels)
    return folder
