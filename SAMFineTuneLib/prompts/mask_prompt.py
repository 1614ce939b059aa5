"""Rough shapes, drawn by pixels."""

from __future__ import annotations

import base64
import binascii
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.packed_mask import PackedMask
from SAMFineTuneLib.images.slice_plane import SlicePlane, aligned_plane
from SAMFineTuneLib.prompts.checked_json import Coordinates, mapping, required, text
from SAMFineTuneLib.prompts.plane_prompts import PlanePrompts, PlanesOfView
from SAMFineTuneLib.prompts.prompt_kind import Prompt, Ras, prompt_kind


@prompt_kind
@dataclass(frozen=True, eq=False)
class MaskPrompt(Prompt):
    """A rough shape, bool [rows, columns], on the pixels of `plane`."""

    mask: np.ndarray
    plane: SlicePlane

    list_name = "masks"
    noun = "Mask"

    def __post_init__(self) -> None:
        mask = np.array(self.mask, dtype=bool)
        if mask.shape != self.plane.shape:
            raise UserError(f"A mask prompt of {mask.shape} pixels does not fit its plane, {self.plane}.")
        if not mask.any():
            raise UserError("A mask prompt is empty: draw at least one pixel.")
        mask.flags.writeable = False
        object.__setattr__(self, "mask", mask)

    @property
    def anchor(self) -> Ras:
        middle = np.argwhere(self.mask).mean(axis=0)[::-1]
        return tuple(map(float, self.plane.pixel_to_ras(middle)))

    @property
    def own_plane(self) -> SlicePlane:
        """The plane that it was drawn on."""
        return self.plane

    @property
    def geometry(self) -> np.ndarray:
        return self.mask.astype(np.float64)

    def project(self, planes: PlanesOfView, what: str) -> dict[SlicePlane, PlanePrompts]:
        plane = self.plane
        fit = planes.oblique or aligned_plane(planes.volume, plane.orientation, plane.index)
        if fit.shape != plane.shape or not np.allclose(fit.origin, plane.origin, atol=0.01):
            raise UserError(f"{what} was drawn on {plane}, which this volume does not have: draw it again.")
        return {fit: PlanePrompts(mask=self.mask)}

    def to_json(self) -> dict[str, Any]:
        pixels = base64.b64encode(zlib.compress(PackedMask.of(self.mask).data)).decode("ascii")
        return {"plane": self.plane.to_dict(), "pixels": pixels}

    @classmethod
    def from_json(cls, values: Any, where: str, coordinates: Coordinates) -> MaskPrompt:
        values = mapping(values, where, ("plane", "pixels"))
        plane = SlicePlane.from_dict(mapping(required(values, "plane", where), f"{where}.plane"))
        count = plane.shape[0] * plane.shape[1]
        try:
            packed = base64.b64decode(text(required(values, "pixels", where), f"{where}.pixels"), validate=True)
            data = zlib.decompressobj().decompress(packed, (count + 7) // 8 + 1)
        except (binascii.Error, ValueError, zlib.error, OverflowError):
            data = b""
        if len(data) != (count + 7) // 8:
            raise UserError(f"{where}.pixels is damaged: remove this mask and draw it again.")
        return cls(PackedMask(data, plane.shape).unpack(), plane)
