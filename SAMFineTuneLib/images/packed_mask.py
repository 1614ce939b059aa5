"""2-D masks packed at one bit a pixel, and their digests. Needs NumPy alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class PackedMask:
    """A mask at one bit a pixel, immutable and comparable: the undo history and saved files share it."""

    data: bytes
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> PackedMask:
        """Pack a bool (rows, columns) array."""
        mask = np.asarray(mask, dtype=bool)
        return cls(np.packbits(mask).tobytes(), (int(mask.shape[0]), int(mask.shape[1])))

    @cached_property
    def digest(self) -> str:
        """BLAKE2b of the mask, 16 hexadecimal digits."""
        return hashlib.blake2b(self.data, digest_size=8).hexdigest()

    @cached_property
    def count(self) -> int:
        """Number of pixels inside."""
        return int.from_bytes(self.data, "big").bit_count()

    def unpack(self) -> np.ndarray:
        """The bool (rows, columns) array."""
        rows, columns = self.shape
        bits = np.unpackbits(np.frombuffer(self.data, dtype=np.uint8), count=rows * columns)
        return bits.reshape(self.shape).astype(bool)


def digest_of_masks(masks: Iterable[tuple[int, str, int, str]]) -> str:
    """Digest of many masks, the same in any order; each is (segment, plane key, moment, its own digest)."""
    lines = sorted(f"{segment} {key} {since} {digest}" for segment, key, since, digest in masks)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()
