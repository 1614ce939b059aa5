"""Sets of voxels, as flat indices in ascending order and as runs of neighbours."""

from __future__ import annotations

import base64
import zlib

import numpy as np


class Runs:
    """Ascending voxel indices as runs of neighbours, as small as the outline of what they fill."""

    __slots__ = ("_before", "_bounds", "_ends", "_starts")

    def __init__(self, starts: np.ndarray, lengths: np.ndarray):
        self._starts = starts
        self._ends = starts + lengths
        self._before = np.concatenate([[0], np.cumsum(lengths)])  # voxels before each run
        self._bounds: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @classmethod
    def of(cls, voxels: np.ndarray) -> Runs:
        """From ascending, distinct indices."""
        voxels = np.asarray(voxels, dtype=np.int64)
        breaks = np.flatnonzero(np.diff(voxels) != 1) + 1
        first = np.concatenate([[0], breaks]) if len(voxels) else np.empty(0, int)
        return cls(voxels[first], np.diff(np.append(first, len(voxels))))

    def __len__(self) -> int:
        return int(self._before[-1])

    def last(self) -> int:
        """The highest index. There must be one."""
        return int(self._ends[-1]) - 1

    def voxels(self) -> np.ndarray:
        """The voxels one by one, in ascending order."""
        lengths = np.diff(self._before)
        return np.repeat(self._starts - self._before[:-1], lengths) + np.arange(len(self))

    def bounds(self, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lowest and highest (k, j, i) in a grid of that shape. There must be voxels."""
        if self._bounds is None:
            first, last = (np.stack(np.unravel_index(ends, shape)) for ends in (self._starts, self._ends - 1))
            low, high = first.min(axis=1), last.max(axis=1)
            if (first[:2] != last[:2]).any():  # a run that goes on in the next row
                low[2], high[2] = 0, shape[2] - 1
                if (first[0] != last[0]).any():
                    low[1], high[1] = 0, shape[1] - 1
            self._bounds = tuple(low.tolist()), tuple(high.tolist())
        return self._bounds

    def find(self, voxels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of ascending `voxels` are among these: (their positions there, their positions here)."""
        if not len(self) or not len(voxels):
            return np.empty(0, np.intp), np.empty(0, np.intp)
        low = int(np.searchsorted(voxels, self._starts[0]))
        high = int(np.searchsorted(voxels, self._ends[-1]))
        run = np.searchsorted(self._starts, voxels[low:high], side="right") - 1
        inside = np.flatnonzero(voxels[low:high] < self._ends[run])
        run = run[inside]
        return inside + low, self._before[run] + voxels[low:high][inside] - self._starts[run]

    def to_text(self) -> str:
        """The runs as text, which `from_text` reads."""
        # Steps from run to run repeat themselves: they pack far better than the starts.
        pairs = np.stack([np.diff(self._starts, prepend=0), np.diff(self._before)]).astype("<i8")
        return base64.b64encode(zlib.compress(pairs.tobytes())).decode("ascii")

    @classmethod
    def from_text(cls, text: str) -> Runs:
        """Raises ValueError when the text is not what `to_text` gives."""
        try:
            pairs = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), "<i8").reshape(2, -1)
        except (zlib.error, TypeError) as error:
            raise ValueError("damaged runs of voxels") from error
        steps, lengths = pairs.astype(np.int64)
        if len(steps) and (lengths.min() < 1 or steps[0] < 0 or (steps[1:] <= lengths[:-1]).any()):
            raise ValueError("damaged runs of voxels")
        return cls(np.cumsum(steps), lengths)


def merged(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Ascending, distinct voxels of two such lists. (`np.union1d` does not know that they are sorted.)"""
    both = np.concatenate([one, other])
    both.sort(kind="stable")
    return both[np.concatenate([[True], both[1:] != both[:-1]])] if len(both) else both
