"""What a prompt costs in 3-D: the first box of an object, a box near its end, and a click in between.

    python Testing/benchmarks/whole_object.py

The session and the bundled model on a phantom, without a window; processor seconds, and the share of the first box's.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from SAMFineTuneLib.images.phantom import body_phantom
from SAMFineTuneLib.inference.open_predictor import open_predictor
from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt
from SAMFineTuneLib.session.events import MaskChanged
from SAMFineTuneLib.session.session import Session

KINDS = ("first box", "box near the end", "click in between")


def measure(shape: tuple[int, int, int], seed: int) -> dict[str, list[tuple[float, int]]]:
    """(Processor seconds, masks sent) of each kind of prompt, for every organ."""
    volume, labels, names = body_phantom(seed=seed, shape=shape, spacing=(350 / shape[2], 350 / shape[1], 4.0))
    costs: dict[str, list[tuple[float, int]]] = {kind: [] for kind in KINDS}

    def ras(j: int, i: int, k: int) -> tuple[float, ...]:
        return tuple(volume.ijk_to_ras((i, j, k)))

    for value in names:
        places = [np.argwhere(plane == value) for plane in labels]
        slices = [k for k, found in enumerate(places) if len(found)]
        if len(slices) < 8:
            continue
        middle, end = slices[len(slices) // 2], slices[-2]
        between = (middle + end) // 2
        session = Session(volume, open_predictor(disk_cache=False))
        session.add_segment("organ")
        session.set_volumetric(True)
        told: list[MaskChanged] = []
        session.listen(lambda event, told=told: told.append(event) if isinstance(event, MaskChanged) else None)
        boxes = [BoxPrompt(ras(*places[k].min(0), k), ras(*places[k].max(0), k)) for k in (middle, end)]
        click = PointPrompt(ras(*places[between][len(places[between]) // 2], between))
        for kind, prompt in zip(KINDS, (*boxes, click), strict=True):
            told.clear()
            begun = time.process_time()
            session.add_prompt(1, prompt)
            while session.work():
                pass
            costs[kind].append((time.process_time() - begun, len(told)))
    return costs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="40,256,256", help="slices, rows, columns")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    costs = measure(tuple(map(int, args.shape.split(","))), args.seed)
    first = np.array([seconds for seconds, _ in costs[KINDS[0]]])
    for kind, measured in costs.items():
        seconds, told = np.array(measured).T
        shares = seconds / first
        print(
            f"{kind}: {np.median(seconds):.2f} s, {np.median(shares):.2f} of the first box ({shares.min():.2f} to "
            f"{shares.max():.2f}), {np.median(told):.0f} slices told, {len(seconds)} organs"
        )


if __name__ == "__main__":
    main()
