"""Who put which voxels into which segment: what lets a mask be taken back without a trace.

A claim is one segment's mask on one plane. What it may have is settled once, when it is made: the voxels it gets,
and which of them it takes from whom. Claims lie over what the segments held before, in the order in which they were
made, and each remembers what it changed, so that the segments without it can be worked out at any time: lift off all
claims down to the ground, and lay the others down again. Since neither what a claim may have nor its turn ever
changes, the same claims on the same ground are the same voxels, in whatever order they were put there: a claim that
is put back after an undo changes nobody else's. Knows no labelmap: membership is asked for and handed back as
boolean arrays.

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
class Claim:
    """What one segment's mask on one plane covers."""

    segment: str
    plane: str
    takes_from: frozenset[str] | None = frozenset()  # segments it may take voxels from; None is any
    keeps_off: frozenset[str] | None = frozenset()  # segments it may not lie over; None is any
    number: int = 0  # its turn among the claims
    since: int = 0  # moment and digest of its mask
    digest: str = ""
    wanted: int = 0  # voxels that the mask covers, whoever has them
    voxels: Runs = _NONE  # all of them, whoever was there first
    takes: dict[str, Runs] = field(default_factory=dict)  # segment -> voxels that it takes from it
    weak: Runs = _NONE  # those that masking forbids: covered only because the segment has them already
    # What it does at this moment, where others are in the way or gone:
    held: Runs = _NONE  # those of its voxels that it does cover
    added: Runs = _NONE  # of these, those that the segment did not have before
    took: dict[str, Runs] = field(default_factory=dict)  # segment -> voxels it lost

    def put_aside(self) -> None:
        """It does nothing any more, until it is laid down again."""
        self.held = self.added = _NONE
        self.took = {}

    def may_take_from(self, segment: str) -> bool:
        return segment != self.segment and (self.takes_from is None or segment in self.takes_from)

    def may_lie_over(self, segment: str) -> bool:
        """Whether both may have a voxel. Where it could have taken a voxel it has none beside the other."""
        kept_off = self.keeps_off is None or segment in self.keeps_off
        return segment == self.segment or not (kept_off or self.may_take_from(segment))

    def to_dict(self) -> dict:
        return {
            "segment": self.segment,
            "plane": self.plane,
            "takes_from": None if self.takes_from is None else sorted(self.takes_from),
            "keeps_off": None if self.keeps_off is None else sorted(self.keeps_off),
            "number": self.number,
            "since": self.since,
            "digest": self.digest,
            "wanted": self.wanted,
            "voxels": self.voxels.to_text(),
            "takes": _to_texts(self.takes),
            "weak": self.weak.to_text(),
            "held": self.held.to_text(),
            "added": self.added.to_text(),
            "took": _to_texts(self.took),
        }

    @classmethod
    def from_dict(cls, values: dict) -> Claim:
        """Raises ValueError, TypeError or KeyError on anything else than `to_dict` gives, now or formerly."""
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


def _to_texts(runs: dict[str, Runs]) -> dict[str, str]:
    return {segment: own.to_text() for segment, own in runs.items()}


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
class _Touch:
    """A claim on some of the voxels under work, in detail."""

    claim: Claim
    at: np.ndarray  # positions among the voxels under work
    voxels: np.ndarray
    held: np.ndarray  # bool, as are the following
    added: np.ndarray
    weak: np.ndarray
    takes: dict[str, np.ndarray]
    took: dict[str, np.ndarray]


