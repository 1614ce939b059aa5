"""Which mask owns which voxels of which segment, so that a mask can be removed without a trace.

An owner is one segment's mask on one plane. What it may have is decided once, when the mask is new: the voxels it
gets, and which of them it takes from which segment. Owners lie over what the segments held before, in the order in
which they were made, and each records what it changed. The segments without them can therefore be worked out at any
time: `Owners.restore` takes all of them off, `Owners.write` puts others back. Neither what an owner may have nor its
place in the order ever changes, so the same owners over the same ground are the same voxels, in whatever order they
are written: a mask that comes back after an undo changes no other segment. This module knows no labelmap; membership
is asked for and handed back as boolean arrays.

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

    @property
    def runs(self) -> int:
        """How many runs they are."""
        return len(self._starts)

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


@dataclass(eq=False)
class Owner:
    """One segment's mask on one plane, and the voxels that it owns."""

    segment: str
    plane: str
    takes_from: frozenset[str] | None = frozenset()  # segments it may take voxels from; None is any
    keeps_off: frozenset[str] | None = frozenset()  # segments it may not lie over; None is any
    number: int = 0  # its place in the order
    since: int = 0  # moment and digest of its mask
    digest: str = ""
    wanted: int = 0  # voxels that the mask covers, whoever has them
    voxels: Runs = _NONE  # all of them, whoever was there first
    takes: dict[str, Runs] = field(default_factory=dict)  # segment -> voxels that it takes from it
    weak: Runs = _NONE  # those that masking forbids: covered only because the segment has them already
    # What it does now, with the others that are written:
    held: Runs = _NONE  # those of its voxels that it covers
    added: Runs = _NONE  # of these, those that the segment did not have before
    took: dict[str, Runs] = field(default_factory=dict)  # segment -> voxels that it lost

    def release(self) -> None:
        """Give up all voxels, until it is written again."""
        self.held = self.added = _NONE
        self.took = {}

    def may_take_from(self, segment: str) -> bool:
        return segment != self.segment and (self.takes_from is None or segment in self.takes_from)

    def may_lie_over(self, segment: str) -> bool:
        """Whether both may have the same voxel; not where it may take voxels from the other."""
        kept_off = self.keeps_off is None or segment in self.keeps_off
        return segment == self.segment or not (kept_off or self.may_take_from(segment))

    def to_dict(self) -> dict:
        return {name: _plain(value) for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, values: dict) -> Owner:
        """Raises ValueError, TypeError or KeyError when `to_dict`, in this or an earlier version, did not make it."""
        takes_from = values["takes_from"]
        keeps_off = values.get("keeps_off", None if takes_from == [] else [])
        return cls(
            str(values["segment"]),
            str(values["plane"]),
            None if takes_from is None else frozenset(map(str, takes_from)),
            None if keeps_off is None else frozenset(map(str, keeps_off)),
            int(values.get("number", 0)),
            int(values.get("since", 0)),
            str(values.get("digest", "")),
            int(values.get("wanted", 0)),
            Runs.from_text(values["voxels"]),
            _from_texts(values.get("takes", values["took"])),
            Runs.from_text(values["weak"]),
            Runs.from_text(values.get("held", values["voxels"])),
            Runs.from_text(values["added"]),
            _from_texts(values["took"]),
        )


def _plain(value):
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {segment: runs.to_text() for segment, runs in value.items()}
    return value.to_text() if isinstance(value, Runs) else value


def _from_texts(texts) -> dict[str, Runs]:
    return {str(segment): Runs.from_text(text) for segment, text in dict(texts).items()}


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
class _Overlap:
    """An owner among some of the voxels under work."""

    owner: Owner
    at: np.ndarray  # positions among the voxels under work
    voxels: np.ndarray
    held: np.ndarray  # bool, as are the following
    added: np.ndarray
    weak: np.ndarray
    takes: dict[str, np.ndarray]
    took: dict[str, np.ndarray]


