"""The IoU to expect of an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import body_phantom
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.expected_iou import expected_iou, kind_of
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.spec import ModelSpec, read_model_folder, write_spec
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts

POINT = PlanePrompts(np.float32([[70, 80]]), np.ones(1, np.int64))
BOX = PlanePrompts(np.zeros((0, 2), np.float32), np.zeros(0, np.int64), box=np.float32([50, 60, 90, 100]))
SURE = np.full((8, 8), 5.0, np.float32)


def test_the_map_rises_with_all_that_speaks_for_an_answer():
    weights = {"box": (0.1, 1.0, 0.5, 0.4)}
    scores = [expected_iou(weights, "box", score, SURE, 0.8) for score in (0.2, 0.5, 0.9)]
    assert scores == sorted(scores) and 0 < scores[0] < scores[-1] < 1
    assert expected_iou(weights, "box", 0.5, SURE, 0.3) < expected_iou(weights, "box", 0.5, SURE, 0.9)
    unstable = np.full((8, 8), 0.5, np.float32)
    assert expected_iou(weights, "box", 0.5, unstable, 0.8) < expected_iou(weights, "box", 0.5, SURE, 0.8)
    assert expected_iou(weights, "point", 0.37, SURE, 0.8) == 0.37, "kinds without a map stay as they are"
    assert expected_iou({"box": (0.0, 1.0, 0.0, 0.0)}, "box", 0.37, SURE, 0.8) == pytest.approx(0.37)


def test_kinds_of_prompts():
    two = PlanePrompts(np.float32([[70, 80], [72, 80]]), np.ones(2, np.int64))
    assert [kind_of(one, False) for one in (POINT, BOX, two)] == ["point", "box", "clicks"]
    assert kind_of(replace(BOX, points=POINT.points, labels=POINT.labels), True) == "clicks"


WRONG = [{"box": [1, 2, 3]}, {"lasso": [0, 1, 0, 0]}, {"box": [0, -1, 0, 0]}, [1], {"box": 1}]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_calibration_is_a_sentence(wrong):
    with pytest.raises(UserError, match="calibration must hold four numbers"):
        ModelSpec("m", "M", "compact", calibration=wrong)


def test_a_calibration_is_stored_and_changes_what_is_said_but_no_mask(tmp_path):
    spec = replace(Store().get().spec, calibration={"point": (0.5, 0.9, 0.2, 0.1)})
    write_spec(spec, tmp_path)
    assert {kind: tuple(own) for kind, own in read_model_folder(tmp_path).spec.calibration.items()} == spec.calibration
    engine = open_engine(Store().get())
    picture = (body_phantom(shape=(8, 160, 160))[0].array[4] / 4 + 64).clip(0, 255).astype(np.uint8)
    answers = []
    for calibration in ({}, spec.calibration):
        engine.spec = replace(engine.spec, calibration=calibration)
        answers.append(Predictor(engine).predict(picture, POINT))
    plain, told = answers
    assert np.array_equal(plain.mask, told.mask) and plain.score == told.score
    assert plain.expected_iou == plain.score != told.expected_iou
