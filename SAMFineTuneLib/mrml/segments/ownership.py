"""Which mask owns which voxels of which segment, so that a mask can be removed without a trace.

An owner is one segment's mask on one plane. Its voxels are decided once, when the mask is new: those that it gets, and
which of them it takes from which segment. Owners lie over what the segments held before, in the order in which they
were made, and each records what it changed. The segments without them can therefore be worked out at any time:
`Owners.restore` takes all of them off, `Owners.write` puts others back. Neither what an owner may have nor its place in
the order ever changes, so the same owners over the same ground are the same voxels, in whatever order they are written:
a mask that comes back after an undo changes no other segment. This module does not use labelmaps: membership is read
and returned as boolean arrays.

Voxels are flat indices into one grid [k, j, i], ascending.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from SAMFineTuneLib.mrml.segments.voxel_runs import Runs

_NONE = Runs.of(np.empty(0, np.int64))


@dataclass(eq=False)
class OwnedMask:
    """One segment's mask on one plane, and the voxels that it owns. Flags are bool (N,), one for each of its voxels."""

    segment: str
    plane: str
    takes_from: frozenset[str] | None = frozenset()  # segments it may take voxels from; None is any
    keeps_off: frozenset[str] | None = frozenset()  # segments it may not lie over; None is any
    number: int = 0  # its place in the order
    since: int = 0  # moment and digest of its mask
    digest: str = ""
    wanted: int = 0  # voxels that the mask covers, whichever segment has them
    voxels: Runs = _NONE  # all of them, whichever mask was there first
    takes: dict[str, np.ndarray] = field(default_factory=dict)  # segment -> flags of those that it takes from it

    def __post_init__(self) -> None:
        self.release()

    def release(self) -> None:
        """Give up all voxels, until it is written again."""
        self.held = np.zeros(len(self.voxels), bool)  # flags of those that it covers now, with the others written
        self.added = self.held.copy()  # of these, flags of those that the segment did not have before
        self.took = {segment: self.held.copy() for segment in self.takes}  # flags of those that the segment lost
        self._stored: dict | None = None

    def may_take_from(self, segment: str) -> bool:
        """Whether the mask may take voxels of another segment."""
        return segment != self.segment and (self.takes_from is None or segment in self.takes_from)

    def may_lie_over(self, segment: str) -> bool:
        """Whether both may have the same voxel; not where it may take voxels from the other."""
        kept_off = self.keeps_off is None or segment in self.keeps_off
        return segment == self.segment or not (kept_off or self.may_take_from(segment))

    def set(self, flags: np.ndarray, at: np.ndarray, now: np.ndarray) -> None:
        """Change some flags of its voxels.

        Args:
            flags: one of its arrays.
            at: which of its voxels.
            now: what the flags become.
        """
        if (flags[at] != now).any():
            flags[at] = now
            self._stored = None

    def lose(self, at: np.ndarray) -> None:
        """Give up the voxels at these positions for good."""
        self.voxels = Runs.of(np.delete(self.voxels.voxels(), at))
        self.held, self.added = np.delete(self.held, at), np.delete(self.added, at)
        self.takes = {segment: np.delete(flags, at) for segment, flags in self.takes.items()}
        self.took = {segment: np.delete(flags, at) for segment, flags in self.took.items()}
        self._stored = None

    def to_dict(self) -> dict:
        """Plain values for JSON, cached until something changes, because all owners are stored often."""
        if self._stored is None:
            names = ("segment", "plane", "number", "since", "digest", "wanted")
            self._stored = {name: getattr(self, name) for name in names} | {
                "takes_from": None if self.takes_from is None else sorted(self.takes_from),
                "keeps_off": None if self.keeps_off is None else sorted(self.keeps_off),
                "voxels": self.voxels.to_text(),
                "takes": self._texts(self.takes),
                "held": self._text(self.held),
                "added": self._text(self.added),
                "took": self._texts(self.took),
                "weak": _NONE.to_text(),  # earlier versions need it
            }
        return self._stored

    @classmethod
    def from_dict(cls, values: dict) -> OwnedMask:
        """Raises ValueError, TypeError or KeyError for anything but a result of `to_dict`, of this or an earlier
        version.
        """
        takes_from = values["takes_from"]
        keeps_off = values.get("keeps_off", None if takes_from == [] else [])
        voxels = Runs.from_text(values["voxels"])

        def flags(text: str) -> np.ndarray:
            found = np.full(len(voxels), text == values["voxels"])
            if not found.all():
                found[voxels.find(Runs.from_text(text).voxels())[1]] = True
            return found

        owner = cls(
            str(values["segment"]),
            str(values["plane"]),
            None if takes_from is None else frozenset(map(str, takes_from)),
            None if keeps_off is None else frozenset(map(str, keeps_off)),
            int(values.get("number", 0)),
            int(values.get("since", 0)),
            str(values.get("digest", "")),
            int(values.get("wanted", 0)),
            voxels,
            {str(segment): flags(text) for segment, text in dict(values.get("takes", values["took"])).items()},
        )
        owner.held, owner.added = flags(values.get("held", values["voxels"])), flags(values["added"])
        owner.took |= {str(segment): flags(text) for segment, text in dict(values["took"]).items()}
        return owner

    def _text(self, flags: np.ndarray) -> str:
        return self.voxels.to_text() if flags.all() else Runs.of(self.voxels.voxels()[flags]).to_text()

    def _texts(self, parts: dict[str, np.ndarray]) -> dict[str, str]:
        return {segment: self._text(flags) for segment, flags in parts.items() if flags.any()}


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