class Owners:
    """The owners of one segmentation, oldest first, in a grid of `shape` [k, j, i]."""

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        self._owners: dict[tuple[str, str], Owner] = {}
        self._last = 0

    def __iter__(self) -> Iterator[Owner]:
        return iter(self._owners.values())

    def __len__(self) -> int:
        return len(self._owners)

    def get(self, segment: str, plane: str) -> Owner | None:
        return self._owners.get((segment, plane))

    def next_number(self) -> int:
        """The place in the order of an owner that is about to be made."""
        self._last += 1
        return self._last

    def add(self, owner: Owner) -> None:
        """At its place in the order."""
        self._owners.pop((owner.segment, owner.plane), None)
        last = next(reversed(self._owners.values())).number if self._owners else 0
        self._owners[owner.segment, owner.plane] = owner
        self._last = max(self._last, owner.number)
        if owner.number < last:
            self._owners = dict(sorted(self._owners.items(), key=lambda item: item[1].number))

    def drop(self, segment: str, plane: str) -> None:
        self._owners.pop((segment, plane), None)

    def notice(self, voxels: np.ndarray, members: Membership) -> list[_Overlap]:
        """The overlaps of ascending `voxels` with the owners. Voxels that somebody else has changed since an owner
        wrote them are the user's from now on: no owner has them any longer."""
        overlaps = self._overlaps(voxels)
        foreign = _changed_by_others(overlaps, members, len(voxels))
        return [_without(overlap, foreign) for overlap in overlaps] if foreign.any() else overlaps

    def is_changed(self, voxels: np.ndarray, members: Membership) -> bool:
        """Whether any of ascending `voxels` is no longer in the segments to which the owners wrote it."""
        return bool(_changed_by_others(self._overlaps(voxels), members, len(voxels)).any())

    def restore(self, voxels: np.ndarray, members: Membership) -> list[_Overlap]:
        """Make `members` of ascending `voxels` what it is without any owner, after `notice`; returns the overlaps."""
        overlaps = self.notice(voxels, members)
        for overlap in reversed(overlaps):
            members[overlap.owner.segment][overlap.at[overlap.added]] = False
            for segment, lost in overlap.took.items():
                members[segment][overlap.at[lost]] = True
        return overlaps

    def write(
        self,
        voxels: np.ndarray,
        overlaps: list[_Overlap],
        members: Membership,
        without: Owner | None,
        also: Owner | None,
    ) -> None:
        """Write the owners of restored `overlaps` again, apart from one, and `also` another one that had released its
        voxels, each at its place in the order, into what `members` of ascending `voxels` holds."""
        overlaps = [overlap for overlap in overlaps if overlap.owner is not without]
        if also is not None:
            overlaps = sorted([*overlaps, *self._overlaps(voxels, [also])], key=lambda overlap: overlap.owner.number)
        for overlap in overlaps:
            _write_one(overlap, members)

    def _overlaps(self, voxels: np.ndarray, owners: Iterable[Owner] | None = None) -> list[_Overlap]:
        """The owners of any of the voxels. Most lie elsewhere: they must cost next to nothing."""
        if not len(voxels):
            return []
        places = [axis.astype(np.int32) for axis in np.unravel_index(voxels, self.shape)]
        low, high = [int(axis.min()) for axis in places], [int(axis.max()) for axis in places]
        overlaps = []
        for owner in self if owners is None else owners:
            if not len(owner.voxels):
                continue
            first, last = owner.voxels.bounds(self.shape)
            if any(a > d or b < c for a, b, c, d in zip(first, last, low, high, strict=True)):
                continue
            begin, end = np.searchsorted(places[0], (first[0], last[0] + 1))  # k ascends with the voxels
            near = np.arange(begin, end)
            for axis in (1, 2):
                if first[axis] > low[axis] or last[axis] < high[axis]:
                    there = places[axis][near]
                    near = near[(there >= first[axis]) & (there <= last[axis])]
            overlap = _overlap(owner, voxels, near)
            if overlap is not None:
                overlaps.append(overlap)
        return overlaps


class FormerOwners:
    """Owners of earlier moments, by segment, plane and moment, for undo and redo. When there are too many, the oldest
    are forgotten: a mask that comes back after that is a new one."""

    def __init__(self, most: int = 1_000_000):
        """`most` is how many runs of voxels are kept: some 40 bytes each."""
        self._most = most
        self._count = 0
        self._owners: dict[tuple[str, str, int], Owner] = {}

    def take(self, segment: str, plane: str, since: int) -> Owner | None:
        """Remove and return an owner; None without one."""
        owner = self._owners.get((segment, plane, since))
        self._drop((segment, plane, since))
        return owner

    def put(self, owner: Owner) -> None:
        """Keep an owner that has a moment, in place of another one of the same moment; it releases its voxels."""
        owner.release()
        if not owner.since:
            return
        self._drop((owner.segment, owner.plane, owner.since))
        self._owners[owner.segment, owner.plane, owner.since] = owner
        self._count += owner.voxels.runs
        while self._count > self._most:
            self._drop(next(iter(self._owners)))

    def forget(self, segment: str, plane: str | None = None) -> None:
        """Forget all owners of a segment, or of one of its planes."""
        for key in [key for key in self._owners if key[0] == segment and plane in (None, key[1])]:
            self._drop(key)

    def _drop(self, key: tuple[str, str, int]) -> None:
        owner = self._owners.pop(key, None)
        if owner is not None:
            self._count -= owner.voxels.runs


