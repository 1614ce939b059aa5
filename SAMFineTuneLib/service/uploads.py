"""Collects the parts of volumes and model files that clients send (see `send_uploads`).

The memory is reserved before the first part comes. The voxels are hashed as they come, to be compared with the client's
digest.
"""

from __future__ import annotations

import math
import time

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume, begin_digest
from SAMFineTuneLib.service.protocol import AnnounceFile, AnnounceVolume

_KINDS = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
_LONGEST_MODALITY = 1000


class Upload:
    """A model's file, of which the server collects the parts in order."""

    def __init__(self, announced: AnnounceFile, largest: int) -> None:
        if not 0 < announced.size <= largest:
            raise UserError(f"A file of {announced.size:,} bytes is too large for this server; copy it there yourself.")
        self.size = announced.size
        self.received = 0
        self.data = np.empty(0, np.uint8)
        self.touched = time.monotonic()

    def reserve(self) -> None:
        """Reserve the memory. MemoryError when there is not enough."""
        self.data = np.empty(self.size, np.uint8)

    def add(self, offset: int, part: np.ndarray) -> None:
        """Append the next part. A part that has arrived before, because its answer was lost, is ignored."""
        self.touched = time.monotonic()
        end = offset + part.size
        if end <= self.received:
            return
        if offset != self.received or end > self.size or not part.size:
            raise UserError("A part of the volume arrived out of order; send the volume again.")
        self.data[offset:end] = part
        self.received = end

    def require_whole(self) -> None:
        """UserError while parts are missing."""
        if self.received != self.size:
            raise UserError(f"Only {self.received:,} of {self.size:,} bytes have arrived; send the volume again.")


class VolumeUpload(Upload):
    """The voxels of a volume; its digest is ready once all have arrived."""

    def __init__(self, announced: AnnounceVolume, largest: int) -> None:
        self.shape, self.affine, self.modality = announced.shape, announced.affine, announced.modality
        if announced.dtype not in _KINDS:
            raise UserError("The voxels are of a type that cannot be sent; convert the volume to 16-bit numbers.")
        self.kind = np.dtype(announced.dtype)
        if min(self.shape) < 1:
            raise UserError("A volume needs three non-empty dimensions.")
        size = math.prod(self.shape) * self.kind.itemsize
        if size > largest:
            raise UserError(
                f"The volume has {size / 1e9:.1f} GB, and the server takes at most {largest / 1e9:.1f} GB; crop or "
                "resample it."
            )
        if self.affine.shape != (4, 4) or self.affine.dtype != np.float64 or not np.isfinite(self.affine).all():
            raise UserError("The volume's geometry is not a finite 4×4 matrix.")
        if len(self.modality) > _LONGEST_MODALITY:
            raise UserError(f"A modality is a text of at most {_LONGEST_MODALITY} characters; choose a shorter one.")
        self._digest = begin_digest(self.kind, self.shape, self.affine)
        super().__init__(AnnounceFile(announced.upload, size), largest)

    def add(self, offset: int, part: np.ndarray) -> None:
        before = self.received
        super().add(offset, part)
        if self.received > before:
            self._digest.update(part)

    def finish(self, digest: str) -> Volume:
        """The volume; UserError when it arrived damaged."""
        self.require_whole()
        if self._digest.hexdigest() != digest:
            raise UserError("The volume arrived damaged; send it again.")
        volume = Volume(self.data.view(self.kind).reshape(self.shape), self.affine, self.modality)
        volume.__dict__["digest"] = digest  # what the cached property would compute
        return volume