class _Overlap(NamedTuple):
    """An owner that has some of the voxels that are about to change."""

    owner: OwnedMask
    at: np.ndarray  # positions of the common voxels among the voxels that are about to change
    own: np.ndarray  # positions of the same voxels among the owner's


class Owners:
    """The owners of one segmentation, oldest first, in a grid of `shape` [k, j, i].

    Owners that were replaced are kept, for undo and redo. When there are too many of them, the oldest are forgotten: a
    mask that comes back after that is a new one.
    """

    def __init__(self, shape: tuple[int, int, int], most: int = 30_000_000):
        """`most` is how many voxels of replaced owners are kept, some three bytes each."""
        self.shape = shape
        self._owners: dict[tuple[str, str], OwnedMask] = {}
        self._last = 0
        self._former: dict[tuple[str, str, int], OwnedMask] = {}
        self._most, self._former_count = most, 0

    def __iter__(self) -> Iterator[OwnedMask]:
        return iter(self._owners.values())

    def get(self, segment: str, plane: str) -> OwnedMask | None:
        """The owner of the voxels of a segment on a plane, None without one."""
        return self._owners.get((segment, plane))

    def next_number(self) -> int:
        """The place in the order of an owner that is about to be made."""
        self._last += 1
        return self._last

    def add(self, owner: OwnedMask) -> None:
        """Insert an owner at its place in the order."""
        self._owners.pop((owner.segment, owner.plane), None)
        last = next(reversed(self._owners.values())).number if self._owners else 0
        self._owners[owner.segment, owner.plane] = owner
        self._last = max(self._last, owner.number)
        if owner.number < last:
            self._owners = dict(sorted(self._owners.items(), key=lambda item: item[1].number))

    def put_aside(self, owner: OwnedMask) -> None:
        """Remove an owner, which releases its voxels. One that has a moment is kept."""
        self._owners.pop((owner.segment, owner.plane), None)
        owner.release()
        if owner.since:
            self.take_former(owner.segment, owner.plane, owner.since)
            self._former[owner.segment, owner.plane, owner.since] = owner
            self._former_count += len(owner.voxels)
            while self._former_count > self._most:
                self.take_former(*next(iter(self._former)))

    def take_former(self, segment: str, plane: str, since: int) -> OwnedMask | None:
        """Remove a replaced owner from those that are kept, and return it.

        Args:
            segment: of the owner.
            plane: key of its plane.
            since: the moment when it was replaced.

        Returns:
            The owner, None without one.
        """
        owner = self._former.pop((segment, plane, since), None)
        self._former_count -= 0 if owner is None else len(owner.voxels)
        return owner

    def forget(self, segment: str, plane: str | None = None) -> None:
        """Forget all owners of a segment, or of one of its planes, also replaced ones."""
        for key in [key for key in self._owners if key[0] == segment and plane in (None, key[1])]:
            del self._owners[key]
        for key in [key for key in self._former if key[0] == segment and plane in (None, key[1])]:
            self.take_former(*key)

    def notice(self, voxels: np.ndarray, members: Membership) -> list[_Overlap]:
        """The overlaps of ascending `voxels` with the owners. Voxels that were changed elsewhere since an owner wrote
        them now belong to the user, and to no owner.
        """
        overlaps = self._overlaps(voxels)
        foreign = _changed_by_others(overlaps, members, len(voxels))
        return [_without(overlap, foreign) for overlap in overlaps] if foreign.any() else overlaps

    def is_changed(self, voxels: np.ndarray, members: Membership) -> bool:
        """Whether any of ascending `voxels` is no longer in the segments to which the owners wrote it."""
        return bool(_changed_by_others(self._overlaps(voxels), members, len(voxels)).any())

    def restore(self, voxels: np.ndarray, members: Membership) -> list[_Overlap]:
        """Make `members` of ascending `voxels` what it is without any owner, after `notice`; returns the overlaps."""
        overlaps = self.notice(voxels, members)
        for owner, at, own in reversed(overlaps):
            members[owner.segment][at[owner.added[own]]] = False
            for segment, lost in owner.took.items():
                members[segment][at[lost[own]]] = True
        return overlaps

    def write(
        self,
        voxels: np.ndarray,
        overlaps: list[_Overlap],
        members: Membership,
        without: OwnedMask | None,
        also: OwnedMask | None,
    ) -> None:
        """Write the owners of restored `overlaps` again, apart from one, and `also` another one that had released its
        voxels, each at its place in the order, into what `members` of ascending `voxels` holds."""
        overlaps = [overlap for overlap in overlaps if overlap.owner is not without]
        if also is not None:
            overlaps = sorted([*overlaps, *self._overlaps(voxels, [also])], key=lambda overlap: overlap.owner.number)
        for overlap in overlaps:
            _write_one(overlap, members)

    def _overlaps(self, voxels: np.ndarray, owners: Iterable[OwnedMask] | None = None) -> list[_Overlap]:
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
            at, own = owner.voxels.find(voxels[near])
            if len(at):
                overlaps.append(_Overlap(owner, near[at], own))
        return overlaps


