"""Fits the map from predicted IoU to the IoU to expect on synthetic pictures, and checks it on the real images.

    python Testing/benchmarks/calibrated_iou.py --fit                  writes `calibration` into the model's model.json
    python Testing/benchmarks/calibrated_iou.py                        what the real images in `shared/data` say
    python Testing/benchmarks/calibrated_iou.py --fit --model FOLDER --pictures 400

Pictures are those of `samfinetune pretrain --synthetic`, with a seed that no training has. Each object gets a tight or
an inexact box, or a point, and then three clicks in the middle of the largest error. The weights of
`inference.expected_iou` are those of the least squared error of the IoU, none but the constant below 0.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from real_images import SETS, centre, corrected
from scipy.optimize import minimize
from scipy.stats import spearmanr

from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.expected_iou import evidence, kind_of
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.mask_shapes import overlap
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.spec import CALIBRATED_KINDS, read_model_folder, write_spec
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.session.doubts import LEAST_IOU

SEED = 20_000
CLICKS = 3
BINS = 10
PULL = 1e-3
"""Squared weights count as much of the squared error, so that evidence that says the same shares the weight."""


def synthetic(count: int):
    """(picture, mask) of each object."""
    from SAMFineTuneLib.training.synthetic_pictures import synthetic_pictures

    for batch in range(-(-count // 16)):
        drawn = synthetic_pictures((SEED, batch), 16, 2)
        for image, shape, masks in zip(drawn.image, drawn.shape, drawn.masks, strict=True):
            rows, columns = (int(side) for side in shape)
            for mask in masks[:, :rows, :columns].numpy():
                if mask.sum() >= 24:
                    yield image[:rows, :columns].numpy().astype(np.uint8), mask


def real(names: list[str]):
    for name in names:
        for _, _, shown, reference in SETS[name]():
            yield shown, reference


def sampled(predictor: Predictor, objects) -> dict[str, list[tuple]]:
    """By kind of prompt: evidence, predicted IoU, what the model says now, and the true IoU of each answer."""
    found: dict[str, list[tuple]] = {kind: [] for kind in CALIBRATED_KINDS}
    none = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    random = np.random.default_rng(SEED)
    for shown, mask in objects:
        box = bounding_box(mask)
        sides = np.tile(box[2:] - box[:2] + 1, 2)
        loose = box + random.choice((0, 1)) * random.uniform(-0.06, 0.1, 4) * sides * (-1, -1, 1, 1)
        loose = np.float32(np.clip(loose, 0, np.tile(np.array(mask.shape[::-1]) - 1, 2)))
        for first in (PlanePrompts(*none, box=loose), PlanePrompts(centre(mask), np.ones(1, np.int64))):
            given, answer = first, predictor.predict(shown, first)
            for click in range(CLICKS + 1):
                if click:
                    given = corrected(given, answer.mask, mask)
                    answer = predictor.predict(shown, given, previous=answer if answer.mask.any() else None)
                seen = evidence(answer.score, answer.low_res, answer.agreement)
                row = seen, answer.score, answer.expected_iou, overlap(answer.mask, mask)
                found[kind_of(given, click > 0)].append(row)
    return found


def fitted(rows: list[tuple]) -> list[float]:
    """Weights of the evidence."""
    seen, true = np.array([row[0] for row in rows]), np.array([row[3] for row in rows])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        said = 1 / (1 + np.exp(-seen @ weights))
        error = said - true
        pull = PULL * np.append(0, weights[1:])
        slope = 2 * ((error * said * (1 - said))[:, None] * seen).mean(axis=0) + 2 * pull
        return float((error**2).mean() + (pull * weights).sum()), slope

    bounds = [(None, None), (0, None), (0, None), (0, None)]
    best = minimize(loss, np.array([0.0, 1, 0, 0]), jac=True, bounds=bounds, method="L-BFGS-B")
    return [round(float(value), 4) for value in best.x]


def table(rows: dict[str, list[tuple]]) -> None:
    print("\n| prompt | answers | true IoU | | said | Spearman | calibration error | called doubtful, their IoU |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, own in rows.items():
        true = np.array([row[3] for row in own])
        for name, column in (("predicted", 1), ("expected", 2)):
            said = np.array([row[column] for row in own])
            low = said < LEAST_IOU
            doubtful = f"{low.mean():.0%}, {true[low].mean() if low.any() else np.nan:.2f}"
            print(
                f"| {kind} | {len(own)} | {true.mean():.3f} | {name} | {said.mean():.3f} | "
                f"{spearmanr(said, true).statistic:.2f} | {calibration_error(said, true):.3f} | {doubtful} |"
            )


def calibration_error(said: np.ndarray, true: np.ndarray) -> float:
    """Expected calibration error: mean difference in bins of what is said, weighted by their answers."""
    bins = np.minimum((said * BINS).astype(int), BINS - 1)
    parts = [(bins == number) for number in range(BINS)]
    return float(sum(part.mean() * abs(said[part].mean() - true[part].mean()) for part in parts if part.any()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a model's folder; default: the bundled model")
    parser.add_argument("--fit", action="store_true", help="write the weights into model.json")
    parser.add_argument("--pictures", type=int, default=128, help="synthetic pictures to fit on (128)")
    parser.add_argument("--sets", nargs="*", choices=SETS, default=["ct-all", "prostate", "hippocampus"])
    arguments = parser.parse_args()
    folder = read_model_folder(arguments.model) if arguments.model else Store().get()
    if arguments.fit:
        rows = sampled(Predictor(open_engine(folder)), synthetic(arguments.pictures))
        calibration = {kind: fitted(own) for kind, own in rows.items()}
        write_spec(replace(folder.spec, calibration=calibration), folder.path)
        print("calibration:", calibration)
        folder = read_model_folder(folder.path)
    if arguments.sets:
        table(sampled(Predictor(open_engine(folder)), real(arguments.sets)))


if __name__ == "__main__":
    main()
