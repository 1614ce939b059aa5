"""Sends a volume or a model file to the server in parts, small enough to be sent between two frames of a window."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.intensity_window import IntensityWindow
from SAMFineTuneLib.images.volume import Volume, begin_digest
from SAMFineTuneLib.service.protocol import PART_BYTES, AnnounceFile, AnnounceVolume, VolumeSent
from SAMFineTuneLib.service.wire import Buffer


class SendingVolume:
    """The voxels of a volume, little-endian in C order, hashed as they are sent; at most a slice at a time is copied.
    """

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
        self._digest, self._hashed = begin_digest(self._kind, volume.shape, volume.affine), 0
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
