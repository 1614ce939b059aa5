"""Sending a volume, or a model's file, part by part: what the next request holds."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images.volume import Volume
from SAMFineTuneLib.service.json_values import window_to_json
from SAMFineTuneLib.service.protocol import PART_BYTES, Buffer


class Sending(Protocol):
    """Something that is sent in parts."""

    size: int

    def announcement(self) -> dict[str, Any]:
        """What the server is told before."""
        ...

    def part(self, offset: int) -> Buffer:
        """The bytes from `offset` on, asked for in turn; the last ones perhaps several times."""
        ...

    def close(self) -> None:
        """Nothing more is asked of it."""
        ...


class SendingVolume:
    """The voxels of a volume, little-endian in C order, hashed as they go; at most a slice at a time is copied."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._kind = _kind_on_the_line(volume.array.dtype)
        self._slice_bytes = math.prod(volume.shape[1:]) * self._kind.itemsize
        self._flat: memoryview | None = None
        if volume.array.flags.c_contiguous and volume.array.dtype == self._kind:
            self._flat = memoryview(volume.array.reshape(-1)).cast("B")
        self._slice: tuple[int, memoryview] = (-1, memoryview(b""))
        self._digest = None
        self._hashed = 0  # bytes
        self.size = self._slice_bytes * volume.shape[0]

    def announcement(self) -> dict[str, Any]:
        volume = self._volume
        head = f"{self._kind.str} {volume.shape}".encode() + volume.affine.astype("<f8").tobytes()
        self._digest, self._hashed = hashlib.sha256(head), 0
        return {"volume": {"shape": list(volume.shape), "dtype": self._kind.str, "affine": volume.affine.tolist(),
                           "modality": volume.modality}}  # fmt: skip

    def part(self, offset: int) -> Buffer:
        if self._flat is not None:
            part = self._flat[offset : offset + PART_BYTES]
        else:
            part = self._from_slice(offset)
        if offset == self._hashed:  # a part whose answer was lost is asked for once more
            self._digest.update(part)
            self._hashed += len(part)
        return part

    def conclusion(self, window) -> dict[str, Any]:
        """What the server is told when all parts have arrived."""
        return {"digest": self._digest.hexdigest(), "window": window_to_json(window)}

    def close(self) -> None:
        pass

    def _from_slice(self, offset: int) -> memoryview:
        number, start = divmod(offset, self._slice_bytes)
        if self._slice[0] != number:
            plain = np.ascontiguousarray(self._volume.array[number], self._kind)
            self._slice = number, memoryview(plain.reshape(-1)).cast("B")
        return self._slice[1][start : start + PART_BYTES]


class SendingFile:
    """A file of this computer. UserError when it cannot be read."""

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

    def announcement(self) -> dict[str, Any]:
        return {"file": {"size": self.size}}

    def part(self, offset: int) -> Buffer:
        try:
            self._file.seek(offset)
            return self._file.read(PART_BYTES)
        except OSError as error:
            raise UserError(f"The file {self._path} cannot be read: {error.strerror or error}.") from error

    def close(self) -> None:
        self._file.close()


def _kind_on_the_line(kind: np.dtype) -> np.dtype:
    """The type voxels are sent as: their own in little-endian, 64 bits for longer ones."""
    if kind.itemsize > 8:
        return np.dtype("<f8")
    return kind.newbyteorder("<")
