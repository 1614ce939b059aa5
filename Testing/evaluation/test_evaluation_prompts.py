"""Prompts from masks: their places, that they depend on seed and case alone, and how they are moved."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from SAMFineTuneLib.evaluation.objects import Subject
from SAMFineTuneLib.simulation.corrections import correction
from SAMFineTuneLib.simulation.cosmos_prompts import PERTURBATIONS, STRATEGIES, perturbed, prompts_for


def disc(shape=(60, 80), centre=(25, 30), radius=10):
    rows, columns = np.indices(shape)
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2


@st.composite
def masks(draw):
    mask = draw(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=12)))
    mask[draw(st.integers(0, mask.shape[0] - 1)), draw(st.integers(0, mask.shape[1] - 1))] = True
    return mask


@given(masks(), st.sampled_from(sorted(STRATEGIES)))
def test_prompts_say_what_is_true(mask, strategy):
    prompts = prompts_for(strategy, mask)
    x, y = prompts.points.astype(int).T
    assert (mask[y, x] == (prompts.labels == 1)).all()
    assert len({tuple(point) for point in prompts.points.tolist()}) == len(prompts.points)
    if prompts.box is not None:
        x0, y0, x1, y1 = prompts.box.astype(int)
        assert mask[y0 : y1 + 1, x0 : x1 + 1].sum() == mask.sum()
        assert all(side.any() for side in (mask[y0], mask[y1], mask[:, x0], mask[:, x1]))


def test_each_strategy_on_a_disc():
    counts = {name: (int(p.labels.sum()), int((p.labels == 0).sum()), p.box is not None)
              for name in STRATEGIES for p in [prompts_for(name, disc())]}  # fmt: skip
    assert counts == {"S2": (1, 0, False), "S3": (5, 0, False), "S4": (5, 5, False), "S5": (0, 0, True),
                      "S6": (1, 0, True)}  # fmt: skip
    assert prompts_for("S2", disc()).points.tolist() == [[30, 25]]
    assert prompts_for("S5", disc()).box.tolist() == [20, 15, 40, 35]
    outside = prompts_for("S4", disc()).points[5:]
    assert (np.abs(outside - [30, 25]) <= 21).all()  # within the doubled box


def test_a_ring_gets_no_point_in_its_hole():
    ring = disc() & ~disc(radius=6)
    x, y = prompts_for("S2", ring).points[0].astype(int)
    assert ring[y, x]


@pytest.mark.parametrize("how", PERTURBATIONS, ids=str)
def test_a_prompt_moves_by_as_much_as_it_says(how):
    mask = disc()
    right = prompts_for(how.strategy, mask)
    for number in range(20):
        moved = perturbed(right, how, mask, np.random.default_rng(number))
        low, high = (bound * (0.21 if how.unit == "%" else 1) for bound in (how.low, how.high))  # 21 pixels wide
        if how.what == "point shift":
            assert (moved.points[1:] == right.points[1:]).all() and (moved.labels == right.labels).all()
            away = np.linalg.norm(moved.points[0] - right.points[0])
            assert low - 1e-3 <= away <= high + 1e-3 or 0 in moved.points[0]
        else:
            x0, y0, x1, y1 = moved.box
            assert 0 <= x0 < x1 <= 79 and 0 <= y0 < y1 <= 59
            if how.what == "box shift" and min(x0, y0) > 0:
                assert low - 1e-3 <= np.linalg.norm(moved.box[:2] - right.box[:2]) <= high + 1e-3
            if how.what == "box scale" and min(x0, y0) > 0:
                by = np.abs(moved.box - right.box)
                assert np.ptp(by) < 1e-3 and by[0] <= high + 1e-3 and (by[0] >= low - 1e-3 or by[0] > 9)


def test_draws_depend_on_seed_case_and_purpose_alone():
    def draws(seed, digest, *purpose):
        return Subject(SimpleNamespace(digest=digest)).random(seed, *purpose).random(4)

    first = draws(3, "case", "object", "way")
    draws(3, "another")
    assert (draws(3, "case", "object", "way") == first).all()
    for other in ((4, "case", "object", "way"), (3, "other", "object", "way"), (3, "case", "object")):
        assert not (draws(*other) == first).any()


def test_corrections_are_where_the_answer_is_wrong():
    reference, rng = disc(), np.random.default_rng(0)
    assert correction(reference, reference, "centre", rng) is None
    point, inside = correction(np.zeros_like(reference), reference, "centre", rng)
    assert inside and np.linalg.norm(point - [30, 25]) <= 1.5
    too_much = reference | disc(centre=(45, 60), radius=7)
    point, inside = correction(too_much, reference, "centre", rng)
    assert not inside and np.linalg.norm(point - [60, 45]) <= 1.5
    for _ in range(20):
        (x, y), inside = correction(too_much, reference, "random", rng)
        assert not inside and too_much[int(y), int(x)] and not reference[int(y), int(x)]
