"""Bytes that come in parts: collected in memory that was reserved before, hashed as they come."""

from __future__ import annotations

import hashlib
import math
import time
from typing import Any

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.service.json_values import number_from_json, text_from_json

_KINDS = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")


class Upload:
    """Parts of `size` bytes in order."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.received = 0
        self.data = np.empty(0, np.uint8)
        self.touched = time.monotonic()

    def reserve(self) -> None:
        """Take the memory; MemoryError when there is not enough."""
        self.data = np.empty(self.size, np.uint8)

    def add(self, offset: int, part: np.ndarray) -> None:
        """Take the next part; one that came before (its answer was lost) is taken as known."""
        self.touched = time.monotonic()
        end = offset + part.size
        if end <= self.received:
            return
        if offset != self.received or end > self.size or not part.size:
            raise UserError("A part of the volume came out of turn; send the volume again.")
        self.data[offset:end] = part
        self.received = end
        self._hash(part)

    def require_whole(self) -> None:
        if self.received != self.size:
            raise UserError(f"Only {self.received:,} of {self.size:,} bytes have arrived; send the volume again.")

    def _hash(self, part: np.ndarray) -> None:
        pass


class FileUpload(Upload):
    """A model's file."""

    def __init__(self, values: dict[str, Any], largest: int) -> None:
        size = number_from_json(values["size"])
        if not 0 < size <= largest:
            raise UserError(f"A file of {size:,} bytes is too large for this server; copy it there yourself.")
        super().__init__(size)


class VolumeUpload(Upload):
    """The voxels of a volume; its digest is ready when they are all there."""

    def __init__(self, values: dict[str, Any], largest: int) -> None:
        self.shape = tuple(number_from_json(length) for length in values["shape"])
        code = values["dtype"]
        if code not in _KINDS:
            raise UserError("The voxels are of a type that cannot be sent; convert the volume to 16-bit numbers.")
        self.kind = np.dtype(code)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise UserError("A volume needs three non-empty dimensions.")
        size = math.prod(self.shape) * self.kind.itemsize
        if size > largest:
            raise UserError(
                f"The volume has {size / 1e9:.1f} GB, and the server takes at most {largest / 1e9:.1f} GB; crop or "
                "resample it."
            )
        self.affine = np.array(values["affine"], dtype=np.float64)
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise UserError("The volume's geometry is not a finite 4×4 matrix.")
        self.modality = text_from_json(values["modality"])
        self._digest = hashlib.sha256(volume_digest_head(self.kind, self.shape, self.affine))
        super().__init__(size)

    def _hash(self, part: np.ndarray) -> None:
        self._digest.update(part)

    def finish(self, digest: str) -> Volume:
        """The volume; UserError when it is not the one that was sent."""
        self.require_whole()
        if self._digest.hexdigest() != digest:
            raise UserError("The volume arrived damaged; send it again.")
        volume = Volume(self.data.view(self.kind).reshape(self.shape), self.affine, self.modality)
        volume.__dict__["digest"] = digest  # what the cached property would compute
        return volume


def volume_digest_head(kind: np.dtype, shape: tuple[int, ...], affine: np.ndarray) -> bytes:
    """What `Volume.digest` hashes before the voxels."""
    return f"{kind.str} {tuple(shape)}".encode() + np.asarray(affine, dtype="<f8").tobytes()
