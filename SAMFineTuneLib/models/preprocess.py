"""Converts a picture to a model's input, and the model's logits back to the picture. Needs NumPy and Pillow only.

Each model gets the pixels that its authors trained it with, to the bit, as `ModelSpec` describes; no single library
resizes in all four ways:

| interpolation | definition | authors |
|---|---|---|
| `bilinear` | Pillow's antialiased bilinear on bytes | SAM, MobileSAM, MedicoSAM, finetune-SAM |
| `cubic` | scikit-image's `resize(order=3, anti_aliasing=True)`, cut to bytes | MedSAM |
| `area` | OpenCV's `INTER_AREA`, rounded to bytes | LiteMedSAM |
| `nearest` | OpenCV's `INTER_NEAREST` | SAM-Med2D |

After that come the stretch, if any, mean and standard deviation, and at last padding with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from SAMFineTuneLib.models import resampling_matrix as resample
from SAMFineTuneLib.models.spec import ModelSpec

MASK_LOGIT = 10.0


@dataclass(frozen=True)
class InputGeometry:
    """The place of a picture in a model's square input.

    `original` is the picture's (rows, columns), `content` that of its resized copy at the input's top left.
    """

    original: tuple[int, int]
    content: tuple[int, int]
    input_size: int
    low_res_size: int
    coordinates: str = "scaled"

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per picture pixel, along x and y."""
        return self.content[1] / self.original[1], self.content[0] / self.original[0]

    def to_input(self, points: np.ndarray) -> np.ndarray:
        """Picture pixels (..., 2) as x, y -> model-input pixels, float32."""
        scale = np.asarray(self.scale)
        points = np.asarray(points, dtype=np.float64)
        if self.coordinates == "centred":
            return ((points + 0.5) * scale - 0.5).astype(np.float32)
        return (points * scale).astype(np.float32)

    def prompts_to_input(self, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Prompts of the picture, x and y (..., 2) with their `labels` (...,) as of `Engine.decode`, in input pixels.

        A box is given by its outermost pixels. For a model with pixel centres at integers, an enlarged pixel is several
        input pixels, and the box must reach the outermost of those.
        """
        inputs = self.to_input(coords)
        if self.coordinates == "centred":
            half_pixel = (np.float32(self.scale) - 1) / 2
            inputs[labels == 2] -= half_pixel
            inputs[labels == 3] += half_pixel
        inputs[labels == -1] = 0.0  # padding
        return inputs

    def to_low_res(self, points: np.ndarray) -> np.ndarray:
        """Picture pixels (..., 2) as x, y -> cells of the low-resolution logits, whose centres are integers."""
        cells = np.asarray(self.scale) * self.low_res_size / self.input_size
        return (np.asarray(points, dtype=np.float64) + 0.5) * cells - 0.5

    def logits_to_picture(self, low_res: np.ndarray) -> np.ndarray:
        """Mask logits (..., h, w) of the square input -> (..., rows, columns) of the picture, float32.

        Equals SAM's post-processing: bilinear to the input's size, crop of the padding, bilinear to the picture.
        """
        low_res = np.asarray(low_res, dtype=np.float32)
        rows, columns = (_to_picture(low_res.shape[axis - 2], self, axis) for axis in (0, 1))
        return rows @ low_res @ columns.T

    def shares(self, points: np.ndarray) -> np.ndarray:
        """Weights of the low-resolution logits in single pixels: picture pixels (n, 2) as x, y -> (n, h, w).

        Multiplied with the logits and summed, they give what `logits_to_picture` has there; 0 outside the picture.
        """
        within = [np.zeros((len(points), self.low_res_size), np.float32) for _ in range(2)]
        for axis, places in enumerate(np.rint(points).astype(np.int64).reshape(-1, 2).T[::-1]):
            there = (places >= 0) & (places < self.original[axis])
            within[axis][there] = _to_picture(self.low_res_size, self, axis)[places[there]]
        return within[0][:, :, None] * within[1][:, None, :]

    def mask_to_low_res(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the picture (rows, columns) -> logits (1, h, w) for the mask prompt, float32.

        Each low-resolution cell gets `MASK_LOGIT` times (2 p - 1), where p is the share of the cell that the mask
        covers: +10 inside, -10 outside and in the padding, in between along the contour.
        """
        return self.picture_to_low_res(MASK_LOGIT * (2.0 * np.asarray(mask, dtype=np.float64) - 1), -MASK_LOGIT)[None]

    def picture_to_low_res(self, values: np.ndarray, padding: float) -> np.ndarray:
        """Means of a picture's values (rows, columns) over low-resolution cells (h, w), float32; `padding` beyond."""
        if values.shape != self.original:
            raise ValueError(f"values of {values.shape} do not belong to a picture of {self.original}")
        cells = [side * self.low_res_size / self.input_size for side in self.content]
        rows, columns = (
            resample.coverage(self.low_res_size, self.original[axis], cells[axis]) for axis in (0, 1)
        )
        return (rows @ (values - padding) @ columns.T + padding).astype(np.float32)


def geometry(shape: tuple[int, int], spec: ModelSpec) -> InputGeometry:
    """The place of a picture of `shape` (rows, columns) in the model's input."""
    rows, columns = int(shape[0]), int(shape[1])
    if spec.resize == "squash":
        content = (spec.input_size, spec.input_size)
    else:
        scale = spec.input_size / max(rows, columns)
        content = (max(1, int(rows * scale + 0.5)), max(1, int(columns * scale + 0.5)))
    return InputGeometry((rows, columns), content, spec.input_size, spec.low_res_size, spec.coordinates)


def prepare(picture: np.ndarray, spec: ModelSpec) -> tuple[np.ndarray, InputGeometry]:
    """A picture, uint8 [rows, columns(, 3)], -> the model's input (1, C, S, S) float32 and its geometry."""
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise ValueError(f"a picture must be uint8 [rows, columns(, 3)], not {picture.dtype} {picture.shape}")
    if picture.ndim == 3 and spec.channels == 1:
        picture = np.asarray(Image.fromarray(picture).convert("L"))
    place = geometry(picture.shape[:2], spec)
    planes = [picture] if picture.ndim == 2 else [picture[..., channel] for channel in range(3)]
    resized = [_resize(plane, place.content, spec.interpolation) for plane in planes]
    pixels = np.stack(resized).astype(np.float32)
    if spec.pixel_range == "minmax":
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / max(float(high - low), 1e-8)
    elif spec.pixel_range == "percentiles":
        pixels = stretched(pixels)
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (spec.pixel_mean, spec.pixel_std))
    tensor = np.zeros((1, spec.channels, spec.input_size, spec.input_size), np.float32)
    tensor[0, :, : place.content[0], : place.content[1]] = (pixels - mean) / std
    return tensor, place


