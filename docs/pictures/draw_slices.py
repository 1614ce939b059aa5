"""Draws docs/pictures/slices.png: Slicer's slice views, rendered without a window, in the middle of the tutorial.

    python docs/pictures/draw_slices.py

Real nodes, views and masks of the bundled model; only the frame round each view is drawn by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[1] / "Testing")]

from mrml.scenes import SlicerScene, oriented_image_of  # noqa: E402

from SAMFineTuneLib.images import aligned_plane, body_phantom  # noqa: E402
from SAMFineTuneLib.inference.cache import EmbeddingCache  # noqa: E402
from SAMFineTuneLib.inference.engine import open_engine  # noqa: E402
from SAMFineTuneLib.inference.predictor import Predictor  # noqa: E402
from SAMFineTuneLib.inference.session import Session  # noqa: E402
from SAMFineTuneLib.models.store import Store  # noqa: E402
from SAMFineTuneLib.prompts import BoxPrompt, PointPrompt  # noqa: E402

VIEWS = (("Red", "Axial", "#f34a33"), ("Yellow", "Sagittal", "#edd54c"), ("Green", "Coronal", "#6eb04b"))
SIDE, BAR, GAP = 420, 22, 6  # pixels
ORGANS = {"liver": (0.87, 0.51, 0.36), "right kidney": (0.73, 0.40, 0.16), "spleen": (0.62, 0.43, 0.65)}


def main() -> None:
    """Segment the phantom, show it in three views, save the picture."""
    volume, labels, names = body_phantom()
    session = Session(volume, Predictor(open_engine(Store().get(), device="cpu"), EmbeddingCache()))
    prompts = {}
    for value, organ in enumerate(ORGANS, start=1):
        truth = labels == next(number for number, name in names.items() if name == organ)
        session.add_segment(organ, value)
        prompts[organ] = prompts_on(volume, truth, box=organ != "liver")
        for prompt in prompts[organ]:
            session.add_prompt(value, prompt)
        session.finish(session.propagate(value))
    slicer_scene = SlicerScene()
    try:
        picture = frame([draw(slicer_scene, volume, session.labelmap(), prompts, view) for view in VIEWS])
    finally:
        slicer_scene.close()
    picture.quantize(128, dither=Image.Dither.NONE).save(HERE / "slices.png", optimize=True)


def prompts_on(volume, truth: np.ndarray, box: bool) -> list:
    """What a user would place on the axial slice where an organ is largest: a box, or two points."""
    index = int(truth.sum(axis=(1, 2)).argmax())
    plane = aligned_plane(volume, "axial", index)
    rows, columns = truth[index].nonzero()
    if box:
        corners = plane.pixel_to_ras([(columns.min() - 1, rows.min() - 1), (columns.max() + 1, rows.max() + 1)])
        return [BoxPrompt(*map(tuple, corners))]
    middle = np.array([columns.mean(), rows.mean()])
    points = plane.pixel_to_ras([middle - (8, 10), middle + (10, 12)])
    return [PointPrompt(tuple(point)) for point in points]


def draw(slicer_scene, volume, labelmap, prompts, view) -> Image.Image:
    """One view, through the middle of the liver."""
    name, orientation, color = view
    fill_scene(slicer_scene, volume, labelmap, prompts)
    slice_view = slicer_scene.add_view(name, orientation, (SIDE, SIDE))
    slice_view.show(slicer_scene.scene.GetFirstNodeByName("phantom"))
    slice_view.node.SetFieldOfView(340, 340, 1)
    slice_view.node.UpdateMatrices()
    slice_view.go_to(prompts["liver"][0].ras)
    pixels = Image.fromarray(slice_view.pixels()[::-1])
    whole = Image.new("RGB", (SIDE, SIDE + BAR), color)
    whole.paste(pixels, (0, BAR))
    ImageDraw.Draw(whole).text((8, 3), name[0], fill="black", font=ImageFont.load_default(14))
    return whole


def fill_scene(slicer_scene, volume, labelmap, prompts) -> None:
    """The volume, its segments and its prompts as nodes, once."""
    if slicer_scene.scene.GetFirstNodeByName("phantom"):
        return
    node = slicer_scene.add_volume(volume, "phantom")
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(400, 40)
    segmentation = slicer_scene.add_segmentation(node, names=())
    for value, (organ, color) in enumerate(ORGANS.items(), start=1):
        image = oriented_image_of((labelmap == value).astype(np.uint8), volume.affine)
        segmentation.AddSegmentFromBinaryLabelmapRepresentation(image, organ, color)
        for prompt in prompts[organ]:
            add_markup(slicer_scene, organ, prompt)


def add_markup(slicer_scene, organ: str, prompt) -> None:
    """A prompt as the markup that stands for it."""
    if isinstance(prompt, PointPrompt):
        node = slicer_scene.add("vtkMRMLMarkupsFiducialNode", f"{organ}_positive")
        node.AddControlPoint(prompt.ras, "")
    else:
        node = slicer_scene.add("vtkMRMLMarkupsROINode", f"{organ}_box")
        corners = np.array([prompt.corner_a, prompt.corner_b])
        node.SetCenter(corners.mean(axis=0))
        node.SetSize(*np.maximum(np.abs(corners[1] - corners[0]), 3.0))
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetSelectedColor(0.3, 1.0, 0.3)
    node.GetDisplayNode().SetColor(0.3, 1.0, 0.3)


def frame(pictures: list[Image.Image]) -> Image.Image:
    """Side by side, as in Slicer's layouts."""
    whole = Image.new("RGB", (len(pictures) * (SIDE + GAP) - GAP, SIDE + BAR), "white")
    for column, picture in enumerate(pictures):
        whole.paste(picture, (column * (SIDE + GAP), 0))
    return whole


if __name__ == "__main__":
    main()
