"""How well the expected IoU of propagated slices finds those that need work.

    python Testing/benchmarks/propagation_confidence.py --sets ct,hippocampus,phantoms

Structures are those of `volumes.py`. Each has a tight box on its middle slice, propagated in both directions. A
propagated slice needs work when its Dice is below 0.8; told is the area under the ROC curve of finding these by a low
expected IoU, with a bootstrap interval over structures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
from cohort_confidence import Slices, area_under_curve
from volumes import MOST, SETS, Structure, structures

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.images import choose_window
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.open_predictor import open_predictor
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.propagation import propagate
from SAMFineTuneLib.inference.propagation_plan import PropagatedSlice, Seed
from SAMFineTuneLib.metrics.mask_metrics import dice
from SAMFineTuneLib.segmenter import Segmenter

_RESAMPLES = 1000


def propagated(predictor: Predictor, one: Structure) -> Slices | None:
    """Expected IoU and true Dice of the slices that one box reaches; None where it finds nothing."""
    segmenter = Segmenter(one.volume, predictor=predictor, tell=lambda _: None)
    own = one.own_slices
    for corners in one.boxes_on(int(own[len(own) // 2])):
        segmenter.box(*corners, space="ijk", orientation=one.orientation)
    session = segmenter.predict().session
    seeds = [Seed(plane, session.mask(value, plane)) for value, plane in segmenter.prompted_planes]
    seeds = [seed for seed in seeds if seed.mask.any()]
    if not seeds:
        return None
    labels = one.mask.astype(np.uint8)
    found = propagate(predictor, one.volume, choose_window(one.volume, None), seeds)
    pairs = [
        (part.score, dice(part.mask, extract_labels(labels, one.volume, part.plane) > 0))
        for part in found
        if isinstance(part, PropagatedSlice)
    ]
    return Slices(*np.array(pairs).T, alarms=0) if pairs else None


def measure(of_structures: Sequence[Slices]) -> str:
    """A line of the table."""
    rng = np.random.default_rng(0)
    count = len(of_structures)
    areas = [
        area_under_curve([of_structures[n] for n in rng.integers(0, count, count)]) for _ in range(_RESAMPLES)
    ]
    low, high = np.nanquantile(areas, (0.025, 0.975))
    true = np.concatenate([one.true for one in of_structures])
    needs = f"{np.count_nonzero(true < 0.8)} of {len(true)} slices need work"
    return f"{area_under_curve(list(of_structures)):.3f} ({low:.3f} to {high:.3f}), {needs}, {count} structures"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", default=",".join(SETS), help="as of volumes.py (default: all names)")
    parser.add_argument("--most", type=int, default=MOST, metavar="N", help=f"structures of each set (default {MOST})")
    parser.add_argument("--model", default="compact", help="a model's id or folder (default: the bundled one)")
    args = parser.parse_args()
    try:
        predictor = open_predictor(args.model, disk_cache=False)
        for name in args.sets.split(","):
            found = []
            for one in structures(name, args.most):
                found.append(propagated(predictor, one))
                print(f"{one.group}: {one.name}", file=sys.stderr)
            print(name, measure([one for one in found if one is not None]), sep=": ", flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
