"""Sends volumes and model files in parts, and collects them on the server.

A part is small enough to be sent between two frames of a window. The server reserves the memory before the first part,
and both sides hash the voxels.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.service.protocol import PART_BYTES, AnnounceFile, AnnounceVolume, VolumeSent
from SAMFineTuneLib.service.wire import Buffer

_KINDS = ("|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8")
_LONGEST_MODALITY = 1000


class SendingVolume:
    """The voxels of a volume, little-endian in C order, hashed as they go; at most a slice at a time is copied."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        kind = volume.array.dtype
        self._kind = np.dtype("<f8") if kind.itemsize > 8 else kind.newbyteorder("<")
        self._slice_bytes = math.prod(volume.shape[1:]) * self._kind.itemsize
        self._flat: memoryview | None = None
        if volume.array.flags.c_contiguous and kind == self._kind:
            self._flat = memoryview(volume.array.reshape(-1)).cast("B")
        self._slice: tuple[int, memoryview] = (-1, memoryview(b""))
        self._digest = hashlib.sha256()
        self._hashed = 0  # bytes
        self.size = self._slice_bytes * volume.shape[0]

    def announcement(self, upload: int) -> AnnounceVolume:
        """The message that announces the volume."""
        volume = self._volume
        self._digest, self._hashed = _begin_digest(self._kind, volume.shape, volume.affine), 0
        return AnnounceVolume(upload, volume.shape, self._kind.str, volume.affine, volume.modality)

    def part(self, offset: int) -> Buffer:
        """The next bytes, from `offset` on. A part whose answer was lost is read once more."""
        if self._flat is not None:
            part = self._flat[offset : offset + PART_BYTES]
        else:
            part = self._from_slice(offset)
        if offset == self._hashed:  # a part whose answer was lost is asked for once more
            self._digest.update(part)
            self._hashed += len(part)
        return part

    def conclusion(self, upload: int, window: IntensityWindow | None) -> VolumeSent:
        """The message that all parts were sent."""
        return VolumeSent(upload, self._digest.hexdigest(), window)

    def close(self) -> None:
        """Nothing to release; as `SendingFile.close`."""

    def _from_slice(self, offset: int) -> memoryview:
        number, start = divmod(offset, self._slice_bytes)
        if self._slice[0] != number:
            plain = np.ascontiguousarray(self._volume.array[number], self._kind)
            self._slice = number, memoryview(plain.reshape(-1)).cast("B")
        return self._slice[1][start : start + PART_BYTES]


class SendingFile:
    """A file of this computer, sent like a volume. UserError when it cannot be read."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).expanduser()
        self.name = self._path.name[:200]
        try:
            self.size = self._path.stat().st_size
            self._file = open(self._path, "rb")
        except OSError as error:
            raise UserError(f"The file {self._path} cannot be read: {error.strerror or error}.") from error
        if not self.size:
            self._file.close()
            raise UserError(f"The file {self._path} is empty; choose another one.")

    def announcement(self, upload: int) -> AnnounceFile:
        """The message that announces the file as an upload of this number."""
        return AnnounceFile(upload, self.size)

    def part(self, offset: int) -> Buffer:
        """The bytes from `offset` on, as many as go into one message; UserError when the file cannot be read."""
        try:
            self._file.seek(offset)
            return self._file.read(PART_BYTES)
        except OSError as error:
            raise UserError(f"The file {self._path} cannot be read: {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
            raise UserError("A part of the volume came out of turn; send the volume again.")
        self.data[offset:end] = part
        self.received = end

    def require_whole(self) -> None:
        """UserError while parts are missing."""
        if self.received != self.size:
            raise UserError(f"Only {self.received:,} of {self.size:,} bytes have arrived; send the volume again.")


class VolumeUpload(Upload):
    """The voxels of a volume; its digest is ready when they are all there."""

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
        self._digest = _begin_digest(self.kind, self.shape, self.affine)
        super().__init__(AnnounceFile(announced.upload, size), largest)

    def add(self, offset: int, part: np.ndarray) -> None:
        before = self.received
        super().add(offset, part)
        if self.received > before:
            self._digest.update(part)

    def finish(self, digest: str) -> Volume:
        """The volume; UserError when it is not the one that was sent."""
        self.require_whole()
        if self._digest.hexdigest() != digest:
            raise UserError("The volume arrived damaged; send it again.")
        volume = Volume(self.data.view(self.kind).reshape(self.shape), self.affine, self.modality)
        volume.__dict__["digest"] = digest  # what the cached property would compute
        return volume


def _begin_digest(kind: np.dtype, shape: tuple[int, ...], affine: np.ndarray):
    """`Volume.digest` before the voxels."""
    return hashlib.sha256(f"{kind.str} {tuple(shape)}".encode() + np.asarray(affine, dtype="<f8").tobytes())
