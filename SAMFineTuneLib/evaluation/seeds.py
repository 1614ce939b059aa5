"""Random numbers that depend on the seed and on what they are for, and on nothing else.

Neither the order of the work, nor the number of processes, nor a file's name changes a draw: a case is known by the
digest of its voxels and labels.
"""

from __future__ import annotations

import hashlib

import numpy as np


def draws(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose, such as (case digest, object, protocol)."""
    text = "|".join(str(part) for part in (seed, *purpose))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))
