"""Who put which voxels into which segment: what lets a mask be taken back without a trace.

A claim is one segment's mask on one plane. Claims lie over what the segments held before, in the order in which
they were shown. Each remembers which of its voxels were new to its segment and which it took from other
segments, so that the segments without it can be worked out at any time: lift off all claims down to the ground,
and lay the others down again. Knows no labelmap: membership is asked for and handed back as boolean arrays.

Voxels are flat indices into one grid [k, j, i], ascending.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np


class Runs:
    """Ascending voxel indices as runs of neighbours, as small as the outline of what they fill."""

    __slots__ = ("_before", "_bounds", "_ends", "_starts", "_text")

    def __init__(self, starts: np.ndarray, lengths: np.ndarray):
        self._starts = starts
        self._ends = starts + lengths
        self._before = np.concatenate([[0], np.cumsum(lengths)])  # voxels before each run
        self._bounds: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._text: str | None = None

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
        """The highest index; not to be asked of none."""
        return int(self._ends[-1]) - 1

    def voxels(self) -> np.ndarray:
        lengths = np.diff(self._before)
        return np.repeat(self._starts - self._before[:-1], lengths) + np.arange(len(self))

    def bounds(self, shape: tuple[int, int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Lowest and highest (k, j, i) in a grid of that shape; not to be asked of none."""
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

    def has(self, voxels: np.ndarray) -> np.ndarray:
        """bool (N,): which of ascending `voxels` are among these."""
        if not len(self):
            return np.zeros(len(voxels), bool)
        found = np.zeros(len(voxels), bool)
        found[self.find(voxels)[0]] = True
        return found

    def to_text(self) -> str:
        if self._text is not None:  # stored again and again, and never changed
            return self._text
        # Steps from run to run repeat themselves: they pack far better than the starts.
        pairs = np.stack([np.diff(self._starts, prepend=0), np.diff(self._before)]).astype("<i8")
        self._text = base64.b64encode(zlib.compress(pairs.tobytes())).decode("ascii")
        return self._text

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


_NONE = Runs.of(np.empty(0, np.int64))


@dataclass
class Claim:
    """What one segment's mask on one plane covers."""

    segment: str
    plane: str
    takes_from: frozenset[str] | None = frozenset()  # segments it may take voxels from; None is any
    voxels: Runs = _NONE  # all of them, whoever was there first
    added: Runs = _NONE  # those that the segment did not have before
    took: dict[str, Runs] = field(default_factory=dict)  # segment -> voxels it lost
    weak: Runs = _NONE  # those that masking forbids: covered only because the segment has them already

    def may_take_from(self, segment: str) -> bool:
        return segment != self.segment and (self.takes_from is None or segment in self.takes_from)

    def to_dict(self) -> dict:
        return {
            "segment": self.segment,
            "plane": self.plane,
            "takes_from": None if self.takes_from is None else sorted(self.takes_from),
            "voxels": self.voxels.to_text(),
            "added": self.added.to_text(),
            "took": {segment: runs.to_text() for segment, runs in self.took.items()},
            "weak": self.weak.to_text(),
        }

    @classmethod
    def from_dict(cls, values: dict) -> Claim:
        """Raises ValueError, TypeError or KeyError on anything else than `to_dict` gives."""
        takes_from = values["takes_from"]
        return cls(
            str(values["segment"]),
            str(values["plane"]),
            None if takes_from is None else frozenset(map(str, takes_from)),
            Runs.from_text(values["voxels"]),
            Runs.from_text(values["added"]),
            {str(segment): Runs.from_text(text) for segment, text in dict(values["took"]).items()},
            Runs.from_text(values["weak"]),
        )


class Membership:
    """Which of some voxels are in which segments, read once and then changed in memory."""

    def __init__(self, segments: Iterable[str], read: Callable[[str], np.ndarray], count: int):
        self.segments = tuple(segments)
        self._read = read
        self._count = count
        self._before: dict[str, np.ndarray] = {}
        self._now: dict[str, np.ndarray] = {}

    def __getitem__(self, segment: str) -> np.ndarray:
        """bool (N,), to be changed in place; of a segment that is gone, False throughout."""
        if segment not in self._now:
            known = segment in self.segments
            self._before[segment] = self._read(segment) if known else np.zeros(self._count, bool)
            self._now[segment] = self._before[segment].copy()
        return self._now[segment]

    def changed(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(segment, voxels it lost, voxels it gained), bool (N,) each, of those that changed."""
        for segment in self.segments:
            if segment in self._now and (self._now[segment] != self._before[segment]).any():
                before, now = self._before[segment], self._now[segment]
                yield segment, before & ~now, now & ~before


@dataclass
class _Touch:
    """A claim on some of the voxels under work, in detail."""

    claim: Claim
    at: np.ndarray  # positions among the voxels under work
    voxels: np.ndarray
    added: np.ndarray  # bool, as are the following
    weak: np.ndarray
    took: dict[str, np.ndarray]


class Ledger:
    """All claims on one segmentation, oldest first, in a grid of `shape` [k, j, i]."""

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        self._claims: dict[tuple[str, str], Claim] = {}

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._claims.values())

    def __len__(self) -> int:
        return len(self._claims)

    def get(self, segment: str, plane: str) -> Claim | None:
        return self._claims.get((segment, plane))

    def add(self, claim: Claim) -> None:
        """As the newest."""
        self._claims.pop((claim.segment, claim.plane), None)
        self._claims[claim.segment, claim.plane] = claim

    def drop(self, segment: str, plane: str) -> None:
        self._claims.pop((segment, plane), None)

    def lift(self, voxels: np.ndarray, members: Membership) -> Lifted:
        """Take all claims off ascending `voxels`: `members` becomes what it is without any.

        Voxels that were changed by somebody else since a claim put them there are that somebody's from now on:
        no claim has them any longer.
        """
        touches = self._touches(voxels)
        foreign = _changed_by_others(touches, members, len(voxels))
        if foreign.any():
            touches = [_without(touch, foreign) for touch in touches]
        for touch in reversed(touches):
            members[touch.claim.segment][touch.at[touch.added]] = False
            for segment, lost in touch.took.items():
                members[segment][touch.at[lost]] = True
        return Lifted(touches)

    def _touches(self, voxels: np.ndarray) -> list[_Touch]:
        """The claims on any of the voxels. Most lie elsewhere: that must cost next to nothing."""
        if not len(voxels):
            return []
        places = [axis.astype(np.int32) for axis in np.unravel_index(voxels, self.shape)]
        low, high = [int(axis.min()) for axis in places], [int(axis.max()) for axis in places]
        touches = []
        for claim in self:
            if not len(claim.voxels):
                continue
            first, last = claim.voxels.bounds(self.shape)
            if any(a > d or b < c for a, b, c, d in zip(first, last, low, high, strict=True)):
                continue
            begin, end = np.searchsorted(places[0], (first[0], last[0] + 1))  # k ascends with the voxels
            near = np.arange(begin, end)
            for axis in (1, 2):
                if first[axis] > low[axis] or last[axis] < high[axis]:
                    there = places[axis][near]
                    near = near[(there >= first[axis]) & (there <= last[axis])]
            touch = _touch(claim, voxels, near)
            if touch is not None:
                touches.append(touch)
        return touches


class Lifted:
    """Claims taken off some voxels, to be laid down again."""

    def __init__(self, touches: list[_Touch]):
        self._touches = touches

    def lay_down(self, members: Membership, together: Callable[[str], Iterable[str]], without: Claim | None) -> None:
        """All but `without`, oldest first, on what `members` holds now, which becomes what it is with them.

        `together(segment)` are the segments that share its labelmap: where one of them has a voxel, the claim
        cannot, unless it may take it.
        """
        for touch in self._touches:
            if touch.claim is not without:
                _lay_down(touch, members, together)


def place(claim: Claim, voxels: np.ndarray, at: np.ndarray, weak: np.ndarray, members: Membership) -> None:
    """Lay a new claim over `voxels[at]`; `weak` (bool, as `at`) are those that masking forbids."""
    touch = _Touch(claim, at, voxels[at], np.zeros(len(at), bool), weak, {})
    claim.voxels = Runs.of(touch.voxels)
    claim.weak = Runs.of(touch.voxels[weak]) if weak.any() else _NONE
    _lay_down(touch, members, lambda _: ())


def _touch(claim: Claim, voxels: np.ndarray, near: np.ndarray) -> _Touch | None:
    """`near` are the positions of those voxels that may be the claim's."""
    at = near[claim.voxels.find(voxels[near])[0]]
    if not len(at):
        return None
    own = voxels[at]
    took = {segment: runs.has(own) for segment, runs in claim.took.items()}
    whole = len(claim.added) == len(claim.voxels)
    added = np.ones(len(own), bool) if whole else claim.added.has(own)
    return _Touch(claim, at, own, added, claim.weak.has(own), took)


def _changed_by_others(touches: list[_Touch], members: Membership, count: int) -> np.ndarray:
    """bool (N,): voxels that are not in the segments in which the claims left them."""
    foreign = np.zeros(count, bool)
    settled: dict[str, np.ndarray] = {}

    def expect(segment: str, at: np.ndarray, inside: bool) -> None:
        known = settled.setdefault(segment, np.zeros(count, bool))
        open_ones = at[~known[at]]
        if segment in members.segments:  # the claims of a segment that is gone are kept to give back what it took
            foreign[open_ones[members[segment][open_ones] != inside]] = True
        known[open_ones] = True

    for touch in reversed(touches):
        expect(touch.claim.segment, touch.at, True)
        for segment, lost in touch.took.items():
            expect(segment, touch.at[lost], False)
    return foreign


def _without(touch: _Touch, gone: np.ndarray) -> _Touch:
    """The touch, and its claim, without voxels that are `gone` (bool over the voxels under work)."""
    leaving = gone[touch.at]
    if not leaving.any():
        return touch
    claim, left = touch.claim, touch.voxels[leaving]
    claim.voxels = _minus(claim.voxels, left)
    claim.added = _minus(claim.added, left)
    claim.weak = _minus(claim.weak, left)
    took = {segment: _minus(runs, left) for segment, runs in claim.took.items()}
    claim.took = {segment: runs for segment, runs in took.items() if len(runs)}
    keep = ~leaving
    lost = {segment: flags[keep] for segment, flags in touch.took.items()}
    return _Touch(claim, touch.at[keep], touch.voxels[keep], touch.added[keep], touch.weak[keep], lost)


def _lay_down(touch: _Touch, members: Membership, together: Callable[[str], Iterable[str]]) -> None:
    claim = touch.claim
    if claim.segment in members.segments:
        blocked = np.zeros(len(touch.at), bool)
        for segment in together(claim.segment):
            if segment != claim.segment and not claim.may_take_from(segment):
                blocked |= members[segment][touch.at]
        blocked &= ~members[claim.segment][touch.at]
    else:
        blocked = np.ones(len(touch.at), bool)  # its segment is gone: nothing to lay down
    if blocked.any():
        gone = np.zeros(int(touch.at.max()) + 1, bool)
        gone[touch.at[blocked]] = True
        touch = _without(touch, gone)
    own = members[claim.segment]
    added = ~own[touch.at]
    own[touch.at] = True
    claim.added = _replaced(claim.added, touch.voxels, touch.added, added)
    for segment in members.segments:
        if not claim.may_take_from(segment):
            continue
        other = members[segment]
        lost = other[touch.at] & ~touch.weak
        other[touch.at[lost]] = False
        before = touch.took.get(segment, np.zeros(len(lost), bool))
        if lost.any() or before.any():
            claim.took[segment] = _replaced(claim.took.get(segment, _NONE), touch.voxels, before, lost)
            if not len(claim.took[segment]):
                del claim.took[segment]


def merged(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Ascending, distinct voxels of two such lists. (`np.union1d` does not know that they are sorted.)"""
    both = np.concatenate([one, other])
    both.sort(kind="stable")
    return both[np.concatenate([[True], both[1:] != both[:-1]])] if len(both) else both


def _minus(runs: Runs, voxels: np.ndarray) -> Runs:
    gone = runs.find(voxels)[1]
    return Runs.of(np.delete(runs.voxels(), gone)) if len(gone) else runs


def _replaced(runs: Runs, voxels: np.ndarray, before: np.ndarray, now: np.ndarray) -> Runs:
    """`runs` with what it says of `voxels` changed from `before` to `now` (bool)."""
    if np.array_equal(before, now):
        return runs
    kept = _minus(runs, voxels[before & ~now])
    gained = voxels[now & ~before]
    return Runs.of(merged(kept.voxels(), gained)) if len(gained) else kept
