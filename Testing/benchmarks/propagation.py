"""How far a mask can be carried: Dice per slice distance from one prompted slice, on the images in `shared/data`.

    python Testing/benchmarks/propagation.py [--model ID] [--settings min_overlap=0.4,mode=box ...] [--volumes 5]

The middle slice of each structure gets its tight box, its mask is propagated both ways; hippocampi start from their
reference mask, because they tell about the stop rule rather than about the box. A slice on which the structure is
there but nothing was returned counts as Dice 0; `all` is the Dice of the volume, with what was found too far out;
`over` is how many slices without the structure got a mask, `short` how many with it got none. The CT's organs run
through all its slices and are one patient's; the phantom's organs and the hippocampi (the first volumes of the
list, sagittal slices) end within theirs.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from real_images import CT_ORGANS, DATA, labels_on, reference_on

from SAMFineTuneLib.images import aligned_plane, body_phantom, choose_window, number_of_slices, picture, read_volume
from SAMFineTuneLib.images.slice_extraction import extract_labels
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.inference.propagation import PropagatedSlice, Seed, propagate
from SAMFineTuneLib.inference.settings import MODES, PropagationSettings
from SAMFineTuneLib.metrics.mask_metrics import dice
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts

DISTANCES = ((0, 0), (1, 2), (3, 5), (6, 99))


def read_settings(text: str) -> PropagationSettings:
    """`mode=box,min_overlap=0.3` as settings."""
    values = dict(item.split("=") for item in text.split(",") if item)
    kinds = {"mode": str, "direction": str, "keep": str, "first": int, "last": int}
    return PropagationSettings(**{name: kinds.get(name, float)(value) for name, value in values.items()})


def cases(volumes: int):
    """(group, name, volume, planes, reference mask of each plane)"""
    volume, labels, names = body_phantom()
    planes = [aligned_plane(volume, "axial", k) for k in range(number_of_slices(volume, "axial"))]
    for value, name in names.items():
        yield "phantom", name, volume, planes, [extract_labels(labels, volume, plane) == value for plane in planes]
    volume = read_volume(DATA / "ct-abdomen-dicom" / "series")
    labels = labels_on(volume, DATA / "ct-abdomen-dicom" / "segmentation.nii.gz")
    planes = [aligned_plane(volume, "axial", k) for k in range(number_of_slices(volume, "axial"))]
    for name, value in CT_ORGANS.items():
        yield "CT", name, volume, planes, [reference_on(volume, labels == value, plane) for plane in planes]
    for path in sorted((DATA / "hippocampus-mri" / "images").iterdir())[:volumes]:
        volume = read_volume(path)
        labels = labels_on(volume, DATA / "hippocampus-mri" / "labels" / path.name)
        planes = [aligned_plane(volume, "sagittal", k) for k in range(number_of_slices(volume, "sagittal"))]
        masks = [reference_on(volume, labels > 0, plane) for plane in planes]
        yield "hippocampi", path.name.split(".")[0], volume, planes, masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--settings", nargs="*", default=["", *(f"mode={mode}" for mode in MODES)])
    parser.add_argument("--volumes", type=int, default=5, help="how many hippocampi")
    parser.add_argument("--brief", action="store_true", help="means only")
    options = parser.parse_args()
    predictor = Predictor(open_engine(Store().get(options.model)))
    all_cases = [case for case in cases(options.volumes) if max(mask.sum() for mask in case[4]) >= 30]
    titles = [f"{low}" if low == high else f"{low}-{high}" for low, high in DISTANCES]
    print(f"{'':18}" + "".join(f"{title:>8}" for title in titles) + "     all  over short seconds")
    for text in options.settings:
        print(text or "defaults")
        rows: dict[str, list] = {}
        for group, name, volume, planes, truth in all_cases:
            row = measure(predictor, volume, planes, truth, read_settings(text), from_box=group != "hippocampi")
            rows.setdefault(group, []).append(row)
            if not options.brief:
                print(as_text(name, row))
        for group, found in rows.items():
            print(as_text(f"= {group}", np.nanmean(found, axis=0)))


def measure(predictor, volume, planes, truth, settings, from_box: bool) -> list[float]:
    """Dice by distance, Dice of the volume, slices too many, slices too few, seconds."""
    window = choose_window(volume, None)
    there = [k for k, mask in enumerate(truth) if mask.any()]
    large = [k for k in there if truth[k].sum() >= 30]
    start = large[len(large) // 2]
    begin = time.perf_counter()
    masks = {start: truth[start]}
    if from_box:
        box = PlanePrompts(box=bounding_box(truth[start]))
        masks[start] = predictor.predict(picture(volume, planes[start], window), box).mask
    for item in propagate(predictor, volume, window, [Seed(planes[start], masks[start])], settings):
        if isinstance(item, PropagatedSlice):
            masks[item.plane.index] = item.mask
    seconds = time.perf_counter() - begin
    nothing = np.zeros(planes[0].shape, bool)
    scores = {k: dice(masks.get(k, nothing), truth[k]) for k in there}
    row = []
    for low, high in DISTANCES:
        part = [score for k, score in scores.items() if low <= abs(k - start) <= high]
        row.append(np.mean(part) if part else np.nan)
    found = np.stack([masks.get(k, nothing) for k in range(len(planes))])
    return [*row, dice(found, np.stack(truth)), len(set(masks) - set(there)), len(set(there) - set(masks)), seconds]


def as_text(name: str, row) -> str:
    *scores, over, short, seconds = row
    cells = "".join(" " * 8 if np.isnan(score) else f"{score:8.3f}" for score in scores)
    return f"  {name[:16]:16}{cells}{over:6.1f}{short:6.1f}{seconds:8.1f}"


if __name__ == "__main__":
    main()