def write_new(
    owner: Owner,
    voxels: np.ndarray,
    at: np.ndarray,
    weak: np.ndarray,
    takes: dict[str, np.ndarray],
    members: Membership,
) -> None:
    """Decide what a new owner has, and write it over all others.

    Args:
        owner: the new owner.
        voxels: the voxels under work, ascending.
        at: positions in `voxels` of those that the owner gets.
        weak: bool, as `at`: those that masking forbids and the segment has already.
        takes: bool, as `at`, by segment: those that it takes from the segment.
        members: the segments of `voxels`, changed in place.
    """
    owner.voxels = Runs.of(voxels[at])
    owner.weak = Runs.of(voxels[at[weak]]) if weak.any() else _NONE
    owner.takes = {segment: Runs.of(voxels[at[taken]]) for segment, taken in takes.items() if taken.any()}
    nothing = np.zeros(len(at), bool)
    _write_one(_Overlap(owner, at, voxels[at], nothing, nothing, weak, takes, {}), members)


def _overlap(owner: Owner, voxels: np.ndarray, near: np.ndarray) -> _Overlap | None:
    """`near` are the positions of those voxels that may be the owner's."""
    at = near[owner.voxels.find(voxels[near])[0]]
    if not len(at):
        return None
    own = voxels[at]
    held = _has(owner.held, own, len(owner.voxels))
    added = _has(owner.added, own, len(owner.voxels))
    takes, took = ({segment: runs.has(own) for segment, runs in part.items()} for part in (owner.takes, owner.took))
    return _Overlap(owner, at, own, held, added, owner.weak.has(own), takes, took)


def _has(runs: Runs, voxels: np.ndarray, count: int) -> np.ndarray:
    """`runs.has(voxels)`, quickly when `runs` are all `count` voxels of the owner."""
    return np.ones(len(voxels), bool) if len(runs) == count else runs.has(voxels)


def _changed_by_others(overlaps: list[_Overlap], members: Membership, count: int) -> np.ndarray:
    """bool (N,): voxels that are no longer in the segments to which the owners wrote them."""
    foreign = np.zeros(count, bool)
    settled: dict[str, np.ndarray] = {}

    def expect(segment: str, at: np.ndarray, inside: bool) -> None:
        known = settled.setdefault(segment, np.zeros(count, bool))
        open_ones = at[~known[at]]
        if segment in members.segments:  # owners of a removed segment stay, to give back what it took
            foreign[open_ones[members[segment][open_ones] != inside]] = True
        known[open_ones] = True

    for overlap in reversed(overlaps):
        expect(overlap.owner.segment, overlap.at[overlap.held], True)
        for segment, lost in overlap.took.items():
            expect(segment, overlap.at[lost], False)
    return foreign


def _without(overlap: _Overlap, gone: np.ndarray) -> _Overlap:
    """The overlap, and its owner, without those held voxels that are `gone` (bool over the voxels under work)."""
    leaving = gone[overlap.at] & overlap.held
    if not leaving.any():
        return overlap
    owner, left = overlap.owner, overlap.voxels[leaving]
    for name in ("voxels", "held", "added", "weak"):
        setattr(owner, name, _minus(getattr(owner, name), left))
    for name in ("takes", "took"):
        fewer = {segment: _minus(runs, left) for segment, runs in getattr(owner, name).items()}
        setattr(owner, name, {segment: runs for segment, runs in fewer.items() if len(runs)})
    keep = ~leaving
    takes, took = ({segment: flags[keep] for segment, flags in part.items()} for part in (overlap.takes, overlap.took))
    parts = (part[keep] for part in (overlap.at, overlap.voxels, overlap.held, overlap.added, overlap.weak))
    return _Overlap(owner, *parts, takes, took)


def _write_one(overlap: _Overlap, members: Membership) -> None:
    """Write an owner into what `members` holds. A voxel that another segment has by now, which the owner may neither
    take from it nor share, stays the other's: the user has drawn it since."""
    owner, at = overlap.owner, overlap.at
    held = np.zeros(len(at), bool)
    if owner.segment in members.segments:  # else it is gone: there is nothing to write
        own = members[owner.segment]
        held[:] = True
        for segment in members.segments:
            if not owner.may_lie_over(segment):
                theirs = members[segment][at]
                if segment in overlap.takes:
                    theirs &= ~overlap.takes[segment]
                held &= ~theirs
        held |= own[at]
        added = held & ~own[at]
        own[at[held]] = True
    else:
        added = held
    owner.held = _replaced(owner.held, overlap.voxels, overlap.held, held)
    owner.added = _replaced(owner.added, overlap.voxels, overlap.added, added)
    for segment in {*overlap.takes, *overlap.took}:
        none = np.zeros(len(at), bool)
        lost = none
        if segment in overlap.takes and segment in members.segments:
            other = members[segment]
            lost = other[at] & overlap.takes[segment] & held
            other[at[lost]] = False
        before = overlap.took.get(segment, none)
        if lost.any() or before.any():
            owner.took[segment] = _replaced(owner.took.get(segment, _NONE), overlap.voxels, before, lost)
            if not len(owner.took[segment]):
                del owner.took[segment]


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
