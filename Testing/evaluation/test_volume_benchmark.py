"""What the benchmark of volumes measures with: hard phantoms, contour interpolation, its file and its messages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hard_volumes import DIRECTIONS, KINDS, SLICES, hard_volume
from region_engine import region_predictor

from SAMFineTuneLib.cases.case_slices import learned_orientations

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def benchmarks_can_be_imported():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_phantoms_end_within_their_volume_and_are_the_same_again(number):
    kind, spacing, direction = list(KINDS)[number], list(SLICES)[number], list(DIRECTIONS)[number % 3]
    volume, mask = hard_volume(kind, spacing, direction, seed=7)
    assert learned_orientations(volume, {}) == (direction,) and max(volume.spacing) == pytest.approx(spacing)
    seen = np.flatnonzero(mask.any(axis=(1, 2)))
    assert len(seen) == SLICES[spacing] and 0 < seen[0] and seen[-1] < len(mask) - 1
    filling = np.mean([fills_of_its_box(mask[k]) for k in seen])
    assert filling < 0.45 or kind in ("ring", "branching vessel", "beside look-alikes")
    again, _ = hard_volume(kind, spacing, direction, seed=7)
    other, _ = hard_volume(kind, spacing, direction, seed=8)
    assert np.array_equal(volume.array, again.array) and not np.array_equal(volume.array, other.array)


def fills_of_its_box(mask: np.ndarray) -> float:
    rows, columns = np.nonzero(mask)
    return len(rows) / ((np.ptp(rows) + 1) * (np.ptp(columns) + 1))


def test_contours_are_filled_between_known_slices():
    from contour_interpolation import fill_between

    rows, columns = np.indices((40, 48))
    known = np.zeros((9, 40, 48), bool)
    known[0] = (rows - 20) ** 2 + (columns - 14) ** 2 <= 6**2
    known[8] = (rows - 20) ** 2 + (columns - 22) ** 2 <= 10**2
    filled = fill_between(known)
    assert np.array_equal(filled[[0, 8]], known[[0, 8]])
    areas = np.count_nonzero(filled, axis=(1, 2))
    assert (np.diff(areas) >= 0).all() and areas[4] == pytest.approx(np.pi * 8**2, rel=0.15)
    centres = [np.nonzero(one)[1].mean() for one in filled]
    assert (np.diff(centres) > -0.1).all() and centres[4] == pytest.approx(18, abs=1)


def test_contours_that_meet_nothing_end_halfway_and_a_fork_reaches_both_branches():
    from contour_interpolation import fill_between

    known = np.zeros((7, 30, 60), bool)
    known[0, 10:20, 2:12] = known[6, 10:20, 30:40] = True
    filled = fill_between(known)
    assert filled[1, :, :15].any() and not filled[5, :, :15].any()
    assert filled[5, :, 25:].any() and not filled[1, :, 25:].any()
    known[:] = False
    known[0, 10:20, 10:50] = known[4, 10:20, 8:18] = known[4, 10:20, 42:52] = True
    filled = fill_between(known)
    assert filled[2, 15, 12] and filled[2, 15, 46] and filled[:5].any(axis=(1, 2)).all()
    assert not fill_between(np.zeros((3, 5, 5), bool)).any()


def test_figures_are_kept_and_taken_up_again(tmp_path, monkeypatch, capsys):
    import volumes

    predictor = region_predictor()
    monkeypatch.setattr(volumes, "open_engine", lambda *_, **__: predictor.engine)
    monkeypatch.setattr(volumes, "hard_volumes", lambda: [("diagonal", *hard_volume("thin diagonal", 6.0, "axial", 1))])
    figures = tmp_path / "figures.json"

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["volumes.py", "--sets", "phantoms", "-o", str(figures), *words])
        return volumes.main()

    assert run("--boxes", "1") == 0
    calls = predictor.engine.decoder_calls
    assert run("--boxes", "1") == 0 and predictor.engine.decoder_calls == calls
    assert run("--boxes", "1,3") == 0 and predictor.engine.decoder_calls > calls
    found = json.loads(figures.read_text())
    assert set(found["structures"]["phantoms: diagonal"]["boxes"]) == {"1", "3"}
    contour = found["structures"]["phantoms: diagonal"]["contour"]["3"]["dice"]
    assert found["sets"]["phantoms"]["3 boxes, contour"][0] == contour
    assert "| phantoms | 1 | 10 |" in capsys.readouterr().out
    predictor.engine.digest = "another"
    assert run() == 2 and "holds the figures of another model" in capsys.readouterr().err
    assert run("--boxes", "0") == 2 and "whole numbers from 1" in capsys.readouterr().err
    monkeypatch.setattr(volumes, "DATA", tmp_path / "nowhere")
    assert run("--sets", "ct") == 2 and "The set ct is not on this computer" in capsys.readouterr().err
