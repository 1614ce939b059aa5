"""Accuracy of a model on the annotated images in `shared/data`, through the predictor as users meet it.

    python Testing/benchmarks/real_images.py [--model ID] [--pictures FOLDER] [--clicks 8]
    python Testing/benchmarks/real_images.py --clicks 0 --model run/checkpoint.pt    of a pre-training that goes on

One tight box, or one centre point, per object, then clicks, each in the middle of the largest error; the mask with the
best predicted IoU; Dice in the slice's own pixels; mean with a 95 % bootstrap interval over objects. Then what a box
loses when it is shifted by a tenth of its sides, the mean over left, right, up and down. The CT is one patient: its
interval says nothing about other patients. Group "ct five" are the CT's structures that the aims name.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from SAMFineTuneLib.images import Volume, aligned_plane, choose_window, extract, overlay_picture, picture, read_volume
from SAMFineTuneLib.inference.engine import open_engine
from SAMFineTuneLib.inference.input_crop import bounding_box
from SAMFineTuneLib.inference.predictor import Predictor
from SAMFineTuneLib.models.spec import read_model_folder
from SAMFineTuneLib.models.store import Store
from SAMFineTuneLib.prompts import PlanePrompts

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="compact", help="a model of the store, a folder, or a checkpoint.pt")
    parser.add_argument("--pictures", type=Path, help="folder for an overlay picture per object and prompt")
    parser.add_argument("--clicks", type=int, default=3, help="corrections after the first answer (3)")
    parser.add_argument("--only", help="ct, prostate or hippocampus")
    arguments = parser.parse_args()
    predictor = predictor_of(arguments.model)
    none = np.zeros((0, 2), np.float32), np.zeros(0, np.int64)
    results: dict[tuple[str, str], list[list[float]]] = {}
    for objects in (ct_objects, prostate_objects, hippocampus_objects):
        for group, name, shown, reference in objects():
            if arguments.only not in (None, group):
                break
            point = centre(reference)
            prompts = {
                "box": PlanePrompts(*none, box=bounding_box(reference)),
                "point": PlanePrompts(point, np.ones(1, np.int64)),
            }
            line = f"{group:12s} {name:22s}"
            for kind, prompt in prompts.items():
                prediction = predictor.predict(shown, prompt)
                value = dice(prediction.mask, reference)
                after, given, answer = [value], prompt, prediction
                for _ in range(arguments.clicks):
                    given = corrected(given, answer.mask, reference)
                    answer = predictor.predict(shown, given, previous=answer)
                    after.append(dice(answer.mask, reference))
                for name_of_group in (group, "ct five") if name in CT_FIVE else (group,):
                    results.setdefault((name_of_group, kind), []).append(after)
                line += f"  {kind} {value:.3f} (predicted IoU {prediction.score:.2f}, view {prediction.view.rows})"
                if arguments.pictures:
                    overlay_picture(
                        arguments.pictures / f"{group}-{name.replace(' ', '-')}-{kind}.png", shown,
                        [(reference, (0.2, 0.9, 0.2)), (prediction.mask, (0.95, 0.3, 0.2))],
                        points=[(float(point[0, 0]), float(point[0, 1]), True)] if kind == "point" else [],
                        boxes=[bounding_box(reference)] if kind == "box" else [],
                    )  # fmt: skip
            boxes = shifted(prompts["box"].box)
            others = [predictor.predict(shown, PlanePrompts(*none, box=box)) for box in boxes]
            moved = float(np.mean([dice(other.mask, reference) for other in others]))
            for name_of_group in (group, "ct five") if name in CT_FIVE else (group,):
                results.setdefault((name_of_group, "box, shifted"), []).append([moved])
            print(f"{line}  box, shifted {moved:.3f}", flush=True)
    random = np.random.default_rng(0)
    print("\n| images | prompt | objects | Dice (95 % interval) | after 1, 2, … clicks |\n|---|---|---|---|---|")
    for (group, kind), values in results.items():
        first, *later = np.array(values).T
        low, high = np.percentile(random.choice(first, (2000, len(first))).mean(axis=1), [2.5, 97.5])
        clicks = ", ".join(f"{step.mean():.3f}" for step in later)
        print(f"| {group} | {kind} | {len(first)} | {first.mean():.3f} ({low:.3f}–{high:.3f}) | {clicks} |")


if __name__ == "__main__":
    main()
