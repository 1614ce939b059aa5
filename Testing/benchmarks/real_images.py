"""Accuracy of a model on the annotated images in `shared/data` and on hard phantoms, through the predictor as users
meet it.

    python Testing/benchmarks/real_images.py [--model ID] [--pictures FOLDER] [--clicks 8]
    python Testing/benchmarks/real_images.py --sets ct-all phantoms --clicks 0
    python Testing/benchmarks/real_images.py --clicks 0 --model run/checkpoint.pt    of a pre-training that goes on

One tight box, one centre point, or five points, per object, then clicks, each in the middle of the largest error; the
mask with the best predicted IoU; Dice in the slice's own pixels; mean with a 95 % bootstrap interval over objects. Then
what a box loses when it is shifted by a tenth of its sides, the mean over left, right, up and down. The CT is one
patient: its interval says nothing about other patients. Group "ct five" are the CT's structures that the aims name,
"ct-all" is the largest piece of each of its structures, where it is largest; "phantoms" are those of
`Testing/samples/hard_pictures.py`. The last column counts clicks that wreck an answer. At the end Dice by how much of
its box an object fills.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from SAMFineTuneLib.images import Volume, aligned_plane, choose_window, extract, overlay_picture, picture, read_volume
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.spec import read_model_folder
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts
from SAMFineTuneLib.simulation.cosmos_prompts import exact_prompts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "samples"))

from hard_pictures import hard_pictures  # noqa: E402

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CT_FIVE = ("spleen", "liver", "stomach", "aorta", "back muscle L", "back muscle R")
CT_ORGANS = {
    "spleen": 1, "right kidney": 2, "liver": 5, "stomach": 6, "aorta": 52, "vena cava": 63, "spinal cord": 79,
    "back muscle L": 86, "back muscle R": 87,
}  # fmt: skip


def ct_objects():
    """(group, name, picture, mask) of the CT's organs on its middle slice where the organ is there."""
    volume = read_volume(DATA / "ct-abdomen-dicom" / "series")
    window = choose_window(volume, None)
    labels = labels_on(volume, DATA / "ct-abdomen-dicom" / "segmentation.nii.gz")
    for name, value in CT_ORGANS.items():
        sizes = (labels == value).sum(axis=(1, 2))
        if sizes.max() < 30:
            continue
        k = int(np.argmin(np.abs(np.arange(len(sizes)) - len(sizes) // 2) + 1e6 * (sizes < 30)))
        plane = aligned_plane(volume, "axial", k)
        yield "ct", name, picture(volume, plane, window), reference_on(volume, labels == value, plane)


def ct_all_objects():
    """(group, name, picture, mask) of each structure of the CT: its largest piece on the slice where it is largest."""
    volume = read_volume(DATA / "ct-abdomen-dicom" / "series")
    window = choose_window(volume, None)
    labels = labels_on(volume, DATA / "ct-abdomen-dicom" / "segmentation.nii.gz")
    for value in np.unique(labels[labels > 0]):
        plane = aligned_plane(volume, "axial", int(np.argmax((labels == value).sum(axis=(1, 2)))))
        pieces, _ = ndimage.label(reference_on(volume, labels == value, plane), np.ones((3, 3)))
        mask = pieces == np.argmax(np.bincount(pieces[pieces > 0]))
        yield "ct-all", f"label {value}", picture(volume, plane, window), mask


def phantom_objects():
    for kind, name, shown, mask in hard_pictures():
        yield "phantoms", f"{kind}: {name}", shown, mask


def labels_on(volume, path: Path) -> np.ndarray:
    """Labels resampled (nearest) onto the volume's grid."""
    flip = np.diag([-1.0, -1.0, 1.0])
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    k, j, i = volume.array.shape
    grid = sitk.Image([i, j, k], sitk.sitkUInt8)
    grid.SetSpacing(spacing.tolist())
    grid.SetOrigin((flip @ volume.affine[:3, 3]).tolist())
    grid.SetDirection((flip @ (volume.affine[:3, :3] / spacing)).ravel().tolist())
    labels = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(sitk.Resample(labels, grid, sitk.Transform(), sitk.sitkNearestNeighbor))


def reference_on(volume, mask: np.ndarray, plane) -> np.ndarray:
    return extract(Volume(mask.astype(np.uint8), volume.affine), plane) > 0.5


def prostate_objects():
    folder = DATA / "prostate-mri-5shot"
    for listing in ("train.csv", "val.csv"):
        with open(folder / listing, newline="") as file:
            for row in csv.reader(file):
                image, mask = (folder / cell.strip() for cell in row[:2])
                if not image.is_file():
                    continue
                volume, reference = read_volume(image), read_volume(mask)
                plane = aligned_plane(volume, "axial", 0)
                shown = picture(volume, plane, choose_window(volume, None))
                yield "prostate", image.stem, shown, reference_on(reference, reference.array > 0, plane)


def hippocampus_objects():
    folder = DATA / "hippocampus-mri"
    for path in sorted((folder / "images").iterdir()):
        volume, reference = read_volume(path), read_volume(folder / "labels" / path.name)
        plane = aligned_plane(volume, "axial", int(np.argmax((reference.array > 0).sum(axis=(1, 2)))))
        yield (
            "hippocampus", path.name.split(".")[0],
            picture(volume, plane, choose_window(volume, None)), reference_on(reference, reference.array > 0, plane),
        )  # fmt: skip


def centre(mask: np.ndarray) -> np.ndarray:
    """x, y of the most interior pixel."""
    distance = sitk.GetArrayFromImage(
        sitk.SignedMaurerDistanceMap(sitk.GetImageFromArray(np.pad(mask, 1).astype(np.uint8)), True, False)
    )[1:-1, 1:-1]
    row, column = np.unravel_index(np.argmax(distance), mask.shape)
    return np.float32([[column, row]])


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def corrected(prompts: PlanePrompts, mask: np.ndarray, reference: np.ndarray) -> PlanePrompts:
    """The prompts and one more point: in the middle of the largest piece of what is missing or too much."""
    missing, wrong = reference & ~mask, mask & ~reference
    errors = missing if missing.sum() >= wrong.sum() else wrong
    if not errors.any():
        errors = missing = reference
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.GetImageFromArray(errors.astype(np.uint8))))
    point = centre(sitk.GetArrayFromImage(pieces) == 1)
    labels = np.append(prompts.labels, int(errors is missing))
    return PlanePrompts(np.concatenate([prompts.points, point]), labels, box=prompts.box)


def shifted(box: np.ndarray) -> list[np.ndarray]:
    """The box moved by a tenth of its width or height to each side."""
    width, height = box[2:] - box[:2] + 1
    steps = ((-width / 10, 0), (width / 10, 0), (0, -height / 10), (0, height / 10))
    return [box + np.tile(np.float32(step), 2) for step in steps]


def predictor_of(model: str) -> Predictor:
    """A model of the store, a model's folder, or the averaged weights of a pre-training's checkpoint."""
    if Path(model).is_dir():
        return Predictor(open_engine(read_model_folder(Path(model))))
    if not model.endswith(".pt"):
        return Predictor(open_engine(Store().get(model)))
    import torch

    from SAMFineTuneLib.models.architectures.compact import build_compact
    from SAMFineTuneLib.training.evidence import NetworkEngine
    from SAMFineTuneLib.training.training_loop import load_training

    state = load_training(Path(model))["state"]
    network = build_compact({name[8:]: value for name, value in state.items() if name.startswith("average.")})
    engine = NetworkEngine(network.eval(), Store().get().spec, torch.device("cpu"))
    engine.digest = model
    return Predictor(engine)


SETS = {
    "ct": ct_objects, "prostate": prostate_objects, "hippocampus": hippocampus_objects, "ct-all": ct_all_objects,
    "phantoms": phantom_objects,
}  # fmt: skip
LOSS = 0.04
"""Dice that a click may cost before it counts as one that wrecks an answer."""
FILLS = (0.0, 0.35, 0.5, 0.75, 1.01)
"""Bounds between groups of objects, by the part of its box that an object fills."""


def groups_of(group: str, name: str) -> Iterator[str]:
    """The rows of the table that an object counts in."""
    yield group
    if group == "ct" and name in CT_FIVE:
        yield "ct five"
    if group == "phantoms":
        yield f"phantoms, {name.split(':')[0]}"


def answers_of(predictor: Predictor, shown: np.ndarray, reference: np.ndarray, clicks: int):
    """(kind, prompt, first prediction, Dice of it and after each click) of every prompt of an object."""
    none = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    prompts = {
        "box": PlanePrompts(*none, box=bounding_box(reference)),
        "point": PlanePrompts(centre(reference), np.ones(1, np.int64)),
        "five points": exact_prompts(reference, 5, 0, False),
    }
    for kind, prompt in prompts.items():
        prediction = predictor.predict(shown, prompt)
        after, given, answer = [dice(prediction.mask, reference)], prompt, prediction
        for _ in range(clicks if kind != "five points" else 0):
            given = corrected(given, answer.mask, reference)
            answer = predictor.predict(shown, given, previous=answer)
            after.append(dice(answer.mask, reference))
        yield kind, prompt, prediction, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="compact", help="a model of the store, a folder, or a checkpoint.pt")
    parser.add_argument("--pictures", type=Path, help="folder for an overlay picture per object and prompt")
    parser.add_argument("--clicks", type=int, default=3, help="corrections after the first answer (3)")
    parser.add_argument(
        "--sets", nargs="+", choices=SETS, default=["ct", "prostate", "hippocampus"], help="ct prostate hippocampus"
    )
    arguments = parser.parse_args()
    predictor = predictor_of(arguments.model)
    results: dict[tuple[str, str], list[list[float]]] = {}
    fills: list[tuple[float, float]] = []
    for group, name, shown, reference in (one for chosen in arguments.sets for one in SETS[chosen]()):
        box = bounding_box(reference)
        line = f"{group:12s} {name:22s}"
        for kind, prompt, prediction, after in answers_of(predictor, shown, reference, arguments.clicks):
            for row in groups_of(group, name):
                results.setdefault((row, kind), []).append(after)
            if kind == "box":
                fills.append((float(reference.sum() / np.prod(box[2:] - box[:2] + 1)), after[0]))
            line += f"  {kind} {after[0]:.3f} (predicted IoU {prediction.score:.2f}, view {prediction.view.rows})"
            if arguments.pictures:
                overlay_picture(
                    arguments.pictures / f"{group}-{name.replace(' ', '-').replace(':', '')}-{kind}.png", shown,
                    [(reference, (0.2, 0.9, 0.2)), (prediction.mask, (0.95, 0.3, 0.2))],
                    points=[(float(x), float(y), True) for x, y in prompt.points], boxes=[box] if kind == "box" else [],
                )  # fmt: skip
        if group in ("ct", "prostate", "hippocampus"):
            none = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
            others = [predictor.predict(shown, PlanePrompts(*none, box=moved)) for moved in shifted(box)]
            moved = float(np.mean([dice(other.mask, reference) for other in others]))
            for row in groups_of(group, name):
                results.setdefault((row, "box, shifted"), []).append([moved])
            line += f"  box, shifted {moved:.3f}"
        print(line, flush=True)
    random = np.random.default_rng(0)
    print(
        "\n| images | prompt | objects | Dice (95 % interval) | after 1, 2, … clicks | clicks that lose more than "
        f"{LOSS} |\n|---|---|---|---|---|---|"
    )
    for (group, kind), values in results.items():
        first, *later = np.array(values).T
        low, high = np.percentile(random.choice(first, (2000, len(first))).mean(axis=1), [2.5, 97.5])
        clicks = ", ".join(f"{step.mean():.3f}" for step in later)
        steps = np.diff(np.array(values), axis=1)
        lost = f"{(steps < -LOSS).sum()} of {steps.size} ({(steps < -LOSS).mean():.1%})" if steps.size else ""
        print(f"| {group} | {kind} | {len(first)} | {first.mean():.3f} ({low:.3f}–{high:.3f}) | {clicks} | {lost} |")
    print("\n| part of its box that an object fills | objects | Dice of the box |\n|---|---|---|")
    filled, values = np.array(fills).T
    for low, high in zip(FILLS, FILLS[1:], strict=False):
        own = values[(filled >= low) & (filled < high)]
        if len(own):
            print(f"| {low:g} to {min(high, 1):g} | {len(own)} | {own.mean():.3f} |")


if __name__ == "__main__":
    main()