class Ledger:
    """All claims on one segmentation, in their turn, in a grid of `shape` [k, j, i]."""

    def __init__(self, shape: tuple[int, int, int]):
        self.shape = shape
        self._claims: dict[tuple[str, str], Claim] = {}
        self._last = 0

    def __iter__(self) -> Iterator[Claim]:
        return iter(self._claims.values())

    def __len__(self) -> int:
        return len(self._claims)

    def get(self, segment: str, plane: str) -> Claim | None:
        return self._claims.get((segment, plane))

    def next_number(self) -> int:
        """The turn of a claim that is about to be made."""
        self._last += 1
        return self._last

    def add(self, claim: Claim) -> None:
        """In its turn."""
        self._claims.pop((claim.segment, claim.plane), None)
        last = next(reversed(self._claims.values())).number if self._claims else 0
        self._claims[claim.segment, claim.plane] = claim
        self._last = max(self._last, claim.number)
        if claim.number < last:
            self._claims = dict(sorted(self._claims.items(), key=lambda item: item[1].number))

    def drop(self, segment: str, plane: str) -> None:
        self._claims.pop((segment, plane), None)

    def notice(self, voxels: np.ndarray, members: Membership) -> list[_Touch]:
        """The claims on ascending `voxels`. Voxels that were changed by somebody else since a claim put them there are
        that somebody's from now on: no claim has them any longer."""
        touches = self._touches(voxels)
        foreign = _changed_by_others(touches, members, len(voxels))
        return [_without(touch, foreign) for touch in touches] if foreign.any() else touches

    def is_changed(self, voxels: np.ndarray, members: Membership) -> bool:
        """Whether any of ascending `voxels` is not in the segments in which the claims left it."""
        return bool(_changed_by_others(self._touches(voxels), members, len(voxels)).any())

    def lift(self, voxels: np.ndarray, members: Membership) -> list[_Touch]:
        """Take all claims off ascending `voxels`, after a look at what others changed there: `members` becomes what it
        is without any."""
        touches = self.notice(voxels, members)
        for touch in reversed(touches):
            members[touch.claim.segment][touch.at[touch.added]] = False
            for segment, lost in touch.took.items():
                members[segment][touch.at[lost]] = True
        return touches

    def lay_down(
        self, voxels: np.ndarray, lifted: list[_Touch], members: Membership, without: Claim | None, also: Claim | None
    ) -> None:
        """What was lifted off ascending `voxels`, apart from one claim, and another one that was put aside, each in
        its turn, on what `members` holds now, which becomes what it is with them."""
        touches = [touch for touch in lifted if touch.claim is not without]
        if also is not None:
            touches = sorted([*touches, *self._touches(voxels, [also])], key=lambda touch: touch.claim.number)
        for touch in touches:
            _lay_down(touch, members)

    def _touches(self, voxels: np.ndarray, claims: Iterable[Claim] | None = None) -> list[_Touch]:
        """The claims on any of the voxels. Most lie elsewhere: that must cost next to nothing."""
        if not len(voxels):
            return []
        places = [axis.astype(np.int32) for axis in np.unravel_index(voxels, self.shape)]
        low, high = [int(axis.min()) for axis in places], [int(axis.max()) for axis in places]
        touches = []
        for claim in self if claims is None else claims:
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


class Shelf:
    """Claims put aside, by segment, plane and moment. Of very many, those that lie there longest are forgotten: a mask
    that comes back later than that is a new one."""

    def __init__(self, most: int = 1_000_000):
        """`most` is how many runs of voxels are kept: some 40 bytes each."""
        self._most = most
        self._count = 0
        self._claims: dict[tuple[str, str, int], Claim] = {}

    def take(self, segment: str, plane: str, since: int) -> Claim | None:
        """The claim, which is not here any more; None without one."""
        claim = self._claims.get((segment, plane, since))
        self._drop((segment, plane, since))
        return claim

    def put(self, claim: Claim) -> None:
        """A claim that has a moment; another of the same one is forgotten."""
        claim.put_aside()
        if not claim.since:
            return
        self._drop((claim.segment, claim.plane, claim.since))
        self._claims[claim.segment, claim.plane, claim.since] = claim
        self._count += claim.voxels.runs
        while self._count > self._most:
            self._drop(next(iter(self._claims)))

    def forget(self, segment: str, plane: str | None = None) -> None:
        """All of a segment, or of one of its planes."""
        for key in [key for key in self._claims if key[0] == segment and plane in (None, key[1])]:
            self._drop(key)

    def _drop(self, key: tuple[str, str, int]) -> None:
        claim = self._claims.pop(key, None)
        if claim is not None:
            self._count -= claim.voxels.runs