def stretched(pixels: np.ndarray) -> np.ndarray:
    """Stretch grey values of any shape to float32 0 to 255, clipping one in two hundred at either end.

    Dark or flat parts of a slice, for example far from an endorectal coil, get their full contrast.
    """
    low, high = np.percentile(pixels, (0.5, 99.5))
    return np.clip((pixels - np.float32(low)) * np.float32(255 / max(high - low, 1.0)), 0, 255, dtype=np.float32)


def _resize(plane: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    """One channel, uint8 [rows, columns], -> uint8 of `size`."""
    rows, columns = size
    if interpolation == "bilinear":
        return np.asarray(Image.fromarray(plane).resize((columns, rows), Image.Resampling.BILINEAR))
    if interpolation == "nearest":
        return plane[_nearest(rows, plane.shape[0])[:, None], _nearest(columns, plane.shape[1])]
    kind = resample.cubic if interpolation == "cubic" else resample.area
    values = kind(rows, plane.shape[0]) @ plane.astype(np.float64) @ kind(columns, plane.shape[1]).T
    if interpolation == "area":
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
    # The authors truncate to whole numbers; the small addition leaves a constant picture unchanged.
    return (np.clip(values, plane.min(), plane.max()) + 1e-6).astype(np.uint8)


def _nearest(target: int, source: int) -> np.ndarray:
    """Index of the source sample at the beginning of each target cell."""
    return np.minimum((np.arange(target) * (source / target)).astype(np.int64), source - 1)


@resample.cached
def _to_picture(low: int, place: InputGeometry, axis: int) -> np.ndarray:
    """Both bilinear steps of `logits_to_picture` along one axis, float32 (picture, low)."""
    content = place.content[axis]
    steps = resample.bilinear(place.original[axis], content) @ resample.bilinear(place.input_size, low)[:content]
    return steps.astype(np.float32)
