"""A deterministic engine that needs no weights: it segments the connected region of the grey value under a prompt.

What is darker than 60 is background and never a region. Input and logits have the resolution of a picture whose
longer side is 64 pixels, so that tests can say exactly which mask must come out.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from SAMFineTuneLib.images import IntensityWindow, Volume
from SAMFineTuneLib.inference.embedding_cache import EmbeddingCache
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.spec import ModelSpec

SIZE = 64
BACKGROUND = 60
WINDOW = IntensityWindow(0, 255, "as is")


class RegionEngine:
    """Token 0 and 2 answer with the region, token 1 with its eroded, token 3 with its dilated form."""

    device = "test"
    memory = None

    def __init__(self, digest: str = "region", zoom: bool = False, tolerance: float = 12.0):
        self.spec = ModelSpec(
            id="region", name="Region", architecture="compact", input_size=SIZE, low_res_size=SIZE, channels=1,
            pixel_mean=(0.0,), pixel_std=(1.0,), embedding_size=SIZE, zoom=zoom,
        )  # fmt: skip
        self.digest = digest
        self.notices: list[str] = []
        self.tolerance = tolerance
        self.decoder_calls = 0
        self.broken = False

    def encode(self, image):
        return {"image": image[0, 0]}

    def decode(self, embedding, point_coords, point_labels, mask_input, has_mask_input):
        self.decoder_calls += 1
        if self.broken:
            raise RuntimeError("the engine is broken")
        answers = [
            self._region(embedding["image"], coords, labels, mask[0] > 0 if given else None)
            for coords, labels, mask, given in zip(point_coords, point_labels, mask_input, has_mask_input, strict=True)
        ]
        masks = np.stack([self._tokens(region) for region in answers])
        scores = np.tile(np.float32([0.9, 0.6, 0.92, 0.55]), (len(answers), 1))
        scores[[not region.any() for region in answers]] = 0.1
        return np.where(masks, 5.0, -5.0).astype(np.float32), scores

    def _region(self, image, coords, labels, mask):
        at = np.clip(np.rint(coords).astype(int), 0, SIZE - 1)
        region = np.zeros(image.shape, bool)
        seeds = [(y, x) for (x, y), label in zip(at, labels, strict=True) if label == 1]
        allowed = np.ones(image.shape, bool)
        if (labels == 2).any():
            x0, y0 = at[labels == 2][0]
            x1, y1 = at[labels == 3][0]
            allowed[:] = False
            allowed[y0 : y1 + 1, x0 : x1 + 1] = True
            seeds = seeds or [((y0 + y1) // 2, (x0 + x1) // 2)]
        if mask is not None and mask.any():
            region |= mask & (np.abs(image - np.median(image[mask])) <= self.tolerance)
        for seed in seeds:
            pieces, _ = ndimage.label(np.abs(image - image[seed]) <= self.tolerance)
            region |= pieces == pieces[seed]
        for (x, y), label in zip(at, labels, strict=True):
            if label == 0:
                region[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3] = False
        return region & allowed & (image > BACKGROUND)

    @staticmethod
    def _tokens(region):
        return np.stack([region, ndimage.binary_erosion(region), region, ndimage.binary_dilation(region)])


def region_predictor(**settings) -> Predictor:
    """A predictor on the region engine, with a cache in memory."""
    return Predictor(RegionEngine(**settings), EmbeddingCache())


def phantom(flip: bool = False, slices: int = 24) -> tuple[Volume, np.ndarray]:
    """A volume [slices, 56, 64] at 1.5 x 1.5 x 4 mm and its labels: 1 a leaning tube, 2 a ball, 3 a second tube.

    The tube runs through all slices. `flip` turns the slice axis over, so that up is towards lower indices.
    """
    k, j, i = np.indices((slices, 56, 64)).astype(float)
    labels = np.zeros(k.shape, np.uint8)
    labels[(i - 14 - 0.3 * k) ** 2 + (j - 16) ** 2 <= 6**2] = 1
    labels[((i - 44) / 10) ** 2 + ((j - 36) / 10) ** 2 + ((k - 11) / 6) ** 2 <= 1] = 2
    labels[(i - 12) ** 2 + (j - 44) ** 2 <= 5**2] = 3
    grey = np.array([40, 120, 180, 120], np.int16)[labels]
    affine = np.diag([-1.5, -1.5, -4.0 if flip else 4.0, 1.0])
    affine[:3, 3] = (30.0, 25.0, -40.0)
    return Volume(grey, affine, modality="CT"), labels
