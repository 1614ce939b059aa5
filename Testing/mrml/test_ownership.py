"""Who put which voxels where: the bookkeeping itself, against plain sets, without Slicer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.mrml.segments.ownership import Membership, OwnedMask, Owners, write_new
from SAMFineTuneLib.mrml.segments.voxel_runs import Runs, merged

SHAPE = (3, 4, 5)
SIZE = 60

voxel_sets = st.frozensets(st.integers(0, SIZE - 1))


def ascending(voxels) -> np.ndarray:
    return np.array(sorted(voxels), dtype=np.int64)


@given(voxel_sets, voxel_sets)
def test_runs_are_sets_of_voxels(one, other):
    runs = Runs.of(ascending(one))
    assert len(runs) == len(one) and runs.voxels().tolist() == sorted(one)
    at, here = runs.find(ascending(other))
    assert ascending(other)[at].tolist() == sorted(one & other)
    assert runs.voxels()[here].tolist() == sorted(one & other)
    assert merged(ascending(one), ascending(other)).tolist() == sorted(one | other)
    again = Runs.from_text(runs.to_text())
    assert again.voxels().tolist() == sorted(one)


@given(voxel_sets.filter(len))
def test_bounds_hold_every_voxel(voxels):
    runs = Runs.of(ascending(voxels))
    low, high = runs.bounds(SHAPE)
    places = np.stack(np.unravel_index(ascending(voxels), SHAPE))
    assert (places >= np.array(low)[:, None]).all() and (places <= np.array(high)[:, None]).all()
    assert runs.last() == max(voxels)


@pytest.mark.parametrize("text", ["", "?", "AAAA", Runs.of(np.array([3, 4])).to_text()[:-4]])
def test_damaged_runs_are_refused(text):
    with pytest.raises(ValueError):
        Runs.from_text(text)


class Voxels:
    """Three segments as sets of voxels, and owners on them."""

    def __init__(self, ground: dict[str, frozenset[int]]):
        self.now = {name: set(voxels) for name, voxels in ground.items()}
        self.owners = Owners(SHAPE)

    def put(self, place, owner: OwnedMask | None, wanted=None) -> None:
        """Put a owner in the place of another; it gets the `wanted` voxels when it is a new one."""
        old = self.owners.get(*place)
        parts = [set(wanted or ())] + [set(one.voxels.voxels().tolist()) for one in (old, owner) if one is not None]
        work = ascending(set().union(*parts))
        members = self._members(work)
        overlaps = self.owners.restore(work, members)
        self.owners.write(work, overlaps, members, old, owner if wanted is None else None)
        if old is not None and old is not owner:
            self.owners.put_aside(old)
        if owner is not None:
            if wanted is not None:
                self._settle(owner, ascending(wanted), work, members)
            self.owners.add(owner)
        for name, lost, gained in members.changed():
            self.now[name] -= set(work[lost].tolist())
            self.now[name] |= set(work[gained].tolist())

    def draw(self, brush: str, stroke) -> None:
        """Somebody draws over whatever is there, which is noticed later."""
        for name in "ABC":
            self.now[name] -= set(stroke)
        self.now[brush] |= set(stroke)
        self.owners.notice(ascending(stroke), self._members(ascending(stroke)))

    def _members(self, work) -> Membership:
        return Membership("ABC", lambda name: np.array([v in self.now[name] for v in work], bool), len(work))

    def new(self, place, way: str) -> OwnedMask:
        takes_from, keeps_off = {"takes": (None, frozenset()), "beside": (frozenset(), frozenset()),
                                 "protects": (frozenset(), None)}[way]  # fmt: skip
        return OwnedMask(*place, takes_from, keeps_off, self.owners.next_number())

    def _settle(self, owner, voxels, work, members) -> None:
        at = np.searchsorted(work, voxels)
        if owner.keeps_off is None:
            others = np.any([members[name][at] for name in "ABC" if name != owner.segment], axis=0)
            at = at[~others | members[owner.segment][at]]
        takes = {name: members[name][at].copy() for name in "ABC" if owner.may_take_from(name)}
        write_new(owner, work, at, takes, members)

    def seen(self) -> dict[str, frozenset[int]]:
        return {name: frozenset(voxels) for name, voxels in self.now.items()}


grounds = st.dictionaries(st.sampled_from("ABC"), voxel_sets, min_size=3, max_size=3)
ways = st.sampled_from(("takes", "beside", "protects"))


@settings(max_examples=300)
@given(
    grounds,
    st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, 2), st.one_of(st.none(), voxel_sets), ways), max_size=10),
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 999)), max_size=6),
)
def test_the_same_owners_over_the_same_ground_have_the_same_voxels(ground, steps, jumps):
    """Whichever they replace, in whatever order they are put back, and whatever each may take from the others."""
    voxels = Voxels(ground)
    moments = [({}, voxels.seen())]
    for segment, plane, wanted, way in steps:
        where, owners = (segment, str(plane)), dict(moments[-1][0])
        owner = None if wanted is None else voxels.new(where, way)
        voxels.put(where, owner, wanted)
        owners[where] = owner
        before, now = moments[-1][1], voxels.seen()
        changed = {name for name in "ABC" if before[name] != now[name]}
        assert changed <= {segment} or way == "takes" or moments[-1][0].get(where) is not None
        if changed - {segment}:
            replaced = moments[-1][0].get(where)
            assert way == "takes" or replaced.takes_from is None  # what it took is given back
        moments.append((owners, now))
    for index, seed in jumps:
        owners, seen = moments[index % len(moments)]
        places = sorted({*owners, *((owner.segment, owner.plane) for owner in voxels.owners)})
        for at in np.random.default_rng(seed).permutation(len(places)):
            voxels.put(places[at], owners.get(places[at]))
        assert voxels.seen() == seen
    for where in sorted((owner.segment, owner.plane) for owner in voxels.owners):
        voxels.put(where, None)
    assert voxels.seen() == {name: frozenset(ground[name]) for name in "ABC"}


@settings(max_examples=200)
@given(
    grounds,
    st.lists(
        st.tuples(
            st.sampled_from("ABC"), st.integers(0, 2), st.one_of(st.none(), voxel_sets), ways, st.sampled_from("ABC"),
            voxel_sets,
        ),
        max_size=8,
    ),
    st.integers(0, 999),
)  # fmt: skip
def test_what_is_drawn_in_between_is_never_lost(ground, steps, seed):
    """And then all owners are taken back in any order."""
    voxels = Voxels({name: frozenset() for name in ground})
    drawn: dict[int, str] = {}
    for segment, plane, wanted, way, brush, stroke in steps:
        way = "beside" if way == "takes" else way
        voxels.put((segment, str(plane)), None if wanted is None else voxels.new((segment, str(plane)), way), wanted)
        fresh = stroke - voxels.now[brush]  # what a segment has already is not changed by drawing it
        voxels.draw(brush, fresh)
        drawn |= dict.fromkeys(fresh, brush)
        assert all(voxel in voxels.now[name] for voxel, name in drawn.items())
    places = sorted((owner.segment, owner.plane) for owner in voxels.owners)
    for at in np.random.default_rng(seed).permutation(len(places)):
        voxels.put(places[at], None)
        assert all(voxel in voxels.now[name] for voxel, name in drawn.items())


def test_the_oldest_of_very_many_former_owners_are_forgotten():
    kept = Owners(SHAPE, most=3)
    owners = [OwnedMask("A", f"axial:{n}", since=1, voxels=Runs.of(np.array([2 * n]))) for n in range(5)]
    for owner in owners:
        kept.put_aside(owner)
    found = [kept.take_former("A", f"axial:{n}", 1) for n in range(5)]
    assert found == [None, None, *owners[2:]]
    assert kept.take_former("A", "axial:4", 1) is None  # it was taken
    kept.put_aside(OwnedMask("A", "axial:0"))  # without a moment it could not be asked for
    assert kept.take_former("A", "axial:0", 0) is None


def test_owners_survive_being_stored():
    voxels = np.arange(5, 30)
    takes = {"B": np.isin(voxels, [11, 13])}
    owner = OwnedMask("A", "axial:3", frozenset("BC"), None, 7, 12, "abc", 40, Runs.of(voxels), takes)
    owner.held, owner.added, owner.took = voxels < 20, voxels < 9, takes
    again = OwnedMask.from_dict(owner.to_dict())
    assert again.to_dict() == owner.to_dict() and again.takes_from == frozenset("BC") and again.keeps_off is None
    assert (again.number, again.since, again.digest, again.wanted) == (7, 12, "abc", 40)
    assert OwnedMask.from_dict(OwnedMask("A", "x", None).to_dict()).takes_from is None


def test_owners_of_an_earlier_version_are_read():
    """They knew neither turns nor moments, and what they took was what they might take."""
    voxels, took = Runs.of(np.arange(5, 9)).to_text(), Runs.of(np.array([6])).to_text()
    none = Runs.of(np.empty(0, np.int64)).to_text()
    old = {"segment": "A", "plane": "axial:3", "takes_from": None, "voxels": voxels, "added": voxels,
           "took": {"B": took}, "weak": none}  # fmt: skip
    owner = OwnedMask.from_dict(old)
    assert owner.held.tolist() == [True] * 4 and owner.since == 0
    assert owner.takes["B"].tolist() == owner.took["B"].tolist() == [False, True, False, False]
    assert owner.keeps_off == frozenset()
    assert OwnedMask.from_dict(old | {"takes_from": [], "took": {}}).keeps_off is None


def test_importing_the_layer_loads_neither_slicer_nor_vtk(root):
    files = (root / "SAMFineTuneLib" / "mrml").rglob("*.py")
    modules = sorted(".".join(file.relative_to(root).with_suffix("").parts) for file in files)
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module(name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'slicer', 'vtk', 'vtkmodules', 'SimpleITK'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