def write_new(
    owner: OwnedMask, voxels: np.ndarray, at: np.ndarray, takes: dict[str, np.ndarray], members: Membership
) -> None:
    """Decide which voxels a new owner gets, and write it over all others.

    Args:
        owner: the new owner.
        voxels: the voxels under work, ascending.
        at: positions in `voxels` of those that the owner gets.
        takes: bool, as `at`, by segment: those that it takes from the segment.
        members: the segments of `voxels`, changed in place.
    """
    owner.voxels = Runs.of(voxels[at])
    owner.takes = {segment: taken for segment, taken in takes.items() if taken.any()}
    owner.release()
    _write_one(_Overlap(owner, at, np.arange(len(at))), members)


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

    for owner, at, own in reversed(overlaps):
        expect(owner.segment, at[owner.held[own]], True)
        for segment, lost in owner.took.items():
            expect(segment, at[lost[own]], False)
    return foreign


def _without(overlap: _Overlap, gone: np.ndarray) -> _Overlap:
    """The overlap, and its owner, without those held voxels that are `gone` (bool over the voxels under work)."""
    owner, at, own = overlap
    leaving = gone[at] & owner.held[own]
    if not leaving.any():
        return overlap
    lost, kept = own[leaving], own[~leaving]
    owner.lose(lost)
    return _Overlap(owner, at[~leaving], kept - np.searchsorted(lost, kept))


def _write_one(overlap: _Overlap, members: Membership) -> None:
    """Write an owner into what `members` holds. A voxel that another segment has by now, which the owner may neither
    take from it nor share, stays the other's: the user has drawn it since."""
    owner, at, own = overlap
    held = added = np.zeros(len(at), bool)
    if owner.segment in members.segments:  # a segment that is gone needs no writing
        inside = members[owner.segment][at]
        held = np.ones(len(at), bool)
        for segment in members.segments:
            if not owner.may_lie_over(segment):
                theirs = members[segment][at]
                if segment in owner.takes:
                    theirs &= ~owner.takes[segment][own]
                held &= ~theirs
        held |= inside
        added = held & ~inside
        members[owner.segment][at[held]] = True
    owner.set(owner.held, own, held)
    owner.set(owner.added, own, added)
    for segment, takes in owner.takes.items():
        lost = np.zeros(len(at), bool)
        if segment in members.segments:
            lost = members[segment][at] & takes[own] & held
            members[segment][at[lost]] = False
        owner.set(owner.took[segment], own, lost)