def place(
    claim: Claim,
    voxels: np.ndarray,
    at: np.ndarray,
    weak: np.ndarray,
    takes: dict[str, np.ndarray],
    members: Membership,
) -> None:
    """Settle what a new claim has, and lay it over all others: `voxels[at]`, of which `weak` (bool, as `at`) are those
    that masking forbids, and `takes` (bool, as `at`) those that it takes from each segment."""
    claim.voxels = Runs.of(voxels[at])
    claim.weak = Runs.of(voxels[at[weak]]) if weak.any() else _NONE
    claim.takes = {segment: Runs.of(voxels[at[taken]]) for segment, taken in takes.items() if taken.any()}
    nothing = np.zeros(len(at), bool)
    _lay_down(_Touch(claim, at, voxels[at], nothing, nothing, weak, takes, {}), members)


def _touch(claim: Claim, voxels: np.ndarray, near: np.ndarray) -> _Touch | None:
    """`near` are the positions of those voxels that may be the claim's."""
    at = near[claim.voxels.find(voxels[near])[0]]
    if not len(at):
        return None
    own = voxels[at]
    held = _has(claim.held, own, len(claim.voxels))
    added = _has(claim.added, own, len(claim.voxels))
    takes, took = ({segment: runs.has(own) for segment, runs in part.items()} for part in (claim.takes, claim.took))
    return _Touch(claim, at, own, held, added, claim.weak.has(own), takes, took)


def _has(runs: Runs, voxels: np.ndarray, count: int) -> np.ndarray:
    """`runs.has(voxels)`, where they may be all of a claim's."""
    return np.ones(len(voxels), bool) if len(runs) == count else runs.has(voxels)


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
        expect(touch.claim.segment, touch.at[touch.held], True)
        for segment, lost in touch.took.items():
            expect(segment, touch.at[lost], False)
    return foreign


def _without(touch: _Touch, gone: np.ndarray) -> _Touch:
    """The touch, and its claim, without voxels that it holds and that are `gone` (bool over the voxels under work)."""
    leaving = gone[touch.at] & touch.held
    if not leaving.any():
        return touch
    claim, left = touch.claim, touch.voxels[leaving]
    for name in ("voxels", "held", "added", "weak"):
        setattr(claim, name, _minus(getattr(claim, name), left))
    for name in ("takes", "took"):
        fewer = {segment: _minus(runs, left) for segment, runs in getattr(claim, name).items()}
        setattr(claim, name, {segment: runs for segment, runs in fewer.items() if len(runs)})
    keep = ~leaving
    takes, took = ({segment: flags[keep] for segment, flags in part.items()} for part in (touch.takes, touch.took))
    return _Touch(claim, touch.at[keep], touch.voxels[keep], touch.held[keep], touch.added[keep], touch.weak[keep],
                  takes, took)  # fmt: skip


def _lay_down(touch: _Touch, members: Membership) -> None:
    """On what `members` holds. A voxel that somebody has by now whom the claim may neither take it from nor lie over
    is theirs: they drew it since."""
    claim, at = touch.claim, touch.at
    held = np.zeros(len(at), bool)
    if claim.segment in members.segments:  # else it is gone: nothing to lay down
        own = members[claim.segment]
        held[:] = True
        for segment in members.segments:
            if not claim.may_lie_over(segment):
                theirs = members[segment][at]
                if segment in touch.takes:
                    theirs &= ~touch.takes[segment]
                held &= ~theirs
        held |= own[at]
        added = held & ~own[at]
        own[at[held]] = True
    else:
        added = held
    claim.held = _replaced(claim.held, touch.voxels, touch.held, held)
    claim.added = _replaced(claim.added, touch.voxels, touch.added, added)
    for segment in {*touch.takes, *touch.took}:
        none = np.zeros(len(at), bool)
        lost = none
        if segment in touch.takes and segment in members.segments:
            other = members[segment]
            lost = other[at] & touch.takes[segment] & held
            other[at[lost]] = False
        before = touch.took.get(segment, none)
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
