"""What a model should be told about a lasso: Dice on real images, with the enclosed pixels added to every answer.

    python Testing/benchmarks/lasso_prompts.py [--only ct]

Lassos are drawn by the reference: its inner half, its left half, nearly all of it (90 % of its pixels), and loosely
round it. Corrections follow a click in the middle: the largest missing or wrong piece is enclosed.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict

import numpy as np
import SimpleITK as sitk
from real_images import centre, ct_objects, dice, hippocampus_objects, predictor_of, prostate_objects

from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.session.answers import combine

SMALLEST = 20  # pixels of an object


def largest(mask: np.ndarray) -> np.ndarray:
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8))))
    return sitk.GetArrayFromImage(pieces) == 1


def inner(mask: np.ndarray, share: float) -> np.ndarray:
    """The most interior pixels of a mask."""
    image = sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8))
    depth = -sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, True, False))[1:-1, 1:-1]
    return mask & (depth >= np.quantile(depth[mask], 1 - share))


def lassos(mask: np.ndarray) -> dict[str, np.ndarray]:
    left = mask.copy()
    left[:, int(np.median(np.nonzero(mask)[1])) :] = False
    reach = max(1, int(0.08 * np.sqrt(mask.sum())))
    loose = sitk.BinaryDilate(sitk.GetImageFromArray(mask.astype(np.uint8)), [reach, reach])
    return {
        "inner half": inner(mask, 0.5),
        "left half": left,
        "nearly all": inner(mask, 0.9),
        "loose": sitk.GetArrayFromImage(loose) > 0,
    }


def ways(lasso: np.ndarray) -> dict[str, PlanePrompts | None]:
    told = combine((PlanePrompts(region=lasso.astype(np.int8)),))
    rows, columns = np.nonzero(lasso)
    box = np.float32([columns.min(), rows.min(), columns.max(), rows.max()])
    return {
        "nothing": None,
        "points": PlanePrompts(told.points, told.labels),
        "box": PlanePrompts(box=box),
        "mask": PlanePrompts(mask=lasso),
        "mask and box": PlanePrompts(mask=lasso, box=box),
        "mask and points": told,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", help="ct, prostate or hippocampus")
    only = parser.parse_args().only
    predictor = predictor_of("compact")
    scores = defaultdict(list)
    every = itertools.chain(ct_objects(), prostate_objects(), itertools.islice(hippocampus_objects(), 20))
    for group, _, picture, reference in every:
        mask = largest(reference)
        if only not in (None, group) or mask.sum() < SMALLEST:
            continue
        for drawn, lasso in lassos(mask).items():
            for way, prompts in ways(lasso).items():
                found = lasso if prompts is None else lasso | predictor.predict(picture, prompts).mask
                scores[drawn, way, group].append(dice(found, reference))
        click = PlanePrompts(centre(mask), np.ones(1))
        first = predictor.predict(picture, click)
        for what, errors in (("missing", reference & ~first.mask), ("wrong", first.mask & ~reference)):
            piece = largest(errors)
            if piece.sum() < SMALLEST / 2:
                continue
            told, sign = combine((PlanePrompts(region=piece.astype(np.int8)),)), int(what == "missing")
            points = np.concatenate([click.points, told.points])
            both = PlanePrompts(points, np.append(click.labels, np.full(len(told.points), sign)))
            for way, answer in (("nothing", first), ("points", predictor.predict(picture, both, previous=first))):
                found = answer.mask | piece if sign else answer.mask & ~piece
                scores[f"then a {what} piece", way, group].append(dice(found, reference))
    groups = sorted({key[2] for key in scores})
    print(f"{'lasso':20} {'the model is told':17}", *(f"{group:>11}" for group in groups))
    for drawn, way in dict.fromkeys(key[:2] for key in scores):
        means = (f"{np.mean(scores[drawn, way, group]):11.3f}" for group in groups)
        print(f"{drawn:20} {way:17}", *means)


if __name__ == "__main__":
    main()
