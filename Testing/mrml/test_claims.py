"""Who put which voxels where: the bookkeeping itself, against plain sets, without Slicer."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from SAMFineTuneLib.mrml.claims import Claim, Ledger, Membership, Runs, merged, place

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
    assert runs.has(ascending(other)).tolist() == [voxel in one for voxel in sorted(other)]
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


def reader(now: dict[str, set[int]], work: np.ndarray):
    return lambda name: np.array([voxel in now[name] for voxel in work], bool)


@settings(max_examples=200)
@given(
    st.dictionaries(st.sampled_from("ABC"), voxel_sets, min_size=3, max_size=3),
    st.lists(
        st.tuples(st.sampled_from("ABC"), st.integers(0, 3), st.one_of(st.none(), voxel_sets), st.booleans()),
        max_size=14,
    ),
)
def test_what_is_left_is_what_the_remaining_claims_make_of_the_ground(ground, steps):
    """Segments may overlap; a claim takes its voxels from all others, or from none. At any time the segments are
    the ground with the claims that remain laid over it in the order in which they were made."""
    now = {name: set(voxels) for name, voxels in ground.items()}
    ledger, model = Ledger(SHAPE), {}
    for segment, plane, voxels, takes in steps:
        old = ledger.get(segment, str(plane))
        wanted = set() if voxels is None else set(voxels)
        work = ascending(wanted | (set() if old is None else set(old.voxels.voxels().tolist())))
        members = Membership("ABC", reader(now, work), len(work))
        lifted = ledger.lift(work, members)
        lifted.lay_down(members, lambda name: (), old)
        ledger.drop(segment, str(plane))
        model.pop((segment, plane), None)
        if voxels is not None:
            claim = Claim(segment, str(plane), None if takes else frozenset())
            at = np.searchsorted(work, ascending(wanted))
            place(claim, work, at, np.zeros(len(at), bool), members)
            ledger.add(claim)
            model[segment, plane] = (wanted, takes)
        for name, lost, gained in members.changed():
            now[name] -= set(work[lost].tolist())
            now[name] |= set(work[gained].tolist())

        expected = {name: set(voxels) for name, voxels in ground.items()}
        for (owner, _), (held, taking) in model.items():
            for name in expected:
                if name != owner and taking:
                    expected[name] -= held
            expected[owner] |= held
        assert now == expected


def test_claims_survive_being_stored():
    claim = Claim("A", "axial:3", frozenset("BC"), Runs.of(np.arange(5, 30)), Runs.of(np.arange(7, 9)))
    claim.took["B"] = Runs.of(np.array([11, 13]))
    again = Claim.from_dict(claim.to_dict())
    assert again.to_dict() == claim.to_dict() and again.takes_from == frozenset("BC")
    assert Claim.from_dict(Claim("A", "x", None).to_dict()).takes_from is None


def test_importing_the_layer_loads_neither_slicer_nor_vtk(root):
    modules = sorted(path.stem for path in (root / "SAMFineTuneLib" / "mrml").glob("*.py") if path.stem != "__init__")
    code = (
        f"import importlib, sys\nfor name in {modules!r}:\n    importlib.import_module('SAMFineTuneLib.mrml.' + name)\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & {'slicer', 'vtk', 'vtkmodules', 'SimpleITK'}))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr
